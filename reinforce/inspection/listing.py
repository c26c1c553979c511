"""What a dataset holds by one listing: which shards have which files, of how many bytes; its runs and failures.

Nothing but `signal.json` is opened. A file costs 16 bytes here and a stem its string once, whatever the number of
signals: 65,536 shards of 9 signals and a spine take about 30 MB.
"""

import re
from array import array
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from reinforce.inspection.figures import MOST_STEMS, Missing, Problem
from reinforce.shards.dataset import SIGNAL_FILE, Dataset, read_document
from reinforce.shards.reader import FormatError
from reinforce.shards.schema import Signal, failure_file, spine_file

_SPINES = "samples"
_FILE = re.compile(r"(samples|(?:captions|modalities)/[^/]+|embeddings/[^/]+/(?:image|text/[^/]+))/(.+)\.parquet")
_BANK_FILE = re.compile(r"banks/([^/]+)/([^/]+)")
_CORPUS_FILE = re.compile(r"corpora/([^/]+)/(?:sentences|embeddings/([^/]+))/(.+)\.parquet")
_CORPUS_DOCUMENT = re.compile(r"corpora/([^/]+)/(?:corpus|embeddings/([^/]+)/signal)\.json")
_RUN_PART = re.compile(r"runs/([^/]+)/[^/]+\.jsonl")
_MOST_ORPHANS = 1000
_NUM_THREADS = 16

Sizes = Int64[np.ndarray, " shards"]


@dataclass(slots=True)
class CorpusFiles:
    """Bytes of a corpus's sentences by name, and of each teacher's embeddings; which of its documents are there."""

    sentences: dict[str, int] = field(default_factory=dict)
    embeddings: defaultdict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    documents: set[str | None] = field(default_factory=set)
    """Teachers with a `signal.json`; None stands for `corpus.json`."""

    @property
    def num_bytes(self) -> int:
        return sum(map(sum, (files.values() for files in (self.sentences, *self.embeddings.values()))))


@dataclass(slots=True)
class Listing:
    """`stems` are the shards with a spine, sorted; arrays are in their order. Bytes are -1 where there is no file."""

    stems: list[str]
    signals: dict[Signal, dict[str, Any]]
    """Each with its `signal.json`, in order."""
    spine_bytes: Sizes
    signal_bytes: dict[Signal, Sizes]
    failed: list[str]
    run_parts: dict[str, list[str]]
    banks: dict[str, dict[str, int]]
    """Bytes of each bank's file by teacher, in order."""
    corpora: dict[str, CorpusFiles]
    problems: list[Problem]

    def has(self, signal: Signal, number: int) -> bool:
        """Whether the file of a signal is there for the shard `stems[number]`."""
        return bool(self.signal_bytes[signal][number] >= 0)

    def num_files(self, signal: Signal) -> int:
        return int((self.signal_bytes[signal] >= 0).sum())

    def num_bytes(self, signal: Signal) -> int:
        sizes = self.signal_bytes[signal]
        return int(sizes[sizes >= 0].sum())

    def num_signals(self) -> Int64[np.ndarray, " shards"]:
        """How many signals each shard has."""
        counts = np.zeros(len(self.stems), np.int64)
        for sizes in self.signal_bytes.values():
            counts += sizes >= 0
        return counts

    def missing(self, signal: Signal) -> Missing:
        return self._missing(self.signal_bytes[signal] < 0)

    def incomplete(self) -> Missing:
        """The shards that lack a signal."""
        return self._missing(self.num_signals() < len(self.signals))

    def _missing(self, lacks: Bool[np.ndarray, " shards"]) -> Missing:
        numbers = np.flatnonzero(lacks)
        return Missing(len(numbers), tuple(self.stems[number] for number in numbers[:MOST_STEMS].tolist()))


