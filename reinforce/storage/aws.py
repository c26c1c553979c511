"""How a bucket on S3 is reached: region, endpoint, certificates, credentials.

They come from botocore, so environment variables, profiles, ~/.aws/config with its `endpoint_url` and `services`
sections, SSO and instance roles all mean what they mean to the AWS command line. In a worker process, what the driver
carried to it comes first: a worker has none of the driver's files.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .store import StorageError

if TYPE_CHECKING:
    from obstore.store import S3Credential

CREDENTIAL_LIFE = timedelta(minutes=10)
"""obstore asks again 5 minutes before the end of it; botocore renews in time for that."""

StoreKey = tuple[str, str, tuple[tuple[str, str], ...]]
"""Scheme, bucket and the URI's options."""


@dataclass(frozen=True, slots=True)
class AwsKeys:
    """Credentials as they are at one moment."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class AwsAccess:
    """How one bucket is reached. No keys: it is anonymous, or whoever asks has a role of their own."""

    region: str
    endpoint: str
    has_virtual_host: bool
    is_anonymous: bool
    ca_bundle: bytes | None = field(repr=False)
    keys: AwsKeys | None = None


accepted: dict[StoreKey, AwsAccess] = {}
"""What a driver carried to this process; its credentials are read anew each time they are needed."""


def store_key(bucket: str, options: Mapping[str, str]) -> StoreKey:
    return "s3", bucket, tuple(sorted(options.items()))


def aws_settings(bucket: str, options: Mapping[str, str]) -> dict[str, Any]:
    """What an obstore client needs besides the bucket's name."""
    carried = accepted.get(store_key(bucket, options))
    if carried is not None:
        access, read_keys = carried, _carried_keys(store_key(bucket, options), carried)
    else:
        session = open_session(options.get("profile"))
        access = resolve_access(session, bucket, options)
        read_keys = None if access.is_anonymous else keys_of(find_credentials(session, owner(options)))
    settings: dict[str, Any] = {
        "region": access.region,
        "virtual_hosted_style_request": access.has_virtual_host,
        # Both: AWS_ENDPOINT_URL_S3 in the environment would win over `endpoint` alone.
        "endpoint": access.endpoint,
        "aws_endpoint_url_s3": access.endpoint,
        "client_options": {"allow_http": access.endpoint.startswith("http://")},
    }
    if access.ca_bundle is not None:
        settings["client_options"]["root_certificate"] = access.ca_bundle
    if read_keys is None:
        return settings | {"skip_signature": True}
    return settings | {"credential_provider": _provider(read_keys)}


def open_session(profile: str | None) -> Any:
    """A botocore session; a profile that is not there is noticed when the session is used."""
    import botocore.session

    return botocore.session.Session(profile=profile)


def resolve_access(session: Any, bucket: str, options: Mapping[str, str]) -> AwsAccess:
    """Everything but the keys."""
    import botocore.exceptions

    try:
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
    return AwsAccess(
        region=str(client.meta.region_name),
        endpoint=endpoint,
        has_virtual_host=has_virtual_host,
        is_anonymous="anonymous" in options,
        ca_bundle=_read_ca_bundle(ca_bundle) if ca_bundle else None,
    )


def find_credentials(session: Any, whose: str) -> Any:
    """botocore's credentials, known to be there; `whose` follows "no AWS credentials found" in the error."""
    try:
        credentials = session.get_credentials()
        if credentials is not None:
            credentials.get_frozen_credentials()
    except Exception as error:
        # The text may repeat what a credential process printed.
        raise StorageError(
            f"cannot get AWS credentials{whose}: {type(error).__name__}; try `aws sts get-caller-identity`"
        ) from None
    if credentials is None:
        raise StorageError(
            f"no AWS credentials found{whose}: set AWS_PROFILE, run `aws configure`, or add ?anonymous=true to the URI"
        )
    return credentials


def owner(options: Mapping[str, str]) -> str:
    """Whose credentials are looked for, as the end of a phrase."""
    return f" for profile {options['profile']}" if "profile" in options else ""


def keys_of(credentials: Any) -> Callable[[], AwsKeys]:
    """Reads the keys of botocore's credentials, renewed if they must be."""

    def read() -> AwsKeys:
        frozen = credentials.get_frozen_credentials()
        return AwsKeys(frozen.access_key, frozen.secret_key, frozen.token)

    return read


def _carried_keys(key: StoreKey, first: AwsAccess) -> Callable[[], AwsKeys] | None:
    if first.is_anonymous:
        return None
    if first.keys is None:
        return keys_of(
            find_credentials(open_session(None), " on this machine (the driver uses a role of its own machine)")
        )
    keys = first.keys
    return lambda: accepted[key].keys or keys


def _provider(read_keys: Callable[[], AwsKeys]) -> Callable[[], "S3Credential"]:
    def provide() -> "S3Credential":
        keys = read_keys()
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": datetime.now(UTC) + CREDENTIAL_LIFE,
        }

    return provide


def _read_ca_bundle(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read AWS_CA_BUNDLE {path}: {error.strerror}", error.errno) from None
