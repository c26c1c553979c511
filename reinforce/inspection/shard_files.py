"""All files of one shard: fetched, one after the other, and checked against its spine and its source."""

from collections.abc import Callable
from pathlib import Path

from reinforce.inspection.cells import AnySignal
from reinforce.inspection.checked_files import CheckedFiles, ShardFindings, local_copy
from reinforce.inspection.documents import Documents
from reinforce.inspection.faults import FileFaults
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
from reinforce.storage import StorageError


def verify_shard(
    dataset: Dataset, documents: Documents, sources: SourceTars | None, stem: str, spool: Path
) -> ShardFindings:
    """Checks every file of a shard, and its tar if there are `sources`. Raises `StorageError`."""
    checked = CheckedFiles(dataset, documents, stem, spool)
    read = checked.read
    spine = read(spine_file(stem), lambda file, faults: check_spine(file, documents, stem, faults))
    if spine is None:
        return checked.findings(0, {}, [])
    captions: dict[str, Captions | None] = {ORIGINAL: spine.kept.column("captions").to_pylist()}
    num_nulls: dict[AnySignal, int] = {}
    modalities: Modalities = {}
    for signal in sorted(documents.signals):
        if signal.kind == "modality":
            images = read(signal.file(stem), _modality_checker(signal, documents, spine))
            modalities |= {} if images is None else {signal.model: images}
            continue
        found = read(signal.file(stem), _checker(signal, documents, spine, captions.get(signal.source)))
        num_nulls[signal] = checked.files[-1].num_nulls
        if signal.kind == "captions":
            captions[signal.model] = found
    if documents.is_explicit or views_file(stem) in dataset.sizes:
        read(views_file(stem), lambda file, faults: check_views(file, spine, faults))
    tars = [] if sources is None else [_verify_tar(sources, documents, spine, modalities, stem, spool)]
    return checked.findings(spine.kept.num_rows, num_nulls, tars)


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
