"""Retrieval: for each caption its image among all images, for each image any of its captions among all captions.

The usual protocol of COCO and Flickr30k: the first five captions of an image count. Scores are compared in blocks, so
that memory grows with images and captions, not with their product.
"""

from collections.abc import Sequence

import numpy as np

from reinforce.evaluation.images import BATCH_SIZE, CACHE_BYTES, ShardImages
from reinforce.evaluation.metrics import image_ranks, num_non_finite, recall, text_ranks
from reinforce.evaluation.model import EmbeddingModel
from reinforce.evaluation.results import RECALLS, RetrievalResult
from reinforce.weights import ModelError


class RetrievalTask:
    """Captioned shards, ready for any number of models.

    `captions` is `txt` (one caption a line, as CLIP_benchmark writes them) or `json.FIELD`. Raises `ConfigError`.
    """

    def __init__(
        self,
        uris: str | Sequence[str],
        *,
        select: str | None = None,
        captions: str = "txt",
        max_captions: int = 5,
        batch_size: int = BATCH_SIZE,
        workers: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.images = ShardImages(
            uris,
            needs="captions",
            select=select,
            field_name=captions,
            max_captions=max_captions,
            workers=workers,
            cache_bytes=cache_bytes,
        )
        self.batch_size = batch_size

    def evaluate(self, model: EmbeddingModel) -> RetrievalResult:
        """One pass of the model over images and captions, and what came of it. Raises `ModelError` without texts."""
        if not model.has_text:
            why = "an image tower alone embeds no texts; --modality NAME compares it with RGB"
            raise ModelError(f"model {model.name}: {why}")
        with model.evaluating():
            found = self.images.embed(model, self.batch_size)
            texts = model.embed_texts([caption for captions in found.captions for caption in captions])
        owners = np.repeat(np.arange(len(found.captions)), [len(captions) for captions in found.captions])
        by_text = image_ranks(texts, found.embeddings, owners)
        by_image = text_ranks(found.embeddings, texts, owners)
        return RetrievalResult(
            model=model.name,
            num_parameters=model.num_parameters,
            num_images=len(found.embeddings),
            num_captions=len(texts),
            text_to_image={k: recall(by_text, k) for k in RECALLS},
            image_to_text={k: recall(by_image, k) for k in RECALLS},
            num_non_finite=num_non_finite(found.embeddings, texts),
            drops=dict(sorted(found.drops.items())),
            counts=dict(sorted((+self.images.counts).items())),
            notes=model.notes,
        )
