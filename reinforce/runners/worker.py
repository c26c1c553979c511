"""What holds the models and builds the shards it is leased, one at a time, the next one fetched meanwhile.

Plain Python: the driver makes a Ray actor of it, and may replace it in tests. Its methods run in threads of the actor,
so that it answers `status` while it builds.
"""

import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from reinforce.banks import write_banks
from reinforce.builder import compute, open_shards
from reinforce.config import BuildConfig
from reinforce.corpora import SentencesWork
from reinforce.plan import BuildPlan, load_plan
from reinforce.prefetch import Prefetcher, StageTimes, Task, missing_of
from reinforce.runners.failures import Failure
from reinforce.selection import Selection
from reinforce.shard_report import ShardReport, stored_report, stored_sentences_report
from reinforce.shard_work import ShardWork
from reinforce.storage import Carried, ShardRef, Store, accept, open_spool, open_store


@dataclass(frozen=True)
class Job:
    """What every worker of a run is told. No secret is in it: it may be spilled to disk."""

    config: BuildConfig
    source_root: str
    output: str
    limit_samples: int | None = None
    selection: Selection | None = None
    num_prepare: int = 1
    """Threads that decode and render."""
    load: Callable[..., BuildPlan] = load_plan
    corpus_roots: dict[str, str] = field(default_factory=dict)
    """Where the files of each corpus are, by its name."""


@dataclass(frozen=True)
class Lease:
    """One shard to build."""

    path: str
    stem: str
    size: int


@dataclass(frozen=True)
class Status:
    """How a worker is doing. `progress` changes whenever it gets on: also while a tar arrives."""

    stem: str | None = None
    stages: tuple[str, ...] = ()
    progress: tuple[int, ...] = ()
    report: ShardReport = field(default_factory=lambda: ShardReport(""))
    """Of the shard at hand."""
    num_shards: int = 0
    totals: ShardReport = field(default_factory=lambda: ShardReport(""))
    """Of all shards this worker has built."""
    seconds: dict[str, float] = field(default_factory=dict)


class Worker(Protocol):
    """What the driver asks of a worker."""

    def start(self) -> dict[str, Any] | Failure:
        """Loads the models and writes the banks that are missing; what it runs on, or why it cannot."""

    def build(self, lease: Lease) -> ShardReport | Failure:
        """Builds one shard, after those asked for before."""

    def status(self) -> Status:
        """Answers at once."""

    def renew(self, carried: Carried) -> None:
        """Takes credentials that have been renewed."""


