"""Batches of a reinforced dataset as a plain torch `IterableDataset`, for our trainer or for anyone's own loop.

Every batch is full, so all processes of a run take the same number of steps; the stream is endless unless `epochs`
says otherwise. A worker opens `open_shards` shards at a time and, while it reads them, the next ones in a thread:
local tars are read in place, remote ones are fetched to a temporary folder and removed after use. Memory is that of
the captions and embedding columns of two such groups, and the pixels of the batch: of `views_per_decode` batches, if
an image's views go into several.
"""

from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from reinforce.config import ConfigError, DataConfig, StudentConfig
from reinforce.formatting import format_counts
from reinforce.sample import Pixels
from reinforce.storage import accept, accepted, open_spool
from reinforce.student.assemble import Row, Tokenizer, assemble
from reinforce.student.batch import Batch, Position
from reinforce.student.choices import visits
from reinforce.student.groups import Opener, ReadError
from reinforce.student.loading import load_or_count
from reinforce.student.plan import ReadPlan
from reinforce.student.shard import VisitedShard, shuffled_rows
from reinforce.student.stopwatch import Stopwatch

_MOST_IDLE_VISITS = 64
"""So many shards in a row without one usable sample are no accident, and of fewer shards every one twice."""


@dataclass(frozen=True)
class Placement:
    """Which process of how many this one is, and where its workers go on."""

    rank: int = 0
    world_size: int = 1
    resume: tuple[Position, ...] = ()
    """By worker; empty: from the beginning."""
    next_worker: int = 0
    """The worker whose batch comes first."""


