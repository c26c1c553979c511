"""One visit to one shard: its source tar and its signal files, joined by checked key, only the columns in use.

Everything but the images is in memory once the shard is open (a row takes, for each of the visit's views, its captions
and, for each teacher, the view's and each role's embedding); an image is read and decoded once, when its row's turn
comes, and every view of the visit rendered from it.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Bool, Int64

from reinforce.decode import decode, is_stored_turned
from reinforce.replay import ImageMismatchError, Views, drawn_views, read_explicit_views
from reinforce.sample import Drop, Pixels
from reinforce.shards.dataset import Dataset
from reinforce.shards.source import Member, SourceShard
from reinforce.student.choices import Visit, permutation
from reinforce.student.plan import ReadPlan
from reinforce.student.readings import Reading, SignalReader, take_readings
from reinforce.student.stopwatch import Stopwatch
from reinforce.views.render import render

_SPINE_COLUMNS = ["key", "captions", "image_width", "image_height", "image_sha256", "view_seed", "drop_reason"]


@dataclass
class VisitedShard:
    """The rows of one visit. `usable` are those with a caption of every role and every embedding, in every reading."""

    visit: Visit
    keys: list[str]
    readings: list[Reading]
    usable: Int64[np.ndarray, " usable"]
    counts: Counter[str]
    """Samples (rows times readings) that are not usable, by reason."""
    image_sha256s: list[bytes | None]
    """None where it is not known."""
    views: Views
    plan: ReadPlan
    tar: Path
    members: Sequence[Member | None]
    """Each row's image in the tar, if it is there."""
    _file: BinaryIO | None = None

    def load(self, row: int, size: int, clock: Stopwatch) -> list[Pixels] | Drop:
        """The views of one row, by reading, or why its image does not decode; raises `ImageMismatchError`."""
        clock.start()
        key = self.keys[row]
        data = self._read(row)
        expected = self.image_sha256s[row] if self.plan.data.verify_images else None
        if expected is not None and hashlib.sha256(data).digest() != expected:
            raise ImageMismatchError(f"sample {key}: its image is not the one the signals were made from (sha256)")
        clock.lap("read")
        image = decode(data, self.plan.source.max_pixels)
        clock.lap("decode")
        if isinstance(image, Drop):
            return image
        if not self.views.knows_size(row) and is_stored_turned(data):
            raise ImageMismatchError(f"sample {key}: its image is turned by EXIF, its boxes are not")
        image_size = (image.shape[1], image.shape[0])
        try:
            views = [self.views.view(row, reading.view, image_size) for reading in self.readings]
        except ImageMismatchError as error:
            raise ImageMismatchError(f"sample {key}: {error}") from None
        pixels = [render(image, view, size) for view in views]
        clock.lap("render")
        return pixels

    def close(self) -> None:
        """Closes the tar; `load` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self, row: int) -> bytes:
        member = self.members[row]
        if member is None:
            raise ImageMismatchError(f"sample {self.keys[row]} is not in the tar")
        if self._file is None:
            # Opened once: opening it for every image takes seven times as long as reading one.
            self._file = self.tar.open("rb")
        self._file.seek(member.offset)
        return self._file.read(member.num_bytes)


def open_shard(plan: ReadPlan, dataset: Dataset, visit: Visit, tar: Path) -> VisitedShard:
    """Opens a shard for one visit; raises `FormatError` or `ShardError` if its files do not belong together."""
    with dataset.open_spine(visit.stem) as file:
        spine = file.read(_SPINE_COLUMNS)
        source_sha256 = file.footer["source_sha256"]
    spine = spine.filter(pc.is_null(spine.column("drop_reason")))
    reader = SignalReader(plan, dataset, visit.stem, source_sha256, spine.column("key").combine_chunks())
    readings = take_readings(plan, visit, spine, reader)
    if plan.policy is None:
        indices = sorted({reading.view for reading in readings})
        views: Views = read_explicit_views(dataset, visit.stem, reader.keys, source_sha256, indices)
    else:
        views = drawn_views(plan.policy, spine)
    usable, counts = usable_rows(plan, visit.stem, reader.keys, readings, views)
    images = SourceShard(tar, plan.source).images()
    members = [images.get(key) for key in reader.keys]
    sha256s = spine.column("image_sha256").to_pylist()
    return VisitedShard(visit, reader.keys, readings, usable, counts, sha256s, views, plan, tar, members)


def usable_rows(
    plan: ReadPlan, stem: str, keys: list[str], readings: list[Reading], views: Views
) -> tuple[Int64[np.ndarray, " usable"], Counter[str]]:
    """The rows to use; the others counted by the first reason that applies."""
    reasons: list[tuple[str, Bool[np.ndarray, " rows"]]] = []
    if plan.selection is not None:
        selected = plan.selection.keys(stem)
        reasons.append(("not_selected", np.array([key not in selected for key in keys], bool)))
    for reading in readings:
        for role, of_role in reading.captions.items():
            reasons.append((f"no_{role}_caption", np.array([caption is None for caption in of_role], bool)))
    for reading in readings:
        reasons.append(("no_view", np.array([views.lacks(row, reading.view) for row in range(len(keys))], bool)))
        texts = [rows for of_role in reading.teacher_texts.values() for rows in of_role.values()]
        for rows in (*reading.teacher_images.values(), *texts):
            reasons.append(("null_embedding", np.isnan(rows[:, 0])))
    is_left = np.ones(len(keys), bool)
    counts: Counter[str] = Counter()
    for reason, applies in reasons:
        hit = is_left & applies
        if hit.any() and reason != "not_selected" and plan.data.unusable == "error":
            raise UnusableSampleError(f"shard {stem}: sample {keys[int(hit.argmax())]}: {reason}")
        counts[reason] += int(hit.sum()) * len(readings)
        is_left &= ~applies
    return np.flatnonzero(is_left), +counts


class UnusableSampleError(ValueError):
    """A sample that cannot be used, in a run that is to stop at the first."""


def shuffled_rows(shards: list[VisitedShard], seed: int) -> list[tuple[int, int]]:
    """The usable rows of a group of shards as (index of the shard, row), in one order for all of them."""
    rows = [(index, int(row)) for index, shard in enumerate(shards) for row in shard.usable]
    visited = [f"{shard.visit.number}/{shard.visit.stem}" for shard in shards]
    return [rows[place] for place in permutation(len(rows), seed, "rows", *visited)]
