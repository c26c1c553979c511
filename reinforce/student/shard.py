"""One visit to one shard: its source tar and its signal files, joined by checked key, only the columns in use.

Everything but the images is in memory once the shard is open (a row takes its captions and, for each teacher, one
view's and each role's embedding); an image is read, decoded and replayed when its row's turn comes.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float16, Int64

from reinforce.decode import decode
from reinforce.sample import Drop, Pixels
from reinforce.shards.dataset import Dataset, check_keys
from reinforce.shards.reader import FormatError, ShardFile, to_numpy
from reinforce.shards.schema import Signal, caption_column, view_column
from reinforce.shards.source import Member, SourceShard
from reinforce.student.batch import ORIGINAL, SYNTHETIC
from reinforce.student.choices import Visit, caption_index, permutation, view_index
from reinforce.student.plan import ReadPlan
from reinforce.views.draw import draw
from reinforce.views.render import matches, render

Rows = Float16[np.ndarray, "rows dim"]

_SPINE_COLUMNS = ["key", "captions", "image_width", "image_height", "image_sha256", "view_seed", "drop_reason"]


class ImageMismatchError(ValueError):
    """An image that is not the one its sample's signals were made from."""


@dataclass
class VisitedShard:
    """The rows of one visit. `usable` are those with a caption of every role and every embedding they need."""

    visit: Visit
    view: int
    keys: list[str]
    captions: dict[str, list[str | None]]
    """Role -> the caption of each row."""
    teacher_images: dict[str, Rows]
    teacher_texts: dict[str, dict[str, Rows]]
    usable: Int64[np.ndarray, " usable"]
    counts: Counter[str]
    """Rows that are not usable, by reason."""
    spine: dict[str, list[Any]]
    plan: ReadPlan
    tar: Path
    members: dict[str, Member] = field(default_factory=dict)

    def load(self, row: int, size: int) -> Pixels | Drop:
        """The view of one row, or why its image does not decode; raises `ImageMismatchError`."""
        key = self.keys[row]
        member = self.members.get(key)
        if member is None:
            raise ImageMismatchError(f"sample {key} is not in the tar")
        with self.tar.open("rb") as tar:
            tar.seek(member.offset)
            data = tar.read(member.num_bytes)
        if self.plan.data.verify_images and hashlib.sha256(data).digest() != self.spine["image_sha256"][row]:
            raise ImageMismatchError(f"sample {key}: its image is not the one the signals were made from (sha256)")
        image = decode(data, self.plan.source.max_pixels)
        if isinstance(image, Drop):
            return image
        width, height = self.spine["image_width"][row], self.spine["image_height"][row]
        view = draw(self.plan.policy, self.spine["view_seed"][row], self.view, width, height)
        if view.box is not None and not matches(view.box, image.shape[1], image.shape[0]):
            found = f"{image.shape[1]} x {image.shape[0]}"
            raise ImageMismatchError(
                f"sample {key}: an image of {found} pixels, its views were drawn for {width} x {height}"
            )
        return render(image, view, size)


def open_shard(plan: ReadPlan, dataset: Dataset, visit: Visit, tar: Path) -> VisitedShard:
    """Opens a shard for one visit; raises `FormatError` or `ShardError` if its files do not belong together."""
    stem = visit.stem
    with dataset.open_spine(stem) as file:
        spine = file.read(_SPINE_COLUMNS)
        source_sha256 = file.footer["source_sha256"]
    spine = spine.filter(pc.is_null(spine.column("drop_reason")))
    reader = _SignalReader(plan, dataset, stem, source_sha256, spine.column("key").combine_chunks())
    view = view_index(plan.seed, visit, plan.num_views)
    captions, chosen, sources = _choose_captions(plan, visit, spine, reader)
    images = {teacher: reader.embeddings(Signal("image", teacher), view_column(view)) for teacher in plan.teachers}
    texts = {
        role: {
            teacher: reader.captions_at(Signal("text", teacher, sources[role]), chosen[role])
            for teacher in plan.teachers
        }
        for role in plan.roles
    }
    keys = reader.keys
    usable, counts = _usable(plan, stem, keys, captions, images, texts)
    members = SourceShard(tar, plan.source).images()
    return VisitedShard(
        visit, view, keys, captions, images, texts, usable, counts, spine.to_pydict(), plan, tar, members
    )


