"""A build in this process: shards one after another, failures that may pass tried again at the end."""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from reinforce.builder import Opened, compute, open_shards
from reinforce.plan import BuildPlan
from reinforce.prefetch import Prefetcher, StageTimes, Task
from reinforce.progress import Progress
from reinforce.runners.failures import MAX_ATTEMPTS, Failure
from reinforce.runners.ledger import Ledger
from reinforce.runners.summary import BuildSummary
from reinforce.shard_report import ShardReport
from reinforce.storage import Store, open_spool
from reinforce.weights import ModelError


def run_local(
    tasks: Sequence[Task],
    plan: BuildPlan,
    output: Store,
    console: Console,
    *,
    failed_before: set[str] | None = None,
) -> BuildSummary:
    """Reinforces shards one after another in this process.

    Raises OSError when there is no room left on a disk, `ModelError` when a model is gone: it would happen to every
    shard.
    """
    times = StageTimes()
    times.seconds["start"] = plan.load_s
    progress = Progress(len(tasks), sum(task.shard.size for task in tasks), times, console)
    ledger = Ledger(output, progress, num_shards=len(tasks), failed_before=failed_before or set())
    with progress, open_spool() as spool, ledger.open(plan.config), ThreadPoolExecutor(1, "commit") as committing:
        run = _LocalRun(plan, output, spool, ledger, committing, num_open=len(tasks))
        for attempt in range(1, MAX_ATTEMPTS + 1):
            tasks = run.attempt(tasks, attempt)
            if ledger.stopped:
                break
        return ledger.summary(run.num_open)


@dataclass
class _LocalRun:
    """The attempts of a run. A shard is committed while the next one is computed."""

    plan: BuildPlan
    output: Store
    spool: Path
    ledger: Ledger
    committing: ThreadPoolExecutor
    num_open: int
    reasons: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def attempt(self, tasks: Sequence[Task], attempt: int) -> list[Task]:
        """Builds shards; returns those to try again."""
        times = self.ledger.progress.times
        workers = self.plan.config.workers or max(1, len(os.sched_getaffinity(0)) - self.plan.config.threads)
        retry: list[Task] = []
        ended: list[tuple[Task, Future[ShardReport]]] = []

        def settle(most_waiting: int) -> None:
            while ended and (len(ended) > most_waiting or ended[0][1].done()):
                retry.extend(self._settle(*ended.pop(0), attempt))

        def on_batch(report: ShardReport) -> None:
            self.ledger.progress.batch(report)
            settle(most_waiting=1)

        with (
            Prefetcher(self.plan, self.output, spool=self.spool, workers=workers, times=times) as prefetcher,
            open_shards(prefetcher, tasks, spool=self.spool) as shards,
        ):
            for shard, opening in shards:
                ended.append((shard.task, self._start(opening, on_batch)))
                settle(most_waiting=1)
                if self.ledger.stopped:
                    break
            settle(most_waiting=0)
        return retry

    def _start(self, opened: Opened | Exception, on_batch: Callable[[ShardReport], None]) -> "Future[ShardReport]":
        """Computes a shard and lets its commit begin; what goes wrong is in the future."""
        try:
            if isinstance(opened, Exception):
                raise opened
            compute(opened, on_batch)
        except Exception as error:
            failed: Future[ShardReport] = Future()
            failed.set_exception(error)
            return failed
        return self.committing.submit(opened.work.commit)

    def _settle(self, task: Task, future: "Future[ShardReport]", attempt: int) -> list[Task]:
        """Notes how a shard ended; raises what would go wrong with any shard. Returns it if it is to be tried again."""
        stem = task.shard.stem
        try:
            self.ledger.done(future.result(), task.shard.size)
        except Exception as error:
            failure = Failure.of(error)
            # A model that worked when it was loaded has gone: its server knows it, or the key, no more.
            if failure.kind == "disk" or isinstance(error, ModelError):
                raise
            self.reasons[stem].append(failure.reason)
            self.ledger.attempt(stem, failure, attempt)
            if failure.kind != "input" and attempt < MAX_ATTEMPTS:
                return [task]
            self.ledger.gave_up(stem, self.reasons[stem])
        self.num_open -= 1
        return []
