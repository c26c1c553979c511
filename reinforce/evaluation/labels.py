"""The labels of a data set against its class names, for every task that has one label an image."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from reinforce.config import ConfigError
from reinforce.evaluation.examples import EmbeddedImages
from reinforce.evaluation.metrics import recall
from reinforce.evaluation.results import ClassResult

MOST_OUT_OF_RANGE = 0.01
"""A larger share of labels without a name says that the names are another data set's."""


def rows_with_name(
    found: EmbeddedImages, num_classes: int, root: str
) -> tuple[Float[Tensor, "rows dim"], Int[np.ndarray, " rows"]]:
    """The rows whose label has a name; the others are counted among the drops, or refused if they are many."""
    labels = np.array(found.labels)
    has_name = (labels >= 0) & (labels < num_classes)
    num_nameless = int((~has_name).sum())
    if num_nameless > MOST_OUT_OF_RANGE * len(labels):
        raise ConfigError(
            f"{num_nameless:,} of {len(labels):,} labels of {root} have no name: there are "
            f"{num_classes} class names and labels from {labels.min()} to {labels.max()}; pass --classnames FILE"
        )
    if not num_nameless:
        return found.embeddings, labels
    found.drops["label_out_of_range"] = num_nameless
    return found.embeddings[torch.from_numpy(has_name)], labels[has_name]


def class_result(name: str, ranks: Int[np.ndarray, " rows"], auroc: float | None) -> ClassResult:
    """What the ranks of one class's images say of it."""
    return ClassResult(name, len(ranks), recall(ranks, 1) if len(ranks) else None, auroc)
