"""All samples of a run, each at hand at any moment: for training that chooses its samples itself.

All shards are open at once: local tars are read where they are, remote ones stay on disk meanwhile. Memory: the keys
and places of every sample, about 1 KB each; embeddings are read a shard at a time and not kept.
"""

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch.utils.data import DataLoader, Dataset

from reinforce.config import ConfigError
from reinforce.pseudo_labels import pseudo_labels
from reinforce.sample import Pixels
from reinforce.shards.banks import Bank
from reinforce.shards.dataset import open_dataset
from reinforce.shards.schema import Signal, canonical_json, view_column
from reinforce.student.batch import Batch
from reinforce.student.choices import Visit, view_index
from reinforce.student.groups import Opener, ReadError
from reinforce.student.loading import load_or_count
from reinforce.student.plan import ReadPlan
from reinforce.student.readings import Reading
from reinforce.student.shard import VisitedShard
from reinforce.student.stopwatch import Stopwatch

_MOST_OPEN_FILES = 64

Indices = Int64[np.ndarray, " samples"]


@dataclass(eq=False)
class RandomAccess:
    """The samples of which the run's teacher has seen the clean view, numbered in the order of the shards."""

    plan: ReadPlan
    image_size: int
    shards: list[VisitedShard]
    places: list[tuple[int, int]]
    """Of each sample: its shard among `shards`, and its row there."""
    labels: Int32[np.ndarray, " samples"]
    """The label that its teacher would give it."""
    counts: Counter[str]
    """The samples that were left out, by reason."""
    _open: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """The shards whose tars are open, those read last at the end."""

    def __len__(self) -> int:
        return len(self.places)

    def sha256(self) -> bytes:
        """Of the samples' names, in their order."""
        digest = hashlib.sha256()
        for shard, row in self.places:
            digest.update(canonical_json([self.shards[shard].visit.stem, self.shards[shard].keys[row]]).encode())
        return digest.digest()

    def read(self, chunks: Sequence[Indices], *, walk: int | None) -> Iterator[tuple[Indices, Batch]]:
        """Each chunk's samples that could be loaded, with their pixels, in order; in the recipe's number of processes.

        Of the view that is `walk` places into each shard's walk through its views; None: of the clean one. What could
        not be loaded is in the batch's counts. One reading at a time.
        """
        for shard in self.shards:
            view = 0 if walk is None else view_index(self.plan.seed, shard.visit.stem, walk, self.plan.num_views)
            shard.readings = [Reading(view, {}, {}, {})]
        workers = self.plan.data.workers
        loader = DataLoader(
            _Chunks(self, chunks),
            batch_size=None,
            num_workers=workers,
            # Stores do not survive a fork, but workers read local files alone.
            multiprocessing_context="fork" if workers else None,
            # Of its own, so that how often data is read again leaves the run's random numbers alone.
            generator=torch.Generator(),
        )
        return iter(loader)

    def close(self) -> None:
        for shard in self.shards:
            shard.close()

    def load(self, indices: Indices) -> tuple[Indices, Batch]:
        """The samples that could be loaded, each decoded once, and their rows."""
        clock, counts = Stopwatch(), Counter[str]()
        loaded: dict[int, tuple[Pixels, ...]] = {}
        for index in np.unique(indices).tolist():
            place, row = self.places[index]
            self._note_open(place)
            pixels = load_or_count(self.shards[place], row, self.image_size, clock, counts)
            if pixels is not None:
                (loaded[index],) = pixels
        clock.start()
        found = [index for index in indices.tolist() if index in loaded]
        shards = [(self.shards[self.places[index][0]], self.places[index][1]) for index in found]
        views = {
            name: self._stack([loaded[index][place] for index in found])
            for place, name in enumerate(self.plan.data.modalities)
        }
        batch = Batch(
            keys=[shard.keys[row] for shard, row in shards],
            stems=[shard.visit.stem for shard, _ in shards],
            images=views.pop(self.plan.data.modalities[0]),
            texts={},
            teacher_images={},
            teacher_texts={},
            modalities=views,
            counts=counts,
        )
        clock.lap("batch")
        return np.array(found, np.int64), replace(batch, reader_s=clock.take())

    def _stack(self, pixels: list[Pixels]) -> torch.Tensor:
        empty = np.empty((0, self.image_size, self.image_size, 3), np.uint8)
        return torch.from_numpy(np.stack(pixels) if pixels else empty).permute(0, 3, 1, 2)

    def _note_open(self, place: int) -> None:
        """Keeps the number of open files bounded, however many shards there are."""
        self._open[place] = None
        self._open.move_to_end(place)
        if len(self._open) > _MOST_OPEN_FILES:
            oldest, _ = self._open.popitem(last=False)
            self.shards[oldest].close()


@dataclass(frozen=True, eq=False)
class _Chunks(Dataset[tuple[Indices, Batch]]):
    samples: RandomAccess
    chunks: Sequence[Indices]

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> tuple[Indices, Batch]:
        if number >= len(self.chunks):
            raise IndexError(number)
        return self.samples.load(self.chunks[number])


def check_plan(plan: ReadPlan) -> None:
    """Raises `ConfigError` if the dataset's one teacher has seen no clean views, or if the dataset stores its views."""
    (teacher,) = plan.teachers
    if view_column(0) not in open_dataset(plan.dataset_uri).signals[Signal("image", teacher)]["columns"]:
        raise ConfigError(
            f"student.loss.kind: triplet needs clean views, of which teacher {teacher} has seen none, as of an import; "
            "build a dataset of the source"
        )
    if plan.policy is None and plan.num_views:
        raise ConfigError(
            "student.data.views: where a dataset stores its views, triplet sees the clean one; set it to 0"
        )


def open_samples(plan: ReadPlan, image_size: int, bank: Bank, spool: Path) -> RandomAccess:
    """Opens all shards of a run with one teacher; remote tars are fetched to `spool`, whose owner removes them.

    Raises `ReadError` if no sample is left.
    """
    (teacher,) = plan.teachers
    opener = Opener(replace(plan, num_views=0), spool)
    shards: list[VisitedShard] = []
    places: list[tuple[int, int]] = []
    labels = [np.empty(0, np.int32)]
    counts = Counter[str]()
    for stem in plan.stems:
        opened, skipped = opener.open_all([Visit(0, stem)]) or ([], Counter[str]())
        counts += skipped
        for shard in opened:
            counts += shard.counts
            of_shard, _ = pseudo_labels(shard.readings[0].teacher_images[teacher][shard.usable], bank)
            labels.append(of_shard)
            places += [(len(shards), row) for row in shard.usable.tolist()]
            shard.readings = []
            shards.append(shard)
    if not places:
        raise ReadError(f"{plan.dataset_uri}: not one usable sample for loss.kind triplet")
    return RandomAccess(plan, image_size, shards, places, np.concatenate(labels), counts)
