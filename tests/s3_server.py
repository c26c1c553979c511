"""A real S3 server over HTTP on 127.0.0.1 (moto), and a proxy that misbehaves on demand, for tests.

    with serve_s3() as server:
        server.make_bucket("data")
        store = open_store(f"s3://data/prefix?endpoint_url={server.endpoint}")

with `use_test_credentials(monkeypatch)` before, so that nothing of the machine's own settings is used.

`FaultyProxy(server.endpoint)` stands between, records every request and plays faults in the order they were planned.
"""

import http.client
import logging
import re
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import pytest

ACCESS_KEY = "AKIATESTTESTTESTTEST"
SECRET_KEY = "thisIsTheSecretOfTheTests+/"

Fault = Literal[
    "reset",
    "reset_after",
    "error",
    "error_after",
    "conflict",
    "denied",
    "unavailable",
    "truncate",
    "shorten",
    "slow",
]
"""reset, error, conflict, denied, unavailable: instead of forwarding. reset_after, error_after: the server did it, the
client is not told. truncate: the connection ends in the middle of the body. shorten: half the body, as if that were
all. slow: forwarded after `slow_s` seconds."""

REFUSALS: dict[Fault | None, tuple[int, str]] = {
    "error": (500, "Fault"),
    "conflict": (409, "Fault"),
    "denied": (403, "AccessDenied"),
    "unavailable": (503, "SlowDown"),
}
"""Status and code of what is answered instead of forwarding."""


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    endpoint: str

    def client(self) -> Any:
        """A boto3 client, to look at the bucket from outside."""
        return _client(self.endpoint)

    def make_bucket(self, name: str) -> str:
        """Create a bucket; names have 3 characters or more."""
        self.client().create_bucket(Bucket=name)
        return name


@cache
def _client(endpoint: str) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )


@contextmanager
def serve_s3() -> Iterator[S3Server]:
    """Run a server on a free port. All servers of one process share their buckets."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield S3Server(f"http://{host}:{port}")
    finally:
        server.stop()


def use_test_credentials(monkeypatch: pytest.MonkeyPatch, endpoint: str | None = None) -> None:
    """Nothing of the machine's own AWS settings, and keys that a test can look for where they must not be."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent/config")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials")
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)


def make_certificate(folder: Path) -> tuple[Path, Path, Path]:
    """An authority, and what it signed for 127.0.0.1."""
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem",
        "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out request.pem",
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem",
    ):
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return folder / "ca.pem", folder / "cert.pem", folder / "key.pem"


@dataclass(frozen=True)
class Request:
    """What the proxy saw."""

    method: str
    path: str
    authorization: str
    bytes_sent: int
    status: int
    """0 where the connection was reset."""
    at: float = field(default_factory=time.monotonic)


@dataclass
class FaultyProxy:
    """An HTTP proxy in front of `upstream`. Planned faults hit the next requests of their method, once each.

    With a certificate and its key it speaks HTTPS. Without some headers the server does not see what they ask for.
    """

    upstream: str
    certificate: Path | None = None
    key: Path | None = None
    drop_headers: tuple[str, ...] = ()
    slow_s: float = 1.0
    faults: list[tuple[str, Fault]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def plan(self, method: str, *faults: Fault) -> None:
        self.faults += [(method, fault) for fault in faults]

    def next_fault(self, method: str) -> Fault | None:
        for index, (planned, fault) in enumerate(self.faults):
            if planned == method:
                del self.faults[index]
                return fault
        return None

    @property
    def endpoint(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._server = _ProxyServer(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate, self.key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)  # leaves at once
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _ProxyServer(ThreadingHTTPServer):
    daemon_threads = True
    proxy: FaultyProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves early is none of the test's business."""


class _Handler(BaseHTTPRequestHandler):
    server: _ProxyServer

    def _handle(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self._answer(proxy.next_fault(self.command), body)
        sent = len(answer[2]) if answer else 0
        # Before it is sent: the test may look as soon as it has the answer.
        authorization, status = self.headers.get("Authorization", ""), answer[0] if answer else 0
        proxy.requests.append(Request(self.command, self.path, authorization, sent, status))
        if answer:
            self._send(*answer)
        else:
            self._reset()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _answer(self, fault: Fault | None, body: bytes) -> tuple[int, dict[str, str], bytes] | None:
        """Status, headers and body; None to reset the connection."""
        if fault == "reset":
            return None
        if fault == "denied" and self.command == "POST" and urlsplit(self.path).query.startswith("delete"):
            # S3 says no to each object, in an answer that is itself a success.
            named = re.findall(r"<Key>.*?</Key>", body.decode())
            denied = "".join(f"<Error>{key}<Code>AccessDenied</Code><Message>No</Message></Error>" for key in named)
            return 200, {}, f"<DeleteResult>{denied}</DeleteResult>".encode()
        if fault in REFUSALS:
            status, code = REFUSALS[fault]
            return status, {}, f"<Error><Code>{code}</Code></Error>".encode()
        if fault == "slow":
            time.sleep(self.server.proxy.slow_s)
        status, headers, content = self._forward(body)
        if fault == "reset_after":
            return None
        if fault == "error_after":
            return 500, {}, b"<Error><Code>Fault</Code></Error>"
        if fault in ("truncate", "shorten"):
            content = content[: len(content) // 2]
        if fault == "shorten":
            headers["Content-Length"] = str(len(content))
        return status, headers, content

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        proxy = self.server.proxy
        dropped = {name.lower() for name in proxy.drop_headers}
        sent = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        connection = http.client.HTTPConnection(urlsplit(proxy.upstream).netloc, timeout=30)
        try:
            connection.request(self.command, self.path, body, sent)
            response = connection.getresponse()
            headers = {k: v for k, v in response.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
            return response.status, headers, response.read()
        finally:
            connection.close()

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def _reset(self) -> None:
        # Linger 0: closing sends a reset instead of an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""
