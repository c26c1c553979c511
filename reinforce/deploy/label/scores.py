"""From an embedding to labels: cosines to the labels' embeddings, made scores, the best of those that pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reinforce.deploy.label.errors import LabelError
from reinforce.deploy.model_file import ModelLabels

if TYPE_CHECKING:
    from jaxtyping import Float, Float32

Scored = list[tuple[str, float]]
"""Labels with their scores, best first; empty if none passes."""

KINDS = ("softmax", "independent")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """`kind` softmax: shares of 1 among the labels. independent: each label for itself, by the teacher's own sigmoid
    if it has a bias, else the cosine. `least[i]` is what label i must reach."""

    labels: tuple[str, ...]
    embeddings: Float32[np.ndarray, "labels dim"]
    kind: str
    scale: float
    bias: float | None
    least: Float[np.ndarray, " labels"]
    top_k: int

    def best(self, embedding: Float32[np.ndarray, " dim"]) -> Scored:
        """At most `top_k` labels; of equal scores, in the order of the labels."""
        scores = self.scores(embedding)
        order = np.argsort(-scores, kind="stable")
        passing = order[scores[order] >= self.least[order]][: self.top_k]
        return [(self.labels[row], float(scores[row])) for row in passing]

    def scores(self, embedding: Float32[np.ndarray, " dim"]) -> Float[np.ndarray, " labels"]:
        """The score of every label."""
        cosines: Float[np.ndarray, " labels"] = (self.embeddings @ embedding).astype(np.float64)
        if self.kind == "softmax":
            powers = np.exp(self.scale * (cosines - cosines.max()))
            return np.asarray(powers / powers.sum())
        if self.bias is None:
            return cosines
        # The sigmoid, in a form that does not overflow.
        return np.asarray((1 + np.tanh((self.scale * cosines + self.bias) / 2)) / 2)


def make_scorer(
    labels: ModelLabels,
    *,
    kind: str,
    scale: float | None,
    threshold: float | None,
    thresholds: dict[str, float],
    top_k: int,
) -> Scorer:
    """A scorer at the teacher's scale unless `scale` is given; `thresholds` come before `threshold`.

    Raises LabelError if `scale` is given where scores are cosines.
    """
    if kind == "independent" and labels.logit_bias is None and scale is not None:
        raise LabelError(f"--scale: independent scores of teacher {labels.teacher} are cosines, which have no scale")
    otherwise = -np.inf if threshold is None else threshold
    return Scorer(
        labels=labels.labels,
        embeddings=labels.embeddings,
        kind=kind,
        scale=labels.logit_scale if scale is None else scale,
        bias=labels.logit_bias,
        least=np.array([thresholds.get(label, otherwise) for label in labels.labels]),
        top_k=top_k,
    )
