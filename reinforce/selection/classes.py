"""Labels for samples: the class whose prompts the clean view is nearest to, and how sure the teacher is of it.

A product of the clean views of one teacher with the embeddings of the classes; no teacher is loaded here.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from reinforce.selection.candidates import Candidates
from reinforce.selection.signals import Rows, SignalRows
from reinforce.shards.schema import Signal, view_column


@dataclass(frozen=True, eq=False)
class ClassBank:
    """Class names with unit-norm embeddings by one of a dataset's teachers."""

    teacher: str
    names: tuple[str, ...]
    embeddings: Float32[np.ndarray, "classes dim"]
    logit_scale: float
    fingerprint: str
    """Of the names and the prompts made of them."""


def label_samples(candidates: Candidates, signals: SignalRows, bank: ClassBank) -> None:
    """Gives every sample that is in its label and confidence: the largest softmax over the classes.

    A sample without a clean view has neither.
    """
    labels = np.full(len(candidates), -1, np.int32)
    confidences = np.full(len(candidates), np.nan, np.float32)
    for shard in candidates.shards_in():
        views = signals.read(shard, Signal("image", bank.teacher), view_column(0))
        labels[candidates.rows(shard)], confidences[candidates.rows(shard)] = _classify(views, bank)
    candidates.labels, candidates.confidences, candidates.label_names = labels, confidences, bank.names


def _classify(views: Rows, bank: ClassBank) -> tuple[Int32[np.ndarray, " rows"], Float32[np.ndarray, " rows"]]:
    logits = bank.logit_scale * (views @ bank.embeddings.T)
    confidences = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
    labels = np.where(np.isnan(confidences), -1, np.nan_to_num(logits).argmax(axis=1))
    return labels.astype(np.int32), confidences
