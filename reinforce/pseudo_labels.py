"""Pseudo-labels: what a teacher would call an image, from its stored clean view and a bank, with no teacher loaded.

A product of rows x labels x dim, a block of rows at a time: memory is that of some four million probabilities. A
bank's labels differ, so no two share the probability of one (a list of names with repetitions would halve the
confidence of exactly those).
"""

import numpy as np
from jaxtyping import Float16, Float64, Int32

from reinforce.shards.banks import Bank

_MOST_LOGITS = 1 << 22


def pseudo_labels(
    views: Float16[np.ndarray, "rows dim"], bank: Bank
) -> tuple[Int32[np.ndarray, " rows"], Float64[np.ndarray, " rows"]]:
    """The label of each clean view, -1 where the view is NaN, and the log-odds of its probability among the labels.

    The probability is the largest of softmax(logit_scale * views @ bank) (arXiv 2403.04908, section 3.2); log-odds tell
    rows apart whose probability is 1 in float64.
    """
    num_rows = max(1, _MOST_LOGITS // len(bank.labels))
    blocks = [_of_block(views[start : start + num_rows], bank) for start in range(0, len(views), num_rows)]
    labels, certainties = zip(*blocks, strict=True) if blocks else ((), ())
    return np.concatenate([np.empty(0, np.int32), *labels]), np.concatenate([np.empty(0), *certainties])


def _of_block(
    views: Float16[np.ndarray, "rows dim"], bank: Bank
) -> tuple[Int32[np.ndarray, " rows"], Float64[np.ndarray, " rows"]]:
    logits = bank.logit_scale * (views.astype(np.float64) @ bank.embeddings.T.astype(np.float64))
    labels = np.nan_to_num(logits).argmax(axis=1)
    rows = np.arange(len(logits))
    largest = logits[rows, labels]
    if len(bank.labels) == 1:
        return np.where(np.isnan(largest), -1, 0).astype(np.int32), np.where(np.isnan(largest), np.nan, np.inf)
    logits[rows, labels] = -np.inf
    second = logits.max(axis=1)
    certainties = largest - second - np.log(np.exp(logits - second[:, None]).sum(axis=1))
    return np.where(np.isnan(certainties), -1, labels).astype(np.int32), certainties