class ReinforcedDataset(IterableDataset[Batch]):
    """The batches of one process, of `batch_size` rows each.

    >>> from reinforce.config import DataConfig
    >>> from reinforce.student.plan import plan_reading
    >>> plan = plan_reading("tests/golden/dataset", DataConfig(), root="tests/golden/source")
    >>> dataset = ReinforcedDataset(plan, tokenizer, batch_size=4, image_size=32)
    >>> batch = next(iter(dataset))
    >>> batch.images.shape, batch.images.dtype
    (torch.Size([4, 3, 32, 32]), torch.uint8)
    >>> {role: list(of_role) for role, of_role in batch.teacher_texts.items()}
    {'original': ['large', 'small'], 'synthetic': ['large', 'small']}

    `epochs` ends the stream when every sample has been seen so often: after epochs / `views_per_decode` visits to every
    shard, so it must be a multiple. Then the last batch of a worker may be smaller, or the last `views_per_decode`
    batches, which are of the same images. Raises `ConfigError` for numbers that do not divide.
    """

    def __init__(
        self,
        plan: ReadPlan,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        image_size: int,
        epochs: int | None = None,
        placement: Placement | None = None,
    ) -> None:
        check_batch_size(batch_size, plan.data)
        if epochs is not None and epochs % plan.data.views_per_decode:
            raise ConfigError(f"epochs: {epochs} is no multiple of views_per_decode {plan.data.views_per_decode}")
        self.plan = plan
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.image_size = image_size
        self.epochs = epochs
        self.placement = placement or Placement()
        self._accepted = accepted()

    def loader(self, *, pin_memory: bool = False) -> "DataLoader[Batch]":
        """A DataLoader over the stream, with the recipe's number of workers."""
        workers = self.plan.data.workers
        # A store's client does not survive a fork; what a worker needs is small and pickled.
        is_remote = not all(uri.startswith(("file:", "/")) for uri in (self.plan.dataset_uri, self.plan.source_root))
        return DataLoader(
            self,
            batch_size=None,
            num_workers=workers,
            pin_memory=pin_memory,
            multiprocessing_context=("spawn" if is_remote else "fork") if workers else None,
            # Of its own: a resumed run makes one loader more, which must not use up random numbers of its steps.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Generator[Batch]:
        info = get_worker_info()
        num_workers = info.num_workers if info else 1
        # The loader asks its first worker first; after a resume that must be the one whose turn it was.
        worker = ((info.id if info else 0) + self.placement.next_worker) % num_workers
        position = self.placement.resume[worker] if self.placement.resume else Position(worker)
        if info is not None:
            torch.set_num_threads(1)
            accept(self._accepted)
        with open_spool() as spool:
            yield from _Stream(self, position, num_workers, spool).batches()


def check_batch_size(batch_size: int, data: DataConfig) -> None:
    """Raises `ConfigError` if a process's batch is not of whole images where their views are to be together."""
    if data.views_placement == "together" and batch_size % data.views_per_decode:
        raise ConfigError(
            f"student.batch_size: {batch_size} in a process does not divide by student.data.views_per_decode "
            f"{data.views_per_decode}, as views_placement together needs"
        )


def local_batch_size(config: StudentConfig, world_size: int) -> int:
    """Rows of a batch in each of so many processes; raises `ConfigError` for a batch that cannot be shared out."""
    size, rest = divmod(config.batch_size, world_size * config.accumulate)
    if rest:
        raise ConfigError(
            f"student.batch_size: {config.batch_size} does not divide by {world_size} processes x "
            f"student.accumulate {config.accumulate}"
        )
    check_batch_size(size * config.accumulate, config.data)
    return size * config.accumulate


@dataclass(slots=True)
class _Image:
    """A decoded image: its views that are still to come, in the order of the visit's readings."""

    shard: VisitedShard
    row: int
    pixels: list[tuple[Pixels, ...]]
    end: Position
    """Where its worker goes on after it."""


class _Stream:
    """The batches of one worker, and what it left out since the last one."""

    def __init__(self, settings: ReinforcedDataset, position: Position, num_workers: int, spool: Path) -> None:
        self.settings = settings
        self.plan = settings.plan
        self.start = position
        self.counts: Counter[str] = Counter()
        self.clock = Stopwatch()
        placement = settings.placement
        num_views = self.plan.data.views_per_decode
        self._visits = visits(
            self.plan.stems,
            self.plan.seed,
            worker=placement.rank + position.worker * placement.world_size,
            num_workers=num_workers * placement.world_size,
            start=position.group * self.plan.data.open_shards,
            passes=None if settings.epochs is None else settings.epochs // num_views,
        )
        self._opener = Opener(self.plan, spool)
        # A block of images fills this many batches, each with another view; or one batch, with all of them.
        self._are_apart = self.plan.data.views_placement == "apart"
        self._num_turns = num_views if self._are_apart else 1
        self._block_size = settings.batch_size if self._are_apart else settings.batch_size // num_views

    def batches(self) -> Iterator[Batch]:
        images = self._images()
        begin = replace(self.start, turn=0)
        block = list(islice(images, self._block_size))
        for image in block:
            del image.pixels[: self.start.turn]
        first_turn = self.start.turn
        share = self._block_size // self._num_turns
        while block:
            ahead: list[_Image] = []
            end = block[-1].end
            for turn in range(first_turn, self._num_turns):
                is_last = turn == self._num_turns - 1
                yield self._batch(self._rows(block), end if is_last else replace(begin, turn=turn + 1))
                # The next block's images a share at a time: no batch waits for the decoding of a whole block.
                ahead += islice(images, self._block_size - len(ahead) if is_last else share)
            block, begin, first_turn = ahead, end, 0

    def _images(self) -> Iterator[_Image]:
        """The usable images in the order of the stream, each decoded and rendered when it is asked for."""
        num_idle_visits = 0
        self.clock.start()
        for group, shards in enumerate(self._opener.groups(self._visits, self.counts), start=self.start.group):
            self.clock.lap("open")
            order = shuffled_rows(shards, self.plan.seed)
            first = self.start.row if group == self.start.group else 0
            num_loaded = 0
            for place, (index, row) in enumerate(order[first:], start=first + 1):
                pixels = load_or_count(shards[index], row, self.settings.image_size, self.clock, self.counts)
                if pixels is None:
                    continue
                num_loaded += 1
                yield _Image(shards[index], row, pixels, Position(self.start.worker, group, place))
            num_idle_visits = 0 if num_loaded or first else num_idle_visits + self.plan.data.open_shards
            if num_idle_visits >= min(2 * len(self.plan.stems), _MOST_IDLE_VISITS):
                raise ReadError(
                    f"{self.plan.dataset_uri}: not one usable sample in {num_idle_visits} visits to shards (the run "
                    f"has {len(self.plan.stems):,}): {format_counts(self.counts) or 'they keep none'}"
                )
            self.clock.start()

    def _rows(self, block: list[_Image]) -> list[Row]:
        """The next view of every image, which is then let go; or all views of each."""
        rows = []
        for image in block:
            readings = image.shard.readings[-len(image.pixels) :]
            num_rows = 1 if self._are_apart else len(readings)
            rows += [Row(image.shard, image.row, readings[index], image.pixels[index]) for index in range(num_rows)]
            del image.pixels[:num_rows]
        return rows

    def _batch(self, rows: list[Row], position: Position) -> Batch:
        self.clock.start()
        has_repeats = self.plan.data.views_per_decode > 1 and not self._are_apart
        batch = assemble(rows, self.plan, self.settings.tokenizer, has_repeats=has_repeats)
        counts = +(self.counts + batch.counts)
        self.counts.clear()
        self.clock.lap("batch")
        return replace(batch, position=position, counts=counts, reader_s=self.clock.take())
