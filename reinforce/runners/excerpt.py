"""Parts of shards for a trial: fetched until they hold samples enough, cut off when there have been enough.

What the output has of a shard is copied to a mirror of it, a temporary folder that the trial then writes to.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from reinforce.banks import record_banks
from reinforce.plan import BuildOutline, BuildPlan
from reinforce.prefetch import PreparedSample, PreparedShard, ShardTask, missing_of
from reinforce.runners.failures import reason_of
from reinforce.runners.worker import Job, Lease
from reinforce.shards.dataset import DATASET_FILE, SIGNAL_FILE, DatasetMismatchError
from reinforce.shards.reader import ShardFile
from reinforce.shards.schema import BANK_FILE, CORPUS_FILE, bank_folder, spine_file
from reinforce.shards.source import SourceShard
from reinforce.storage import ShardRef, Store, open_store

SPINE = "samples"
"""The folder of the spines."""

MAX_FAILURES = 3
"""Shards that may fail before a trial is given up."""

_MIN_FETCHED_BYTES = 32_000_000


def file_of(folder: str, stem: str) -> str:
    """The path of a shard's file in a folder of the dataset."""
    return f"{folder}/{stem}.parquet"


def num_eligible(outline: BuildOutline, stem: str, num_samples: float) -> float:
    """How many of a shard's samples a selection and a limit leave."""
    num = num_samples if outline.limit_samples is None else min(num_samples, outline.limit_samples)
    if outline.selection is not None and num_samples:
        num = min(num_samples, len(outline.selection.keys(stem))) * num / num_samples
    return num


def copy_file(output: Store, path: str, mirror: Store) -> bool:
    """Copies a file of the output to the mirror, if it is there."""
    with suppress(FileNotFoundError):
        mirror.put_if_absent(path, output.read(path))
        return True
    return False


def record_in_mirror(outline: BuildOutline, job: Job, output: Store, mirror: Store) -> dict[str, int]:
    """Writes the documents of a build to the mirror; bytes of those that the output lacks, by path.

    Raises `DatasetMismatchError` for a recipe that is not the output's; models must be loaded to tell that of signals.
    """
    folders = [signal.folder for signal in outline.signals] if isinstance(outline, BuildPlan) else []
    names = [DATASET_FILE, *(f"{folder}/{SIGNAL_FILE}" for folder in folders)]
    existing = {name for name in names if copy_file(output, name, mirror)}
    lists = [f"{bank_folder(bank)}/{BANK_FILE}" for bank in job.config.banks]
    for name in (*lists, *(f"corpora/{corpus}/{CORPUS_FILE}" for corpus in job.config.corpora)):
        copy_file(output, name, mirror)
    try:
        outline.record_dataset(mirror, job.source_root)
        record_banks(mirror, job.config)
        for corpus in outline.corpora.values():
            corpus.record(mirror, "")
        if isinstance(outline, BuildPlan):
            outline.record_signals(mirror)
    except DatasetMismatchError as error:
        raise DatasetMismatchError(str(error).replace(mirror.uri, output.uri)) from None
    return {name: mirror.size(name) for name in names if name not in existing}


class Feed:
    """Fetches shards until there are `enough` samples and 32 MB to try, and counts what is in them.

    `missing` are the folders that lack a file of each of these shards.
    """

    def __init__(
        self,
        plan: BuildPlan,
        missing: Collection[str],
        shards: Sequence[Lease],
        *,
        source: Store,
        output: Store,
        mirror: Store,
        folder: Path,
        enough: int,
    ) -> None:
        self.num_bytes = self.num_samples = 0
        self.fetch_s = 0.0
        self.needs_source = False
        self.started_at: float | None = None
        self.is_stopped = False
        self.failures: list[str] = []
        self._num_eligible = 0.0
        self._existing = {SPINE, *(signal.folder for signal in plan.signals)} - set(missing)
        self._plan, self._shards, self._folder, self._enough = plan, shards, folder, enough
        self._source, self._output, self._mirror = source, output, mirror

    def tasks(self) -> Iterator[ShardTask]:
        """What is missing of each shard, its tar fetched. Runs in the thread of a prefetcher: nothing is raised."""
        for lease in self._shards:
            is_enough = self.num_bytes >= _MIN_FETCHED_BYTES and self._num_eligible >= self._enough
            if self.is_stopped or is_enough or len(self.failures) >= MAX_FAILURES:
                return
            try:
                task = self._task(lease)
            except Exception as error:  # another shard may do
                self.failures.append(f"{lease.stem}: {reason_of(error)}")
                continue
            self.started_at = self.started_at or time.perf_counter()
            yield task

    def _task(self, lease: Lease) -> ShardTask:
        stem = lease.stem
        existing = {file_of(folder, stem) for folder in self._existing}
        for path in existing:
            if path.startswith((f"{SPINE}/", "captions/")) and not copy_file(self._output, path, self._mirror):
                raise FileNotFoundError(self._output.uri_of(path))
        task = missing_of(ShardRef(self._source, lease.path, stem, lease.size), self._plan, existing)
        assert isinstance(task, ShardTask)
        if task.needs_source:
            self.needs_source = True
            task = replace(task, shard=self._fetch(lease))
        num_samples = self._count(task)
        self.num_bytes += lease.size
        self.num_samples += num_samples
        self._num_eligible += num_eligible(self._plan, stem, num_samples) if task.needs_spine else num_samples
        return task

    def _fetch(self, lease: Lease) -> ShardRef:
        """The shard in a local folder: what the network costs is measured here, and kept out of all else."""
        name = f"{len(list(self._folder.iterdir()))}.tar"
        start = time.perf_counter()
        self._source.download(lease.path, self._folder / name, size=lease.size)
        self.fetch_s += time.perf_counter() - start
        return ShardRef(open_store(str(self._folder)), name, lease.stem, lease.size)

    def _count(self, task: ShardTask) -> int:
        """Samples that a build of this shard goes through: those of the tar, or those kept by its spine."""
        if task.needs_spine:
            return len(SourceShard(self._folder / task.shard.path, self._plan.config.source))
        with ShardFile(self._mirror, spine_file(task.shard.stem)) as file:
            return int(file.footer["num_kept"])


class Excerpt(PreparedShard):
    """The samples of a shard, in whole batches, until there have been enough."""

    def __init__(self, whole: PreparedShard, batch_size: int, is_enough: Callable[[], bool]) -> None:
        super().__init__(whole.task, threading.Semaphore())
        self._whole, self._batch_size, self._is_enough = whole, batch_size, is_enough

    def samples(self) -> Iterator[PreparedSample]:
        num_kept = 0
        for prepared in self._whole.samples():
            yield prepared
            num_kept += prepared.drop is None
            if num_kept % self._batch_size == 0 and self._is_enough():
                break
        self.counts, self.source_sha256 = self._whole.counts, self._whole.source_sha256
        self.close()

    def close(self) -> None:
        self._whole.close()
