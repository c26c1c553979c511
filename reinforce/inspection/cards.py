"""A few samples as cards for the contact sheet: source image, replayed views, captions, each with its stored scores.

The views are drawn again from the stored seed and rendered from the source, as a student would see them. One tar at a
time lies in a temporary folder; images whose bytes are not those that were built from are not shown.
"""

import base64
import hashlib
import io
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from reinforce.config import SourceConfig, ViewPolicy
from reinforce.decode import decode
from reinforce.inspection.figures import Figures
from reinforce.inspection.values import ORIGINAL, Matrix, cosines, evenly, open_checked, read_matrix
from reinforce.sample import RGB, Drop, View
from reinforce.shards.dataset import DATASET_FILE, Dataset
from reinforce.shards.reader import FormatError
from reinforce.shards.schema import Signal, view_column
from reinforce.shards.source import ShardError, SourceShard
from reinforce.storage import StorageError, Store
from reinforce.views.draw import draw
from reinforce.views.render import render

_LARGEST_SIDE = 160
"""Of a picture on the page, in pixels."""
_LARGEST_PNG = 64
"""Smaller pictures are exact, larger ones JPEG: a page of 24 samples stays below 5 MB."""
_MOST_VIEWS = 6

Scores = dict[str, float | None]
"""Cosines by teacher; None where a value does not exist."""


@dataclass(frozen=True, slots=True)
class ViewCard:
    """One replayed view. `box` is (left, top, width, height) as fractions of the image, None for the clean view."""

    index: int
    words: str
    picture: str | None
    box: tuple[float, float, float, float] | None
    scores: Scores


@dataclass(frozen=True, slots=True)
class CaptionCard:
    """One caption with its cosines to the clean image."""

    source: str
    text: str
    scores: Scores


@dataclass(frozen=True, slots=True)
class SampleCard:
    """One sample. `thumbnail` is None if the source image cannot be shown; `note` says why."""

    stem: str
    key: str
    width: int
    height: int
    note: str
    thumbnail: str | None
    views: tuple[ViewCard, ...]
    captions: tuple[CaptionCard, ...]


class CardMaker:
    """Makes the cards of samples, shard by shard."""

    def __init__(self, dataset: Dataset, figures: Figures, source: Store) -> None:
        self.dataset = dataset
        self.source = source
        self.bad_files = {problem.path for problem in figures.problems}
        self.teachers = sorted({signal.model for signal in dataset.signals if signal.kind != "captions"})
        try:
            self.policy = ViewPolicy(**dataset.document["view_policy"])
            self.source_config = SourceConfig(**dataset.document["spine"]["source"])
        except (ValueError, KeyError, TypeError) as error:
            what = " ".join(str(error).split())[:200]
            raise FormatError(f"{dataset.store.uri}/{DATASET_FILE}: cannot be replayed ({what})") from None
        images = [document for signal, document in dataset.signals.items() if signal.kind == "image"]
        sizes = [document.get("model", {}).get("image_size") or _LARGEST_SIDE for document in images]
        self.size = min(max(sizes, default=_LARGEST_SIDE), _LARGEST_SIDE)
        self.num_views = max((len(document.get("columns", ())) for document in images), default=1) - 1
        self.views = [0, *evenly(range(1, self.num_views + 1), _MOST_VIEWS)]

    def cards(self, stem: str, num_samples: int) -> list[SampleCard]:
        """The cards of up to `num_samples` kept samples, evenly spread over the shard."""
        spine = self.dataset.spine(stem)
        kept = spine.filter(pc.is_null(spine.column("drop_reason")))
        rows = evenly(range(kept.num_rows), num_samples)
        if not rows:
            return []
        samples = [kept.slice(row, 1).to_pylist()[0] for row in rows]
        scores = _StoredScores(self, stem, kept.column("key").to_pylist(), rows)
        images = self._images(stem, [sample["key"] for sample in samples])
        return [
            self._card(stem, sample, images.get(sample["key"]), scores, index) for index, sample in enumerate(samples)
        ]

    def _images(self, stem: str, keys: list[str]) -> dict[str, bytes]:
        """The image bytes of these samples, from the source tar."""
        path = f"{stem}.tar"
        uri = self.source.uri_of(path)
        with tempfile.TemporaryDirectory(prefix="reinforce-", ignore_cleanup_errors=True) as folder:
            spool = Path(folder) / "shard.tar"
            try:
                self.source.download(path, spool)
                found = SourceShard(spool, self.source_config).samples(selected=frozenset(keys))
                return {sample.key: sample.image for sample in found if sample.drop is None}
            except FileNotFoundError:
                raise StorageError(f"{uri}: no such source shard; say with --root where it is now") from None
            except ShardError as error:
                raise FormatError(f"{uri}: the source shard {error}") from None

    def _card(
        self, stem: str, sample: dict[str, Any], data: bytes | None, scores: "_StoredScores", index: int
    ) -> SampleCard:
        width, height = sample["image_width"], sample["image_height"]
        image, note = _source_image(data, sample, self.source_config.max_pixels)
        views = []
        for number in self.views:
            view = draw(self.policy, sample["view_seed"], number, width, height)
            picture = None if image is None else data_uri(render(image, view, self.size))
            views.append(ViewCard(number, describe(view), picture, _fractions(view), scores.view(number, index)))
        texts = [(ORIGINAL, sample["captions"]), *scores.captions(index)]
        captions = [
            CaptionCard(source, text, scores.caption(source, column, index))
            for source, captions in texts
            for column, text in enumerate(captions)
        ]
        thumbnail = None if image is None else _thumbnail(image)
        return SampleCard(stem, sample["key"], width, height, note, thumbnail, tuple(views), tuple(captions))


