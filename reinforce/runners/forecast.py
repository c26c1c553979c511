"""What a build would take, before any of it is spent: `reinforce build --plan`.

A listing says what is missing, a trial of a few samples what that costs, arithmetic the rest. Writes nothing to the
output.
"""

import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from reinforce.config import ConfigError
from reinforce.formatting import format_seconds
from reinforce.plan import BuildOutline
from reinforce.runners.cluster import Needs, alive_nodes, connected, needs_of
from reinforce.runners.excerpt import SPINE, file_of, record_in_mirror
from reinforce.runners.extrapolation import (
    FETCH,
    PREPARE,
    WRITE,
    Forecast,
    MissingSentences,
    extrapolate,
    extrapolate_sentences,
)
from reinforce.runners.failures import reason_of
from reinforce.runners.sentence_trial import CorpusWork
from reinforce.runners.trial import Trials, Work, try_out
from reinforce.runners.worker import Job, Lease
from reinforce.storage import Carried, ShardRef, accept, carry, open_spool, open_store

TRIAL_S = 10.0
_MAX_TRIALS, _MIN_SHARE = 3, 0.1
"""At most so many kinds of work are tried, each at least this share of the source bytes of all."""

_WAIT_INTERVAL_S = 30.0


def forecast(
    job: Job,
    refs: Sequence[ShardRef],
    existing: Collection[str],
    *,
    address: str | None = None,
    uris: Sequence[str] = (),
    max_workers: int | None = None,
    price_per_hour: float | None = None,
    trial_s: float = TRIAL_S,
    console: Console,
) -> Forecast:
    """Forecasts a build of what is missing of `refs`, given the `existing` files of the output.

    With an `address` a worker of that cluster makes the trial; `uris` are all that it reaches in stores. Raises what a
    build would raise before it computes anything, and `ConfigError` where no shard can be tried.
    """
    outline = BuildOutline(job.config, selection=job.selection, limit_samples=job.limit_samples)
    _refuse_another_recipe(outline, job)
    corpora = [_missing_sentences(outline, name, refs, existing, job.output) for name in outline.corpora]
    texts = [work for name in outline.corpora if (work := _corpus_work(outline, name, refs, existing)).files]
    refs = [ref for ref in refs if outline.corpus_of(ref.stem) is None]
    works = _missing_works(outline, refs, existing)
    found = Forecast(len(refs), 0, price_per_hour=price_per_hour)
    if works or texts:
        tried = _works_to_try(works)
        with console.status("loading models, then trying a few samples"):
            if address is None:
                num_prepare = job.config.workers or max(1, len(os.sched_getaffinity(0)) - job.config.threads)
                trials = try_out(replace(job, num_prepare=num_prepare), tried, texts, trial_s=trial_s)
            else:
                trials = _try_on_cluster(job, tried, texts, trial_s, address, uris, console)
        corpora = [extrapolate_sentences(corpus, trials, limit_samples=job.limit_samples) for corpus in corpora]
        if works:
            found = extrapolate(
                outline, works, trials, num_shards=len(refs), max_workers=max_workers, price_per_hour=price_per_hour
            )
    return replace(found, corpora=tuple(corpora))


def _refuse_another_recipe(outline: BuildOutline, job: Job) -> None:
    """Compares before models are loaded, and where nothing is missing, too. Raises `DatasetMismatchError`."""
    with open_spool() as folder:
        record_in_mirror(outline, job, open_store(job.output), open_store(str(folder / "output"), create=True))


def _missing_sentences(
    outline: BuildOutline, corpus: str, refs: Sequence[ShardRef], existing: Collection[str], output: str
) -> MissingSentences:
    files = [ref for ref in refs if (found := outline.corpus_of(ref.stem)) and found.name == corpus]
    missing = [ref for ref in files if not outline.is_complete(ref.stem, existing)]
    num_bytes, bytes_missing = (sum(ref.size for ref in of) for of in (files, missing))
    is_stored = any(ref.store.uri == output for ref in files)
    return MissingSentences(corpus, len(files), num_bytes, len(missing), bytes_missing, is_stored)


