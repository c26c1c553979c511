"""All files of one shard: fetched, one after the other, and checked against its spine and its source."""

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
from reinforce.inspection.source_rows import Modalities, check_source
from reinforce.inspection.source_tars import SourceTars, path_of
from reinforce.inspection.structure import (
    ORIGINAL,
    Captions,
    Spine,
    check_modality,
    check_signal,
    check_spine,
    check_views,
)
from reinforce.sample import ModalityImage
from reinforce.shards.dataset import Dataset
from reinforce.shards.explicit import views_file
from reinforce.shards.reader import ShardFile
from reinforce.shards.schema import Signal, spine_file
from reinforce.storage import StorageError, Store


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


def verify_shard(
    dataset: Dataset, documents: Documents, sources: SourceTars | None, stem: str, spool: Path
) -> ShardFindings:
    """Checks every file of a shard, and its tar if there are `sources`. Raises `StorageError`."""
    files: list[FileFaults] = []
    missing: list[Fault] = []

    def read(path: str, check: Callable[[ShardFile, FileFaults], Found | None]) -> Found | None:
        if path not in dataset.sizes:
            failed = documents.failures.get(stem)
            missing.append(Fault(path, f"is missing{f'; the shard failed: {failed}' if failed else ''}"))
            return None
        faults = FileFaults(path)
        files.append(faults)
        try:
            with local_copy(dataset.store, path, spool, size=dataset.sizes[path]) as local:
                return read_checked(dataset.store, local, faults, lambda file: check(file, faults))
        except FileNotFoundError:
            faults.add("was listed and is gone")
            return None

    spine = read(spine_file(stem), lambda file, faults: check_spine(file, documents, stem, faults))
    if spine is None:
        return _findings(stem, 0, {}, files, [], missing)
    captions: dict[str, Captions | None] = {ORIGINAL: spine.kept.column("captions").to_pylist()}
    num_nulls: dict[AnySignal, int] = {}
    modalities: Modalities = {}
    for signal in sorted(documents.signals):
        if signal.kind == "modality":
            images = read(signal.file(stem), _modality_checker(signal, documents, spine))
            modalities |= {} if images is None else {signal.model: images}
            continue
        found = read(signal.file(stem), _checker(signal, documents, spine, captions.get(signal.source)))
        num_nulls[signal] = files[-1].num_nulls
        if signal.kind == "captions":
            captions[signal.model] = found
    if documents.is_explicit or views_file(stem) in dataset.sizes:
        read(views_file(stem), lambda file, faults: check_views(file, spine, faults))
    tars = [] if sources is None else [_verify_tar(sources, documents, spine, modalities, stem, spool)]
    return _findings(stem, spine.kept.num_rows, num_nulls, files, tars, missing)


def _findings(
    stem: str,
    num_kept: int,
    num_nulls: dict[AnySignal, int],
    files: list[FileFaults],
    tars: list[FileFaults],
    missing: list[Fault],
) -> ShardFindings:
    faults = (*missing, *(fault for file in (*files, *tars) for fault in file.found))
    return ShardFindings(Totals.of(files), Totals.of(tars), faults, ShardCells(stem, num_kept, num_nulls))


def _checker(
    signal: Signal, documents: Documents, spine: Spine, captions: Captions | None
) -> Callable[[ShardFile, FileFaults], Captions | None]:
    return lambda file, faults: check_signal(file, signal, documents, spine, faults, captions=captions)


def _modality_checker(
    signal: Signal, documents: Documents, spine: Spine
) -> Callable[[ShardFile, FileFaults], dict[str, ModalityImage] | None]:
    return lambda file, faults: check_modality(file, signal, documents, spine, faults)


def _verify_tar(
    sources: SourceTars, documents: Documents, spine: Spine, modalities: Modalities, stem: str, spool: Path
) -> FileFaults:
    path = path_of(stem)
    faults = FileFaults(sources.store.uri_of(path))
    try:
        with local_copy(sources.store, path, spool, size=sources.sizes.get(stem)) as tar:
            check_source(tar, documents, spine, modalities, faults)
    except FileNotFoundError:
        faults.add("the source shard is not there")
    except StorageError:
        raise
    except OSError as error:
        faults.add(f"cannot be read: {error.strerror or error}")
    return faults
