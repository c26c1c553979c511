"""Sentences in cells of like ones, of which an image meets a few: what is near may be missed, and costs far less.

As many cells as the root of the number of sentences, found by faiss's k-means on an even sample with a fixed seed. The
sentences lie once more in a temporary file, cell by cell. In memory: the sample, 32 sentences a cell; 4 bytes a
sentence.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from jaxtyping import Float16, Float32, Int32, Int64

_BLOCK_ROWS = 2048
_SAMPLE_PER_CELL = 32
_NUM_ROUNDS = 10


@dataclass(frozen=True)
class Cells:
    """The sentences of a map, in the order of their cells, and in a cell in their own."""

    centres: Float32[np.ndarray, "cells dim"]
    starts: Int64[np.ndarray, " cells_plus_1"]
    rows: Float16[np.ndarray, "sentences dim"]
    places: Int32[np.ndarray, " sentences"]
    """Which sentence each row is."""

    def probed(
        self, units: Float32[np.ndarray, "images dim"], num_probed: int
    ) -> Iterator[tuple[Int64[np.ndarray, " some"], slice]]:
        """Every cell that is among the `num_probed` nearest of an image: these images, and the rows of the cell."""
        num_probed = min(num_probed, len(self.centres))
        blocks = [units[start : start + _BLOCK_ROWS] @ self.centres.T for start in range(0, len(units), _BLOCK_ROWS)]
        near = [np.argpartition(-block, num_probed - 1, axis=1)[:, :num_probed] for block in blocks]
        cells = np.concatenate(near).reshape(-1)
        order = np.argsort(cells, kind="stable")
        bounds = np.searchsorted(cells[order], np.arange(len(self.centres) + 1))
        for cell in np.flatnonzero(np.diff(bounds)).tolist():
            images = order[bounds[cell] : bounds[cell + 1]] // num_probed
            yield images, slice(int(self.starts[cell]), int(self.starts[cell + 1]))


def sort_into_cells(sentences: Float16[np.ndarray, "sentences dim"], file: BinaryIO) -> Cells:
    """Writes the sentences to `file`, cell by cell."""
    import faiss  # a second of its own, for who asks for cells only

    num_cells = math.isqrt(len(sentences) - 1) + 1
    sample = np.unique(np.linspace(0, len(sentences) - 1, num_cells * _SAMPLE_PER_CELL).astype(np.int64))
    means = faiss.Kmeans(
        sentences.shape[1], num_cells, niter=_NUM_ROUNDS, seed=0, spherical=True, min_points_per_centroid=1
    )
    means.train(sentences[sample].astype(np.float32))
    centres = np.asarray(means.centroids, np.float32)
    cell_of = np.empty(len(sentences), np.int32)
    for start in range(0, len(sentences), _BLOCK_ROWS):
        rows = sentences[start : start + _BLOCK_ROWS].astype(np.float32)
        cell_of[start : start + len(rows)] = (rows @ centres.T).argmax(axis=1)
    places = np.argsort(cell_of, kind="stable").astype(np.int32)
    for start in range(0, len(places), _BLOCK_ROWS):
        file.write(sentences[places[start : start + _BLOCK_ROWS]].tobytes())
    file.flush()
    starts = np.concatenate([[0], np.cumsum(np.bincount(cell_of, minlength=num_cells))])
    return Cells(centres, starts, np.memmap(file, np.float16, "r", shape=sentences.shape), places)
