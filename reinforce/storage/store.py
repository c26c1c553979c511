"""The nouns of storage: what a store can do, what it lists, and the one error it raises.

A store is a prefix: a local folder, or a part of a bucket. Paths below it use `/`, never start with one, and hold no
`.`, `..`, empty or control parts. An object exists if and only if it is whole: creation is atomic everywhere.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


class StorageError(OSError):
    """Storage could not do what was asked. One line: what was tried on which URI, and what to do. Never a secret.

    `errno` is that of the operating system where there is one (a full disk, a permission), else None.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno

    def __reduce__(self) -> tuple[type["StorageError"], tuple[str, int | None]]:
        """Keep `errno` when Ray carries the error between processes."""
        return StorageError, (str(self), self.errno)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object of a listing."""

    path: str
    """Below the store it was listed from."""
    size: int


class Store(Protocol):
    """A prefix in a local folder or a bucket. `open_store(store.uri)` opens it again, also in another process.

    Reading what does not exist raises FileNotFoundError; every other failure is a StorageError.
    """

    @property
    def uri(self) -> str:
        """Normalised, without a trailing slash: `/abs/folder` is `file:///abs/folder`."""

    def uri_of(self, path: str) -> str:
        """The full URI of an object, for messages and records."""

    def list(self, prefix: str = "", *, recursive: bool = True) -> Iterator[ObjectInfo]:
        """Objects in the folder `prefix`, by path; nothing if it is missing. `name#N` temporaries are hidden."""

    def exists(self, path: str) -> bool:
        """Whether the object exists, whole."""

    def size(self, path: str) -> int:
        """The object's size in bytes."""

    def read(self, path: str) -> bytes:
        """The whole object."""

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`; fewer only where the object ends."""

    def open_input(self, path: str, *, size: int | None = None) -> BinaryIO:
        """A seekable file that fetches only what is read from it. `size`, if known, saves a request."""

    def download(self, path: str, target: Path, *, size: int | None = None) -> int:
        """Stream the object to a local file; returns its size. A count other than the object's is an error.

        `size` is what a listing said: it also catches a server that shortens an object consistently.
        """

    def local_path(self, path: str) -> Path | None:
        """Where the object, if it exists, is a file of this machine, to be read in place; None in a bucket."""

    def put_if_absent(self, path: str, data: bytes | Path) -> bool:
        """Create the object atomically; False, changing nothing, if it already existed.

        After a lost connection nobody knows whether the first try arrived. If the retry then finds an object of the
        same length, that counts as ours: True.
        """

    def put(self, path: str, data: bytes) -> None:
        """Create or replace the object atomically."""

    def delete(self, path: str) -> None:
        """Remove the object; no error if it is absent."""

    def sweep_temporaries(self) -> int:
        """Remove what killed writers left, never what a live one is writing. Returns how many; buckets have none."""


def check_path(path: str) -> str:
    """Refuse a path that could leave the store or that some store would store under another name."""
    if not path or any(part in ("", ".", "..") for part in path.split("/")):
        raise StorageError(f"unsafe path {path!r}: parts must not be empty, '.' or '..'")
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", path):
        raise StorageError(f"unsafe path {path!r}: control characters and names that are not UTF-8 are refused")
    return path


def is_temporary(path: str) -> bool:
    """Whether this is what a writer leaves when it is killed before it could commit."""
    return re.search(r"#[0-9]+$", path) is not None
