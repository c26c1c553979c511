"""obstore clients: timeouts, retries, and obstore's errors in one line.

The text of obstore's errors is never repeated: it holds responses, which may hold what they should not.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .aws import aws_settings
from .store import StorageError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore

CONNECT_TIMEOUT_S = 3.0
SLOWEST_UPLOAD = 256 * 1024
"""Bytes a second an upload is given time for."""


@dataclass(frozen=True)
class Patience:
    """How long one request is repeated, and how long it may wait for the next byte."""

    max_retries: int
    deadline_s: float
    stall_timeout_s: float = 60.0


FIRST = Patience(max_retries=5, deadline_s=8.0, stall_timeout_s=15.0)
"""Until a store has answered once: an unreachable endpoint is a mistake in the configuration, to be told soon."""

THEREAFTER = Patience(max_retries=10, deadline_s=120.0)
"""A store that did answer is having a bad minute, which must not cost a shard."""

PASSING_CODES = ("InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout", "OperationAborted")
"""Codes without a status that may be another answer in a moment."""

_process: int | None = None


def refuse_fork() -> None:
    """obstore's threads do not survive a fork: a child of a process that used them would wait for ever."""
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        raise StorageError("a forked process cannot use its parent's connections: start workers by spawn or forkserver")


def read_client(scheme: str, bucket: str, settings: Mapping[str, Any], patience: Patience) -> "ObjectStore":
    """A client for everything but uploads: no limit on the whole, one on each wait."""
    return _client(scheme, bucket, settings, patience, "365d", f"{patience.stall_timeout_s:.0f}s")


def upload_client(scheme: str, bucket: str, settings: Mapping[str, Any], size: int) -> "ObjectStore":
    """A client for uploads of up to `size` bytes, which never repeats one by itself.

    Only who repeats an upload can tell "already exists" from "my first try arrived". To obstore an upload is one
    wait for the response, so its limit grows with the size.
    """
    once = Patience(max_retries=0, deadline_s=0.0)
    limit = f"{once.stall_timeout_s + size / SLOWEST_UPLOAD:.0f}s"
    return _client(scheme, bucket, settings, once, limit, limit)


def _client(
    scheme: str, bucket: str, settings: Mapping[str, Any], patience: Patience, timeout: str, read_timeout: str
) -> "ObjectStore":
    from obstore.store import AzureStore, GCSStore, S3Store

    options = dict(settings)
    limits: ClientConfig = {
        "connect_timeout": f"{CONNECT_TIMEOUT_S:.0f}s",
        "timeout": timeout,
        "read_timeout": read_timeout,
    }
    classes: dict[str, type[S3Store | GCSStore | AzureStore]] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    try:
        return classes[scheme](
            bucket,
            client_options={**options.pop("client_options", {}), **limits},
            retry_config={
                "max_retries": patience.max_retries,
                "retry_timeout": timedelta(seconds=patience.deadline_s),
                "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=10), "base": 2},
            },
            **options,
        )
    except Exception as error:
        raise StorageError(
            f"cannot set up {scheme}://{bucket}: {type(error).__name__}; check its credentials and settings"
        ) from None


def resolve_settings(scheme: str, bucket: str, options: Mapping[str, str]) -> dict[str, Any]:
    """What a client needs besides the bucket's name: credentials, region, endpoint, certificates."""
    if scheme == "s3":
        return aws_settings(bucket, options)
    return {"skip_signature": True} if options.get("anonymous") else {}


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed in a moment, and obstore has not tried that already."""
    from obstore.exceptions import GenericError

    if not isinstance(error, GenericError | ConnectionError) or re.search(r"after [0-9]+ retries", str(error)):
        return False
    status, code = status_of(error), _code_of(error)
    if status is None and code:
        return code in PASSING_CODES
    return status is None or status >= 500 or status in (408, 409, 429)


def status_of(error: Exception) -> int | None:
    found = re.search(r"status code: ([0-9]{3})", str(error))
    return int(found[1]) if found else None


def _code_of(error: Exception) -> str | None:
    """S3's own word for it; deletions are refused one by one, in an answer with status 200."""
    found = re.search(r"<Code>([A-Za-z]{1,60})</Code>|\(code: ([A-Za-z]{1,60})\)", str(error))
    return found and (found[1] or found[2])


def explain(error: Exception, settings: Mapping[str, Any]) -> str:
    """What went wrong and what to do, in words of ours."""
    from obstore.exceptions import InvalidPathError, PermissionDeniedError, UnauthenticatedError

    text, status, code = str(error), status_of(error), _code_of(error)
    answer = " ".join(str(part) for part in (status, code) if part)
    endpoint = urlsplit(str(settings.get("endpoint", ""))).netloc or "the service"
    if isinstance(error, InvalidPathError):
        return "there is a key with an empty, '.' or '..' part or a control character; rename it or name another prefix"
    if code == "NoSuchBucket":
        return "no such bucket"
    if status == 301 or "redirect" in text or code == "AuthorizationHeaderMalformed":
        return "the bucket is in another region: add ?region=NAME"
    is_refused = status in (401, 403) or code == "AccessDenied"
    if is_refused or isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return f"access denied ({answer or 'no valid credentials'}); check the profile and its permissions"
    if answer:
        return f"{endpoint} answered {answer}"
    if "certificate" in text.lower():
        return f"the certificate of {endpoint} is not trusted; set AWS_CA_BUNDLE to its authority's PEM file"
    if "kind: Connect" in text:
        return f"cannot reach {endpoint}; check endpoint_url and the network"
    if "kind: Timeout" in text:
        return f"{endpoint} did not answer in time"
    return f"the connection to {endpoint} broke ({type(error).__name__})"
