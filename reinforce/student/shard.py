"""One visit to one shard: its source tar and its signal files, joined by checked key, only the columns in use.

Everything but the images is in memory once the shard is open (a row takes, for each of the visit's views, its captions
and, for each teacher, the view's and each role's embedding); an image is read and decoded once, when its row's turn
comes, and every view of the visit rendered from it.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Bool, Int64

from reinforce.decode import decode, is_stored_turned
from reinforce.replay import ImageMismatchError, Views, drawn_views, read_explicit_views
from reinforce.sample import RGB, RGB_MODALITY, Drop, Pixels, View
from reinforce.shards.dataset import Dataset
from reinforce.shards.explicit import Size
from reinforce.shards.source import Member, SourceShard
from reinforce.student.choices import Visit, permutation
from reinforce.student.modality import ShardModality, read_modalities
from reinforce.student.plan import ReadPlan
from reinforce.student.readings import Reading, SignalReader, take_readings
from reinforce.student.stopwatch import Stopwatch
from reinforce.views.render import render, render_modality

HOW_TO_SKIP = "to go on without it: --set student.data.unusable=skip"
_SPINE_COLUMNS = ["key", "captions", "image_width", "image_height", "image_sha256", "view_seed", "drop_reason"]


@dataclass
class VisitedShard:
    """The rows of one visit. `usable` are those with a caption of every role and every embedding, in every reading, and
    an image of every modality."""

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
    modalities: dict[str, ShardModality] = field(default_factory=dict)
    """Those in use besides RGB."""
    _file: BinaryIO | None = None

    def load(self, row: int, size: int, clock: Stopwatch) -> list[tuple[Pixels, ...]] | Drop:
        """The pixels of one row, by reading, then by modality in use; or why an image of it does not decode.

        Raises `ImageMismatchError` for images that are not those of the dataset.
        """
        clock.start()
        images: dict[str, RGB] = {}
        for name in self.plan.data.modalities:
            image = self._decode(self.modalities.get(name), row, clock)
            if isinstance(image, Drop):
                return image
            images[name] = image
        rgb = images.get(RGB_MODALITY)
        rgb_size = self.views.recorded_size(row) if rgb is None else (rgb.shape[1], rgb.shape[0])
        if rgb_size is None:
            raise ImageMismatchError(f"sample {self.keys[row]}: the dataset does not say how large its image is")
        try:
            views = [self.views.view(row, reading.view, rgb_size) for reading in self.readings]
        except ImageMismatchError as error:
            raise ImageMismatchError(f"sample {self.keys[row]}: {error}") from None
        pixels = [_render(images, view, size, rgb_size) for view in views]
        clock.lap("render")
        return pixels

    def _decode(self, modality: ShardModality | None, row: int, clock: Stopwatch) -> RGB | Drop:
        """A row's image of a modality, or the RGB one, in memory of its own."""
        if modality is None:
            data = self._read(row, self.members[row], self.image_sha256s[row], "its image")
            clock.lap("read")
            image = decode(data, self.plan.source.max_pixels)
            if not isinstance(image, Drop) and self.views.recorded_size(row) is None and is_stored_turned(data):
                raise ImageMismatchError(f"sample {self.keys[row]}: its image is turned by EXIF, its boxes are not")
        else:
            name = f"its {modality.name} image"
            data = self._read(row, modality.members[row], modality.sha256s[row], name)
            clock.lap("read")
            image = modality.decode(data, self.plan.source.max_pixels)
        clock.lap("decode")
        return image

    def close(self) -> None:
        """Closes the tar; `load` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self, row: int, member: Member | None, sha256: bytes | None, what: str) -> bytes:
        if member is None:
            raise ImageMismatchError(f"sample {self.keys[row]}: {what} is not in the tar")
        if self._file is None:
            # Opened once: opening it for every image takes seven times as long as reading one.
            self._file = self.tar.open("rb")
        self._file.seek(member.offset)
        data = self._file.read(member.num_bytes)
        if self.plan.data.verify_images and sha256 is not None and hashlib.sha256(data).digest() != sha256:
            raise ImageMismatchError(
                f"sample {self.keys[row]}: {what} is not the one the signals were made from (sha256)"
            )
        return data


def _render(images: dict[str, RGB], view: View, size: int, rgb_size: Size) -> tuple[Pixels, ...]:
    """The same view of every modality."""
    return tuple(
        render(image, view, size) if name == RGB_MODALITY else render_modality(image, view, size, rgb_size)
        for name, image in images.items()
    )


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
    source = SourceShard(tar, plan.source)
    modalities = read_modalities(plan, reader, source)
    usable, counts = usable_rows(plan, visit.stem, reader.keys, readings, views, modalities)
    images = source.images()
    members = [images.get(key) for key in reader.keys]
    sha256s = spine.column("image_sha256").to_pylist()
    return VisitedShard(visit, reader.keys, readings, usable, counts, sha256s, views, plan, tar, members, modalities)


def usable_rows(
    plan: ReadPlan,
    stem: str,
    keys: list[str],
    readings: list[Reading],
    views: Views,
    modalities: Mapping[str, ShardModality],
) -> tuple[Int64[np.ndarray, " usable"], Counter[str]]:
    """The rows to use; the others counted by the first reason that applies."""
    reasons: list[tuple[str, Bool[np.ndarray, " rows"]]] = []
    if plan.selection is not None:
        selected = plan.selection.keys(stem)
        reasons.append(("not_selected", np.array([key not in selected for key in keys], bool)))
    reasons += [(f"no_{name}", modality.is_absent) for name, modality in modalities.items()]
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
            raise UnusableSampleError(f"shard {stem}: sample {keys[int(hit.argmax())]}: {reason}; {HOW_TO_SKIP}")
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
