"""The second stream of loss dime_fm: what teachers said of sentences that have nothing to do with the images.

It runs in the training process, and its order comes from keys of its own, so that no batch of images depends on it.
Files are dealt to the processes visit by visit; up to `open_files` of a process's visits, all of one pass, are shuffled
together, and the files of the next ones are read in a thread meanwhile. The embeddings of both groups are in memory:
eight files of 100,000 sentences at 768 dims take 1.2 GB. A file that is in the group at hand is not read again for the
next.
"""

import itertools
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float16, Int64
from torch import Tensor

from reinforce.config import ConfigError
from reinforce.formatting import format_counts
from reinforce.shards.dataset import check_keys
from reinforce.shards.reader import FormatError, ShardFile, to_numpy
from reinforce.shards.schema import (
    SENTENCE_COLUMN,
    corpus_embeddings_file,
    corpus_embeddings_folder,
    sentences_file,
    split_corpus_stem,
)
from reinforce.storage import StorageError, Store, open_store
from reinforce.student.batch import Batch, Position
from reinforce.student.choices import Visit, permutation, visits
from reinforce.student.groups import ReadError
from reinforce.student.sentence_plan import SentencePlan, kept_keys
from reinforce.student.shard import HOW_TO_SKIP

Rows = Float16[np.ndarray, "sentences dim"]

_KIND = "sentences"
"""What makes the permutations of this stream others than those of the images'."""


@dataclass(frozen=True)
class _File:
    """The kept sentences of a file; `usable` are the rows to use, the others are in `counts` by reason."""

    embeddings: dict[str, Rows]
    """By teacher."""
    usable: Int64[np.ndarray, " usable"]
    counts: Counter[str]


@dataclass(frozen=True)
class _Group:
    """The files of some visits, and the order in which their usable rows come, numbered through all of them."""

    files: dict[str, _File]
    """By stem."""
    visited: list[_File]
    num_visits: int
    """Those to files that are left out, too."""
    order: Int64[np.ndarray, " usable"]
    counts: Counter[str]
    """What was left out, by reason."""

    def take(self, places: Int64[np.ndarray, " rows"], teacher: str, out: Rows) -> None:
        """The embeddings at places of `order`, copied file by file."""
        numbers = self.order[places]
        ends = np.cumsum([len(file.usable) for file in self.visited])
        in_file = np.searchsorted(ends, numbers, side="right")
        for index in np.unique(in_file):
            file, is_here = self.visited[index], in_file == index
            out[is_here] = file.embeddings[teacher][file.usable[numbers[is_here] - ends[index] + len(file.usable)]]


class SentenceStream:
    """An endless stream of a process's batches of sentences. `position` is where the one after the last begins."""

    def __init__(self, plan: SentencePlan, *, rank: int = 0, world_size: int = 1) -> None:
        """Raises `ConfigError` if the batch cannot be shared out."""
        self.plan = plan
        self.position = Position()
        self._rank, self._world_size = rank, world_size
        self.batch_size, rest = divmod(plan.config.batch_size, world_size)
        if rest or not self.batch_size:
            raise ConfigError(
                f"student.data.sentences.batch_size: {plan.config.batch_size} does not divide by {world_size} processes"
            )

    def beside(self, batches: Iterator[Batch]) -> Generator[Batch]:
        """Batches of images with sentences, from `position` on, in `sentences`; what was left out joins `counts`."""
        counts = Counter[str]()
        groups = self._groups(open_store(self.plan.dataset_uri))
        try:
            sentences = self._sentences(groups, counts)
            for batch in batches:
                embeddings, position = next(sentences)
                with_sentences = replace(batch, sentences=embeddings, counts=+(batch.counts + counts))
                counts.clear()
                self.position = position
                yield with_sentences
        finally:
            groups.close()

    def _sentences(
        self, groups: Iterator[tuple[int, _Group]], counts: Counter[str]
    ) -> Iterator[tuple[dict[str, Tensor], Position]]:
        """Full batches, across the ends of groups, each with the position after it."""
        number, group = next(groups)
        counts += group.counts
        start = self.position.row
        while True:
            rows = {name: np.empty((self.batch_size, dim), np.float16) for name, dim in self.plan.teachers.items()}
            done = 0
            while done < self.batch_size:
                if start == len(group.order):
                    number, group = next(groups)
                    counts += group.counts
                    start = 0
                places = np.arange(start, min(start + self.batch_size - done, len(group.order)))
                for name, of_batch in rows.items():
                    group.take(places, name, of_batch[done : done + len(places)])
                start, done = start + len(places), done + len(places)
            yield {name: torch.from_numpy(of_batch) for name, of_batch in rows.items()}, Position(0, number, start)

    def _groups(self, store: Store) -> Generator[tuple[int, _Group]]:
        """The groups from that of `position` on, with their numbers, each read while the one before it is used."""
        plan, first = self.plan, self.position.group
        todo = itertools.islice(self._visits(), first, None)
        num_idle_visits, left_out = 0, Counter[str]()
        with ThreadPoolExecutor(1, "sentences") as pool:
            ahead = pool.submit(self._read, store, next(todo), {})
            for number in itertools.count(first):
                group = ahead.result()
                ahead = pool.submit(self._read, store, next(todo), group.files)
                left_out += group.counts
                num_idle_visits = 0 if len(group.order) else num_idle_visits + group.num_visits
                if num_idle_visits >= 2 * len(plan.stems):
                    raise ReadError(
                        f"{plan.dataset_uri}: not one usable sentence in {num_idle_visits} visits to files of them "
                        f"(the run has {len(plan.stems):,}): {format_counts(left_out) or 'they keep none'}"
                    )
                yield number, group

    def _visits(self) -> Iterator[list[Visit]]:
        """The visits of each group. A group ends with its pass: no sentence is shuffled together with itself."""
        plan = self.plan
        every = visits(plan.stems, plan.seed, worker=self._rank, num_workers=self._world_size, kind=_KIND)
        for _, of_pass in itertools.groupby(every, key=lambda visit: visit.number):
            while group := list(itertools.islice(of_pass, plan.config.open_files)):
                yield group

    def _read(self, store: Store, group: list[Visit], at_hand: dict[str, _File]) -> _Group:
        """The files of some visits; those at hand are not read again."""
        files, visited, counts = dict[str, _File](), [], Counter[str]()
        for visit in group:
            file = files.get(visit.stem) or at_hand.get(visit.stem) or self._read_file(store, visit.stem, counts)
            if file is not None:
                files[visit.stem] = file
                visited.append(file)
                counts += file.counts
        places = [f"{visit.number}/{visit.stem}" for visit in group]
        num_rows = sum(len(file.usable) for file in visited)
        return _Group(files, visited, len(group), permutation(num_rows, self.plan.seed, _KIND, "rows", *places), counts)

    def _read_file(self, store: Store, stem: str, counts: Counter[str]) -> _File | None:
        """A file of sentences; None, and counted, if the recipe skips what is wrong with it."""
        try:
            return read_file(store, self.plan, stem)
        except (FileNotFoundError, StorageError) as error:
            self._refuse(stem, "missing", error)
            counts["missing_sentences"] += 1
        except FormatError as error:
            self._refuse(stem, "damaged", error)
            counts["damaged_sentences"] += 1
        return None

    def _refuse(self, stem: str, policy: str, error: Exception) -> None:
        if getattr(self.plan.data, policy) == "error":
            text = " ".join(str(error).split())
            raise ReadError(f"{stem}: {text}; to go on without it: --set student.data.{policy}=skip") from None


