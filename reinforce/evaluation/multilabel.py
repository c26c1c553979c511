"""Scenes that carry several labels each: how well one label is told from the rest, by raw cosine.

For every label the area under the ROC curve of its cosines, images that carry it against those that do not; the mean of
them is the figure. There is no top-1 where an image is several things.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from reinforce.config import ModalityConfig
from reinforce.evaluation.banks import Classes, classes_in, notes_of
from reinforce.evaluation.images import BATCH_SIZE, CACHE_BYTES, ShardImages
from reinforce.evaluation.metrics import aurocs, num_non_finite
from reinforce.evaluation.model import EmbeddingModel
from reinforce.evaluation.results import ClassResult, MultiLabelResult
from reinforce.evaluation.zeroshot import embed_classes
from reinforce.prompts import read_classnames, read_templates
from reinforce.shards.banks import Bank, bank_key


class MultiLabelTask:
    """Shards whose samples name their labels in a field of their `.json` member, ready for any number of models.

    `labels` is that field, `json.FIELD`. Classes are the lines of `classnames`, else a bank's labels, else
    the lines of `classnames.txt` beside the shards. `modality` as of `ShardImages`. Raises `ConfigError`.
    """

    def __init__(
        self,
        uris: str | Sequence[str],
        *,
        labels: str,
        select: str | None = None,
        classnames: str | None = None,
        templates: str | None = None,
        batch_size: int = BATCH_SIZE,
        workers: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        modality: ModalityConfig | None = None,
    ) -> None:
        self.images = ShardImages(
            uris,
            needs="labels",
            field_name=labels,
            select=select,
            workers=workers,
            cache_bytes=cache_bytes,
            modality=modality,
        )
        self.classnames = classnames
        self.templates = templates
        self.batch_size = batch_size

    def evaluate(self, model: EmbeddingModel, bank: Bank | None = None) -> MultiLabelResult:
        """One pass of the model over the images, and what came of it. Classes are those of `bank`, if there is one."""
        templates = bank.templates if bank else read_templates(self.images.root, self.templates)
        with model.evaluating():
            classes = self._classes(model, bank, templates)
            found = self.images.embed(model, self.batch_size)
        if bank is not None:
            found.embeddings = model.in_space_of(found.embeddings, bank.teacher, bank.weights_sha256)
        carries, counts = _carries(found.captions, classes.names)
        strange = num_non_finite(found.embeddings, classes.embeddings)
        areas: list[float | None] = [None] * len(classes.names)
        if not strange:
            areas = aurocs(found.embeddings, classes.embeddings, lambda index: carries[:, index])
        known = [area for area in areas if area is not None]
        return MultiLabelResult(
            model=model.name,
            num_parameters=model.num_parameters,
            num_samples=len(found.captions),
            num_templates=len(templates),
            bank=bank.name if bank else None,
            auroc=float(np.mean(known)) if known else None,
            num_classes_without_auroc=len(areas) - len(known),
            num_non_finite=strange,
            classes=tuple(
                ClassResult(name, int(carries[:, place].sum()), None, area)
                for place, (name, area) in enumerate(zip(classes.names, areas, strict=True))
            ),
            drops=dict(sorted(found.drops.items())),
            counts=dict(sorted((+(self.images.counts + counts)).items())),
            notes=model.notes + (notes_of(model, bank) if bank else ()),
        )

    def _classes(self, model: EmbeddingModel, bank: Bank | None, templates: tuple[str, ...]) -> Classes:
        if bank is not None and self.classnames is None:
            return classes_in(bank, bank.labels)
        names = read_classnames(self.images.root, self.classnames)
        if bank is not None:
            return classes_in(bank, names)
        return Classes(names, embed_classes(model, names, templates), np.arange(len(names)))


def _carries(
    labels: Sequence[tuple[str, ...]], names: Sequence[str]
) -> tuple[Bool[np.ndarray, "rows classes"], Counter[str]]:
    """Which sample carries which class, by name (case and spaces do not matter); other labels are counted."""
    places = {bank_key(name): place for place, name in enumerate(names)}
    carries, counts = np.zeros((len(labels), len(names)), bool), Counter[str]()
    for row, of_sample in enumerate(labels):
        for label in of_sample:
            place = places.get(bank_key(label))
            if place is None:
                counts["labels_without_class"] += 1
            else:
                carries[row, place] = True
    return carries, counts
