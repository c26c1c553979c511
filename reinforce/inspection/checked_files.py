"""The files of one shard, of images or of sentences, while they are checked: fetched in turn, and what was found."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reinforce.inspection.cells import AnySignal, ShardCells
from reinforce.inspection.documents import Documents
from reinforce.inspection.faults import Fault, FileFaults, Totals
from reinforce.inspection.files import Found, read_checked
from reinforce.shards.dataset import Dataset
from reinforce.shards.reader import ShardFile
from reinforce.storage import Store


@dataclass(frozen=True, slots=True)
class ShardFindings:
    """What was found in one shard's files and in its tar. Small: a dataset has many shards."""

    files: Totals
    tars: Totals
    faults: tuple[Fault, ...]
    cells: ShardCells
    """What there is to compute again."""


@contextmanager
def local_copy(store: Store, path: str, spool: Path, *, size: int | None = None) -> Iterator[Path]:
    """The object as a file of this machine: itself, or a copy in the spool for as long as it is needed."""
    local = store.local_path(path)
    if local is not None:
        yield local
        return
    copy = spool / f"{threading.get_ident()}-{hashlib.sha256(path.encode()).hexdigest()[:16]}"
    try:
        store.download(path, copy, size=size)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


class CheckedFiles:
    """The files of one shard in the order they are read in; `files` are those that were there.

    `noun` is what the source is called: shard, or file.
    """

    def __init__(self, dataset: Dataset, documents: Documents, stem: str, spool: Path, *, noun: str = "shard") -> None:
        self.files: list[FileFaults] = []
        self._missing: list[Fault] = []
        self._dataset, self._documents, self._stem, self._spool = dataset, documents, stem, spool
        self._noun = noun

    def read(self, path: str, check: Callable[[ShardFile, FileFaults], Found | None]) -> Found | None:
        """What `check` makes of a file; None if it is missing or damaged, which is noted. Raises `StorageError`."""
        dataset = self._dataset
        if path not in dataset.sizes:
            failed = self._documents.failures.get(self._stem)
            self._missing.append(Fault(path, f"is missing{f'; the {self._noun} failed: {failed}' if failed else ''}"))
            return None
        faults = FileFaults(path)
        self.files.append(faults)
        try:
            with local_copy(dataset.store, path, self._spool, size=dataset.sizes[path]) as local:
                return read_checked(dataset.store, local, faults, lambda file: check(file, faults))
        except FileNotFoundError:
            faults.add("was listed and is gone")
            return None

    def findings(self, num_kept: int, num_nulls: dict[AnySignal, int], sources: list[FileFaults]) -> ShardFindings:
        """All that was found, in `sources` too; `num_nulls` are the cells of each signal that have no value."""
        faults = (*self._missing, *(fault for file in (*self.files, *sources) for fault in file.found))
        cells = ShardCells(self._stem, num_kept, num_nulls)
        return ShardFindings(Totals.of(self.files), Totals.of(sources), faults, cells)
