"""A real HTTP server of chat completions on 127.0.0.1, which answers as a test plans.

Images are told apart by their grey: `grey_image(7)` is asked about as `Asked.grey == 7`.
"""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from reinforce.sample import Pixels

MODEL = "tiny-vlm"


def grey_image(grey: int, size: int = 32) -> Pixels:
    return np.full((size, size, 3), 3 * grey, np.uint8)


@dataclass(frozen=True)
class Answer:
    """`body` is bytes, or something to send as JSON. `drop`: the connection ends without an answer."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drop: bool = False


@dataclass(frozen=True)
class Asked:
    """A request for captions; `number` counts those of one image, from 0."""

    payload: dict[str, Any]
    image: Pixels
    number: int
    at_s: float

    @property
    def grey(self) -> int:
        return round(float(self.image.mean()) / 3)

    @property
    def num_choices(self) -> int:
        return int(self.payload.get("n", 1))

    def texts(self) -> list[str]:
        return [f"grey {self.grey}, seed {self.payload['seed'] + i}" for i in range(self.num_choices)]


def completion(texts: list[str | None]) -> Answer:
    return Answer(body={"choices": [{"index": i, "message": {"content": text}} for i, text in enumerate(texts)]})


def error(status: int, message: str, **headers: str) -> Answer:
    return Answer(status, {"error": {"message": message}}, headers)


class ChatServer:
    """`answer` says what is answered to whom; `models` what is served, None if the server does not tell."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.answer: Callable[[Asked], Answer] = lambda asked: completion([*asked.texts()])
        self.models: list[str] | None = [MODEL]
        self.asked: list[Asked] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.most_in_flight = self.num_in_flight = 0

    def receive(self, payload: dict[str, Any]) -> Answer:
        content = payload["messages"][0]["content"]
        data = base64.b64decode(content[0]["image_url"]["url"].partition(",")[2])
        image = np.asarray(Image.open(io.BytesIO(data)))
        with self.lock:
            grey = round(float(image.mean()) / 3)
            number = sum(before.grey == grey for before in self.asked)
            asked = Asked(payload, image, number, time.monotonic())
            self.asked.append(asked)
            self.num_in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
        answer = self.answer(asked)
        time.sleep(answer.delay_s)
        with self.lock:
            self.num_in_flight -= 1
        return answer


@contextmanager
def serve_chat() -> Iterator[tuple[ChatServer, str]]:
    """A server and its base URL."""
    chat = ChatServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept
        timeout = 5

        def do_GET(self) -> None:
            known = chat.models is not None and self.path.endswith("/v1/models")
            models = {"data": [{"id": name} for name in chat.models or ()]}
            self._send(Answer(body=models) if known else Answer(404, {"detail": "Not Found"}))

        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = self.path.endswith("/v1/chat/completions")
            self._send(chat.receive(payload) if known else Answer(404, {"detail": "Not Found"}))

        def _send(self, answer: Answer) -> None:
            chat.headers.append(dict(self.headers))
            chat.paths.append(self.path)
            if answer.drop:
                self.close_connection = True
                return
            body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            try:
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(body)), **answer.headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(body)
            except OSError:  # whoever asked has gone
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False  # kept connections would be waited for
        request_queue_size = 64

        def handle_error(self, *_: Any) -> None:
            pass  # a connection that was cut is what some tests are about; others see that no answer came

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield chat, f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