def _corpus_work(outline: BuildOutline, corpus: str, refs: Sequence[ShardRef], existing: Collection[str]) -> CorpusWork:
    files = [ref for ref in refs if (found := outline.corpus_of(ref.stem)) and found.name == corpus]
    missing = [ref for ref in files if not outline.is_complete(ref.stem, existing)]
    return CorpusWork(corpus, _median_first([Lease(ref.path, ref.stem, ref.size) for ref in missing]))


def _missing_works(outline: BuildOutline, refs: Sequence[ShardRef], existing: Collection[str]) -> list[Work]:
    """The shards by what is missing of them, complete ones left out; the most source bytes first."""
    folders = [SPINE, *(signal.folder for signal in outline.wanted)]
    found: defaultdict[frozenset[str], list[Lease]] = defaultdict(list)
    for ref in refs:
        missing = frozenset(folder for folder in folders if file_of(folder, ref.stem) not in existing)
        if missing:
            found[missing].append(Lease(ref.path, ref.stem, ref.size))
    works = [Work(missing, tuple(shards)) for missing, shards in found.items()]
    return sorted(works, key=_num_bytes, reverse=True)


def _works_to_try(works: Sequence[Work]) -> list[Work]:
    """The larger works, each with the shards to try it on: those of middling size first."""
    total = sum(map(_num_bytes, works))
    large = [work for work in works if _num_bytes(work) >= _MIN_SHARE * total][:_MAX_TRIALS]
    return [replace(work, shards=_median_first(work.shards)) for work in large or works[:1]]


def _num_bytes(work: Work) -> int:
    return sum(shard.size for shard in work.shards)


