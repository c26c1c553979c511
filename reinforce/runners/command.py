"""The command `reinforce build` as a function: what is asked for, what is missing of it, and who computes that.

What is missing is what a listing lacks; there is no ledger. Nothing is computed before source and output are known to
answer and the dataset is known to be of this recipe.
"""

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.console import Console

from reinforce.config import BuildConfig, ConfigError, Recipe, load_recipe
from reinforce.inspection.dataset_card import write_dataset_card
from reinforce.plan import BuildOutline, BuildPlan, load_plan
from reinforce.prefetch import missing_of
from reinforce.runners.extrapolation import Forecast
from reinforce.runners.forecast import forecast
from reinforce.runners.local import run_local
from reinforce.runners.summary import BuildSummary
from reinforce.runners.worker import Job, ShardWorker
from reinforce.selection import Selection, read_selection
from reinforce.shards.dataset import DATASET_FILE, read_document
from reinforce.shards.reader import FormatError
from reinforce.shards.schema import CARD_FILE, Signal, check_stem, failure_file
from reinforce.storage import ShardRef, StorageError, Store, find_shards, open_store, preflight
from reinforce.weights import remote_folder

_NUM_LISTINGS = 8


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
    ray: str | None = None,
    max_workers: int | None = None,
    console: Console | None = None,
) -> BuildSummary:
    """Builds, or goes on building, a reinforced dataset; the command `reinforce build` as a function.

    `limit_samples` keeps the first so many keys of each shard. `ray` is the address of a cluster to build on, with at
    most `max_workers` workers: `auto` for the one this runs on, `local` to start one, `any` for whichever there is.
    Raises `ConfigError`, `ModelError`, `StorageError` or `DatasetMismatchError` before anything is computed; a shard
    that fails is listed in the summary and in `failures/`, and the others go on.

    >>> import reinforce
    >>> summary = reinforce.build("scenes", "reinforced", "demo", limit_samples=16)
    >>> summary.done.num_kept
    16
    >>> reinforce.open_dataset("reinforced").stems
    ['00000']
    """
    console = console or Console(stderr=True)
    asked = _ask(shards, output, recipe, root, overrides, select, limit_shards)
    config, source_root, refs, selection = asked.config, asked.source_root, asked.refs, asked.selection
    store = open_store(output, create=True)
    _check_stores(refs, store, console)
    if ray is not None:
        outline = BuildOutline(config, selection=selection, limit_samples=limit_samples)
        summary = run_outline(
            outline,
            refs,
            store,
            source_root=source_root,
            retry_failed=retry_failed,
            address=ray,
            max_workers=max_workers,
            console=console,
        )
    else:
        with console.status("loading models"):
            plan = load_plan(config, selection=selection, limit_samples=limit_samples)
        summary = run_plan(plan, refs, store, source_root=source_root, retry_failed=retry_failed, console=console)
    if summary.done.num_files:
        _write_card(store, config, console)
    return summary


def plan_build(
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
    ray: str | None = None,
    max_workers: int | None = None,
    price_per_hour: float | None = None,
    console: Console | None = None,
) -> Forecast:
    """What `build` with these arguments would take; `reinforce build --plan` as a function. Writes nothing to `output`.

    A few samples are tried: with `ray` by a worker of that cluster, else in this process. `price_per_hour` is that of
    one worker. Raises what `build` raises.
    """
    asked = _ask(shards, output, recipe, root, overrides, select, limit_shards)
    job = Job(asked.config, asked.source_root, open_store(output).uri, limit_samples, asked.selection)
    existing = existing_files(open_store(output), BuildOutline(asked.config).wanted)
    return forecast(
        job,
        _retried(asked.refs, existing) if retry_failed else asked.refs,
        existing,
        address=ray,
        uris=[job.source_root, job.output, *_model_uris(asked.config)],
        max_workers=max_workers,
        price_per_hour=price_per_hour,
        console=console or Console(stderr=True),
    )


def run_plan(
    plan: BuildPlan,
    refs: Sequence[ShardRef],
    output: Store,
    *,
    source_root: str,
    retry_failed: bool = False,
    console: Console,
) -> BuildSummary:
    """Builds what is missing of `refs` in this process, with loaded models.

    Raises `DatasetMismatchError` if they are not those of the dataset.
    """
    output.sweep_temporaries()
    plan.record_dataset(output, source_root)
    plan.record_signals(output)
    existing = existing_files(output, plan.signals)
    refs = _retried(refs, existing) if retry_failed else refs
    tasks = [task for ref in refs if (task := missing_of(ref, plan, existing))]
    failed_before = _failed_before(output, refs, {task.shard.stem for task in tasks}, existing)
    summary = run_local(tasks, plan, output, console, failed_before=failed_before)
    return _complete(summary, len(refs))


