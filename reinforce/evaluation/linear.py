"""A linear probe of frozen image embeddings: how well a classifier on them can do that has labels to learn from.

The features are the unit-norm embedding that a model is used by, of clean views. One pass over the training shards and
one over the evaluated ones; memory is 4 bytes x dim for each image of both, and some 300 that tell where it is from.
No test label has a part in any choice, and no image that is evaluated is trained on.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from reinforce.config import ConfigError, ModalityConfig
from reinforce.evaluation.examples import EmbeddedImages
from reinforce.evaluation.images import BATCH_SIZE, CACHE_BYTES, ShardImages
from reinforce.evaluation.labels import class_result, rows_with_name
from reinforce.evaluation.metrics import label_ranks, num_non_finite, recall
from reinforce.evaluation.model import EmbeddingModel
from reinforce.evaluation.probe import ChosenProbe, choose_probe
from reinforce.evaluation.results import LinearResult
from reinforce.prompts import find_classnames, read_classnames
from reinforce.shards.banks import bank_key


class LinearTask:
    """Labelled shards to train a probe on and labelled shards to evaluate it on, ready for any number of models.

    `classnames`, `select` and `modality` as of `ZeroShotTask`; the selection is of the evaluated shards alone. Raises
    `ConfigError`, also for a shard that is in both, and for shards that have other class names beside them.
    """

    def __init__(
        self,
        uris: str | Sequence[str],
        *,
        train: Sequence[str],
        select: str | None = None,
        classnames: str | None = None,
        batch_size: int = BATCH_SIZE,
        workers: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        modality: ModalityConfig | None = None,
    ) -> None:
        images: dict[str, Any] = {"needs": "label", "workers": workers, "modality": modality, "with_origins": True}
        self.images = ShardImages(uris, select=select, cache_bytes=cache_bytes // 2, **images)
        self.train = ShardImages(train, cache_bytes=cache_bytes - cache_bytes // 2, **images)
        in_both = sorted(set(self.images.uris) & set(self.train.uris))
        if in_both:
            raise ConfigError(f"--train: {in_both[0]} is evaluated too; train the probe on other shards")
        self.classnames = read_classnames(self.images.root, classnames)
        if classnames is None:
            _check_same_classes(self.classnames, self.train.root)
        self.batch_size = batch_size

    def evaluate(self, model: EmbeddingModel) -> LinearResult:
        """One pass of the model over both, the probe, and what came of it."""
        with model.evaluating():
            # First, before many training images are embedded for labels that are not there.
            found = self.images.embed(model, self.batch_size)
            images, labels = rows_with_name(found, len(self.classnames), self.images.root)
            learned = self.train.embed(model, self.batch_size)
        self._leave_out(learned, {origin.sha256 for origin in found.origins})
        features, targets = self._training_rows(learned)
        chosen = choose_probe(features.to(_device_of(model)), targets, len(self.classnames))
        if chosen is None:
            raise ConfigError(
                f"--train: no class has two images in {self.train.root}; a fifth of them is held out to choose by"
            )
        ranks = _ranks(chosen, images, labels)
        per_class = tuple(
            class_result(name, ranks[labels == index], None) for index, name in enumerate(self.classnames)
        )
        return LinearResult(
            model=model.name,
            num_parameters=model.num_parameters,
            num_samples=len(labels),
            num_train=len(targets),
            num_held_out=chosen.num_held_out,
            num_features=features.shape[1],
            l2=chosen.probe.l2,
            held_out_top1=chosen.held_out_accuracy,
            is_converged=chosen.num_not_converged == 0,
            gradient_norm=chosen.probe.gradient_norm,
            num_iterations=chosen.probe.num_iterations,
            top1=recall(ranks, 1),
            top5=recall(ranks, 5) if len(self.classnames) > 5 else None,
            mean_per_class=float(np.mean([row.accuracy for row in per_class if row.accuracy is not None])),
            num_non_finite=num_non_finite(images),
            classes=per_class,
            drops=dict(sorted(found.drops.items())),
            train_drops=dict(sorted(learned.drops.items())),
            counts=dict(sorted((+self.images.counts).items())),
            train_counts=dict(sorted((+self.train.counts).items())),
            notes=model.notes + self._notes(model, chosen, targets),
        )

    def _leave_out(self, learned: EmbeddedImages, evaluated: set[bytes]) -> None:
        """Images that are evaluated too, in whatever shard: the probe would only have to remember them."""
        kept = [row for row, origin in enumerate(learned.origins) if origin.sha256 not in evaluated]
        num_evaluated = len(learned.facts) - len(kept)
        if not kept:
            raise ConfigError(f"--train: every image of {self.train.root} is evaluated too; give other shards")
        if num_evaluated:
            learned.drops["also_evaluated"] = num_evaluated
            learned.facts = [learned.facts[row] for row in kept]
            learned.embeddings = learned.embeddings[kept]

    def _training_rows(self, learned: EmbeddedImages) -> tuple[Float[Tensor, "rows dim"], Int[np.ndarray, " rows"]]:
        """Those with a name and a finite embedding: one that is not would spoil the probe."""
        features, targets = rows_with_name(learned, len(self.classnames), self.train.root)
        is_finite = torch.isfinite(features).all(dim=1)
        if not is_finite.all():
            learned.drops["non_finite"] = int((~is_finite).sum())
            features, targets = features[is_finite], targets[is_finite.numpy()]
        return features, targets

    def _notes(self, model: EmbeddingModel, chosen: ChosenProbe, targets: Int[np.ndarray, " rows"]) -> tuple[str, ...]:
        """What a reader of the figures must know of the probe."""
        notes = []
        if chosen.num_not_converged:
            fits = f"{chosen.num_not_converged} of {chosen.num_fits} fits"
            notes.append(f"{model.name}: {fits} of the probe stopped short of the optimum")
        if chosen.is_at_end:
            notes.append(f"{model.name}: l2 {chosen.probe.l2:.2g} is at the end of the range that is searched")
        num_untrained = len(self.classnames) - len(np.unique(targets))
        if num_untrained:
            notes.append(f"{model.name}: classes without an image to train on: {num_untrained:,}")
        return tuple(notes)


def _check_same_classes(classnames: tuple[str, ...], train_root: str) -> None:
    """A label is a number: with names in another order the probe would learn other classes than it is asked for."""
    found = find_classnames(train_root)
    if found is None:
        return
    others, uri = found
    for label, (name, other) in enumerate(zip_longest(classnames, others, fillvalue="no class")):
        if bank_key(name) != bank_key(other):
            raise ConfigError(
                f"--train: label {label} is {other} in {uri}, and {name} of --dataset; give shards with labels of the "
                "same classes, or --classnames FILE if they are"
            )


def _ranks(
    chosen: ChosenProbe, images: Float[Tensor, "rows dim"], labels: Int[np.ndarray, " rows"]
) -> Int[np.ndarray, " rows"]:
    """How many classes the probe finds likelier than the right one."""
    probe = chosen.probe
    classes = torch.cat([probe.weights, probe.intercepts[:, None]], dim=1).float().cpu()
    return label_ranks(torch.nn.functional.pad(images, (0, 1), value=1.0), classes, labels)


def _device_of(model: EmbeddingModel) -> torch.device:
    """The model's own, unless it lacks float64."""
    return model.device if model.device.type == "cuda" else torch.device("cpu")
