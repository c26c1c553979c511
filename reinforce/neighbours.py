"""Who is near whom among unit-norm embeddings: near-duplicate groups and nearest neighbours, by blocked products.

Exact, in memory bounded by two blocks. The cost is N^2 x dim products: N = 8,000 of 128 dims take a second on one
core, a million of 768 dims about 7e14 multiplications.
"""

import numpy as np
from jaxtyping import Bool, Float32, Int64

Embeddings = Float32[np.ndarray, "rows dim"]
_BLOCK_ROWS = 2048


def near_duplicate_groups(embeddings: Embeddings, threshold: float) -> Int64[np.ndarray, " rows"]:
    """For each row the first row of its group: rows whose cosine is at least `threshold` are in one group.

    Groups are connected components: two rows of a group may be further apart than the threshold if others lie between
    them. A row with a value that is not finite is alone. `embeddings` may be a memory map.
    """
    assert 0 < threshold <= 1, threshold
    leaders = np.arange(len(embeddings))

    def find(row: int) -> int:
        while leaders[row] != row:
            leaders[row] = leaders[leaders[row]]
            row = leaders[row]
        return row

    for start in range(0, len(embeddings), _BLOCK_ROWS):
        block = _block(embeddings, start)
        for other in range(start, len(embeddings), _BLOCK_ROWS):
            close: Bool[np.ndarray, "block other"] = block @ _block(embeddings, other).T >= threshold
            for one, two in np.argwhere(np.triu(close, 1) if other == start else close).tolist():
                first, second = find(start + one), find(other + two)
                leaders[max(first, second)] = min(first, second)
    return np.array([find(row) for row in range(len(embeddings))], np.int64)


def nearest_neighbours(embeddings: Embeddings, count: int) -> Int64[np.ndarray, "rows count"]:
    """For each row the `count` other rows with the largest cosine, in no particular order.

    Rows with a value that is not finite are nobody's neighbours; their own are arbitrary.
    """
    assert count < len(embeddings), (count, len(embeddings))
    neighbours = np.empty((len(embeddings), count), np.int64)
    columns = np.nan_to_num(embeddings)
    is_finite = np.isfinite(embeddings).all(axis=1)
    for start in range(0, len(embeddings), _BLOCK_ROWS):
        cosines = _block(embeddings, start) @ columns.T
        cosines[:, ~is_finite] = -np.inf
        rows = np.arange(len(cosines))
        cosines[rows, start + rows] = -np.inf
        neighbours[start : start + len(cosines)] = np.argpartition(cosines, -count, axis=1)[:, -count:]
    return neighbours


def _block(embeddings: Embeddings, start: int) -> Embeddings:
    """A block of rows; those that are not finite are zero, so that they are near nothing."""
    block = np.asarray(embeddings[start : start + _BLOCK_ROWS], np.float32)
    return np.where(np.isfinite(block).all(axis=1, keepdims=True), block, np.float32(0))