def run_outline(
    outline: BuildOutline,
    refs: Sequence[ShardRef],
    output: Store,
    *,
    source_root: str,
    retry_failed: bool = False,
    address: str,
    max_workers: int | None = None,
    console: Console,
    worker_class: type | None = None,
) -> BuildSummary:
    """Builds what is missing of `refs` on a Ray cluster, whose workers load the models.

    Raises `DatasetMismatchError` or `ConfigError`. `worker_class` stands in for the `ShardWorker`.
    """
    from reinforce.runners.run_ray import run_ray

    output.sweep_temporaries()
    outline.record_dataset(output, source_root)
    existing = existing_files(output, outline.wanted)
    refs = _retried(refs, existing) if retry_failed else refs
    missing = [ref for ref in refs if not outline.is_complete(ref.stem, existing)]
    failed_before = _failed_before(output, refs, {ref.stem for ref in missing}, existing)
    summary = run_ray(
        missing,
        Job(outline.config, source_root, output.uri, outline.limit_samples, outline.selection),
        output,
        console,
        address=address,
        uris=[source_root, output.uri, *_model_uris(outline.config)],
        max_workers=max_workers,
        failed_before=failed_before,
        worker_class=worker_class or ShardWorker,
    )
    return _complete(summary, len(refs))


def existing_files(output: Store, signals: Iterable[Signal]) -> set[str]:
    """The files of spines, of these signals and of failures that are in the dataset.

    A bucket is listed folder by folder at the same time: each page of a listing waits for the one before.
    """
    folders = ["samples", "failures", *(signal.folder for signal in signals)]
    with ThreadPoolExecutor(1 if output.uri.startswith("file:") else _NUM_LISTINGS) as pool:
        return {info.path for infos in pool.map(lambda folder: list(output.list(folder)), folders) for info in infos}


@dataclass(frozen=True)
class _Asked:
    """What the arguments of a build mean."""

    config: BuildConfig
    source_root: str
    refs: list[ShardRef]
    selection: Selection | None


def _ask(
    shards: str | Sequence[str],
    output: str,
    recipe: str | Recipe,
    root: str | None,
    overrides: Sequence[str],
    select: str | None,
    limit_shards: int | None,
) -> _Asked:
    config = (load_recipe(recipe, list(overrides)) if isinstance(recipe, str) else recipe).build
    if not config.teachers and not config.captioners:
        raise ConfigError("build.teachers: empty; a build needs at least one teacher or captioner")
    recorded = read_document(open_store(output), DATASET_FILE)
    recorded_root = recorded["source_root"] if recorded else None
    source_root, refs = _find_shards([shards] if isinstance(shards, str) else shards, root, recorded_root)
    selection = read_selection(select) if select else None
    return _Asked(config, source_root, _narrow(refs, selection, limit_shards), selection)


def _check_stores(refs: Sequence[ShardRef], output: Store, console: Console) -> None:
    if not preflight(refs[0] if refs else None, output):
        console.print(
            f"{output.uri} ignores conditional PUTs: never run two builds of this dataset at one time",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _write_card(store: Store, config: BuildConfig, console: Console) -> None:
    """Writes the dataset's card; that it could not be is told, and fails no build."""
    try:
        is_written = write_dataset_card(store, config)
        note = "" if is_written else "left as it is, since the marks around its figures are gone"
    except (StorageError, FormatError) as error:
        note = f"not written: {error}"
    if note:
        console.print(f"{CARD_FILE}: {note}", markup=False, highlight=False, soft_wrap=True)


def _model_uris(config: BuildConfig) -> list[str]:
    """Everything in stores that models are loaded from."""
    named = [uri for teacher in config.teachers.values() for uri in (teacher.model, teacher.checkpoint)]
    for captioner in config.captioners.values():
        named += [captioner.model, captioner.checkpoint, captioner.path]
    return [remote_folder(uri) or uri for uri in named if uri and "://" in uri]


def _retried(refs: Sequence[ShardRef], existing: Collection[str]) -> list[ShardRef]:
    """The shards that failed before."""
    return [ref for ref in refs if failure_file(ref.stem) in existing]


def _failed_before(
    output: Store, refs: Sequence[ShardRef], missing: Collection[str], existing: Collection[str]
) -> set[str]:
    """The missing shards with a file in `failures/`; another run may have left one of a shard that is complete now."""
    failed = {ref.stem for ref in refs if failure_file(ref.stem) in existing}
    for stem in failed.difference(missing):
        output.delete(failure_file(stem))
    return failed.intersection(missing)


def _complete(summary: BuildSummary, num_shards: int) -> BuildSummary:
    """The summary with the shards that were complete already."""
    summary.num_complete_before = num_shards - summary.num_shards
    summary.num_shards = num_shards
    return summary


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
