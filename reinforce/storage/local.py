"""A local folder as a store, with the same promises as a bucket.

An object is written to a `name#N` temporary beside it, synced, and hard-linked to its name, which fails if that is
taken. A writer holds a lock on its temporary; the kernel drops it when the writer dies, so a sweep can tell a dead
writer's leftovers from a live one's work, across processes and (where the file system shares locks) hosts.
"""

import errno
import fcntl
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO, cast
from urllib.parse import quote

from .store import ObjectInfo, StorageError, check_path, is_temporary

UNLOCKABLE_AGE_S = 24 * 3600.0
"""Where the file system has no locks, only temporaries older than this are swept."""

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
_NO_HARD_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
_HINTS = {
    errno.ENOSPC: "free some space and start again; what is finished is kept",
    errno.EDQUOT: "free some space and start again; what is finished is kept",
    errno.EACCES: "check the owner and mode of the file and its folders",
    errno.EPERM: "check the owner and mode of the file and its folders",
    errno.EROFS: "choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder",
}


class LocalFolder:
    """A `Store` over a local folder, which need not exist yet."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    @property
    def uri(self) -> str:
        return f"file://{_quoted(self._folder)}"

    def uri_of(self, path: str) -> str:
        return f"file://{_quoted(os.path.join(self._folder, path))}"

    def list(self, prefix: str = "", *, recursive: bool = True) -> Iterator[ObjectInfo]:
        with one_line_errors("list", self.uri_of(prefix)):
            found = sorted(self._walk(prefix, recursive))
        return (ObjectInfo(path, size) for path, size in found)

    def exists(self, path: str) -> bool:
        with one_line_errors("look for", self.uri_of(path)):
            try:
                return not os.path.isdir(self._name(path)) and os.stat(self._name(path)) is not None
            except (FileNotFoundError, NotADirectoryError):
                return False

    def size(self, path: str) -> int:
        with self.open_input(path) as file:
            return os.fstat(file.fileno()).st_size

    def read(self, path: str) -> bytes:
        with self.open_input(path) as file, one_line_errors("read", self.uri_of(path)):
            return file.read()

    def read_range(self, path: str, start: int, length: int) -> bytes:
        with self.open_input(path) as file, one_line_errors("read", self.uri_of(path)):
            file.seek(start)
            return file.read(length)

    def open_input(self, path: str, *, size: int | None = None) -> BinaryIO:
        with one_line_errors("read", self.uri_of(path)):
            return cast(BinaryIO, open(self._name(path), "rb"))

    def download(self, path: str, target: Path, *, size: int | None = None) -> int:
        with self.open_input(path) as source, one_line_errors("write", str(target)), open(target, "wb") as file:
            expected = os.fstat(source.fileno()).st_size if size is None else size
            shutil.copyfileobj(source, file, 1 << 20)
            copied = file.tell()
        if copied != expected:
            target.unlink()
            raise StorageError(f"{self.uri_of(path)} has {copied} bytes, not the {expected} listed: did it change?")
        return copied

    def local_path(self, path: str) -> Path | None:
        return Path(self._name(path))

    def put_if_absent(self, path: str, data: bytes | Path) -> bool:
        target = self._name(path)
        with one_line_errors("write", self.uri_of(path)):
            if os.path.lexists(target):
                return False
            with _temporary(target) as (name, file):
                _fill(file, data)
                return _link_if_absent(name, target)

    def put(self, path: str, data: bytes) -> None:
        target = self._name(path)
        with one_line_errors("write", self.uri_of(path)), _temporary(target) as (name, file):
            _fill(file, data)
            os.replace(name, target)

    def delete(self, path: str) -> None:
        with one_line_errors("delete", self.uri_of(path)):
            Path(self._name(path)).unlink(missing_ok=True)

    def sweep_temporaries(self) -> int:
        with one_line_errors("sweep", self.uri):
            return sum(_remove_if_dead(os.path.join(self._folder, path)) for path in self._names("", True, hidden=True))

    def _name(self, path: str) -> str:
        return os.path.join(self._folder, check_path(path))

    def _walk(self, prefix: str, recursive: bool) -> Iterator[tuple[str, int]]:
        for path in self._names(prefix, recursive, hidden=False):
            name = os.path.join(self._folder, path)
            try:
                yield path, os.stat(name).st_size
            except FileNotFoundError:
                # Gone since the folder was read, unless it is a link: a dangling one would be data silently missing.
                if os.path.islink(name):
                    raise StorageError(f"cannot list {self.uri_of(path)}: a link to a file that is missing") from None

    def _names(self, prefix: str, recursive: bool, hidden: bool) -> Iterator[str]:
        start = os.path.join(self._folder, check_path(prefix)) if prefix else self._folder
        for folder, subfolders, files in os.walk(start, onerror=_refuse_unreadable, followlinks=True):
            subfolders[:] = [name for name in subfolders if recursive and not _leads_up(folder, name)]
            below = os.path.relpath(folder, self._folder)
            for name in files:
                if is_temporary(name) == hidden:
                    yield name if below == "." else os.path.join(below, name)


def _quoted(folder: str) -> str:
    return quote(folder, errors="surrogateescape")


@contextmanager
def one_line_errors(action: str, uri: str) -> Iterator[None]:
    """Turn errors of the operating system into one line; FileNotFoundError stays what it is."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if isinstance(error, FileNotFoundError) and action in ("read", "look for"):
            raise FileNotFoundError(errno.ENOENT, "no such object", uri) from None
        reason = error.strerror or type(error).__name__
        hint = _HINTS.get(error.errno or 0)
        message = f"cannot {action} {uri}: {reason[0].lower()}{reason[1:]}{f'; {hint}' if hint else ''}"
        raise StorageError(message, error.errno) from error


