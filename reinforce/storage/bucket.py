"""A prefix in a bucket as a store: S3, Google Cloud Storage, Azure, through obstore.

obstore repeats what it can. Uploads and broken bodies are repeated here, because only here it is known what "already
exists" means after a connection broke. An upload is one conditional PUT of a memory-mapped file: address space, but no
memory of its own.
"""

import errno
import io
import mmap
import os
import random
import time
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar, cast

from .clients import (
    FIRST,
    THEREAFTER,
    explain,
    is_transient,
    read_client,
    refuse_fork,
    resolve_settings,
    status_of,
    upload_client,
)
from .local import one_line_errors
from .store import ObjectInfo, StorageError, check_path, is_temporary

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

LARGEST_OBJECT = 5 * 1024**3
"""S3's bound on one PUT; conditional creation needs one PUT."""

SMALL_UPLOAD = 8 * 1024**2
"""Uploads up to this size share a client."""

CHUNK_BYTES = 8 * 1024**2
RANGE_NOT_SATISFIABLE = 416
MAX_BACKOFF_S = 10.0


class Bucket:
    """A `Store` over a prefix of a bucket. Nothing is fetched, and no credential looked for, before it is used."""

    def __init__(self, scheme: str, bucket: str, prefix: str, options: dict[str, str], uri: str) -> None:
        self._scheme, self._bucket, self._prefix, self._options, self._uri = scheme, bucket, prefix, options, uri
        self._settings: dict[str, Any] | None = None
        self._clients: dict[object, ObjectStore] = {}
        self._has_answered = False

    def __repr__(self) -> str:
        return f"Bucket({self._uri!r})"

    @property
    def uri(self) -> str:
        return self._uri

    def uri_of(self, path: str) -> str:
        address, separator, query = self._uri.partition("?") if self._options else (self._uri, "", "")
        return f"{address}{'/' if path else ''}{path}{separator}{query}"

    def list(self, prefix: str = "", *, recursive: bool = True) -> Iterator[ObjectInfo]:
        import obstore

        folder = self._key(prefix) if prefix else self._prefix
        skip = len(self._prefix) + 1 if self._prefix else 0

        def scan(client: "ObjectStore") -> "list[ObjectInfo]":
            # Page by page: obstore's own records of an object are several times the size of ours.
            infos: list[ObjectInfo] = []
            flat = [] if recursive else [obstore.list_with_delimiter(client, folder)["objects"]]
            for page in obstore.list(client, folder, chunk_size=1000) if recursive else flat:
                self._has_answered = True
                named = ((meta["path"][skip:], meta["size"]) for meta in page)
                infos += [ObjectInfo(path, size) for path, size in named if path and not is_temporary(path)]
            return infos

        return iter(sorted(self._ask("list", prefix, scan), key=attrgetter("path")))

    def exists(self, path: str) -> bool:
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        import obstore

        return self._ask("look for", path, lambda client: obstore.head(client, self._key(path))["size"])

    def read(self, path: str) -> bytes:
        import obstore

        return self._ask("read", path, lambda client: bytes(obstore.get(client, self._key(path)).bytes()))

    def read_range(self, path: str, start: int, length: int) -> bytes:
        import obstore

        def fetch(client: "ObjectStore") -> bytes:
            try:
                return bytes(obstore.get_range(client, self._key(path), start=start, length=length))
            except Exception as error:
                if status_of(error) == RANGE_NOT_SATISFIABLE:
                    return b""
                raise

        return self._ask("read", path, fetch) if length > 0 else b""

    def open_input(self, path: str, *, size: int | None = None) -> BinaryIO:
        return cast(BinaryIO, _RangeReader(self, path, self.size(path) if size is None else size))

    def download(self, path: str, target: Path, *, size: int | None = None) -> int:
        try:
            return self._repeat("download", path, lambda _: self._download_once(path, target, size))
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def local_path(self, path: str) -> Path | None:
        check_path(path)
        return None

    def put_if_absent(self, path: str, data: bytes | Path) -> bool:
        from obstore.exceptions import AlreadyExistsError

        def create(attempt: int) -> bool:
            try:
                self._upload(path, data, "create")
                return True
            except AlreadyExistsError:
                # S3 also answers so (409) while another writer's upload is under way and may yet fail: look.
                try:
                    return self.size(path) == _size(data) and attempt > 0
                except FileNotFoundError:
                    raise _Conflict(f"conflict with another writer of {path}") from None

        return self._repeat("create", path, create)

    def put(self, path: str, data: bytes) -> None:
        self._repeat("write", path, lambda _: self._upload(path, data, "overwrite"))

    def delete(self, path: str) -> None:
        import obstore

        try:
            self._ask("delete", path, lambda client: obstore.delete(client, self._key(path)))
        except FileNotFoundError:
            return

    def sweep_temporaries(self) -> int:
        return 0

    def _key(self, path: str) -> str:
        return f"{self._prefix}{'/' if self._prefix else ''}{check_path(path)}"

    def _client(self, key: object, make: "Callable[[], ObjectStore]") -> "ObjectStore":
        if key not in self._clients:
            self._clients[key] = make()
        return self._clients[key]

    def _read_client(self) -> "ObjectStore":
        patience = THEREAFTER if self._has_answered else FIRST
        return self._client(patience, lambda: read_client(self._scheme, self._bucket, self._resolved(), patience))

    def _upload_client(self, size: int) -> "ObjectStore":
        return upload_client(self._scheme, self._bucket, self._resolved(), size)

    def _resolved(self) -> dict[str, Any]:
        if self._settings is None:
            self._settings = resolve_settings(self._scheme, self._bucket, self._options)
        return self._settings

    def _ask(self, action: str, path: str, request: Callable[["ObjectStore"], T]) -> T:
        return self._repeat(action, path, lambda _: request(self._read_client()))

    def _repeat(self, action: str, path: str, attempt: Callable[[int], T]) -> T:
        """Try until it works, it is clear that it will not, or patience ends."""
        refuse_fork()
        started = time.monotonic()
        for number in range(THEREAFTER.max_retries + 1):
            try:
                answer = attempt(number)
                self._has_answered = True
                return answer
            except StorageError:
                raise
            except FileNotFoundError:
                self._has_answered = True
                raise FileNotFoundError(errno.ENOENT, "no such object", self.uri_of(path)) from None
            except Exception as error:
                patience = THEREAFTER if self._has_answered else FIRST
                delay = random.uniform(0.5, 1.0) * min(MAX_BACKOFF_S, 0.2 * 2**number)
                is_over = time.monotonic() - started + delay > patience.deadline_s or number >= patience.max_retries
                # A count that stays wrong is a changed object; each further try costs a whole download.
                if is_over or not is_transient(error) or (isinstance(error, _Truncated) and number >= 2):
                    raise self._failure(action, path, error) from None
                time.sleep(delay)
        raise AssertionError("the last attempt returns or raises")

    def _upload(self, path: str, data: bytes | Path, mode: Literal["create", "overwrite"]) -> None:
        import obstore

        size = _size(data)
        if size > LARGEST_OBJECT:
            raise StorageError(f"cannot write {self.uri_of(path)}: {size} bytes are more than one PUT takes")
        if size <= SMALL_UPLOAD:
            client = self._client("upload", lambda: self._upload_client(SMALL_UPLOAD))
        else:
            client = self._upload_client(size)
        content = _mapped(data) if isinstance(data, Path) else data
        try:
            obstore.put(client, self._key(path), content, mode=mode, use_multipart=False)
        except FileNotFoundError:
            raise StorageError(f"cannot write {self.uri_of(path)}: no such bucket") from None

    def _download_once(self, path: str, target: Path, size: int | None) -> int:
        import obstore

        result = obstore.get(self._read_client(), self._key(path))
        expected = result.meta["size"] if size is None else size
        # Only the local file raises OSError here; the connection raises obstore's own errors.
        with one_line_errors("write", str(target)), open(target, "wb") as file:
            for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                file.write(chunk)
            copied = file.tell()
        if copied != expected:
            raise _Truncated(f"{copied} of {expected} bytes arrived")
        return copied

    def _failure(self, action: str, path: str, error: Exception) -> StorageError:
        reason = str(error) if isinstance(error, _Truncated) else explain(error, self._settings or {})
        return StorageError(f"cannot {action} {self.uri_of(path)}: {reason}")


class _Truncated(ConnectionError):
    """Fewer or more bytes arrived than the object has."""


class _Conflict(ConnectionError):
    """Another writer was creating the same object, and did not."""


class _RangeReader(io.RawIOBase):
    """A file whose every read is one range request."""

    def __init__(self, bucket: Bucket, path: str, size: int) -> None:
        self._bucket, self._path, self._size, self._position = bucket, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"seek to {start + offset}: before the start of the file")
        self._position = start + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        data = self._bucket.read_range(self._path, self._position, wanted)
        if len(data) != wanted:
            raise StorageError(f"cannot read {self._bucket.uri_of(self._path)}: {len(data)} of {wanted} bytes arrived")
        self._position += wanted
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)


def _size(data: bytes | Path) -> int:
    with one_line_errors("upload", str(data) if isinstance(data, Path) else ""):
        return data.stat().st_size if isinstance(data, Path) else len(data)


def _mapped(path: Path) -> mmap.mmap | bytes:
    with one_line_errors("upload", str(path)), open(path, "rb") as file:
        # An empty file cannot be mapped.
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if _size(path) else b""