class _SignalReader:
    """Reads columns of one shard's signal files, each checked against the spine before it is believed."""

    def __init__(self, plan: ReadPlan, dataset: Dataset, stem: str, source_sha256: str, keys: pa.StringArray) -> None:
        self._plan = plan
        self._dataset = dataset
        self._stem = stem
        self._source_sha256 = source_sha256
        self._key_column = keys
        self.keys: list[str] = keys.to_pylist()

    def read(self, signal: Signal, columns: list[str]) -> pa.Table:
        with self._dataset.open(signal, self._stem) as file:
            self._check_footer(file, signal)
            table = file.read(["key", *columns])
        found = table.column("key").combine_chunks()
        if not found.equals(self._key_column):
            check_keys(self.keys, found.to_pylist(), signal.file(self._stem))
        return table

    def embeddings(self, signal: Signal, column: str) -> Rows:
        return to_numpy(self.read(signal, [column]).column(column))

    def captions_at(self, signal: Signal, chosen: Int64[np.ndarray, " rows"]) -> Rows:
        """For each row the embedding of its chosen caption; rows of NaN where there is none (-1)."""
        indices = [int(index) for index in np.unique(chosen) if index >= 0] or [0]
        table = self.read(signal, [caption_column(index) for index in indices])
        columns = [to_numpy(table.column(caption_column(index))) for index in indices]
        if len(columns) == 1 and (chosen >= 0).all():
            return columns[0]
        rows = np.full_like(columns[0], np.nan)
        for index, column in zip(indices, columns, strict=True):
            rows[chosen == index] = column[chosen == index]
        return rows

    def _check_footer(self, file: ShardFile, signal: Signal) -> None:
        expected = {
            "stem": self._stem,
            "signal": signal.folder,
            "fingerprint": self._plan.fingerprints[signal.folder],
            "source_sha256": self._source_sha256,
        }
        for name, value in expected.items():
            if file.footer.get(name) != value:
                raise FormatError(f"{file.path}: its {name} is {file.footer.get(name)}, not {value}: another file's")


def _choose_captions(
    plan: ReadPlan, visit: Visit, spine: pa.Table, reader: _SignalReader
) -> tuple[dict[str, list[str | None]], dict[str, Int64[np.ndarray, " rows"]], dict[str, str]]:
    """By role: the caption of each row, its index in its source's list (-1: none), and the source."""
    sources = {}
    wanted = {}
    texts: dict[str, list[list[str]]] = {}
    if ORIGINAL in plan.num_captions:
        sources[ORIGINAL] = ORIGINAL
        wanted[ORIGINAL] = caption_index(plan.seed, visit, ORIGINAL, max(1, plan.num_captions[ORIGINAL]))
        texts[ORIGINAL] = spine.column("captions").to_pylist()
    if plan.captioners:
        pairs = [(name, index) for name in plan.captioners for index in range(plan.num_captions[name])]
        name, index = pairs[caption_index(plan.seed, visit, SYNTHETIC, len(pairs))]
        sources[SYNTHETIC], wanted[SYNTHETIC] = name, index
        table = reader.read(Signal("captions", name), ["captions"])
        texts[SYNTHETIC] = [captions or [] for captions in table.column("captions").to_pylist()]
    captions: dict[str, list[str | None]] = {}
    chosen = {}
    for role, lists in texts.items():
        indices = [wanted[role] % len(row) if row else -1 for row in lists]
        captions[role] = [row[index] if row else None for row, index in zip(lists, indices, strict=True)]
        chosen[role] = np.array(indices, np.int64)
    return captions, chosen, sources


def _usable(
    plan: ReadPlan,
    stem: str,
    keys: list[str],
    captions: dict[str, list[str | None]],
    images: dict[str, Rows],
    texts: dict[str, dict[str, Rows]],
) -> tuple[Int64[np.ndarray, " usable"], Counter[str]]:
    """The rows to use; the others counted by the first reason that applies."""
    reasons: list[tuple[str, Bool[np.ndarray, " rows"]]] = []
    if plan.selection is not None:
        selected = plan.selection.keys(stem)
        reasons.append(("not_selected", np.array([key not in selected for key in keys], bool)))
    for role, of_role in captions.items():
        reasons.append((f"no_{role}_caption", np.array([caption is None for caption in of_role], bool)))
    for rows in (*images.values(), *(rows for of_role in texts.values() for rows in of_role.values())):
        reasons.append(("null_embedding", np.isnan(rows[:, 0])))
    is_left = np.ones(len(keys), bool)
    counts: Counter[str] = Counter()
    for reason, applies in reasons:
        hit = is_left & applies
        if hit.any() and reason != "not_selected" and plan.data.unusable == "error":
            raise UnusableSampleError(f"shard {stem}: sample {keys[int(hit.argmax())]}: {reason}")
        counts[reason] += int(hit.sum())
        is_left &= ~applies
    return np.flatnonzero(is_left), +counts


class UnusableSampleError(ValueError):
    """A sample that cannot be used, in a run that is to stop at the first."""


def shuffled_rows(shards: list[VisitedShard], seed: int) -> list[tuple[int, int]]:
    """The usable rows of a group of shards as (index of the shard, row), in one order for all of them."""
    rows = [(index, int(row)) for index, shard in enumerate(shards) for row in shard.usable]
    visited = [f"{shard.visit.epoch}/{shard.visit.stem}" for shard in shards]
    return [rows[place] for place in permutation(len(rows), seed, "rows", *visited)]