def _refuse_unreadable(error: OSError) -> None:
    # os.walk would skip the folder, and its shards would silently be no part of the build.
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        raise StorageError(f"cannot list {error.filename}: {error.strerror}", error.errno) from error


def _leads_up(folder: str, name: str) -> bool:
    """Whether a linked subfolder is one of the folders above it, which would be walked for ever."""
    link = os.path.join(folder, name)
    return os.path.islink(link) and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(link))


@contextmanager
def _temporary(target: str) -> Iterator[tuple[str, IO[bytes]]]:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    for number in itertools.count(os.getpid()):
        name = f"{target}#{number}"
        try:
            file = open(name, "xb")  # noqa: SIM115
        except FileExistsError:
            continue
        # A sweep may take it between its creation and its lock: then it holds the lock, or the name is gone.
        with file:
            if _lock(file) is False or os.fstat(file.fileno()).st_nlink == 0:
                continue
            try:
                yield name, file
            finally:
                # Once it was renamed, the name may belong to another thread.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), os.stat(name)):
                        os.unlink(name)
            return


def _fill(file: IO[bytes], data: bytes | Path) -> None:
    if isinstance(data, Path):
        with open(data, "rb") as source:
            shutil.copyfileobj(source, file, 1 << 20)
    else:
        file.write(data)
    file.flush()
    # Without it a power cut could leave the name pointing to blocks that were never written.
    os.fsync(file.fileno())


def _link_if_absent(name: str, target: str) -> bool:
    try:
        os.link(name, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # No hard links here (exFAT, some network drives): still atomic, but of two simultaneous writers the last wins.
        if os.path.lexists(target):
            return False
        os.rename(name, target)
    return True


def _lock(file: IO[bytes]) -> bool | None:
    """True if locked, False if another process holds the lock, None if the file system has no locks."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _remove_if_dead(name: str) -> bool:
    try:
        with open(name, "rb+") as file:
            locked, opened = _lock(file), os.fstat(file.fileno())
            is_dead = locked if locked is not None else time.time() - opened.st_mtime > UNLOCKABLE_AGE_S
            # The name may meanwhile belong to a new writer.
            if not is_dead or not os.path.samestat(opened, os.stat(name)):
                return False
            os.unlink(name)
            return True
    except FileNotFoundError:
        return False
