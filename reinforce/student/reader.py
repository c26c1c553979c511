"""Batches of a reinforced dataset as a plain torch `IterableDataset`, for our trainer or for anyone's own loop.

Every batch is full, so all processes of a run take the same number of steps; the stream is endless unless `epochs`
says otherwise. A worker opens `open_shards` shards at a time and, while it reads them, the next ones in a thread:
local tars are read in place, remote ones are fetched to a temporary folder and removed after use. Memory is that of
the captions and embedding columns of two such groups; no pixels are buffered beyond the batch.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from reinforce.formatting import format_counts
from reinforce.sample import Drop, Pixels
from reinforce.storage import accept, accepted, open_spool
from reinforce.student.batch import Batch, Position
from reinforce.student.choices import visits
from reinforce.student.groups import Opener, ReadError
from reinforce.student.plan import ReadPlan
from reinforce.student.shard import (
    ImageMismatchError,
    Rows,
    VisitedShard,
    shuffled_rows,
)

_MOST_IDLE_VISITS = 64
"""So many shards in a row without one usable sample are no accident, and of fewer shards every one twice."""


class Tokenizer(Protocol):
    """What the reader asks of a tokenizer. It is pickled into the workers."""

    def tokenize(self, texts: list[str]) -> tuple[Int64[Tensor, "texts context"], Bool[np.ndarray, " texts"]]:
        """Token ids, cut and padded to the context length, and which texts were cut."""


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

    `epochs` ends the stream after so many visits to every shard; then the last batch of a worker may be smaller.
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


@dataclass(frozen=True, slots=True)
class _Row:
    shard: VisitedShard
    index: int
    pixels: Pixels


class _Stream:
    """The batches of one worker, and what it left out since the last one."""

    def __init__(self, settings: ReinforcedDataset, position: Position, num_workers: int, spool: Path) -> None:
        self.settings = settings
        self.plan = settings.plan
        self.start = position
        self.counts: Counter[str] = Counter()
        placement = settings.placement
        self._visits = visits(
            self.plan.stems,
            self.plan.seed,
            worker=placement.rank + position.worker * placement.world_size,
            num_workers=num_workers * placement.world_size,
            start=position.group * self.plan.data.open_shards,
            epochs=settings.epochs,
        )
        self._opener = Opener(self.plan, spool)

    def batches(self) -> Iterator[Batch]:
        rows: list[_Row] = []
        num_idle_visits = 0
        for group, shards in enumerate(self._opener.groups(self._visits, self.counts), start=self.start.group):
            order = shuffled_rows(shards, self.plan.seed)
            first = self.start.row if group == self.start.group else 0
            num_loaded = 0
            for place, (index, row) in enumerate(order[first:], start=first + 1):
                pixels = self._load(shards[index], row)
                if pixels is None:
                    continue
                num_loaded += 1
                rows.append(_Row(shards[index], row, pixels))
                if len(rows) == self.settings.batch_size:
                    yield self._batch(rows, Position(self.start.worker, group, place))
                    rows = []
            num_idle_visits = 0 if num_loaded or first else num_idle_visits + self.plan.data.open_shards
            if num_idle_visits >= min(2 * len(self.plan.stems), _MOST_IDLE_VISITS):
                raise ReadError(
                    f"{self.plan.dataset_uri}: not one usable sample in {num_idle_visits} shards: "
                    f"{format_counts(self.counts) or 'they keep none'}"
                )
        if rows:
            yield self._batch(rows, Position(self.start.worker, group + 1, 0))

    def _load(self, shard: VisitedShard, row: int) -> Pixels | None:
        """The pixels of a row; None, and counted, if the recipe skips what is wrong with it."""
        try:
            pixels = shard.load(row, self.settings.image_size)
        except ImageMismatchError as error:
            if self.plan.data.damaged == "error":
                raise ReadError(
                    f"shard {shard.visit.stem}: {error}; is {self.plan.source_root} what the dataset was built from? "
                    "Give --root, or --set student.data.damaged=skip"
                ) from None
            self.counts["image_mismatch"] += 1
            return None
        if not isinstance(pixels, Drop):
            return pixels
        if self.plan.data.unusable == "error":
            raise ReadError(f"shard {shard.visit.stem}: sample {shard.keys[row]}: {pixels.reason} ({pixels.detail})")
        self.counts[pixels.reason] += 1
        return None

    def _batch(self, rows: list[_Row], position: Position) -> Batch:
        places: dict[int, tuple[VisitedShard, list[int], list[int]]] = {}
        for place, row in enumerate(rows):
            _, in_batch, in_shard = places.setdefault(id(row.shard), (row.shard, [], []))
            in_batch.append(place)
            in_shard.append(row.index)

        def gather(of: Callable[[VisitedShard], Rows]) -> Tensor:
            """The rows' embeddings, copied shard by shard: one row at a time takes ten times as long."""
            embeddings = np.empty((len(rows), of(rows[0].shard).shape[1]), np.float16)
            for shard, in_batch, in_shard in places.values():
                embeddings[in_batch] = of(shard)[in_shard]
            return torch.from_numpy(embeddings)

        texts = {role: [row.shard.captions[role][row.index] or "" for row in rows] for role in self.plan.roles}
        tokens = {}
        for role, of_role in texts.items():
            tokens[role], is_cut = self.settings.tokenizer.tokenize(of_role)
            self.counts["truncated_captions"] += int(is_cut.sum())
        batch = Batch(
            keys=[row.shard.keys[row.index] for row in rows],
            stems=[row.shard.visit.stem for row in rows],
            images=torch.from_numpy(np.stack([row.pixels for row in rows])).permute(0, 3, 1, 2),
            texts=tokens,
            teacher_images={name: gather(partial(_image_rows, name=name)) for name in self.plan.teachers},
            teacher_texts={
                role: {name: gather(partial(_text_rows, role=role, name=name)) for name in self.plan.teachers}
                for role in self.plan.roles
            },
            position=position,
            counts=+self.counts,
        )
        self.counts.clear()
        return batch


def _image_rows(shard: VisitedShard, *, name: str) -> Rows:
    return shard.teacher_images[name]


def _text_rows(shard: VisitedShard, *, role: str, name: str) -> Rows:
    return shard.teacher_texts[role][name]
