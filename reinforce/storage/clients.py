"""obstore clients: timeouts, retries, credentials, and obstore's errors in one line.

S3 settings and credentials come from botocore, so environment variables, profiles, ~/.aws/config with its
`endpoint_url` and `services` sections, SSO and instance roles all mean what they mean to the AWS command line.
The text of obstore's errors is never repeated: it holds responses, which may hold what they should not.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .store import StorageError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, S3Credential

CONNECT_TIMEOUT_S = 3.0
SLOWEST_UPLOAD = 256 * 1024
"""Bytes a second an upload is given time for."""

CREDENTIAL_LIFE = timedelta(minutes=10)
"""obstore asks again 5 minutes before the end of it; botocore renews in time for that."""


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
        return _resolve_aws(bucket, options)
    return {"skip_signature": True} if options.get("anonymous") else {}


def _resolve_aws(bucket: str, options: Mapping[str, str]) -> dict[str, Any]:
    import botocore.exceptions
    import botocore.session

    profile = options.get("profile")
    try:
        session = botocore.session.Session(profile=profile)
        region = options.get("region") or os.environ.get("AWS_REGION") or session.get_config_variable("region")
        # botocore resolves endpoints only for a client; the keys merely keep it from looking for some.
        client = session.create_client(
            "s3",
            region_name=region or "us-east-1",
            endpoint_url=options.get("endpoint_url"),
            aws_access_key_id="unused",
            aws_secret_access_key="unused",
        )
        ca_bundle = session.get_config_variable("ca_bundle")
    except botocore.exceptions.ProfileNotFound as error:
        raise StorageError(f"{error}: check ~/.aws/config, AWS_PROFILE and AWS_CONFIG_FILE") from None
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise StorageError(f"cannot use the AWS configuration: {type(error).__name__}; check ~/.aws/config") from None
    endpoint = str(client.meta.endpoint_url).rstrip("/")
    has_virtual_host = (client.meta.config.s3 or {}).get("addressing_style") == "virtual"
    if has_virtual_host:
        endpoint = endpoint.replace("://", f"://{bucket}.", 1)
    settings: dict[str, Any] = {
        "region": client.meta.region_name,
        "virtual_hosted_style_request": has_virtual_host,
        # Both: AWS_ENDPOINT_URL_S3 in the environment would win over `endpoint` alone.
        "endpoint": endpoint,
        "aws_endpoint_url_s3": endpoint,
        "client_options": _tls_options(endpoint, ca_bundle),
    }
    if options.get("anonymous"):
        settings["skip_signature"] = True
    else:
        settings["credential_provider"] = _credential_provider(session, profile)
    return settings


def _tls_options(endpoint: str, ca_bundle: str | None) -> "ClientConfig":
    options: ClientConfig = {"allow_http": endpoint.startswith("http://")}
    if ca_bundle:
        try:
            options["root_certificate"] = Path(ca_bundle).expanduser().read_bytes()
        except OSError as error:
            raise StorageError(f"cannot read AWS_CA_BUNDLE {ca_bundle}: {error.strerror}", error.errno) from None
    return options


def _credential_provider(session: Any, profile: str | None) -> Callable[[], "S3Credential"]:
    who = f" for profile {profile}" if profile else ""
    try:
        credentials = session.get_credentials()
        if credentials is not None:
            credentials.get_frozen_credentials()
    except Exception as error:
        # The text may repeat what a credential process printed.
        raise StorageError(
            f"cannot get AWS credentials{who}: {type(error).__name__}; try `aws sts get-caller-identity`"
        ) from None
    if credentials is None:
        raise StorageError(
            f"no AWS credentials found{who}: set AWS_PROFILE, run `aws configure`, or add ?anonymous=true to the URI"
        )

    def provide() -> "S3Credential":
        frozen = credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + CREDENTIAL_LIFE,
        }

    return provide


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed in a moment, and obstore has not tried that already."""
    from obstore.exceptions import GenericError

    if not isinstance(error, GenericError | ConnectionError) or re.search(r"after [0-9]+ retries", str(error)):
        return False
    status = status_of(error)
    return status is None or status >= 500 or status in (408, 409, 429)


def status_of(error: Exception) -> int | None:
    found = re.search(r"status code: ([0-9]{3})", str(error))
    return int(found[1]) if found else None


def explain(error: Exception, settings: Mapping[str, Any]) -> str:
    """What went wrong and what to do, in words of ours."""
    from obstore.exceptions import InvalidPathError, PermissionDeniedError, UnauthenticatedError

    text, status = str(error), status_of(error)
    code = re.search(r"<Code>([A-Za-z]{1,60})</Code>", text)
    answer = f"{status or ''}{' ' if status and code else ''}{code[1] if code else ''}"
    endpoint = urlsplit(str(settings.get("endpoint", ""))).netloc or "the service"
    if isinstance(error, InvalidPathError):
        return "there is a key with an empty, '.' or '..' part or a control character; rename it or name another prefix"
    if code and code[1] == "NoSuchBucket":
        return "no such bucket"
    if status == 301 or "redirect" in text or (code and code[1] == "AuthorizationHeaderMalformed"):
        return "the bucket is in another region: add ?region=NAME"
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return f"access denied ({answer or 'no valid credentials'}); check the profile and its permissions"
    if status:
        return f"{endpoint} answered {answer}"
    if "certificate" in text.lower():
        return f"the certificate of {endpoint} is not trusted; set AWS_CA_BUNDLE to its authority's PEM file"
    if "kind: Connect" in text:
        return f"cannot reach {endpoint}; check endpoint_url and the network"
    if "kind: Timeout" in text:
        return f"{endpoint} did not answer in time"
    return f"the connection to {endpoint} broke ({type(error).__name__})"