class _StoredScores:
    """What the signals say of the chosen rows of one shard. Whole columns are read one at a time, few rows are kept."""

    def __init__(self, maker: CardMaker, stem: str, keys: list[str], rows: list[int]) -> None:
        self.teachers = maker.teachers
        self._views: dict[tuple[str, int], Matrix] = {}
        self._texts: dict[tuple[str, str, int], Matrix] = {}
        self._captions: dict[str, list[list[str] | None]] = {}
        for signal in maker.dataset.signals:
            path = signal.file(stem)
            if path in maker.dataset.sizes and path not in maker.bad_files:
                # What is wrong with a file stands among the problems already.
                with suppress(FormatError, OSError):
                    self._read(signal, maker, stem, keys, rows)

    def view(self, number: int, index: int) -> Scores:
        """Cosines of a view to the clean one."""
        return {
            teacher: _cosine(self._views.get((teacher, 0)), self._views.get((teacher, number)), index)
            for teacher in self.teachers
        }

    def caption(self, source: str, column: int, index: int) -> Scores:
        """Cosines of a caption to the clean view."""
        return {
            teacher: _cosine(self._views.get((teacher, 0)), self._texts.get((teacher, source, column)), index)
            for teacher in self.teachers
        }

    def captions(self, index: int) -> list[tuple[str, list[str]]]:
        """What each captioner wrote."""
        return [(source, rows[index] or []) for source, rows in self._captions.items()]

    def _read(self, signal: Signal, maker: CardMaker, stem: str, keys: list[str], rows: list[int]) -> None:
        with open_checked(maker.dataset, signal, stem, keys) as file:
            if signal.kind == "captions":
                self._captions[signal.model] = file.read(["captions"]).column("captions").take(rows).to_pylist()
            elif signal.kind == "image":
                for number in maker.views:
                    if view_column(number) in file.columns:
                        self._views[signal.model, number] = read_matrix(file, view_column(number))[rows]
            else:
                for column, name in enumerate(file.columns[1:]):
                    self._texts[signal.model, signal.source, column] = read_matrix(file, name)[rows]


def describe(view: View) -> str:
    """What a view is, in words."""
    if view.box is None:
        return "clean"
    area = view.box.width * view.box.height / (view.box.image_width * view.box.image_height)
    ops = [_OP_WORDS[op.name].format(value=op.value, factor=1 + op.value) for op in view.ops]
    return ", ".join([f"crop {area:.0%}", *["flipped"] * view.hflip, *ops]).replace("-", "−")


_OP_WORDS = {
    "Identity": "identity",
    "ShearX": "shear x {value:+.2f}",
    "ShearY": "shear y {value:+.2f}",
    "TranslateX": "shift x {value:+.0%}",
    "TranslateY": "shift y {value:+.0%}",
    "Rotate": "rotate {value:+.0f}°",
    "Brightness": "brightness × {factor:.2f}",
    "Color": "colour × {factor:.2f}",
    "Contrast": "contrast × {factor:.2f}",
    "Sharpness": "sharpness × {factor:.2f}",
    "Posterize": "posterize to {value:.0f} bits",
    "Solarize": "solarize above {value:.0f}",
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
}


def data_uri(pixels: RGB) -> str:
    """Pixels as an inline picture: PNG, exact, if small."""
    file = io.BytesIO()
    if max(pixels.shape[:2]) <= _LARGEST_PNG:
        Image.fromarray(pixels).save(file, "PNG", optimize=True)
        kind = "png"
    else:
        Image.fromarray(pixels).save(file, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _thumbnail(image: RGB) -> str:
    thumbnail = Image.fromarray(image)
    thumbnail.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
    return data_uri(np.asarray(thumbnail))


def _source_image(data: bytes | None, sample: dict[str, Any], max_pixels: int) -> tuple[RGB | None, str]:
    """The decoded source image, or None and why it cannot be shown."""
    if data is None:
        return None, "not in the source shard any more"
    if hashlib.sha256(data).digest() != sample["image_sha256"]:
        return None, "the source image has changed since the build: its sha256 is another"
    image = decode(data, max_pixels)
    if isinstance(image, Drop):
        return None, f"does not decode here: {image.reason}, {image.detail}"
    height, width, _ = image.shape
    if (width, height) != (sample["image_width"], sample["image_height"]):
        return None, f"decodes to {width} x {height} here, the spine says otherwise"
    return image, ""


def _fractions(view: View) -> tuple[float, float, float, float] | None:
    box = view.box
    if box is None:
        return None
    width, height = box.image_width, box.image_height
    return box.left / width, box.top / height, box.width / width, box.height / height


def _cosine(one: Matrix | None, other: Matrix | None, index: int) -> float | None:
    if one is None or other is None:
        return None
    cosine = float(cosines(one[index : index + 1], other[index : index + 1])[0])
    return cosine if np.isfinite(cosine) else None
