"""Retrieval: for each caption its image among all images, for each image any of its captions among all captions.

The usual protocol of COCO and Flickr30k: the first five captions of an image count. Scores are compared in blocks, so
that memory grows with images and captions, not with their product.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from reinforce.config import ConfigError
from reinforce.evaluation.images import BATCH_SIZE, CACHE_BYTES, ShardImages
from reinforce.evaluation.metrics import image_ranks, num_non_finite, recall, text_ranks
from reinforce.evaluation.model import EmbeddingModel
from reinforce.evaluation.results import RECALLS, RetrievalResult
from reinforce.evaluation.stored_texts import StoredTexts
from reinforce.storage import StorageError
from reinforce.weights import ModelError


class RetrievalTask:
    """Captioned shards, ready for any number of models.

    `captions` is `txt` (one caption a line, as CLIP_benchmark writes them) or `json.FIELD`. With `texts`, a reinforced
    dataset of these shards, captions are its original ones as a teacher of the model's space embedded them:
    `teacher`, or the first by name. Raises `ConfigError`, or `FormatError` for a dataset that is none.
    """

    def __init__(
        self,
        uris: str | Sequence[str],
        *,
        select: str | None = None,
        captions: str = "txt",
        max_captions: int = 5,
        texts: str | None = None,
        teacher: str | None = None,
        batch_size: int = BATCH_SIZE,
        workers: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        options: dict[str, Any] = {"select": select, "workers": workers, "cache_bytes": cache_bytes}
        self._texts = StoredTexts(texts) if texts is not None else None
        self._teacher = teacher
        self._max_captions = max_captions
        if self._texts is not None:
            self.images = _images_of(self._texts, uris, options)
        else:
            self.images = ShardImages(uris, needs="captions", field_name=captions, max_captions=max_captions, **options)
        self.batch_size = batch_size

    def evaluate(self, model: EmbeddingModel) -> RetrievalResult:
        """One pass of the model over images and captions, and what came of it. Raises `ModelError` without texts."""
        if self._texts is not None:
            return self._evaluate_by(self._texts, model)
        if not model.has_text:
            why = "an image tower alone; --texts DATASET has its teacher's texts, --modality NAME compares it with RGB"
            raise ModelError(f"model {model.name}: {why}")
        with model.evaluating():
            found = self.images.embed(model, self.batch_size)
            texts = model.embed_texts([caption for captions in found.captions for caption in captions])
        owners = np.repeat(np.arange(len(found.captions)), [len(captions) for captions in found.captions])
        return self._result(model, found.embeddings, texts, owners, found.drops, self.images.counts)

    def _evaluate_by(self, stored: StoredTexts, model: EmbeddingModel) -> RetrievalResult:
        """By the texts of a teacher, which is not loaded."""
        signal = stored.signal_for(model, self._teacher)
        with model.evaluating():
            found = self.images.embed(model, self.batch_size)
        matched = stored.match(found.origins, signal, self._max_captions)
        images = found.embeddings[torch.from_numpy(matched.images)]
        images = model.in_space_of(images, signal.model, stored.weights_sha256_of(signal))
        if images.shape[1] != matched.embeddings.shape[1]:
            raise ConfigError(
                f"--texts {stored.uri}: captions by {signal.model} have {matched.embeddings.shape[1]} values, an image "
                f"of {model.name} has {images.shape[1]}"
            )
        drops, counts = found.drops + matched.drops, self.images.counts + matched.counts
        result = self._result(model, images, matched.embeddings, matched.owners, drops, counts)
        return replace(result, texts=signal.model)

    def _result(
        self,
        model: EmbeddingModel,
        images: Float[Tensor, "images dim"],
        texts: Float[Tensor, "texts dim"],
        owners: Int[np.ndarray, " texts"],
        drops: Counter[str],
        counts: Counter[str],
    ) -> RetrievalResult:
        by_text = image_ranks(texts, images, owners)
        by_image = text_ranks(images, texts, owners)
        return RetrievalResult(
            model=model.name,
            num_parameters=model.num_parameters,
            num_images=len(images),
            num_captions=len(texts),
            text_to_image={k: recall(by_text, k) for k in RECALLS},
            image_to_text={k: recall(by_image, k) for k in RECALLS},
            num_non_finite=num_non_finite(images, texts),
            drops=dict(sorted(drops.items())),
            counts=dict(sorted((+counts).items())),
            notes=model.notes,
        )


def _images_of(texts: StoredTexts, uris: str | Sequence[str], options: dict[str, Any]) -> ShardImages:
    """The shards by their names in the dataset; of those that have moved, the root is where they are now."""
    try:
        return ShardImages(uris, needs="origin", root=texts.source_root, **options)
    except StorageError:
        return ShardImages(uris, needs="origin", **options)
