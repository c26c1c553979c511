"""A few samples of a build taken through all its stages, to learn what they cost. Nothing is written to the output.

The first batch warms everything up and counts apart; the next ones, 10 seconds of them or so, give the rates. Costs
that, the loading of the models, and the download of the shards tried: one of middling size, or small ones up to 32 MB.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from reinforce.builder import reinforce_images
from reinforce.config import ConfigError
from reinforce.plan import BuildPlan
from reinforce.prefetch import Prefetcher, PreparedShard, ShardTask, StageTimes
from reinforce.runners.excerpt import MAX_FAILURES, Excerpt, Feed, file_of, record_in_mirror
from reinforce.runners.failures import Failure
from reinforce.runners.sentence_trial import CorpusWork, SentenceTrial, try_sentences
from reinforce.runners.worker import Job, Lease
from reinforce.shard_report import ShardReport
from reinforce.shards.reader import ShardFile
from reinforce.shards.schema import MAX_ROW_GROUP_ROWS
from reinforce.shards.writer import ShardFileWriter
from reinforce.storage import Store, open_spool, open_store

_MIN_BATCHES, _MAX_S = 4, 60.0
_MODELS = ("captioner", "tokenize", "teachers")


@dataclass(frozen=True)
class Work:
    """Shards of which the same is missing: the files in these folders. `shards` are in the order to try them in."""

    folders: frozenset[str]
    shards: tuple[Lease, ...]


@dataclass(frozen=True)
class FileSize:
    """Bytes of a file: of one without rows, for each row group, for each row (of the spine all samples, else kept)."""

    empty: float
    group: float
    row: float

    def at(self, num_rows: float) -> float:
        return self.empty + self.group * math.ceil(num_rows / MAX_ROW_GROUP_ROWS) + self.row * num_rows


@dataclass(frozen=True)
class Trial:
    """What samples of one `Work` cost on one worker, in seconds and bytes.

    A padded row is one that the models compute: the last batch of a shard has as many as any other.
    """

    folders: frozenset[str]
    num_shards: int
    num_samples: int
    """Tried, the dropped ones too."""
    needs_source: bool
    samples_per_byte: float
    """Samples that a build goes through, for each byte of a source tar."""
    kept_share: float
    """Of the samples that no selection and no limit leaves out."""
    sizes: dict[str, FileSize]
    """By folder."""
    fetch_s_per_byte: float
    decode_s: float
    """Of a sample; seconds of one thread, like `render_s`."""
    render_s: float
    captioner_s: float
    """Of a padded row, like `teachers_s`."""
    teachers_s: float
    write_s: float
    """Of a kept sample."""
    commit_s: float
    """Of a shard, beside its rows."""
    first_batch_s: float
    """From the first tar at hand to the end of the first batch; 0 if that is the only one, and gives the rates."""
    busy_share: float
    """Of the time after the first batch in which the busiest part of the pipeline worked."""


@dataclass(frozen=True)
class Trials:
    """What one worker has tried. `document_bytes` are those of the JSON documents that the output lacks, by path."""

    device: str
    num_prepare: int
    load_s: float
    elapsed_s: float
    document_bytes: dict[str, int]
    trials: tuple[Trial, ...]
    sentences: tuple[SentenceTrial, ...] = ()


def try_out(job: Job, works: Sequence[Work], texts: Sequence[CorpusWork] = (), *, trial_s: float) -> Trials:
    """Loads the models and tries some samples of each work for `trial_s` seconds, at least 4 batches.

    Slow batches end it after a minute, but not before the second one. Then it tries sentences of `texts`. Raises what a
    build would raise before it computes anything, and `ConfigError` where nothing can be tried.
    """
    start = time.perf_counter()
    source, output = open_store(job.source_root), open_store(job.output)
    with open_spool() as folder:
        mirror = open_store(str(folder / "output"), create=True)
        load_start = time.perf_counter()
        plan = job.load(job.config, selection=job.selection, limit_samples=job.limit_samples)
        load_s = time.perf_counter() - load_start
        torch.set_num_threads(job.config.threads)
        documents = record_in_mirror(plan, job, output, mirror)
        trials = []
        for number, work in enumerate(works):
            tars, spool = folder / f"tars-{number}", folder / f"spool-{number}"
            tars.mkdir()
            spool.mkdir()
            enough = _MIN_BATCHES * job.config.batch_size
            places = {"source": source, "output": output, "mirror": mirror}
            feed = Feed(plan, work.folders, work.shards, folder=tars, enough=enough, **places)
            trials.append(_Run(job, plan, feed, mirror, spool, trial_s).measure(work.folders))
        elapsed_s = time.perf_counter() - start
        sentences = try_sentences(job, plan, texts, output=output, mirror=mirror, folder=folder, trial_s=trial_s)
    return Trials(_device(job), job.num_prepare, load_s, elapsed_s, documents, tuple(trials), sentences)


def _device(job: Job) -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() and job.config.device != "cpu" else "CPU"


class _Meter(StageTimes):
    """Stage times that know how many samples were decoded, and when the last one was prepared."""

    def __init__(self) -> None:
        super().__init__()
        self.num_decoded = 0
        self.prepared_at = 0.0

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        with super().measure(stage):
            yield
        if stage in ("decode", "render"):
            with self._lock:
                self.num_decoded += stage == "decode"
                self.prepared_at = time.perf_counter()


class _Run:
    """One work tried: its samples go by in batches until there have been enough."""

    def __init__(self, job: Job, plan: BuildPlan, feed: Feed, mirror: Store, spool: Path, trial_s: float) -> None:
        self._job, self._plan, self._feed, self._mirror = job, plan, feed, mirror
        self._spool, self._trial_s = spool, trial_s
        self._meter = _Meter()
        self._total = ShardReport("")
        self._tasks: list[ShardTask] = []
        self._num_batches = 0
        self._is_enough = False
        self._start = self._first_at = time.perf_counter()
        self._first_seconds: dict[str, float] = {}

    def measure(self, folders: frozenset[str]) -> Trial:
        end = self._build()
        total, feed, meter = self._total, self._feed, self._meter
        sizes, commit_s = {}, 0.0
        for folder in folders:
            sizes[folder], seconds = self._size(folder)
            commit_s += seconds
        num_shards, num_decoded = len(self._tasks), max(1, meter.num_decoded)
        started_at = feed.started_at or self._start
        if self._num_batches == 1:
            # There is nothing after the first batch: it gives the rates, its warming up and all.
            self._first_at, self._first_seconds = started_at, {}
        num_steady = max(1, self._num_batches - 1) * self._job.config.batch_size
        models = {stage: (end[stage] - self._first_seconds.get(stage, 0.0)) / num_steady for stage in _MODELS}
        return Trial(
            folders=folders,
            num_shards=num_shards,
            num_samples=total.num_samples,
            needs_source=feed.needs_source,
            samples_per_byte=feed.num_samples / feed.num_bytes,
            kept_share=total.num_kept / max(1, total.num_samples - total.drops["not_selected"]),
            sizes=sizes,
            fetch_s_per_byte=feed.fetch_s / feed.num_bytes,
            decode_s=end["decode"] / num_decoded,
            render_s=end["render"] / num_decoded,
            captioner_s=models["captioner"],
            teachers_s=models["tokenize"] + models["teachers"],
            write_s=max(0.0, end["write"] - num_shards * commit_s) / max(1, total.num_kept),
            commit_s=commit_s,
            first_batch_s=max(0.0, self._first_at - started_at),
            busy_share=self._busy_share(end),
        )

    def _build(self) -> dict[str, float]:
        """Reinforces samples until there have been enough; the seconds of every stage when that was done."""
        meter, workers = self._meter, self._job.num_prepare
        feed = self._feed
        with Prefetcher(self._plan, self._mirror, spool=self._spool, workers=workers, times=meter) as prefetcher:
            for shard in prefetcher.shards(feed.tasks()):
                assert isinstance(shard, PreparedShard)
                excerpt = Excerpt(shard, self._plan.config.batch_size, lambda: self._is_enough)
                try:
                    report = reinforce_images(
                        excerpt, self._plan, self._mirror, spool=self._spool, times=meter, on_batch=self._on_batch
                    )
                except Exception as error:
                    failure = Failure.of(error)
                    if failure.kind == "disk":
                        raise
                    feed.failures.append(f"{shard.stem}: {failure.reason}")
                    if len(feed.failures) >= MAX_FAILURES:
                        break
                    continue
                self._total.add(report)
                self._tasks.append(shard.task)
                if self._is_enough:
                    break
            feed.is_stopped = True
            self._ended_at = time.perf_counter()
            seconds = {stage: meter.seconds[stage] for stage in (*_MODELS, "decode", "render", "write")}
        if not self._tasks:
            raise ConfigError(f"--plan: no shard can be tried; {feed.failures[-1]}")
        return seconds

    def _on_batch(self, report: ShardReport) -> None:
        now = time.perf_counter()
        self._num_batches += 1
        if self._num_batches == 1:
            self._first_at, self._first_seconds = now, dict(self._meter.seconds)
        is_long = self._num_batches >= _MIN_BATCHES and now - self._first_at >= self._trial_s
        self._is_enough = is_long or (self._num_batches > 1 and now - self._start >= _MAX_S)

    def _size(self, folder: str) -> tuple[FileSize, float]:
        """What the files of a folder weigh, and the seconds in which one without rows is written and committed."""
        paths = [file_of(folder, task.shard.stem) for task in self._tasks]
        tables = []
        for path in paths:
            with ShardFile(self._mirror, path) as file:
                tables.append(file.read())
                footer = file.footer
        # The last one again with no row and with one: so rows are told from what every file and row group has.
        table = max(tables, key=len)
        (empty, seconds), (single, _) = (self._rewrite(table.slice(0, num_rows), footer) for num_rows in (0, 1))
        num_rows, num_groups = sum(map(len, tables)), sum(math.ceil(len(t) / MAX_ROW_GROUP_ROWS) for t in tables)
        beyond = sum(map(self._mirror.size, paths)) - len(paths) * empty - num_groups * (single - empty)
        row = max(0.0, beyond / (num_rows - num_groups)) if num_rows > num_groups else 0.0
        return FileSize(empty, max(0.0, single - empty - row), row), seconds

    def _rewrite(self, table: pa.Table, footer: dict[str, Any]) -> tuple[int, float]:
        """Bytes of a file with these rows, and the seconds it took."""
        path = "part.parquet"
        start = time.perf_counter()
        writer = ShardFileWriter(self._spool / path, table.schema.remove_metadata())
        for batch in table.to_batches():
            writer.append(batch)
        self._mirror.delete(path)
        writer.commit(self._mirror, path, footer)
        return self._mirror.size(path), time.perf_counter() - start

    def _busy_share(self, end: Mapping[str, float]) -> float:
        """How busy the busiest part was: the thread of the models, or the threads that prepare samples for it."""
        if not self._num_batches:
            return 1.0
        since, before = self._first_at, self._first_seconds
        thread_s = sum(end[stage] - before.get(stage, 0.0) for stage in _MODELS)
        pool_s = sum(end[stage] - before.get(stage, 0.0) for stage in ("decode", "render")) / self._job.num_prepare
        share = thread_s / (self._ended_at - since)
        # The pool has nothing more to do once the last sample is prepared: that is no waiting.
        if self._meter.prepared_at > since:
            share = max(share, pool_s / (self._meter.prepared_at - since))
        return min(1.0, max(share, 0.05))
