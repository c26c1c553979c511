"""What a URI means: `s3://bucket/prefix?profile=NAME`, `gs://`, `az://`, `file://`, or a plain path.

Options after `?` say how to reach a bucket and are part of the URI of everything in it. Secrets have no place there:
they are refused, and never repeated in the error.
"""

import os
import re
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from .bucket import Bucket
from .local import LocalFolder
from .store import StorageError, Store, check_path

OPTIONS = {"s3": ("profile", "endpoint_url", "region", "anonymous"), "gs": ("anonymous",), "az": ("anonymous",)}

# In a glob `?` stands for a character, so only what looks like options is taken for options.
_QUERY = re.compile(r"^(?P<path>.*)\?(?P<query>[A-Za-z_.\-]+=[^?]*)$", re.DOTALL)
_SECRET = re.compile(r"key|secret|token|passw|sig|credential", re.IGNORECASE)


@dataclass(frozen=True)
class Location:
    """A parsed URI. `path` has no slash at either end; for local files it is below `/`."""

    scheme: str
    bucket: str
    path: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def is_local(self) -> bool:
        return self.scheme == "file"

    @property
    def uri(self) -> str:
        if self.is_local:
            return f"file:///{quote(self.path, errors='surrogateescape')}"
        query = f"?{urlencode(self.options, safe=':/')}" if self.options else ""
        return f"{self.scheme}://{self.bucket}{'/' if self.path else ''}{self.path}{query}"

    def at(self, path: str) -> "Location":
        """Another path in the same bucket, or on the same machine."""
        return replace(self, path=path)

    def open(self) -> Store:
        if self.path:
            check_path(self.path)
        if self.is_local:
            return LocalFolder(f"/{self.path}")
        return Bucket(self.scheme, self.bucket, self.path, dict(self.options), self.uri)


def open_store(uri: str, *, create: bool = False) -> Store:
    """Open a folder or prefix. Nothing is fetched yet; `create` makes a local folder, so that it fails early."""
    location = parse_location(uri)
    if create and location.is_local:
        try:
            os.makedirs(f"/{location.path}", exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot create folder {location.uri}: {error.strerror}", error.errno) from error
    return location.open()


def open_parent(uri: str) -> tuple[Store, str]:
    """The folder or prefix that holds one object, opened, and the object's name there."""
    location = parse_location(uri)
    parent, _, name = location.path.rpartition("/")
    return location.at(parent).open(), name


def parse_location(uri: str) -> Location:
    """Parse a URI or a plain path, relative to the working directory; its path may hold glob characters."""
    if not uri:
        raise StorageError("empty URI: give a folder, a .tar or a pattern")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return _local(os.path.expanduser(uri))
    scheme = scheme.lower()
    if scheme == "file":
        host, _, path = rest.partition("/")
        if host not in ("", "localhost"):
            raise StorageError("a file:// URI needs three slashes: file:///folder/file")
        return _local(f"/{unquote(path, errors='surrogateescape')}")
    if scheme not in OPTIONS:
        raise StorageError(f"unknown scheme {scheme!r}://: use s3://, gs://, az://, file:// or a plain path")
    matched = _QUERY.match(rest)
    rest, query = (matched["path"], matched["query"]) if matched else (rest, "")
    bucket, _, path = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise StorageError(f"credentials do not belong in a {scheme}:// URI: use a profile or the environment")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._\-]*", bucket):
        raise StorageError(f"{scheme}://{bucket}: no such bucket name; write {scheme}://bucket/prefix")
    return Location(scheme, bucket, path.strip("/"), _parse_options(scheme, query))


def _local(path: str) -> Location:
    return Location("file", "", os.path.abspath(path).lstrip("/"))


def _parse_options(scheme: str, query: str) -> tuple[tuple[str, str], ...]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name, value in options.items():
        if name in OPTIONS[scheme]:
            _check_option(name, value)
        elif _SECRET.search(name):
            raise StorageError(f"{name} does not belong in a URI: use a profile or the environment")
        else:
            raise StorageError(f"unknown option {name!r} in a {scheme}:// URI: use {', '.join(OPTIONS[scheme])}")
    return tuple(sorted(options.items()))


def _check_option(name: str, value: str) -> None:
    if name == "anonymous" and value != "true":
        raise StorageError("option anonymous must be 'true' or left out")
    if name == "endpoint_url":
        url = urlsplit(value)
        if url.username or url.password or "@" in url.netloc:
            raise StorageError("credentials do not belong in endpoint_url: use a profile or the environment")
        if url.scheme not in ("http", "https") or not url.hostname:
            raise StorageError("option endpoint_url must be like https://host:port")
    if not value or not value.isprintable():
        raise StorageError(f"option {name} of the URI is empty or not printable")
