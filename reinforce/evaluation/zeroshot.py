"""Zero-shot classification: an image belongs to the class whose prompts it is nearest to.

A class is the normalised mean of its normalised prompts, as in open_clip and CLIP_benchmark. A task reads its files
once and may be asked about one model after another, or about one in training again and again.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from reinforce.config import ModalityConfig
from reinforce.evaluation.banks import Classes, classes_in, notes_of
from reinforce.evaluation.images import BATCH_SIZE, CACHE_BYTES, ShardImages
from reinforce.evaluation.labels import class_result, rows_with_name
from reinforce.evaluation.metrics import class_aurocs, label_ranks, num_non_finite, recall
from reinforce.evaluation.model import TEXTS_PER_BATCH, EmbeddingModel
from reinforce.evaluation.results import ZeroShotResult
from reinforce.prompts import prompt, read_classnames, read_templates
from reinforce.shards.banks import Bank


class ZeroShotTask:
    """Labelled shards, class names and templates, ready for any number of models.

    Finds `classnames.txt` and `zeroshot_classification_templates.txt` in the shards' folder or the one above it;
    without the latter, the one template is `a photo of a {}.`. `modality` as of `ShardImages`. Raises `ConfigError`.
    """

    def __init__(
        self,
        uris: str | Sequence[str],
        *,
        select: str | None = None,
        classnames: str | None = None,
        templates: str | None = None,
        batch_size: int = BATCH_SIZE,
        workers: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        modality: ModalityConfig | None = None,
    ) -> None:
        self.images = ShardImages(
            uris, needs="label", select=select, workers=workers, cache_bytes=cache_bytes, modality=modality
        )
        self.classnames = read_classnames(self.images.root, classnames)
        self.templates = read_templates(self.images.root, templates)
        self.batch_size = batch_size

    def check(self, bank: Bank) -> None:
        """Raises `ConfigError` if the bank lacks one of the classes."""
        classes_in(bank, self.classnames)

    def evaluate(self, model: EmbeddingModel, bank: Bank | None = None) -> ZeroShotResult:
        """One pass of the model over the images, and what came of it. Classes are those of `bank`, if there is one."""
        with model.evaluating():
            classes = self._classes(model) if bank is None else classes_in(bank, self.classnames)
            found = self.images.embed(model, self.batch_size)
        if bank is not None:
            found.embeddings = model.in_space_of(found.embeddings, bank.teacher, bank.weights_sha256)
        images, label_ids = rows_with_name(found, len(self.classnames), self.images.root)
        labels = classes.of_label[label_ids]
        ranks = label_ranks(images, classes.embeddings, labels)
        strange = num_non_finite(images, classes.embeddings)
        aurocs = [None] * len(classes.names) if strange else class_aurocs(images, classes.embeddings, labels)
        per_class = tuple(
            class_result(name, ranks[labels == index], auroc)
            for index, (name, auroc) in enumerate(zip(classes.names, aurocs, strict=True))
        )
        known = [auroc for auroc in aurocs if auroc is not None]
        return ZeroShotResult(
            model=model.name,
            num_parameters=model.num_parameters,
            num_samples=len(labels),
            num_templates=len(bank.templates if bank else self.templates),
            bank=bank.name if bank else None,
            top1=recall(ranks, 1),
            top5=recall(ranks, 5) if len(classes.names) > 5 else None,
            mean_per_class=float(np.mean([row.accuracy for row in per_class if row.accuracy is not None])),
            auroc=float(np.mean(known)) if known else None,
            num_classes_without_auroc=len(aurocs) - len(known),
            num_non_finite=strange,
            classes=per_class,
            drops=dict(sorted(found.drops.items())),
            counts=dict(sorted((+self.images.counts).items())),
            notes=model.notes + (notes_of(model, bank) if bank else ()),
        )

    def _classes(self, model: EmbeddingModel) -> Classes:
        embeddings = embed_classes(model, self.classnames, self.templates)
        return Classes(self.classnames, embeddings, np.arange(len(self.classnames)))


def embed_classes(
    model: EmbeddingModel, classnames: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "classes dim"]:
    """The normalised mean of each class's normalised prompts."""
    means = []
    step = max(1, TEXTS_PER_BATCH // len(templates))
    for start in range(0, len(classnames), step):
        names = classnames[start : start + step]
        prompts = [prompt(template, name) for name in names for template in templates]
        means.append(model.embed_texts(prompts).view(len(names), len(templates), -1).mean(dim=1))
    return torch.nn.functional.normalize(torch.cat(means), dim=-1)
