"""Accuracy, area under the ROC curve and recall from unit-norm embeddings, in blocks of bounded size.

A rank is how many candidates stand before the right one; top-k is rank < k. Among equal scores of classes the first
class wins, as in argmax; equal scores in retrieval all count against the model, so that duplicates flatter nobody.
A score that is NaN is never right, and stands before every other.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BLOCK_VALUES = 1 << 24
"""Scores held at a time: 64 MB in fp32, and as much again for masks."""

NEVER = np.iinfo(np.int64).max
"""The rank of what has no score."""

Ranks = Int[np.ndarray, " rows"]


def label_ranks(
    images: Float[Tensor, "rows dim"], classes: Float[Tensor, "classes dim"], labels: Int[np.ndarray, " rows"]
) -> Ranks:
    """How many classes each image is nearer to than to its own."""
    ranks = np.empty(len(images), np.int64)
    order = np.arange(len(classes))
    for rows, scores in _score_blocks(images, classes):
        own = labels[rows, None]
        right = np.take_along_axis(scores, own, axis=1)
        is_behind = (scores < right) | ((scores == right) & (order > own))
        ranks[rows] = np.where(np.isnan(right[:, 0]), NEVER, len(classes) - 1 - is_behind.sum(axis=1))
    return ranks


def class_aurocs(
    images: Float[Tensor, "rows dim"], classes: Float[Tensor, "classes dim"], labels: Int[np.ndarray, " rows"]
) -> list[float | None]:
    """Each class against all others, by raw cosine; None for a class without positives or without negatives."""
    return aurocs(images, classes, lambda index: labels == index)


def aurocs(
    images: Float[Tensor, "rows dim"],
    classes: Float[Tensor, "classes dim"],
    carriers: Callable[[int], Bool[np.ndarray, " rows"]],
) -> list[float | None]:
    """Likewise, of images that may carry several classes: `carriers(class)` says which carry it."""
    found: list[float | None] = []
    for block, scores in _score_blocks(classes, images):
        found += [auroc(row, carriers(index)) for index, row in enumerate(scores, start=block.start)]
    return found


def auroc(scores: Float[np.ndarray, " rows"], is_positive: Bool[np.ndarray, " rows"]) -> float | None:
    """The chance that a positive scores above a negative, equal scores counting half; None if either is missing.

    >>> auroc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
    0.875
    """
    num_positives = int(is_positive.sum())
    num_negatives = len(scores) - num_positives
    if not num_positives or not num_negatives:
        return None
    _, which, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle_ranks = np.cumsum(counts) - (counts - 1) / 2
    above = float(middle_ranks[which[is_positive]].sum()) - num_positives * (num_positives + 1) / 2
    return above / (num_positives * num_negatives)


def image_ranks(
    texts: Float[Tensor, "texts dim"], images: Float[Tensor, "images dim"], owners: Int[np.ndarray, " texts"]
) -> Ranks:
    """For each text, how many images stand before the one it belongs to."""
    ranks = np.empty(len(texts), np.int64)
    for rows, scores in _score_blocks(texts, images):
        right = np.take_along_axis(scores, owners[rows, None], axis=1)
        # Its own score is not below itself.
        before = len(images) - 1 - (scores < right).sum(axis=1)
        ranks[rows] = np.where(np.isnan(right[:, 0]), NEVER, before)
    return ranks


def text_ranks(
    images: Float[Tensor, "images dim"], texts: Float[Tensor, "texts dim"], owners: Int[np.ndarray, " texts"]
) -> Ranks:
    """For each image, how many texts of others stand before the best of its own."""
    ranks = np.empty(len(images), np.int64)
    for rows, scores in _score_blocks(images, texts):
        is_own = owners == np.arange(rows.start, rows.stop)[:, None]
        best = np.where(is_own, scores, -np.inf).max(axis=1, keepdims=True)
        before = (~(scores < best) & ~is_own).sum(axis=1)
        ranks[rows] = np.where(np.isnan(best[:, 0]), NEVER, before)
    return ranks


def recall(ranks: Ranks, k: int) -> float:
    """The share of ranks below k."""
    return float((ranks < k).mean())


def num_non_finite(*embeddings: Float[Tensor, "rows dim"]) -> int:
    """Rows that hold something that is not finite."""
    return sum(int((~torch.isfinite(rows).all(dim=1)).sum()) for rows in embeddings)


def _score_blocks(
    left: Float[Tensor, "rows dim"], right: Float[Tensor, "columns dim"]
) -> Iterator[tuple[slice, Float[np.ndarray, "block columns"]]]:
    """Cosines of consecutive rows of `left` to all of `right`."""
    num_rows = max(1, BLOCK_VALUES // len(right))
    for start in range(0, len(left), num_rows):
        rows = slice(start, min(start + num_rows, len(left)))
        yield rows, (left[rows] @ right.T).numpy()
