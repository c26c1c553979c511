"""Which sentences each image is nearest to, and which image each sentence: exact, ties too, in one pass of products.

With `Cells` an image meets a part of the sentences only, and what is found is exact among those. Products are
of float32; whatever comes within their error of being near is scored again in float64, where products of float16
numbers and their sums are exact. So what is found depends on no block, thread or machine. Costs images x sentences x
dim products. In memory: one block of images, a few blocks of cosines, 20 bytes a sentence.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Self

import numpy as np
from jaxtyping import Float16, Float32, Float64, Int32, Int64

from reinforce.selection.cells import Cells

IMAGE_ROWS = 16_384
"""Images that meet all sentences together: the sentences are read from their file once for each so many images."""
_BLOCK_ROWS = 2048
_MAX_THREADS = IMAGE_ROWS // _BLOCK_ROWS
_PAIRS_AT_A_TIME = 4096
NOT_NEAR = np.iinfo(np.int32).max

Rows = Float16[np.ndarray, "rows dim"]
"""Embeddings as they are stored: finite, not zero, of norm 1 but for rounding."""
_Some = slice | Int64[np.ndarray, " some"]


@dataclass
class Grounding:
    """What is found, by the place of each sentence."""

    scores: Float64[np.ndarray, " sentences"]
    """The cosine to its nearest image; -inf if there was no image."""
    images: Int64[np.ndarray, " sentences"]
    """The number of that image, of equally near ones the first; -1 if there was none."""
    ranks: Int32[np.ndarray, " sentences"]
    """Its best place, from 0, among the nearest sentences of an image; `NOT_NEAR` if it is among none's."""

    @classmethod
    def nothing(cls, num_sentences: int) -> Self:
        return cls(
            np.full(num_sentences, -np.inf),
            np.full(num_sentences, -1, np.int64),
            np.full(num_sentences, NOT_NEAR, np.int32),
        )


@dataclass(frozen=True)
class _Side:
    """Some images, or some sentences: their numbers, and what they are as stored and at unit norm."""

    numbers: Int64[np.ndarray, " rows"]
    rows: Rows
    units: Float32[np.ndarray, "rows dim"]

    @classmethod
    def of(cls, numbers: Int64[np.ndarray, " rows"], rows: Rows) -> Self:
        values = rows.astype(np.float32)
        values /= np.sqrt(np.einsum("ij,ij->i", values, values))[:, None]
        return cls(numbers, rows, values)

    def part(self, rows: _Some) -> "_Side":
        return _Side(self.numbers[rows], self.rows[rows], self.units[rows])


@dataclass(frozen=True)
class _Tops:
    """The nearest sentences so far of some images, the nearest first, of equally near ones the first."""

    scores: Float64[np.ndarray, "images count"]
    """-inf where there are fewer."""
    sentences: Int32[np.ndarray, "images count"]

    @classmethod
    def nothing(cls, num_images: int, count: int) -> Self:
        return cls(np.full((num_images, count), -np.inf), np.full((num_images, count), -1, np.int32))

    def part(self, rows: _Some) -> "_Tops":
        return _Tops(self.scores[rows], self.sentences[rows])

    def put(self, rows: _Some, part: "_Tops") -> None:
        self.scores[rows], self.sentences[rows] = part.scores, part.sentences

    def merge(
        self,
        rows: Int64[np.ndarray, " pairs"],
        sentences: Int64[np.ndarray, " pairs"],
        scores: Float64[np.ndarray, " pairs"],
    ) -> None:
        """Puts sentences in that are nearer than those there."""
        count = self.scores.shape[1]
        changed = np.unique(rows)
        images = np.concatenate([np.repeat(changed, count), rows])
        scores = np.concatenate([self.scores[changed].reshape(-1), scores])
        sentences = np.concatenate([self.sentences[changed].reshape(-1), sentences])
        order = np.lexsort((sentences, -scores, images))
        images, scores, sentences = images[order], scores[order], sentences[order]
        places = np.arange(len(images)) - np.searchsorted(images, images)
        stays = places < count
        self.scores[images[stays], places[stays]] = scores[stays]
        self.sentences[images[stays], places[stays]] = sentences[stays]


@dataclass(frozen=True)
class _Pairs:
    """Images and sentences that may be near, by number, with their exact cosines."""

    images: Int64[np.ndarray, " pairs"]
    sentences: Int64[np.ndarray, " pairs"]
    scores: Float64[np.ndarray, " pairs"]


def ground(
    images: Iterable[tuple[Int64[np.ndarray, " images"], Rows]],
    sentences: Rows,
    count: int,
    tops: BinaryIO,
    *,
    cells: Cells | None = None,
    num_probed: int = 0,
) -> Grounding:
    """Meets blocks of images, each with its images' numbers in rising order, with all sentences, a map of a file.

    With `cells` of these sentences an image meets those of the `num_probed` cells that are nearest to it alone. Writes
    to `tops` the `count` nearest sentences of each image, as int32 rows in the order of the images; -1 where
    there are fewer sentences.
    """
    found = Grounding.nothing(len(sentences))
    with ThreadPoolExecutor(min(_MAX_THREADS, len(os.sched_getaffinity(0)))) as pool:
        for numbers, rows in images:
            block, nearest = _Side.of(numbers, rows), _Tops.nothing(len(rows), count)
            for chosen, some in _meetings(block, sentences, cells, num_probed):
                part = nearest.part(chosen)
                _note_nearest_images(found, _meet_in_parts(pool, block.part(chosen), part, some, found.scores))
                nearest.put(chosen, part)
            tops.write(nearest.sentences.tobytes())
            is_there = nearest.sentences >= 0
            places = np.broadcast_to(np.arange(count, dtype=np.int32), is_there.shape)
            np.minimum.at(found.ranks, nearest.sentences[is_there], places[is_there])
    return found


