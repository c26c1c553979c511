"""What the footers of all shards say, and where they contradict each other. A few kB are read of each file."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from reinforce.inspection.figures import Problem
from reinforce.shards.dataset import DATASET_FILE, SIGNAL_FILE, Dataset
from reinforce.shards.reader import FormatError, ShardFile
from reinforce.shards.schema import SPINE_SCHEMA, Signal, canonical_json, fingerprint, spine_file

_NUM_THREADS = 16
"""Footers on object storage are a matter of latency."""


@dataclass(slots=True)
class FooterTotals:
    """Sums over the footers of all readable files. `rows_of` and `bytes_of` are those of each signal's."""

    num_samples: int = 0
    num_kept: int = 0
    source_bytes: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    nulls: dict[Signal, Counter[str]] = field(default_factory=dict)
    num_truncated_texts: Counter[Signal] = field(default_factory=Counter)
    rows_of: Counter[Signal] = field(default_factory=Counter)
    bytes_of: Counter[Signal] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)


@contextmanager
def noted(problems: list[Problem], dataset: Dataset, path: str) -> Iterator[None]:
    """Turns what is wrong with one file into a `Problem`."""
    try:
        yield
    except (FormatError, OSError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        problems.append(Problem(path, what.removeprefix(f"{dataset.store.uri_of(path)}: ")))


def read_footers(dataset: Dataset) -> FooterTotals:
    """Reads every footer, several at a time, and adds them up."""
    files = {signal: frozenset(dataset.stems_of(signal)) for signal in dataset.signals}
    totals = FooterTotals(nulls={signal: Counter() for signal in files}, problems=_document_problems(dataset))
    totals.problems += _stray_files(dataset, files)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        present = [[signal for signal, stems in files.items() if stem in stems] for stem in dataset.stems]
        for shard in pool.map(lambda stem, signals: _read_shard(dataset, stem, signals), dataset.stems, present):
            _add(totals, dataset, shard)
    return totals


@dataclass(slots=True)
class _ShardFooters:
    spine: dict[str, Any] | None = None
    signals: dict[Signal, dict[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def _read_shard(dataset: Dataset, stem: str, signals: Sequence[Signal]) -> _ShardFooters:
    shard = _ShardFooters()
    path = spine_file(stem)
    with noted(shard.problems, dataset, path), dataset.open_spine(stem) as spine:
        expected = {"kind": "samples", "stem": stem, "fingerprint": dataset.document.get("spine_fingerprint")}
        shard.spine = _checked(spine, expected, list(SPINE_SCHEMA.names))
    for signal in signals:
        document = dataset.signals[signal]
        expected = {"signal": signal.folder, "stem": stem, "fingerprint": document.get("fingerprint")}
        if shard.spine is not None:
            expected |= {"source_sha256": shard.spine["source_sha256"], "num_rows": shard.spine["num_kept"]}
        with noted(shard.problems, dataset, signal.file(stem)), dataset.open(signal, stem) as file:
            shard.signals[signal] = _checked(file, expected, ["key", *document.get("columns", ())])
    return shard


def _checked(file: ShardFile, expected: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    """The footer, if it says what is expected of it; raises `FormatError` otherwise."""
    for name, value in expected.items():
        found = file.footer.get(name)
        if found != value:
            raise FormatError(f"{file.path}: {name} is {_shown(found)} in its footer, expected {_shown(value)}")
    if file.footer.get("num_rows") != file.num_rows:
        raise FormatError(f"{file.path}: {file.num_rows} rows, its footer says {_shown(file.footer.get('num_rows'))}")
    if file.columns != columns:
        raise FormatError(f"{file.path}: columns {', '.join(file.columns)}; expected {', '.join(columns)}")
    return file.footer


def _add(totals: FooterTotals, dataset: Dataset, shard: _ShardFooters) -> None:
    totals.problems += shard.problems
    if shard.spine is not None:
        totals.num_samples += shard.spine["num_rows"]
        totals.num_kept += shard.spine["num_kept"]
        totals.source_bytes += shard.spine["source_bytes"]
        totals.drops.update(shard.spine["drops"])
        totals.left_out.update(shard.spine["counts"])
    for signal, footer in shard.signals.items():
        totals.nulls[signal].update(footer["nulls"])
        totals.num_truncated_texts[signal] += footer.get("num_truncated_texts", 0)
        totals.rows_of[signal] += footer["num_rows"]
        totals.bytes_of[signal] += dataset.sizes[signal.file(footer["stem"])]


def _document_problems(dataset: Dataset) -> list[Problem]:
    """Documents whose content is not what their fingerprint was taken of."""
    documents = [(DATASET_FILE, dataset.document.get("spine"), dataset.document.get("spine_fingerprint"))]
    for signal, document in dataset.signals.items():
        documents.append((f"{signal.folder}/{SIGNAL_FILE}", document.get("content"), document.get("fingerprint")))
    return [
        Problem(path, "its fingerprint is not that of its content: it was edited")
        for path, content, recorded in documents
        if fingerprint(content) != recorded
    ]


def _stray_files(dataset: Dataset, files: dict[Signal, frozenset[str]]) -> list[Problem]:
    """Signal files that no spine or no `signal.json` explains."""
    stems = frozenset(dataset.stems)
    orphans = [signal.file(stem) for signal, found in files.items() for stem in sorted(found - stems)]
    explained = tuple(f"{signal.folder}/" for signal in files)
    unexplained = [
        path
        for path in dataset.sizes
        if path.startswith(("captions/", "embeddings/"))
        and path.endswith(".parquet")
        and not path.startswith(explained)
    ]
    return [Problem(path, "no spine: samples/ has no such shard") for path in orphans] + [
        Problem(path, f"no {SIGNAL_FILE} says what it is") for path in sorted(unexplained)
    ]


def _shown(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= 24 else f"{text[:16]}..."
