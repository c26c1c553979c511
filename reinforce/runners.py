"""Which shards, where, how often: a build on this machine, in this process.

What is missing is what a listing lacks; a shard is computed, committed and forgotten. `build` is the whole command as
one function.
"""

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from reinforce.builder import ShardReport, reinforce_images
from reinforce.captioners import load_captioner
from reinforce.config import BuildConfig, ConfigError, Recipe, load_recipe
from reinforce.formatting import format_counts, format_seconds
from reinforce.plan import BuildPlan
from reinforce.prefetch import Prefetcher, PreparedShard, ShardTask, StageTimes
from reinforce.progress import Progress, RunLog, hardware
from reinforce.selection import Selection, read_selection
from reinforce.shards.dataset import DATASET_FILE, read_document
from reinforce.shards.schema import check_stem, failure_file, spine_file
from reinforce.shards.source import ShardError
from reinforce.storage import ShardRef, Store, find_shards, open_spool, open_store
from reinforce.teachers import load_teacher
from reinforce.weights import resolve_device

_MAX_ATTEMPTS = 3
_FATAL_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(slots=True)
class BuildSummary:
    """What a build did. `failed` maps the stem of each failed shard to its reason."""

    num_shards: int
    num_complete_before: int
    done: ShardReport
    elapsed_s: float
    failed: dict[str, str] = field(default_factory=dict)


def build(
    shards: str | Sequence[str],
    output: str,
    recipe: str | Recipe,
    *,
    root: str | None = None,
    overrides: Sequence[str] = (),
    select: str | None = None,
    limit_shards: int | None = None,
    limit_samples: int | None = None,
    retry_failed: bool = False,
    console: Console | None = None,
) -> BuildSummary:
    """Builds, or goes on building, a reinforced dataset; the command `reinforce build` as a function.

    `limit_samples` keeps the first so many keys of each shard. Raises `ConfigError`, `ModelError`, `StorageError` or
    `DatasetMismatchError` before anything is computed; a shard that fails is listed in the summary and in
    `failures/`, and the others go on.

    >>> import reinforce
    >>> summary = reinforce.build("scenes", "reinforced", "demo", limit_samples=16)
    >>> summary.done.num_kept
    16
    >>> reinforce.open_dataset("reinforced").stems
    ['00000']
    """
    console = console or Console(stderr=True)
    config = (load_recipe(recipe, list(overrides)) if isinstance(recipe, str) else recipe).build
    recorded = read_document(open_store(output), DATASET_FILE)
    recorded_root = recorded["source_root"] if recorded else None
    source_root, refs = _find_shards([shards] if isinstance(shards, str) else shards, root, recorded_root)
    selection = read_selection(select) if select else None
    refs = _narrow(refs, selection, limit_shards)
    store = open_store(output, create=True)
    with console.status("loading models"):
        plan = load_plan(config, selection=selection, limit_samples=limit_samples)
    return run_plan(plan, refs, store, source_root=source_root, retry_failed=retry_failed, console=console)


def run_plan(
    plan: BuildPlan,
    refs: Sequence[ShardRef],
    output: Store,
    *,
    source_root: str,
    retry_failed: bool = False,
    console: Console,
) -> BuildSummary:
    """Builds what is missing of `refs`, with the models of `plan`; raises `DatasetMismatchError` if they do not fit."""
    output.sweep_temporaries()
    plan.record(output, source_root)
    existing = {info.path for info in output.list()}
    if retry_failed:
        refs = [ref for ref in refs if failure_file(ref.stem) in existing]
    tasks = [task for ref in refs if (task := missing_of(ref, plan, existing))]
    summary = run_local(tasks, plan, output, console)
    summary.num_shards = len(refs)
    summary.num_complete_before = len(refs) - len(tasks)
    return summary


def load_plan(
    config: BuildConfig, *, selection: Selection | None = None, limit_samples: int | None = None
) -> BuildPlan:
    """Loads the models of a recipe onto its device. Raises `ModelError`."""
    torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    size = config.batch_size
    teachers = [load_teacher(name, model, device=device, batch_size=size) for name, model in config.teachers.items()]
    captioners = [
        load_captioner(name, model, device=device, batch_size=size) for name, model in config.captioners.items()
    ]
    return BuildPlan(config, teachers, captioners, selection=selection, limit_samples=limit_samples)


def missing_of(ref: ShardRef, plan: BuildPlan, existing: set[str]) -> ShardTask | None:
    """What of one shard is not in the dataset yet, None if nothing."""
    missing = tuple(p for p in plan.signals.values() if p.signal.file(ref.stem) not in existing)
    needs_spine = spine_file(ref.stem) not in existing
    return ShardTask(ref, missing, needs_spine) if missing or needs_spine else None