def read_file(store: Store, plan: SentencePlan, stem: str) -> _File:
    """A file of sentences as its teachers embedded it, joined by checked key.

    Raises `FormatError` where files do not belong together, `ReadError` for a null if the recipe wants none.
    """
    corpus, _ = split_corpus_stem(stem)
    with ShardFile(store, sentences_file(stem)) as file:
        _check_footer(file, {"stem": stem, "fingerprint": plan.fingerprints[corpus]})
        source_sha256 = file.footer.get("source_sha256")
        kept = kept_keys(file)
    is_usable, counts = plan.is_selected(stem, kept), Counter[str]()
    counts["not_selected_sentence"] = int(np.count_nonzero(~is_usable))
    embeddings = {name: _read_embeddings(store, plan, stem, name, source_sha256, kept) for name in plan.teachers}
    is_null = np.zeros(len(kept), bool)
    for rows in embeddings.values():
        is_null |= is_usable & np.isnan(rows[:, 0])
    counts["null_sentence"] = int(np.count_nonzero(is_null))
    if is_null.any() and plan.data.unusable == "error":
        raise ReadError(f"{stem}: sentence {kept[int(is_null.argmax())]}: its embedding is null; {HOW_TO_SKIP}")
    return _File(embeddings, np.flatnonzero(is_usable & ~is_null), +counts)


def _read_embeddings(
    store: Store, plan: SentencePlan, stem: str, teacher: str, source_sha256: str | None, kept: pa.StringArray
) -> Rows:
    folder = corpus_embeddings_folder(split_corpus_stem(stem)[0], teacher)
    expected = {
        "stem": stem,
        "signal": folder,
        "fingerprint": plan.fingerprints[folder],
        "source_sha256": source_sha256,
    }
    with ShardFile(store, corpus_embeddings_file(stem, teacher)) as file:
        _check_footer(file, expected)
        table = file.read(["key", SENTENCE_COLUMN])
        found = table.column("key").combine_chunks()
        if not found.equals(kept):
            check_keys(kept.to_pylist(), found.to_pylist(), file.path)
        rows = to_numpy(table.column(SENTENCE_COLUMN))
        if rows.shape[1] != plan.teachers[teacher]:
            raise FormatError(f"{file.path}: its embeddings have {rows.shape[1]} dims, not {plan.teachers[teacher]}")
    return rows


def _check_footer(file: ShardFile, expected: Mapping[str, object]) -> None:
    for name, value in expected.items():
        if file.footer.get(name) != value:
            raise FormatError(f"{file.path}: its {name} is {file.footer.get(name)}, not {value}: another file's")