class ShardWorker:
    """A `Worker` for image shards."""

    def __init__(self, job: Job, carried: Carried) -> None:
        # Ray would wait for the shard at hand; the lease goes back to the driver at once instead.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        accept(carried)
        self._job = job
        self._times = StageTimes()
        self._queue: queue.SimpleQueue[tuple[Lease, Future[ShardReport | Failure]]] = queue.SimpleQueue()
        self._futures: dict[str, Future[ShardReport | Failure]] = {}
        self._stem: str | None = None
        self._report = ShardReport("")
        self._num_finished = self._num_built = 0
        self._totals = ShardReport("")
        self._spool: Path | None = None
        self._open = ExitStack()

    def start(self) -> dict[str, Any] | Failure:
        try:
            job = self._job
            with self._times.measure("start"):
                self._plan = job.load(job.config, selection=job.selection, limit_samples=job.limit_samples)
                self._source, self._output = open_store(job.source_root), open_store(job.output)
                self._corpora = {name: open_store(root) for name, root in job.corpus_roots.items()}
                # Another model under the same name, on this node only, would be refused here.
                self._plan.record_signals(self._output)
                write_banks(self._output, job.config, self._plan.teachers)
            self._spool = self._open.enter_context(open_spool())
        except Exception as error:
            return Failure.of(error)
        threading.Thread(target=self._run, name="models", daemon=True).start()
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        return {"host": socket.gethostname(), "gpu": gpu}

    def build(self, lease: Lease) -> ShardReport | Failure:
        future: Future[ShardReport | Failure] = Future()
        self._queue.put((lease, future))
        return future.result()

    def status(self) -> Status:
        report = self._report
        counts = (report.num_samples, report.num_views, report.num_captions, report.num_sentences)
        progress = (self._num_finished, *counts, self._num_spooled())
        seconds = dict(self._times.seconds)
        stages = tuple(self._times.running())
        report, totals = deepcopy(report), deepcopy(self._totals)  # the models' thread goes on changing them
        return Status(self._stem, stages, progress, report, self._num_built, totals, seconds)

    def renew(self, carried: Carried) -> None:
        accept(carried)

    def _run(self) -> None:
        torch.set_num_threads(self._job.config.threads)
        torch.get_num_threads()  # a thread takes its number when it first needs one: now, before the pool sets its own
        assert self._spool is not None
        workers, times, spool = self._job.num_prepare, self._times, self._spool
        committing: Future[None] | None = None
        with (
            Prefetcher(self._plan, self._output, spool=spool, workers=workers, times=times) as prefetcher,
            open_shards(prefetcher, self._tasks(), spool=spool) as shards,
            ThreadPoolExecutor(1, "commit") as pool,
        ):
            for shard, opening in shards:
                self._stem, self._report = shard.stem, ShardReport(shard.stem)
                try:
                    if isinstance(opening, Exception):
                        raise opening
                    compute(opening, self._on_batch)
                except Exception as error:
                    self._finish(shard.stem, Failure.of(error))
                else:
                    if committing is not None:
                        committing.result()  # at most one shard waits in the spool
                    committing = pool.submit(self._commit, opening.work)
                self._stem, self._report = None, ShardReport("")

    def _commit(self, work: ShardWork | SentencesWork) -> None:
        """Publishes a shard, while the next one is computed."""
        try:
            self._finish(work.report.stem, work.commit())
        except Exception as error:
            self._finish(work.report.stem, Failure.of(error))

    def _finish(self, stem: str, result: ShardReport | Failure) -> None:
        if isinstance(result, ShardReport):
            self._totals.add(result)
            self._num_built += 1
        self._num_finished += 1
        self._futures.pop(stem).set_result(result)

    def _on_batch(self, report: ShardReport) -> None:
        self._report = report

    def _tasks(self) -> Iterator[Task]:
        """What there is to do of each leased shard; a lease with nothing to do is answered at once."""
        while True:
            lease, future = self._queue.get()
            found = self._look_at(ShardRef(self._root_of(lease.stem), lease.path, lease.stem, lease.size))
            if isinstance(found, Task):
                self._futures[lease.stem] = future
                yield found
            else:
                future.set_result(found)

    def _root_of(self, stem: str) -> Store:
        corpus = self._plan.corpus_of(stem)
        return self._corpora[corpus.name] if corpus else self._source

    def _look_at(self, ref: ShardRef) -> Task | ShardReport | Failure:
        """What is missing of a shard now: another driver, or a worker thought dead, may have built it.

        It may have died before it could report, so that the samples are counted from the files.
        """
        try:
            return self._missing(ref) or self._stored_report(ref.stem)
        except Exception as error:
            return Failure.of(error)

    def _missing(self, ref: ShardRef) -> Task | None:
        with self._times.measure("fetch"):
            existing = {path for path in self._plan.files_of(ref.stem) if self._output.exists(path)}
            return missing_of(ref, self._plan, existing)

    def _stored_report(self, stem: str) -> ShardReport:
        corpus = self._plan.corpus_of(stem)
        if corpus is not None:
            return stored_sentences_report(self._output, stem, corpus.teacher_names)
        return stored_report(self._output, stem, self._plan.signals)

    def _num_spooled(self) -> int:
        """Bytes in the spool: they change while a tar arrives."""
        total = 0
        for folder, _, names in os.walk(self._spool or ""):
            for name in names:
                with suppress(FileNotFoundError):
                    total += Path(folder, name).stat().st_size
        return total