def run_local(tasks: Sequence[ShardTask], plan: BuildPlan, output: Store, console: Console) -> BuildSummary:
    """Reinforces shards one after another in this process; a failure that may pass is tried again at the end."""
    times = StageTimes()
    log = RunLog(output)
    failed: dict[str, list[str]] = {}
    progress = Progress(len(tasks), sum(task.shard.size for task in tasks), times, console)
    with progress, open_spool() as spool, _logged(log, tasks, plan.config, progress):
        workers = plan.config.workers or max(1, len(os.sched_getaffinity(0)) - plan.config.threads)
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            retry = []
            with Prefetcher(plan, output, spool=spool, workers=workers, times=times) as prefetcher:
                for shard in prefetcher.shards(tasks):
                    error = _reinforce(shard, plan, output, spool, progress, log)
                    if error is None:
                        failed.pop(shard.stem, None)
                        continue
                    failed.setdefault(shard.stem, []).append(_reason(error))
                    progress.line(f"shard {shard.stem} failed (attempt {attempt}): {_reason(error)}")
                    if isinstance(error, ShardError) or attempt == _MAX_ATTEMPTS:
                        progress.failed()
                        _record_failure(output, shard.stem, failed[shard.stem], log.run)
                    else:
                        retry.append(shard.task)
            tasks = retry
    reasons = {stem: attempts[-1] for stem, attempts in failed.items()}
    return BuildSummary(0, 0, progress.total, progress.elapsed_s, reasons)


def describe(summary: BuildSummary) -> str:
    """The last lines a build prints."""
    done = summary.done
    finished = summary.num_shards - len(summary.failed)
    lines = [f"{finished} of {summary.num_shards} shards complete ({summary.num_complete_before} were before this run)"]
    if done.num_samples:
        lines.append(
            f"{done.num_samples:,} samples, {done.num_kept:,} kept, {done.num_views:,} views, {done.num_captions:,} "
            f"captions; {done.num_files:,} files, {done.num_bytes / 1e6:,.1f} MB in {format_seconds(summary.elapsed_s)}"
        )
    for name, counts in (("dropped", done.drops), ("null", done.nulls), ("left out", done.counts)):
        if +counts:
            lines.append(f"{name}: {format_counts(counts)}")
    lines += [f"failed: {stem}: {reason}" for stem, reason in sorted(summary.failed.items())]
    return "\n".join(lines)


def _find_shards(uris: Sequence[str], root: str | None, recorded_root: str | None) -> tuple[str, list[ShardRef]]:
    """The shards with their stems below `--root`, else below the root the dataset was begun with, else their own.

    How the root was reached then (`?profile=`) is no part of what it is: the URIs say how to reach it now.
    """
    found_root, refs = find_shards(uris, root or (recorded_root.partition("?")[0] if recorded_root else None))
    for ref in refs:
        try:
            check_stem(ref.stem)
        except ValueError as error:
            raise ConfigError(f"--shards: {error}; rename the shard") from None
    return found_root, refs


def _narrow(refs: list[ShardRef], selection: Selection | None, limit: int | None) -> list[ShardRef]:
    if selection is not None:
        stems = set(selection.stems)
        refs = [ref for ref in refs if ref.stem in stems]
        if not refs:
            raise ConfigError(f"--select: none of its stems ({', '.join(sorted(stems)[:3])}, ...) is among the shards")
    return refs[:limit]


def _reinforce(
    shard: PreparedShard, plan: BuildPlan, output: Store, spool: Path, progress: Progress, log: RunLog
) -> Exception | None:
    """One attempt at one shard; returns what went wrong, raises what would go wrong with any shard."""
    try:
        report = reinforce_images(shard, plan, output, spool=spool, times=progress.times, on_batch=progress.batch)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FATAL_ERRNO:
            raise
        log.event("failed", stem=shard.stem, error=_reason(error))
        return error
    progress.shard(report, shard.task.shard.size)
    log.event("shard", **report.to_json())
    output.delete(failure_file(shard.stem))
    return None


def _record_failure(output: Store, stem: str, attempts: list[str], run: str) -> None:
    document = {"stem": stem, "error": attempts[-1], "attempts": attempts, "run": run}
    output.put(failure_file(stem), (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


@contextmanager
def _logged(log: RunLog, tasks: Sequence[ShardTask], config: BuildConfig, progress: Progress) -> Iterator[None]:
    """Opens and closes the run's log, whatever ends the run."""
    log.event("start", num_shards=len(tasks), recipe=config.model_dump(mode="json"), **hardware())
    try:
        yield
    except BaseException:
        with suppress(OSError):  # what ended the run is the news, not that its log has no room either
            _close(log, progress)
        raise
    _close(log, progress)


def _close(log: RunLog, progress: Progress) -> None:
    seconds = {stage: round(spent, 3) for stage, spent in progress.times.seconds.items()}
    log.event("end", elapsed_s=round(progress.elapsed_s, 3), stage_seconds=seconds, **progress.total.to_json())
    log.flush()


def _reason(error: Exception) -> str:
    """One line for people: our own errors speak for themselves, others say what they are."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, ShardError) else f"{type(error).__name__}: {text}"
