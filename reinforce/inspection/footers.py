"""What the footers of many shards say, added up, and where they contradict each other. A few kB a file."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from reinforce.inspection.figures import Problem
from reinforce.inspection.listing import Listing
from reinforce.shards.dataset import DATASET_FILE, SIGNAL_FILE, Dataset
from reinforce.shards.reader import FormatError, ShardFile
from reinforce.shards.schema import SPINE_SCHEMA, Signal, canonical_json, fingerprint, spine_file

_NUM_THREADS = 16
"""Footers on object storage are a matter of latency."""
_MOST_EXAMPLE_SHARDS = 3


@dataclass(slots=True)
class FooterTotals:
    """Sums over the footers of the readable files of `num_shards` shards, of `files_of` files of each signal.

    `stems_of_drop` and `stems_of_null` name a few shards that have such a sample.
    """

    num_shards: int = 0
    num_samples: int = 0
    num_kept: int = 0
    source_bytes: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    files_of: Counter[Signal] = field(default_factory=Counter)
    rows_of: Counter[Signal] = field(default_factory=Counter)
    bytes_of: Counter[Signal] = field(default_factory=Counter)
    nulls: dict[Signal, Counter[str]] = field(default_factory=dict)
    num_truncated_texts: Counter[Signal] = field(default_factory=Counter)
    stems_of_drop: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    stems_of_null: defaultdict[Signal, list[str]] = field(default_factory=lambda: defaultdict(list))
    problems: list[Problem] = field(default_factory=list)


@contextmanager
def noted(problems: list[Problem], dataset: Dataset, path: str) -> Iterator[None]:
    """Turns what is wrong with one file into a `Problem`."""
    try:
        yield
    except (FormatError, OSError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        problems.append(Problem(path, what.removeprefix(f"{dataset.store.uri_of(path)}: ")))


def read_footers(dataset: Dataset, listing: Listing, numbers: Sequence[int]) -> FooterTotals:
    """Reads every footer of the shards with these numbers, several at a time, and adds them up."""
    totals = FooterTotals(nulls={signal: Counter() for signal in listing.signals})
    totals.problems += _document_problems(dataset, listing)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for number, shard in zip(numbers, pool.map(lambda n: _read_shard(dataset, listing, n), numbers), strict=True):
            _add(totals, listing, number, shard)
    return totals


@dataclass(slots=True)
class _ShardFooters:
    spine: dict[str, Any] | None = None
    signals: dict[Signal, dict[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def _read_shard(dataset: Dataset, listing: Listing, number: int) -> _ShardFooters:
    shard, stem = _ShardFooters(), listing.stems[number]
    with noted(shard.problems, dataset, spine_file(stem)), dataset.open_spine(stem) as spine:
        expected = {"kind": "samples", "stem": stem, "fingerprint": dataset.document.get("spine_fingerprint")}
        shard.spine = check_footer(spine, expected, list(SPINE_SCHEMA.names))
    for signal, document in listing.signals.items():
        if not listing.has(signal, number):
            continue
        expected = {"signal": signal.folder, "stem": stem, "fingerprint": document.get("fingerprint")}
        if shard.spine is not None:
            expected |= {"source_sha256": shard.spine["source_sha256"], "num_rows": shard.spine["num_kept"]}
        with noted(shard.problems, dataset, signal.file(stem)), dataset.open(signal, stem) as file:
            shard.signals[signal] = check_footer(file, expected, ["key", *document.get("columns", ())])
    return shard


def check_footer(file: ShardFile, expected: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    """The footer, if it says what is expected of it; raises `FormatError` otherwise."""
    for name, value in expected.items():
        found = file.footer.get(name)
        if found != value:
            raise FormatError(f"{file.path}: {name} is {_shown(found)} in its footer, expected {_shown(value)}")
    if file.footer.get("num_rows") != file.num_rows:
        raise FormatError(f"{file.path}: {file.num_rows} rows, its footer says {_shown(file.footer.get('num_rows'))}")
    if file.columns != columns:
        raise FormatError(f"{file.path}: columns {', '.join(file.columns)}; expected {', '.join(columns)}")
    absent = sorted(_NEEDED[file.footer.get("kind") in ("samples", "sentences")] - file.footer.keys())
    if absent:
        raise FormatError(f"{file.path}: its footer has no field {absent[0]}")
    return file.footer


_NEEDED = {True: {"source_sha256", "source_bytes", "num_kept", "drops", "counts"}, False: {"source_sha256", "nulls"}}
"""Fields that figures are made of: of spines, of other files."""


def _add(totals: FooterTotals, listing: Listing, number: int, shard: _ShardFooters) -> None:
    stem = listing.stems[number]
    totals.num_shards += 1
    totals.problems += shard.problems
    if shard.spine is not None:
        totals.num_samples += shard.spine["num_rows"]
        totals.num_kept += shard.spine["num_kept"]
        totals.source_bytes += shard.spine["source_bytes"]
        totals.drops.update(shard.spine["drops"])
        totals.left_out.update(shard.spine["counts"])
        for reason, count in shard.spine["drops"].items():
            if count and len(totals.stems_of_drop[reason]) < _MOST_EXAMPLE_SHARDS:
                totals.stems_of_drop[reason].append(stem)
    for signal, footer in shard.signals.items():
        totals.nulls[signal].update(footer["nulls"])
        totals.num_truncated_texts[signal] += footer.get("num_truncated_texts", 0)
        totals.files_of[signal] += 1
        totals.rows_of[signal] += footer["num_rows"]
        totals.bytes_of[signal] += int(listing.signal_bytes[signal][number])
        if any(footer["nulls"].values()) and len(totals.stems_of_null[signal]) < _MOST_EXAMPLE_SHARDS:
            totals.stems_of_null[signal].append(stem)


def _document_problems(dataset: Dataset, listing: Listing) -> list[Problem]:
    """Documents whose content is not what their fingerprint was taken of."""
    documents = [(DATASET_FILE, dataset.document.get("spine"), dataset.document.get("spine_fingerprint"))]
    for signal, document in listing.signals.items():
        documents.append((f"{signal.folder}/{SIGNAL_FILE}", document.get("content"), document.get("fingerprint")))
    return [
        Problem(path, "its fingerprint is not that of its content: it was edited")
        for path, content, recorded in documents
        if fingerprint(content) != recorded
    ]


def _shown(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= 24 else f"{text[:16]}..."
