"""Whether a dataset is whole and true: the story of `reinforce inspect --verify`.

Every object is read, a shard's files one after the other, four shards at a time; from a bucket each object is fetched
once, to a local spool that holds at most four. A spine and a column of each are in memory. Nothing is written.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from reinforce.inspection.bank_files import undocumented_banks, verify_banks
from reinforce.inspection.cells import Recomputation
from reinforce.inspection.checked_files import ShardFindings
from reinforce.inspection.corpus_files import files_of_corpora, sentence_stems, strays_of_corpora, verify_sentences
from reinforce.inspection.documents import Documents, read_documents
from reinforce.inspection.faults import Fault, FileFaults, Recomputed, Totals, Verification
from reinforce.inspection.sentence_source import SentenceSource, find_sources
from reinforce.inspection.shard_files import verify_shard
from reinforce.inspection.source_tars import SourceTars
from reinforce.shards.dataset import SIGNAL_FILE, Dataset
from reinforce.shards.explicit import views_file
from reinforce.shards.schema import CARD_FILE, CORPUS_FILE, Signal, spine_file
from reinforce.storage import StorageError, Store, open_spool, open_store

_NUM_THREADS = 4
_OURS = ("samples", "captions", "embeddings", "modalities", "banks", "corpora", "views", "failures", "runs")


def verify_dataset(
    uri: str,
    *,
    shards: Sequence[str] = (),
    root: str | None = None,
    corpus_roots: Mapping[str, str] | None = None,
    with_source: bool = True,
    recompute: Recomputation | None = None,
) -> Verification:
    """Verifies a dataset, or of it only `shards`, which are source URIs; `root` is where its source is now.

    `corpus_roots` say by name where the files of corpora are now. Of a few `shards` no sentences are read.

    Raises `FormatError` if there is no dataset, `StorageError` if it or its source cannot be reached, `ModelError` if a
    teacher cannot be loaded.
    """
    start = time.perf_counter()
    store = open_store(uri)
    sizes = {info.path: info.size for info in store.list()}
    documents = read_documents(store, sizes)
    if isinstance(documents, FileFaults):
        return _verification(store, [documents], [], start)
    dataset = Dataset(store, documents.dataset)
    dataset.sizes = sizes
    # What a damaged dataset.json says of the source is not to be followed.
    with_source = with_source and (root is not None or not documents.checked[0].found)
    # A dataset of corpora alone has no source of images.
    has_source = with_source and bool(dataset.stems or root)
    sources = SourceTars.find(documents, dataset.stems, shards, root) if has_source or shards else None
    stems = sorted(sources.stems) if sources and shards else dataset.stems
    tars = sources if with_source else None
    of_sentences = [] if shards else sentence_stems(dataset, documents)
    files = _sentence_sources(documents, of_sentences, corpus_roots or {}) if with_source and not shards else {}
    check_cells = _recomputer(dataset, documents, tars, recompute) if recompute else None
    with open_spool() as spool, ThreadPoolExecutor(_NUM_THREADS, "verify") as pool:
        documents.checked += verify_banks(dataset, documents, spool)
        found = list(pool.map(lambda stem: verify_shard(dataset, documents, tars, stem, spool), stems))
        check = partial(verify_sentences, dataset, documents, files, spool=spool)
        sentences = list(pool.map(check, of_sentences))
        recomputed, faults = check_cells([*found, *sentences], spool) if check_cells else (None, [])
    strays, num_ignored = _strays(dataset, documents)
    return _verification(
        store,
        documents.checked,
        found,
        start,
        sentences=sentences,
        documents=documents,
        more=[*strays, *faults],
        num_ignored=num_ignored,
        source=tars.uri if tars else None,
        recomputed=recomputed,
    )


def _sentence_sources(
    documents: Documents, stems: Sequence[str], roots: Mapping[str, str]
) -> dict[str, SentenceSource]:
    """Where the files of corpora are, but for those that only a damaged `corpus.json` says it of."""
    damaged = {faults.path for faults in documents.checked if faults.found}
    unknown = sorted(roots.keys() - documents.corpora.keys())
    if unknown:
        raise StorageError(f"--corpus-root {unknown[0]}: the dataset has no such corpus")
    sound = {
        name: document
        for name, document in documents.corpora.items()
        if name in roots or f"corpora/{name}/{CORPUS_FILE}" not in damaged
    }
    return find_sources(sound, stems, roots)


def _recomputer(
    dataset: Dataset, documents: Documents, tars: SourceTars | None, wanted: Recomputation
) -> Callable[[Sequence[ShardFindings], Path], tuple[Recomputed, list[Fault]]]:
    """What computes cells again once the shards are known. Its teachers are loaded here: before anything is read."""
    from reinforce.inspection.recompute import load_recorded, recompute  # the only part that loads torch

    recorded = load_recorded(documents, tars, wanted)

    def check(found: Sequence[ShardFindings], spool: Path) -> tuple[Recomputed, list[Fault]]:
        whole = [shard.cells for shard in found if not shard.faults]
        return recompute(dataset, documents, tars, whole, spool, wanted, recorded)

    return check


def _strays(dataset: Dataset, documents: Documents) -> tuple[list[Fault], int]:
    """Files that nothing explains, and the number of objects that are no part of the format."""
    with_document = {path.rpartition("/")[0] for path in dataset.sizes if path.endswith(f"/{SIGNAL_FILE}")}
    signals = [Signal.parse(folder) for folder in sorted(with_document) if Signal.is_folder(folder)]
    files = {signal: frozenset(dataset.stems_of(signal)) for signal in signals}
    faults = _unexplained(dataset, files) + undocumented_banks(dataset, documents)
    faults += strays_of_corpora(dataset)
    known = {CARD_FILE} | {faults.path for faults in documents.checked} | {fault.path for fault in faults}
    known |= {spine_file(stem) for stem in dataset.stems} | {views_file(stem) for stem in dataset.stems}
    known |= {signal.file(stem) for signal, stems in files.items() for stem in stems}
    known |= files_of_corpora(dataset)
    unknown = sorted(set(dataset.sizes) - known)
    ours = [path for path in unknown if path.startswith(tuple(f"{folder}/" for folder in _OURS))]
    return faults + [Fault(path, "no file of this format") for path in ours], len(unknown) - len(ours)


def _unexplained(dataset: Dataset, files: dict[Signal, frozenset[str]]) -> list[Fault]:
    """Signal files that no spine or no `signal.json` explains."""
    stems = frozenset(dataset.stems)
    orphans = [signal.file(stem) for signal, found in files.items() for stem in sorted(found - stems)]
    explained = tuple(f"{signal.folder}/" for signal in files)
    undocumented = [
        path
        for path in sorted(dataset.sizes)
        if path.startswith(("captions/", "embeddings/", "modalities/"))
        and path.endswith(".parquet")
        and not path.startswith(explained)
    ]
    return [Fault(path, "no spine: samples/ has no such shard") for path in orphans] + [
        Fault(path, f"no {SIGNAL_FILE} says what it is") for path in undocumented
    ]


def _verification(
    store: Store,
    checked: Sequence[FileFaults],
    found: Sequence[ShardFindings],
    start_s: float,
    *,
    sentences: Sequence[ShardFindings] = (),
    documents: Documents | None = None,
    more: Sequence[Fault] = (),
    num_ignored: int = 0,
    source: str | None = None,
    recomputed: Recomputed | None = None,
) -> Verification:
    parts = [*found, *sentences]
    files = [Totals.of(checked), *(part.files for part in parts)]
    return Verification(
        uri=store.uri,
        num_shards=len(found),
        num_files=sum(part.num_files for part in files),
        num_bytes=sum(part.num_bytes for part in files),
        num_cells=sum(part.num_cells for part in files),
        num_without_digest=sum(part.num_without_digest for part in files),
        num_ignored=num_ignored,
        source=source,
        num_sources=sum(shard.tars.num_files for shard in found),
        source_bytes=sum(shard.tars.num_bytes for shard in found),
        num_sentence_files=len(sentences),
        num_sentence_sources=sum(part.tars.num_files for part in sentences),
        sentence_source_bytes=sum(part.tars.num_bytes for part in sentences),
        failures=documents.failures if documents else {},
        faults=(
            *(fault for file in checked for fault in file.found),
            *(f for part in parts for f in part.faults),
            *more,
        ),
        elapsed_s=round(time.perf_counter() - start_s, 3),
        recomputed=recomputed,
    )
