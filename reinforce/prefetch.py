"""The CPU half of a build: fetch, index, decode and render ahead of the models, across the ends of shards.

One thread fetches the next shard, one feeds a pool with the samples of the current ones in order, and the pool
decodes and renders. Whatever the size of a shard, the pool has at most so many samples in hand that nobody took yet.
"""

import hashlib
import queue
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import UInt8

from reinforce.arrivals import Arrivals
from reinforce.config import ModalityConfig
from reinforce.corpus_source import PreparedSentences, SentencesTask, missing_sentences
from reinforce.decode import decode, examine_modality
from reinforce.plan import BuildPlan, SignalPlan, views_by_size
from reinforce.sample import Drop, ModalityImage, Sample
from reinforce.shards.reader import ShardFile
from reinforce.shards.schema import spine_file
from reinforce.shards.source import ShardError, SourceShard
from reinforce.storage import ShardRef, Store
from reinforce.views.draw import draw, view_seed
from reinforce.views.render import render

SAMPLES_A_WORKER = 4
"""How many the pool has in hand for each of its threads: prepared, or being prepared, and not taken yet."""


class StageTimes:
    """Seconds spent by stage, added up over threads, and the stages that are under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        with self._lock:
            self._running[stage] += 1
        try:
            yield
        finally:
            with self._lock:
                self._running[stage] -= 1
                self.seconds[stage] += time.perf_counter() - start

    def running(self) -> list[str]:
        """The stages that at least one thread is in now."""
        with self._lock:
            return sorted(+self._running)


@dataclass(frozen=True)
class ShardTask:
    """One source shard and what is missing of it in the dataset."""

    shard: ShardRef
    missing: tuple[SignalPlan, ...]
    needs_spine: bool

    @property
    def needs_source(self) -> bool:
        """Whether the tar is needed, or what the dataset holds already is enough."""
        return self.needs_spine or any(plan.needs_source for plan in self.missing)


Task = ShardTask | SentencesTask


def missing_of(ref: ShardRef, plan: BuildPlan, existing: Collection[str]) -> Task | None:
    """What of one shard is not among the `existing` files of the dataset yet, None if nothing."""
    corpus = plan.corpus_of(ref.stem)
    if corpus is not None:
        return missing_sentences(ref, corpus, plan.sentence_signals[corpus.name], existing)
    missing = tuple(p for p in plan.signals.values() if p.signal.file(ref.stem) not in existing)
    needs_spine = spine_file(ref.stem) not in existing
    return ShardTask(ref, missing, needs_spine) if missing or needs_spine else None


@dataclass(frozen=True)
class PreparedSample:
    """A sample on its way to the models: its image rendered, or dropped.

    `views[size]` has the clean view first, then the augmented ones where a teacher of that size asks for them.
    """

    sample: Sample
    view_seed: int
    drop: Drop | None = None
    width: int | None = None
    height: int | None = None
    sha256: bytes | None = None
    views: dict[int, UInt8[np.ndarray, "views size size 3"]] = field(default_factory=dict)
    modalities: dict[str, ModalityImage] = field(default_factory=dict)
    """Those whose file is missing."""


@dataclass(frozen=True)
class _StoredSpine:
    """The spine of an earlier build: the tar it was made from, and its kept rows by key."""

    source_sha256: str
    kept: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, output: Store, stem: str) -> "_StoredSpine":
        with ShardFile(output, spine_file(stem)) as file:
            rows = file.read(["key", "captions", "view_seed", "drop_reason"]).to_pylist()
            return cls(file.footer["source_sha256"], {row["key"]: row for row in rows if row["drop_reason"] is None})


class PreparedShard(Arrivals[PreparedSample]):
    """A shard whose samples arrive from the pool in order. Always exhaust or `close` it: its slots are shared."""

    def __init__(self, task: ShardTask, slots: threading.Semaphore) -> None:
        super().__init__(slots)
        self.task = task
        self.counts: Counter[str] = Counter()
        self.source_sha256 = ""

    @property
    def stem(self) -> str:
        return self.task.shard.stem

    def samples(self) -> Iterator[PreparedSample]:
        """Every sample of the shard, in order. Raises what went wrong while fetching or preparing it."""
        return self._read()


Prepared = PreparedShard | PreparedSentences


class Prefetcher:
    """Prepares shards ahead of the models. Use as a context manager: leaving it stops the threads."""

    def __init__(self, plan: BuildPlan, output: Store, *, spool: Path, workers: int, times: StageTimes) -> None:
        self.plan = plan
        self.output = output
        self.spool = spool
        self.times = times
        # A sample that takes long holds up those behind it, but not the threads that prepare them.
        self._slots = threading.Semaphore(SAMPLES_A_WORKER * workers)
        self._pool = ThreadPoolExecutor(workers, "prepare", initializer=torch.set_num_threads, initargs=(1,))
        self._tars = threading.Semaphore(2)
        self._stop = threading.Event()
        self._ready: queue.SimpleQueue[Prepared | None] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """Ends the shards at hand, and `shards`, which may be waiting for a tar."""
        self._stop.set()
        self._ready.put(None)

    def shards(self, tasks: Iterable[Task]) -> Iterator[Prepared]:
        """The shards of `tasks` in order, each as soon as its turn comes.

        `tasks` is read by a thread, one task ahead of the samples; it may block until there is one.
        """
        fetched: queue.SimpleQueue[tuple[Task, Path | BaseException | None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._fetch_all, args=(tasks, fetched), name="fetch", daemon=True).start()
        threading.Thread(target=self._feed_all, args=(fetched,), name="feed", daemon=True).start()
        while (shard := self._ready.get()) is not None:
            yield shard

    def _fetch_all(self, tasks: Iterable[Task], fetched: "queue.SimpleQueue[Any]") -> None:
        for task in tasks:
            while not self._tars.acquire(timeout=0.5):
                if self._stop.is_set():
                    return
            try:
                fetched.put((task, self._fetch(task) if task.needs_source else None))
            except BaseException as error:  # handed to the consumer, whose shard it is
                fetched.put((task, error))
        fetched.put(None)

    def _feed_all(self, fetched: "queue.SimpleQueue[Any]") -> None:
        while (item := fetched.get()) is not None:
            task, path = item
            of_text = isinstance(task, SentencesTask)
            shard: Prepared = PreparedSentences(task, self._slots) if of_text else PreparedShard(task, self._slots)
            self._ready.put(shard)
            try:
                if isinstance(path, BaseException):
                    raise path
                if isinstance(shard, PreparedSentences):
                    self._feed_sentences(shard, path)
                else:
                    self._feed(shard, path)
                shard.put(None)
            except BaseException as error:  # likewise
                shard.put(error)
            finally:
                if isinstance(path, Path):
                    path.unlink(missing_ok=True)
            self._tars.release()
            if self._stop.is_set():
                break
        self._ready.put(None)

    def _fetch(self, task: Task) -> Path:
        path = self.spool / f"{hashlib.sha256(task.shard.stem.encode()).hexdigest()[:16]}.source"
        with self.times.measure("fetch"):
            task.shard.store.download(task.shard.path, path, size=task.shard.size)
        return path

    def _feed_sentences(self, shard: PreparedSentences, path: Path | None) -> None:
        batches = shard.read(path, self.output)
        while not (self._stop.is_set() or shard.is_cancelled):
            with self.times.measure("parse"):
                if (batch := next(batches, None)) is None:
                    return
            self._take_slot()
            shard.put_item(batch)

    def _feed(self, shard: PreparedShard, path: Path | None) -> None:
        spine = None if shard.task.needs_spine else _StoredSpine.read(self.output, shard.stem)
        if path is None:
            assert spine is not None
            self._feed_stored(shard, spine)
            return
        with path.open("rb") as file:
            shard.source_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if spine is not None and shard.source_sha256 != spine.source_sha256:
            raise ShardError("has changed since its spine was written; restore it, or build to another --output")
        self._feed_source(shard, path, spine)

    def _feed_stored(self, shard: PreparedShard, spine: _StoredSpine) -> None:
        shard.source_sha256 = spine.source_sha256
        for key, row in spine.kept.items():
            self._submit(shard, PreparedSample, Sample(key, captions=tuple(row["captions"])), row["view_seed"])

    def _feed_source(self, shard: PreparedShard, path: Path, spine: _StoredSpine | None) -> None:
        source = SourceShard(path, self.plan.config.source)
        shard.counts = source.counts
        sizes = views_by_size(shard.task.missing, self.plan.num_views)
        names = [plan.signal.model for plan in shard.task.missing if plan.signal.kind == "modality"]
        modalities = {name: self.plan.config.modalities[name] for name in names}
        captioners = [plan.captioner for plan in shard.task.missing if plan.signal.kind == "captions"]
        fields = tuple(captioner.field for captioner in captioners if captioner.field)
        selected = self.plan.selection.keys(shard.stem) if self.plan.selection else None
        for sample in source.samples(selected=selected, limit=self.plan.limit_samples, extra_fields=fields):
            if spine is None or (sample.drop is None and sample.key in spine.kept):
                self._submit(shard, self._prepare, sample, sizes, modalities, spine is not None)
            if self._stop.is_set() or shard.is_cancelled:
                return

    def _submit(self, shard: PreparedShard, prepare: Callable[..., PreparedSample], *args: Any) -> None:
        self._take_slot()
        shard.put(self._pool.submit(prepare, *args))

    def _take_slot(self) -> None:
        while not self._slots.acquire(timeout=0.5):
            if self._stop.is_set():
                raise RuntimeError("stopped")

    def _prepare(
        self, sample: Sample, sizes: dict[int, int], modalities: dict[str, ModalityConfig], must_decode: bool
    ) -> PreparedSample:
        seed = view_seed(self.plan.config.seed, sample.key)
        if sample.drop is not None:
            return PreparedSample(sample, seed, sample.drop)
        max_pixels = self.plan.config.source.max_pixels
        with self.times.measure("decode"):
            image = decode(sample.image, max_pixels)
            sha256 = hashlib.sha256(sample.image).digest()
            examined = {
                name: examine_modality(sample.modalities.get(name), modality.range, max_pixels)
                for name, modality in modalities.items()
            }
        names = dict.fromkeys(sample.modalities, b"")
        bare = Sample(sample.key, captions=sample.captions, fields=sample.fields, modalities=names)
        if isinstance(image, Drop):
            if must_decode:
                raise ShardError(f"sample {sample.key} was kept by the spine and does not decode now ({image.detail})")
            return PreparedSample(bare, seed, image, sha256=sha256)
        height, width, _ = image.shape
        with self.times.measure("render"):
            num_views = max(sizes.values(), default=0)
            drawn = [draw(self.plan.policy, seed, index, width, height) for index in range(num_views)]
            views = {size: np.stack([render(image, view, size) for view in drawn[:n]]) for size, n in sizes.items()}
        return PreparedSample(bare, seed, None, width, height, sha256, views, examined)