@dataclass(slots=True)
class _Found:
    """The listing as it comes: stems by the number they were first met with, files by folder."""

    numbers: dict[str, int] = field(default_factory=dict)
    files: defaultdict[str, tuple["array[int]", "array[int]"]] = field(
        default_factory=lambda: defaultdict(lambda: (array("q"), array("q")))
    )
    """Folder -> numbers and bytes."""
    described: set[str] = field(default_factory=set)
    strays: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    failed: list[str] = field(default_factory=list)
    run_parts: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    bank_files: defaultdict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    corpora: defaultdict[str, CorpusFiles] = field(default_factory=lambda: defaultdict(CorpusFiles))

    def add(self, path: str, num_bytes: int) -> None:
        if match := _FILE.fullmatch(path):
            numbers, sizes = self.files[match[1]]
            numbers.append(self.numbers.setdefault(match[2], len(self.numbers)))
            sizes.append(num_bytes)
        elif match := _RUN_PART.fullmatch(path):
            self.run_parts[match[1]].append(path)
        elif match := _BANK_FILE.fullmatch(path):
            self.bank_files[match[1]][match[2]] = num_bytes
        elif match := _CORPUS_FILE.fullmatch(path):
            of_corpus = self.corpora[match[1]]
            files = of_corpus.sentences if match[2] is None else of_corpus.embeddings[match[2]]
            files[match[3]] = num_bytes
        elif match := _CORPUS_DOCUMENT.fullmatch(path):
            self.corpora[match[1]].documents.add(match[2])
        elif path.startswith(_FAILURES[0]) and path.endswith(_FAILURES[1]):
            self.failed.append(path.removeprefix(_FAILURES[0]).removesuffix(_FAILURES[1]))
        elif path.endswith(f"/{SIGNAL_FILE}") and Signal.is_folder(path.removesuffix(f"/{SIGNAL_FILE}")):
            self.described.add(path.removesuffix(f"/{SIGNAL_FILE}"))
        elif path.startswith(("captions/", "embeddings/", "modalities/")) and path.endswith(".parquet"):
            self.strays[path.rpartition("/")[0]] += 1


_FAILURES = failure_file("\0").split("\0")


def list_dataset(dataset: Dataset) -> Listing:
    """Lists a dataset, once. Raises `StorageError` if that fails."""
    found = _Found()
    for info in dataset.store.list():
        found.add(info.path, info.size)
    problems: list[Problem] = []
    signals = _signals(dataset, found, problems)
    spines, sizes = found.files[_SPINES]
    names = list(found.numbers)
    order = sorted(range(len(spines)), key=lambda index: names[spines[index]])
    positions = np.full(len(names), -1, np.int64)
    positions[[spines[index] for index in order]] = np.arange(len(order))
    listing = Listing(
        stems=[names[spines[index]] for index in order],
        signals=signals,
        spine_bytes=np.array([sizes[index] for index in order], np.int64),
        signal_bytes={},
        failed=sorted(found.failed),
        run_parts={run: sorted(parts) for run, parts in sorted(found.run_parts.items())},
        banks={
            name: {file.removesuffix(".parquet"): n for file, n in sorted(files.items()) if file.endswith(".parquet")}
            for name, files in sorted(found.bank_files.items())
        },
        corpora=dict(sorted(found.corpora.items())),
        problems=problems,
    )
    orphans: list[tuple[Signal, str]] = []
    for signal in signals:
        numbers, sizes = found.files[signal.folder]
        places = positions[np.asarray(numbers, np.int64)]
        listing.signal_bytes[signal] = np.full(len(order), -1, np.int64)
        listing.signal_bytes[signal][places[places >= 0]] = np.asarray(sizes, np.int64)[places >= 0]
        orphans += [(signal, names[numbers[index]]) for index in np.flatnonzero(places < 0)]
    problems += _orphans(dataset, orphans)
    return listing


def _signals(dataset: Dataset, found: _Found, problems: list[Problem]) -> dict[Signal, dict[str, Any]]:
    """Reads every `signal.json`, also those that a listing missed because their folder is new."""
    documents = {}
    for folder in sorted(found.described | found.files.keys() - {_SPINES}):
        path = f"{folder}/{SIGNAL_FILE}"
        try:
            document = read_document(dataset.store, path)
        except FormatError as error:
            problems.append(Problem(path, str(error).removeprefix(f"{dataset.store.uri_of(path)}: ")))
            continue
        if document is None:
            found.strays[folder] = len(found.files[folder][0])
        else:
            documents[Signal.parse(folder)] = document
    for folder, count in sorted(found.strays.items()):
        what = "1 file is" if count == 1 else f"{count:,} files are"
        problems.append(Problem(folder, f"{what} there, and no {SIGNAL_FILE} says what it is made of"))
    return dict(sorted(documents.items()))


def _orphans(dataset: Dataset, files: Sequence[tuple[Signal, str]]) -> list[Problem]:
    """Signal files without a spine: a build commits the spine first, but a listing may have passed it by then."""
    looked_at = sorted(files)[:_MOST_ORPHANS]
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        has_spine = list(pool.map(lambda file: dataset.store.exists(spine_file(file[1])), looked_at))
    orphans = [signal.file(stem) for (signal, stem), has in zip(looked_at, has_spine, strict=True) if not has]
    problems = [Problem(path, "no spine: samples/ has no such shard") for path in orphans]
    if len(files) > len(looked_at):
        problems.append(Problem(_SPINES, f"{len(files) - len(looked_at):,} more files have no spine here"))
    return problems
