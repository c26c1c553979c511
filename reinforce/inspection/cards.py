"""Samples as cards for the report: source image, replayed views, captions, each with its stored scores.

The views are drawn again from the stored seed and rendered from the source, as a student would see them. Images whose
bytes are not those that were built from are not shown.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from reinforce.config import ViewPolicy
from reinforce.inspection.figures import Figures
from reinforce.inspection.modality_cards import ModalityCard, modality_cards
from reinforce.inspection.pictures import LARGEST_PNG, VIEW_SIDE, data_uri, source_image, thumbnail
from reinforce.inspection.values import ORIGINAL, Matrix, cosines, evenly, open_checked, read_matrix
from reinforce.replay import ImageMismatchError, Views, drawn_views, read_explicit_views
from reinforce.sample import RGB, Sample, View
from reinforce.shards.dataset import SIGNAL_FILE, Dataset, read_document
from reinforce.shards.explicit import Size
from reinforce.shards.reader import FormatError
from reinforce.shards.schema import Signal, view_column
from reinforce.views.render import render

_MOST_VIEWS = 5
"""Augmented views of a sample that are shown."""

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
    size: Size | None
    """Width and height; None where neither the spine nor the image tells."""
    note: str
    thumbnail: str | None
    views: tuple[ViewCard, ...]
    captions: tuple[CaptionCard, ...]
    modalities: tuple[ModalityCard, ...] = ()

    @property
    def is_tiny(self) -> bool:
        """Whether the picture is exact, to be shown enlarged."""
        return self.size is not None and max(self.size) <= LARGEST_PNG

    @property
    def alt(self) -> str:
        return self.captions[0].text if self.captions else f"image {self.key}"


class CardMaker:
    """Makes the cards of samples, shard by shard. `why_no_views` is empty if views can be replayed."""

    def __init__(self, dataset: Dataset, figures: Figures) -> None:
        self.dataset = dataset
        self.bad_files = frozenset(problem.path for problem in figures.problems)
        self.signals = _documents(dataset, figures)
        self.teachers = sorted({signal.model for signal in self.signals if signal.kind in ("image", "text")})
        self.policy, self.why_no_views = (None, "") if dataset.stores_views else _view_policy(dataset)
        images = [document for signal, document in self.signals.items() if signal.kind == "image"]
        sizes = [document.get("model", {}).get("image_size") or VIEW_SIDE for document in images]
        self.size = min(max(sizes, default=VIEW_SIDE), VIEW_SIDE)
        names = {name for document in images for name in document.get("columns", ())}
        self.num_views = len(names - {view_column(0)})
        self.views = [0, *evenly(range(1, self.num_views + 1), _MOST_VIEWS)]

    def cards(
        self, stem: str, kept: pa.Table, rows: Sequence[int], source: Mapping[str, Sample] | None
    ) -> list[SampleCard]:
        """The cards of these rows of `kept`, the spine's kept rows. `source`, by key, is None if there is none."""
        samples = [kept.slice(row, 1).to_pylist()[0] for row in rows]
        keys: list[str] = kept.column("key").to_pylist()
        scores = _StoredScores(self, stem, keys, list(rows))
        views = self._views_of(stem, kept, keys)
        modalities = modality_cards(self.dataset, self.signals, stem, keys, rows, source)
        return [
            replace(
                self._card(stem, sample, source, scores, index, partial(views.view, row) if views else None),
                modalities=modalities[index],
            )
            for index, (row, sample) in enumerate(zip(rows, samples, strict=True))
        ]

    def _views_of(self, stem: str, kept: pa.Table, keys: list[str]) -> Views | None:
        """The views of a shard's kept rows, None if they cannot be replayed."""
        if self.policy is not None:
            return drawn_views(self.policy, kept)
        if not self.dataset.stores_views:
            return None
        with suppress(FormatError, OSError), self.dataset.open_spine(stem) as spine:
            return read_explicit_views(self.dataset, stem, keys, spine.footer["source_sha256"], self.views)
        return None

    def _card(
        self,
        stem: str,
        sample: dict[str, Any],
        source: Mapping[str, Sample] | None,
        scores: "_StoredScores",
        index: int,
        view: Callable[[int, Size], View] | None,
    ) -> SampleCard:
        image, note = None, ""
        if source is not None:
            found = source.get(sample["key"])
            image, note = source_image(found.image if found else None, sample)
        size: Size | None = (sample["image_width"], sample["image_height"]) if sample["image_width"] else None
        texts = [(ORIGINAL, sample["captions"]), *scores.captions(index)]
        captions = [
            CaptionCard(source, text, scores.caption(source, column, index))
            for source, captions in texts
            for column, text in enumerate(captions)
        ]
        return SampleCard(
            stem=stem,
            key=sample["key"],
            size=size,
            note=note,
            thumbnail=None if image is None else thumbnail(image),
            views=() if view is None or size is None else tuple(self._views(view, size, image, scores, index)),
            captions=tuple(captions),
        )

    def _views(
        self,
        view_of: Callable[[int, Size], View],
        size: Size,
        image: RGB | None,
        scores: "_StoredScores",
        index: int,
    ) -> Iterator[ViewCard]:
        for number in self.views:
            # A stored box that does not fit the image, or a view that this sample does not have.
            with suppress(ImageMismatchError):
                view = view_of(number, size)
                picture = None if image is None else data_uri(render(image, view, self.size))
                yield ViewCard(number, describe(view), picture, _fractions(view), scores.view(number, index))


def _documents(dataset: Dataset, figures: Figures) -> dict[Signal, dict[str, Any]]:
    """What each signal is, without listing the dataset again."""
    found: dict[Signal, dict[str, Any]] = {}
    for signal in (Signal.parse(figure.folder) for figure in figures.signals):
        with suppress(FormatError):
            document = read_document(dataset.store, f"{signal.folder}/{SIGNAL_FILE}")
            found |= {} if document is None else {signal: document}
    return found


def _view_policy(dataset: Dataset) -> tuple[ViewPolicy | None, str]:
    """The policy that views are drawn by, or None and why there is none."""
    try:
        return ViewPolicy(**dataset.document["view_policy"]), ""
    except (ValueError, KeyError, TypeError) as error:
        return None, " ".join(str(error).split())[:200]


class _StoredScores:
    """What the signals say of the chosen rows of one shard. Whole columns are read one at a time, few rows are kept."""

    def __init__(self, maker: CardMaker, stem: str, keys: list[str], rows: list[int]) -> None:
        self.teachers = maker.teachers
        self._views: dict[tuple[str, int], Matrix] = {}
        self._texts: dict[tuple[str, str, int], Matrix] = {}
        self._captions: dict[str, list[list[str] | None]] = {}
        for signal in maker.signals:
            if signal.kind != "modality" and signal.file(stem) not in maker.bad_files:
                # What is wrong with a file stands among the problems already; one that is missing is counted.
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
                self._captions[signal.model] = (
                    file.read(["captions"]).column("captions").take(pa.array(rows, pa.int64())).to_pylist()
                )
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
