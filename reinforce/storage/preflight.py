"""Tries what a build will need of its storage, before anything is spent. Costs about six small requests."""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from .shard_uris import ShardRef
from .store import StorageError, Store

FOLDER = "runs"
PREFIX = f"{FOLDER}/probe-"


def preflight(sources: Iterable[ShardRef], output: Store) -> bool:
    """Whether the output honours conditional creation: an object that exists is not written again.

    Reads a byte of each source shard. In the output it deletes the probes that killed runs left, `runs/probe-*`, then
    creates one and deletes it. Raises StorageError, naming the step that failed.
    """
    for source in sources:
        with _step(f"reading one byte of {source.uri}", source.uri):
            source.store.read_range(source.path, 0, 1)
    with _step(f"listing {output.uri_of(FOLDER)}", output.uri_of(FOLDER)):
        leftovers = [info.path for info in output.list(FOLDER, recursive=False) if info.path.startswith(PREFIX)]
    for path in leftovers:
        _delete(output, path)
    # Another run that starts now may sweep a probe between its two creations: ask a second time before believing it.
    return _creates_once(output) or _creates_once(output)


def _creates_once(output: Store) -> bool:
    """Whether an object can be created once only."""
    path = f"{PREFIX}{secrets.token_hex(8)}"
    creating = f"creating a probe under {output.uri_of(FOLDER)}"
    with _step(creating, output.uri_of(path)):
        if not output.put_if_absent(path, b"probe"):
            raise StorageError("the store says that a new name is taken")
        # Of another length: an object of the same one counts as ours when a lost request was repeated.
        is_ignored = output.put_if_absent(path, b"another probe")
    _delete(output, path)
    return not is_ignored


def _delete(output: Store, path: str) -> None:
    with _step(f"deleting {output.uri_of(path)}", output.uri_of(path)):
        output.delete(path)


@contextmanager
def _step(what: str, uri: str) -> Iterator[None]:
    """Errors name the step; what they say of `uri` again is left out."""
    try:
        yield
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError)
        reason = error.strerror if is_missing else str(error).partition(f"{uri}: ")[2] or str(error)
        raise StorageError(f"preflight: {what} failed: {reason}", error.errno) from None
