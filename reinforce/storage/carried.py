"""What a worker process on another machine needs to reach the stores that its driver reaches.

The driver's profiles, configuration files and environment are not there. So the driver resolves how each bucket is
reached, and hands the result over as an argument: environments and command lines of workers are logged. A role of
the machine stays where it is: the worker uses its own.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from . import aws
from .location import Location, parse_location

ENVIRONMENT = ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "OPENAI_API_KEY")
ENVIRONMENT_PREFIXES = ("AZURE_", "GOOGLE_")
"""Names of variables that hubs, captioning servers, Azure and Google Cloud Storage are reached by."""

ROLES_OF_MACHINES = ("iam-role", "container-role")
"""botocore's names for credentials that belong to a machine or container and are renewed there."""

_renewing: dict[object, Any] = {}
"""Sessions whose credentials renew themselves: another session would log in again."""


@dataclass(frozen=True, repr=False)
class Carried:
    """Goes from driver to worker. Picklable, comparable; shows no secret."""

    environment: dict[str, str]
    stores: dict[aws.StoreKey, aws.AwsAccess]

    def __repr__(self) -> str:
        buckets = {f"{scheme}://{bucket}" for scheme, bucket, _ in self.stores}
        return f"Carried({', '.join(sorted(buckets))})"


def carry(uris: Iterable[str]) -> Carried:
    """How each of the URIs is reached from here, now; local paths need nothing.

    Credentials that expire have at least 10 minutes left. A client in a worker keeps what it was given for up to 5,
    so carry again, and hand over what differs, every 4 minutes or so.
    """
    sessions: dict[str | None, Any] = {}
    stores: dict[aws.StoreKey, aws.AwsAccess] = {}
    for location in map(parse_location, uris):
        options = dict(location.options)
        key = aws.store_key(location.bucket, options)
        if location.scheme == "s3" and key not in stores:
            profile = options.get("profile")
            if profile not in sessions:
                sessions[profile] = _renewing.pop(_session_key(profile), None) or aws.open_session(profile)
            stores[key] = _resolve(sessions[profile], location)
    environment = {name: value for name, value in os.environ.items() if _is_carried(name)}
    return Carried(environment, stores)


def accept(carried: Carried) -> None:
    """Makes this process reach stores as the driver does; stores that are open go on with renewed credentials.

    Call it before hubs are imported: they read the environment once.
    """
    os.environ.update(carried.environment)
    aws.accepted.update(carried.stores)


def accepted() -> Carried:
    """What this process was given, for processes that it starts itself: they inherit its environment and no more."""
    return Carried({}, dict(aws.accepted))


def _resolve(session: Any, location: Location) -> aws.AwsAccess:
    options = dict(location.options)
    access = aws.resolve_access(session, location.bucket, options)
    if access.is_anonymous:
        return access
    credentials = aws.find_credentials(session, aws.owner(options))
    if credentials.method in ROLES_OF_MACHINES:
        return access
    # Others are looked up anew each time: a tool may have written new ones to the same file.
    if hasattr(credentials, "refresh_needed"):
        _renewing[_session_key(options.get("profile"))] = session
    return replace(access, keys=aws.keys_of(credentials)())


def _session_key(profile: str | None) -> object:
    """A session stands for the settings it was opened under."""
    return profile, tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))


def _is_carried(name: str) -> bool:
    return name in ENVIRONMENT or name.startswith(ENVIRONMENT_PREFIXES)
