"""Some sentences of each corpus taken through its teachers, to learn what they cost: like `trial.py`, without images.

Costs the download of a file of middling size of each corpus, or of some small ones, each read to its end to count its
sentences, and 10 seconds or so of the teachers. Nothing is written to the output.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reinforce.config import ConfigError
from reinforce.corpora import reinforce_texts
from reinforce.corpus_source import PreparedSentences, SentencesTask, missing_sentences
from reinforce.plan import BuildPlan
from reinforce.prefetch import StageTimes
from reinforce.runners.excerpt import MAX_FAILURES
from reinforce.runners.failures import Failure
from reinforce.runners.worker import Job, Lease
from reinforce.sample import Sentence
from reinforce.shard_report import ShardReport
from reinforce.storage import ShardRef, Store, open_store

_MAX_S = 60.0


@dataclass(frozen=True)
class CorpusWork:
    """Files of a corpus of which something is missing, in the order to try them in."""

    corpus: str
    files: tuple[Lease, ...]


@dataclass(frozen=True)
class SentenceTrial:
    """What sentences of one corpus cost on one worker."""

    corpus: str
    num_tried: int
    """Kept ones, that the teachers embedded."""
    teachers_s: float
    """For all of these."""
    bytes_written: int
    kept_per_byte: float
    """Kept sentences of a file for each of its bytes, as it lies there."""


def try_sentences(
    job: Job,
    plan: BuildPlan,
    works: Sequence[CorpusWork],
    *,
    output: Store,
    mirror: Store,
    folder: Path,
    trial_s: float,
) -> tuple[SentenceTrial, ...]:
    """Embeds sentences of each corpus for `trial_s` seconds, some 256 at least; writes to the mirror of the output.

    Raises `ConfigError` where no file of a corpus can be tried.
    """
    if works:
        for teacher in plan.teachers:
            teacher.embed_texts(["the first pass takes longer than any other"])
    return tuple(_Run(job, plan, work, output, mirror, folder, trial_s).measure() for work in works)


class _Excerpt(PreparedSentences):
    """The sentences of a file until there have been enough; those after them are counted."""

    def __init__(self, task: SentencesTask, path: Path | None, output: Store, is_enough: Callable[[], bool]) -> None:
        super().__init__(task, threading.Semaphore())
        self.num_kept = 0
        """Of the whole file."""
        self._path, self._output, self._is_enough = path, output, is_enough

    def batches(self) -> Iterator[list[Sentence]]:
        is_over = False
        for batch in self.read(self._path, self._output):
            self.num_kept += sum(sentence.drop is None for sentence in batch)
            if not is_over:
                yield batch
                is_over = self._is_enough()

    def close(self) -> None:
        """There is nothing to give back: what is read goes to nobody else."""


class _Run:
    """One corpus tried: file after file until there have been sentences enough."""

    def __init__(
        self, job: Job, plan: BuildPlan, work: CorpusWork, output: Store, mirror: Store, folder: Path, trial_s: float
    ) -> None:
        self._plan, self._work, self._output, self._mirror = plan, work, output, mirror
        self._source = open_store(job.corpus_roots[work.corpus])
        self._folder, self._trial_s = folder, trial_s
        self._times = StageTimes()
        self._start = time.perf_counter()

    def measure(self) -> SentenceTrial:
        total, num_kept, source_bytes = ShardReport(""), 0, 0
        failures: list[str] = []
        for file in self._work.files:
            try:
                excerpt = self._excerpt(file)
                report = reinforce_texts(excerpt, self._plan, self._mirror, spool=self._folder, times=self._times)
            except Exception as error:  # another file may do
                failure = Failure.of(error)
                if failure.kind == "disk":
                    raise
                failures.append(f"{file.stem}: {failure.reason}")
                if len(failures) >= MAX_FAILURES:
                    break
                continue
            total.add(report)
            num_kept, source_bytes = num_kept + excerpt.num_kept, source_bytes + file.size
            if self._is_enough():
                break
        if not source_bytes:
            raise ConfigError(f"--plan: no file of sentences can be tried; {failures[-1]}")
        return SentenceTrial(
            self._work.corpus,
            total.num_kept_sentences,
            self._teachers_s(),
            total.num_bytes,
            num_kept / source_bytes,
        )

    def _excerpt(self, file: Lease) -> _Excerpt:
        corpus = self._plan.corpora[self._work.corpus]
        existing = {path for path in corpus.files_of(file.stem) if self._output.exists(path)}
        ref = ShardRef(self._source, file.path, file.stem, file.size)
        task = missing_sentences(ref, corpus, self._plan.sentence_signals[corpus.name], existing)
        assert task is not None
        path = self._folder / "sentences" if task.needs_source else None
        if path is not None:
            self._source.download(file.path, path, size=file.size)
        return _Excerpt(task, path, self._output, self._is_enough)

    def _is_enough(self) -> bool:
        return self._teachers_s() >= self._trial_s or time.perf_counter() - self._start >= _MAX_S

    def _teachers_s(self) -> float:
        return self._times.seconds["tokenize"] + self._times.seconds["teachers"]