def _meetings(images: _Side, sentences: Rows, cells: Cells | None, num_probed: int) -> Iterator[tuple[_Some, _Side]]:
    """Which of the images meet which sentences, a block of sentences at a time."""
    if cells is None:
        for start in range(0, len(sentences), _BLOCK_ROWS):
            rows = np.asarray(sentences[start : start + _BLOCK_ROWS])
            yield slice(None), _Side.of(np.arange(start, start + len(rows)), rows)
        return
    for chosen, cell in cells.probed(images.units, num_probed):
        for start in range(cell.start, cell.stop, _BLOCK_ROWS):
            here = slice(start, min(start + _BLOCK_ROWS, cell.stop))
            yield chosen, _Side.of(cells.places[here].astype(np.int64), np.asarray(cells.rows[here]))


def exact_cosines(ones: Rows, twos: Rows) -> Float64[np.ndarray, " rows"]:
    """Row by row. All sums are exact, so that equal pairs have equal cosines wherever and in whatever order."""
    one, two = ones.astype(np.float64), twos.astype(np.float64)
    dots, squares, others = (np.einsum("ij,ij->i", a, b) for a, b in ((one, two), (one, one), (two, two)))
    return np.asarray(dots / np.sqrt(squares * others))


def _meet_in_parts(
    pool: ThreadPoolExecutor,
    images: _Side,
    tops: _Tops,
    sentences: _Side,
    scores: Float64[np.ndarray, " all_sentences"],
) -> _Pairs:
    """`_meet` of a block of images, parts of it side by side: what is around the products has one thread each."""
    best = scores[sentences.numbers]

    def meet(first: int) -> _Pairs:
        part = slice(first, first + _BLOCK_ROWS)
        return _meet(images.part(part), tops.part(part), sentences, best)

    found = list(pool.map(meet, range(0, len(images.rows), _BLOCK_ROWS)))
    return _Pairs(
        np.concatenate([pairs.images for pairs in found]),
        np.concatenate([pairs.sentences for pairs in found]),
        np.concatenate([pairs.scores for pairs in found]),
    )


def _meet(images: _Side, tops: _Tops, sentences: _Side, best: Float64[np.ndarray, " sentences"]) -> _Pairs:
    """Merges the nearest of a block of sentences into `tops`.

    Returns the pairs among which is each sentence's nearest image of these, if it is nearer than `best`.
    """
    cosines = images.units @ sentences.units.T
    # A product of float32 is off by at most dim and a few times 2**-24, a difference of two by twice that.
    margin = (images.units.shape[1] + 8) * 2.0**-23
    for_images = _floors(cosines, tops) - margin
    for_sentences = np.maximum(best, cosines.max(axis=0)) - margin
    near = cosines >= for_images.astype(np.float32)[:, None]
    near |= cosines >= for_sentences.astype(np.float32)
    rows, columns = np.divmod(np.flatnonzero(near), near.shape[1])
    scores = np.empty(len(rows))
    for first in range(0, len(rows), _PAIRS_AT_A_TIME):
        some = slice(first, first + _PAIRS_AT_A_TIME)
        scores[some] = exact_cosines(images.rows[rows[some]], sentences.rows[columns[some]])
    tops.merge(rows, sentences.numbers[columns], scores)
    return _Pairs(images.numbers[rows], sentences.numbers[columns], scores)


def _floors(cosines: Float32[np.ndarray, "images sentences"], tops: _Tops) -> Float64[np.ndarray, " images"]:
    """What a sentence must reach to be among an image's nearest: as many are known that do."""
    floors, count = tops.scores[:, -1].copy(), tops.scores.shape[1]
    is_open = np.flatnonzero(np.isneginf(floors))
    if len(is_open) and cosines.shape[1] >= count:
        floors[is_open] = np.partition(cosines[is_open], -count, axis=1)[:, -count]
    return floors


def _note_nearest_images(found: Grounding, pairs: _Pairs) -> None:
    """An earlier image stays where another is as near."""
    order = np.lexsort((pairs.images, -pairs.scores, pairs.sentences))
    images, scores, sentences = pairs.images[order], pairs.scores[order], pairs.sentences[order]
    is_best = np.diff(sentences, prepend=-1) > 0
    images, scores, sentences = images[is_best], scores[is_best], sentences[is_best]
    is_nearer = scores > found.scores[sentences]
    found.scores[sentences[is_nearer]] = scores[is_nearer]
    found.images[sentences[is_nearer]] = images[is_nearer]