def _median_first(shards: Sequence[Lease]) -> tuple[Lease, ...]:
    """The shards by how far their size is from the median's, in places."""
    ordered = sorted(shards, key=lambda shard: (shard.size, shard.stem))
    places = sorted(range(len(ordered)), key=lambda place: (abs(place - (len(ordered) - 1) // 2), place))
    # A trial seldom gets through more, and the works travel to a worker.
    return tuple(ordered[place] for place in places[:1000])


def _try_on_cluster(
    job: Job,
    works: Sequence[Work],
    texts: Sequence[CorpusWork],
    trial_s: float,
    address: str,
    uris: Sequence[str],
    console: Console,
) -> Trials:
    """The trial as one worker of the cluster makes it, with what a worker reserves."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    with connected(address):
        needs = needs_of(job.config, alive_nodes())
        task = ray.remote(_accept_and_try).options(**needs.options(), max_retries=0)
        pending = task.remote(replace(job, num_prepare=needs.num_prepare), carry(uris), works, texts, trial_s)
        while not ray.wait([pending], timeout=_WAIT_INTERVAL_S)[0]:
            _tell_if_waiting(needs, console)
        try:
            return ray.get(pending)  # type: ignore[no-any-return]
        except RayTaskError as error:
            if type(error.cause).__module__.startswith("reinforce."):
                raise error.cause from None
            raise ConfigError(f"--plan: the trial failed: {reason_of(error.cause or error)}") from None
        except RayError as error:
            raise ConfigError(f"--plan: the trial failed: {reason_of(error)}") from None


def _accept_and_try(
    job: Job, carried: Carried, works: Sequence[Work], texts: Sequence[CorpusWork], trial_s: float
) -> Trials:
    accept(carried)
    return try_out(job, works, texts, trial_s=trial_s)


def _tell_if_waiting(needs: Needs, console: Console) -> None:
    nodes: list[dict[str, Any]] = alive_nodes()
    if not any(needs.slots(node["Resources"]) for node in nodes):
        text = f"waiting for a worker: {len(nodes)} nodes, none has {needs}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)


_RUNS_ON = {"decode": "cores", "render": "cores", "captioner": "device", "teachers": "device"}


def describe_forecast(forecast: Forecast) -> str:
    """The forecast as `reinforce build --plan` prints it."""
    sentences = _describe_sentences(forecast.corpora, has_images=forecast.num_missing > 0)
    if not forecast.num_missing:
        complete = f"nothing is missing: {forecast.num_shards:,} of {forecast.num_shards:,} shards are complete"
        return "\n".join([complete] * bool(forecast.num_shards or not sentences) + sentences)
    blocks = [
        [f"something is missing of {forecast.num_missing:,} of {forecast.num_shards:,} shards; to complete them takes"],
        [
            f"samples    {forecast.num_samples:>12,}   {forecast.num_kept:,} kept",
            f"read       {_format_bytes(forecast.bytes_read):>12}   of source shards",
            f"written    {_format_bytes(forecast.bytes_written):>12}   in {forecast.num_objects:,} objects",
        ],
        ["stage         busy time"]
        + [
            f"{stage:<10} {_format_time(seconds):>12}   {_RUNS_ON.get(stage, '')}".rstrip()
            for stage, seconds in forecast.stage_s.items()
            if seconds
        ],
        _workers_table(forecast),
        _advice(forecast),
        *([sentences] if sentences else []),
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks)


def _describe_sentences(corpora: Sequence[MissingSentences], *, has_images: bool) -> list[str]:
    lines = []
    for corpus in corpora:
        if not corpus.num_missing:
            complete = f"{corpus.num_files:,} of {corpus.num_files:,} files of sentences are complete"
            lines.append(f"corpus {corpus.corpus}: nothing is missing: {complete}")
            continue
        files = f"{corpus.num_missing:,} of {corpus.num_files:,} files of sentences lack something"
        bytes_missing = f"{_format_bytes(corpus.bytes_missing)} of {_format_bytes(corpus.num_bytes)}"
        of = "sentences that the dataset holds" if corpus.is_stored else "source"
        rate = f" ({corpus.num_sentences / corpus.teachers_s:,.0f} a second)" if corpus.teachers_s else ""
        takes = f"{corpus.num_sentences:,} sentences take the teachers {_format_time(corpus.teachers_s)}{rate}"
        lines += [
            f"corpus {corpus.corpus}: {files}, {bytes_missing} of {of}",
            f"    {takes}, {_format_bytes(corpus.bytes_written)} are written",
            f"    estimated from {corpus.num_tried:,} sentences on one worker, on {corpus.device}",
        ]
    if has_images and any(corpus.num_missing for corpus in corpora):
        lines.append("Sentences come on top of the figures for shards of images.")
    return lines


def _workers_table(forecast: Forecast) -> list[str]:
    has_price = forecast.price_per_hour is not None
    lines = ["workers       wall time" + "          cost" * has_price]
    for number, wall_s in forecast.wall_s.items():
        cost = forecast.cost(number)
        lines.append(f"{number:<10,} {format_seconds(wall_s):>12}" + (f"  {cost:>12,.2f}" if cost is not None else ""))
    return lines


def _advice(forecast: Forecast) -> list[str]:
    """What sets the pace, and what the estimates rest on."""
    is_single = forecast.bottleneck in (FETCH, WRITE)
    lines = [f"On a worker like this, {forecast.bottleneck} set{'s' * is_single} the pace."]
    if forecast.cores_per_device:
        what = "the models on the CPU" if forecast.device == "CPU" else "its device"
        cores = f"{forecast.cores_per_device:.1f} cores for decode and render; it has {forecast.num_prepare}"
        lines.append(f"To keep {what} busy takes {cores}.")
    if forecast.bottleneck == PREPARE:
        lines.append("More cores for them would help: build.workers; with --ray, build.ray.num_cpus.")
    shards = f"{forecast.num_tried_shards:,} shard{'s' * (forecast.num_tried_shards != 1)}"
    start = format_seconds(forecast.start_s)
    lines += [
        f"Estimated from {forecast.num_tried:,} samples of {shards}, in {forecast.trial_s:.0f} s on {forecast.device}.",
        "Assumed: all shards and workers are like these, and storage keeps up with them.",
        f"A worker takes {start} to start, which is part of the wall time; the start of machines is not.",
    ]
    return lines


def _format_bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def _format_time(seconds: float) -> str:
    for unit, length_s in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:,.1f} {unit}"
    return f"{seconds:.1f} s"
