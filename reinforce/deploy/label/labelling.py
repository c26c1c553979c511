"""One image from bytes to labels, timed by stage."""

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from reinforce.deploy.label.errors import LabelError
from reinforce.deploy.label.modalities import RGB
from reinforce.deploy.label.preprocess import clean_view, decode_modality, decode_rgb, normalised
from reinforce.deploy.label.scores import Scored, Scorer
from reinforce.deploy.label.session import Model
from reinforce.rgb import ImageError, ImageFault

_WORDS = {
    ImageFault.EMPTY_IMAGE: "an empty file",
    ImageFault.NOT_AN_IMAGE: "not an image",
    ImageFault.CORRUPT_IMAGE: "a damaged or truncated image",
    ImageFault.TOO_MANY_PIXELS: "more pixels than --max-pixels",
}

_OF_ONE_VALUE = (((0, 0),) * 3, ((255, 255),) * 3)
"""The extrema of an image that is black, and of one that is white."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The labels of one image; `total_ms` is the stages and the scoring.

    `is_outside`: the modality's range, [LOW, HIGH], left it all black or all white.
    """

    scored: Scored
    is_outside: bool
    decode_ms: float
    preprocess_ms: float
    infer_ms: float
    total_ms: float


@dataclass(frozen=True, kw_only=True)
class Labeller:
    """A model with a scorer, for images of one modality: `rgb` or one of the model's."""

    model: Model
    scorer: Scorer
    max_pixels: int
    modality: str = RGB

    def label(self, data: bytes) -> Labelled:
        """Raises LabelError, in words, if these bytes cannot be labelled."""
        card, is_outside = self.model.card, False
        started = perf_counter()
        try:
            if self.modality == RGB:
                image, part = decode_rgb(data, self.max_pixels, card.image_size)
            else:
                value_range = card.modalities[self.modality].range
                image, part = decode_modality(data, value_range, self.max_pixels, card.image_size)
                is_outside = isinstance(value_range, tuple) and image.getextrema() in _OF_ONE_VALUE
        except ImageError as error:
            raise LabelError(f"{_WORDS[error.fault]} ({error})") from None
        except MemoryError:
            raise LabelError("too large for the memory of this machine; lower --max-pixels") from None
        decoded = perf_counter()
        pixels = normalised(clean_view(image, part, card.image_size), card.mean, card.std)
        prepared = perf_counter()
        embedding = self.model.embed(pixels)
        inferred = perf_counter()
        if not np.isfinite(embedding).all():
            raise LabelError("the model's embedding of it is not finite")
        scored = self.scorer.best(embedding)
        return Labelled(
            scored=scored,
            is_outside=is_outside,
            decode_ms=1e3 * (decoded - started),
            preprocess_ms=1e3 * (prepared - decoded),
            infer_ms=1e3 * (inferred - prepared),
            total_ms=1e3 * (perf_counter() - started),
        )
