"""A build in this process: shards one after another, failures that may pass tried again at the end."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from reinforce.builder import reinforce_images
from reinforce.plan import BuildPlan
from reinforce.prefetch import Prefetcher, PreparedShard, ShardTask, StageTimes
from reinforce.progress import Progress
from reinforce.runners.failures import MAX_ATTEMPTS, Failure
from reinforce.runners.ledger import Ledger
from reinforce.runners.summary import BuildSummary
from reinforce.storage import Store, open_spool
from reinforce.weights import ModelError


def run_local(
    tasks: Sequence[ShardTask],
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
    reasons: dict[str, list[str]] = {}
    num_open = len(tasks)
    with progress, open_spool() as spool, ledger.open(plan.config):
        workers = plan.config.workers or max(1, len(os.sched_getaffinity(0)) - plan.config.threads)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            retry = []
            with Prefetcher(plan, output, spool=spool, workers=workers, times=times) as prefetcher:
                for shard in prefetcher.shards(tasks):
                    failure = _attempt(shard, plan, output, spool, ledger)
                    if failure is not None:
                        reasons.setdefault(shard.stem, []).append(failure.reason)
                        ledger.attempt(shard.stem, failure, attempt)
                        if failure.kind != "input" and attempt < MAX_ATTEMPTS:
                            retry.append(shard.task)
                            continue
                        ledger.gave_up(shard.stem, reasons[shard.stem])
                    num_open -= 1
                    if ledger.stopped:
                        return ledger.summary(num_open)
            tasks = retry
    return ledger.summary(0)


def _attempt(shard: PreparedShard, plan: BuildPlan, output: Store, spool: Path, ledger: Ledger) -> Failure | None:
    """One attempt at one shard; returns what went wrong, raises what would go wrong with any shard."""
    progress = ledger.progress
    try:
        report = reinforce_images(shard, plan, output, spool=spool, times=progress.times, on_batch=progress.batch)
    except Exception as error:
        failure = Failure.of(error)
        # A model that worked when it was loaded has gone: the server that it is behind knows it, or the key, no more.
        if failure.kind == "disk" or isinstance(error, ModelError):
            raise
        return failure
    ledger.done(report, shard.task.shard.size)
    return None
