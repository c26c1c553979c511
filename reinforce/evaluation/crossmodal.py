"""Retrieval between a modality and RGB: for each image of one, that of the same sample among all of the other.

Needs no captions, no labels and no text tower: the pairs of a shard are the truth. Both images of a sample pass the one
image tower, each with its own clean view, as a device would see them alone.
"""

from collections.abc import Sequence

import numpy as np

from reinforce.config import ModalityConfig
from reinforce.evaluation.images import BATCH_SIZE, CACHE_BYTES, ShardImages
from reinforce.evaluation.metrics import image_ranks, num_non_finite, recall
from reinforce.evaluation.model import EmbeddingModel
from reinforce.evaluation.results import RECALLS, CrossModalResult


class CrossModalTask:
    """Shards with images of a modality beside the RGB ones, ready for any number of models. Raises `ConfigError`."""

    def __init__(
        self,
        uris: str | Sequence[str],
        *,
        name: str,
        modality: ModalityConfig,
        select: str | None = None,
        batch_size: int = BATCH_SIZE,
        workers: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.images = ShardImages(
            uris, needs="rgb", select=select, workers=workers, cache_bytes=cache_bytes, modality=modality
        )
        self.name = name
        self.modality = modality
        self.batch_size = batch_size

    def evaluate(self, model: EmbeddingModel) -> CrossModalResult:
        """One pass of the model over both images of every sample, and what came of it."""
        with model.evaluating():
            found = self.images.embed(model, self.batch_size)
        others, rgb = found.embeddings, found.rgb
        assert rgb is not None
        own = np.arange(len(others))
        from_modality, from_rgb = image_ranks(others, rgb, own), image_ranks(rgb, others, own)
        return CrossModalResult(
            model=model.name,
            num_parameters=model.num_parameters,
            modality=self.name,
            modality_range=self.modality.range,
            num_pairs=len(others),
            modality_to_rgb={k: recall(from_modality, k) for k in RECALLS},
            rgb_to_modality={k: recall(from_rgb, k) for k in RECALLS},
            num_non_finite=num_non_finite(others, rgb),
            drops=dict(sorted(found.drops.items())),
            counts=dict(sorted((+self.images.counts).items())),
            notes=model.notes,
        )
