"""The command `reinforce build` as a function: what is asked for, what is missing of it, and who computes that.

What is missing is what a listing lacks; there is no ledger. Nothing is computed before source and output are known to
answer and the dataset is known to be of this recipe.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console

from reinforce.banks import describe_written, missing_bank_files, record_banks, write_banks
from reinforce.config import BuildConfig, Recipe
from reinforce.inspection.dataset_card import write_dataset_card
from reinforce.plan import BuildOutline, BuildPlan, load_plan
from reinforce.prefetch import missing_of
from reinforce.runners.asked import Asked, ask
from reinforce.runners.extrapolation import Forecast
from reinforce.runners.forecast import forecast
from reinforce.runners.local import run_local
from reinforce.runners.summary import BuildSummary
from reinforce.runners.worker import Job, ShardWorker
from reinforce.shards.reader import FormatError
from reinforce.shards.schema import CARD_FILE, failure_file
from reinforce.storage import ShardRef, StorageError, Store, open_store, preflight
from reinforce.weights import remote_folder

_NUM_LISTINGS = 8


def build(
    shards: str | Sequence[str] | None,
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

    `shards` may be None to add corpora to a dataset that is there. `limit_samples` keeps the first so many keys of each
    shard, and records of each file of sentences. `ray` is the address of a cluster to build on, with at
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
    asked = ask(shards, output, recipe, root, overrides, select, limit_shards)
    store = open_store(output, create=True)
    _check_stores(asked.refs, store, console)
    _tell(asked.notes, console)
    summary = _run(asked, store, limit_samples, retry_failed, ray, max_workers, console)
    summary.suffixes = asked.config.source.modalities
    if summary.done.num_files or summary.banks:
        _write_card(store, asked.recipe, console)
    return summary


def _run(
    asked: Asked,
    output: Store,
    limit_samples: int | None,
    retry_failed: bool,
    ray: str | None,
    max_workers: int | None,
    console: Console,
) -> BuildSummary:
    """Builds in this process, or on a cluster."""
    if ray is not None:
        return run_outline(
            BuildOutline(asked.config, selection=asked.selection, limit_samples=limit_samples),
            asked.refs,
            output,
            source_root=asked.source_root,
            corpus_roots=asked.corpus_roots,
            retry_failed=retry_failed,
            address=ray,
            max_workers=max_workers,
            console=console,
        )
    with console.status("loading models"):
        plan = load_plan(asked.config, selection=asked.selection, limit_samples=limit_samples)
    return run_plan(
        plan,
        asked.refs,
        output,
        source_root=asked.source_root,
        corpus_roots=asked.corpus_roots,
        retry_failed=retry_failed,
        console=console,
    )


def plan_build(
    shards: str | Sequence[str] | None,
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
    console = console or Console(stderr=True)
    asked = ask(shards, output, recipe, root, overrides, select, limit_shards)
    _tell(asked.notes, console)
    store = open_store(output)
    job = Job(
        asked.config, asked.source_root, store.uri, limit_samples, asked.selection, corpus_roots=asked.corpus_roots
    )
    existing = existing_files(store, BuildOutline(asked.config))
    return forecast(
        job,
        _retried(asked.refs, existing) if retry_failed else asked.refs,
        existing,
        address=ray,
        uris=[job.source_root, *job.corpus_roots.values(), job.output, *_model_uris(asked.config)],
        max_workers=max_workers,
        price_per_hour=price_per_hour,
        console=console,
    )


def run_plan(
    plan: BuildPlan,
    refs: Sequence[ShardRef],
    output: Store,
    *,
    source_root: str,
    corpus_roots: Mapping[str, str] | None = None,
    retry_failed: bool = False,
    console: Console,
) -> BuildSummary:
    """Builds what is missing of `refs` in this process, with loaded models.

    Raises `DatasetMismatchError` if they are not those of the dataset.
    """
    output.sweep_temporaries()
    plan.record_dataset(output, source_root)
    _record_corpora(plan, output, corpus_roots or {})
    plan.record_signals(output)
    existing = existing_files(output, plan)
    refs = _retried(refs, existing) if retry_failed else refs
    missing_banks = missing_bank_files(output, plan.config, [teacher.name for teacher in plan.teachers])
    start = time.perf_counter()
    with console.status("embedding labels"):
        write_banks(output, plan.config, plan.teachers)
    plan.load_s += time.perf_counter() - start
    tasks = [task for ref in refs if (task := missing_of(ref, plan, existing))]
    failed_before = _failed_before(output, refs, {task.shard.stem for task in tasks}, existing)
    summary = run_local(tasks, plan, output, console, failed_before=failed_before)
    summary.banks = describe_written(output, missing_banks)
    return _complete(summary, len(refs))


def run_outline(
    outline: BuildOutline,
    refs: Sequence[ShardRef],
    output: Store,
    *,
    source_root: str,
    corpus_roots: Mapping[str, str] | None = None,
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

    roots = dict(corpus_roots or {})
    output.sweep_temporaries()
    outline.record_dataset(output, source_root)
    _record_corpora(outline, output, roots)
    record_banks(output, outline.config)
    existing = existing_files(output, outline)
    refs = _retried(refs, existing) if retry_failed else refs
    missing_banks = missing_bank_files(output, outline.config, outline.config.teachers)
    missing = [ref for ref in refs if not outline.is_complete(ref.stem, existing)]
    failed_before = _failed_before(output, refs, {ref.stem for ref in missing}, existing)
    summary = run_ray(
        missing,
        Job(outline.config, source_root, output.uri, outline.limit_samples, outline.selection, corpus_roots=roots),
        output,
        console,
        address=address,
        uris=[source_root, *roots.values(), output.uri, *_model_uris(outline.config)],
        max_workers=max_workers,
        failed_before=failed_before,
        needs_start=bool(missing_banks),
        worker_class=worker_class or ShardWorker,
    )
    still_missing = missing_bank_files(output, outline.config, outline.config.teachers) if missing_banks else []
    summary.banks = describe_written(output, set(missing_banks).difference(still_missing))
    return _complete(summary, len(refs))


def _record_corpora(outline: BuildOutline, output: Store, roots: Mapping[str, str]) -> None:
    """Creates each `corpus.json`, or compares. Raises `DatasetMismatchError`."""
    for name, root in roots.items():
        outline.corpora[name].record(output, root)


def existing_files(output: Store, outline: BuildOutline) -> set[str]:
    """The files of spines, of the build's signals and corpora and of failures that are in the dataset.

    A bucket is listed folder by folder at the same time: each page of a listing waits for the one before.
    """
    folders = ["samples", "failures", *(signal.folder for signal in outline.wanted)]
    folders += [folder for corpus in outline.corpora.values() for folder in corpus.folders]
    with ThreadPoolExecutor(1 if output.uri.startswith("file:") else _NUM_LISTINGS) as pool:
        return {info.path for infos in pool.map(lambda folder: list(output.list(folder)), folders) for info in infos}


def _tell(notes: Sequence[str], console: Console) -> None:
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def _check_stores(refs: Sequence[ShardRef], output: Store, console: Console) -> None:
    first_of_roots = {ref.store.uri: ref for ref in reversed(refs)}
    if not preflight(first_of_roots.values(), output):
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
