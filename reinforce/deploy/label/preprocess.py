"""From bytes to what the model takes: decode, the clean view, normalised.

The clean view is that of `views.render` (shortest side to the size, bicubic and antialiased, the centre), resized by
Pillow, which computes only what the crop keeps. Large JPEGs are decoded at a fraction of their size, which JPEG can do
for a part of the time: 60 photographs of 375 x 500 and more kept a cosine of 0.999 or more (docs/labelling.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from reinforce.modality import load_modality
from reinforce.rgb import is_turned, load_rgb, open_image

Part = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of an image, fractions of one included."""

_DRAFT_OVERSAMPLING = 2
"""What is left to resize of a JPEG that is decoded smaller. 2 changes embeddings by a cosine of 0.9999, 1 by 0.998."""

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8

    from reinforce.modality import ValueRange


def decode_rgb(data: bytes, max_pixels: int, size: int) -> tuple[Image.Image, Part]:
    """The image in RGB, upright, and the part of it that its clean view at `size` shows. Raises `rgb.ImageError`.

    A JPEG whose shortest side is four times the size or more, and that EXIF does not turn, is decoded at a half, a
    quarter or an eighth of its size, with twice the size left to resize.
    """
    image = open_image(data, max_pixels)
    width, height = image.size
    scale = 1.0
    if image.format == "JPEG" and not is_turned(image):
        drafted = image.draft(None, (_DRAFT_OVERSAMPLING * size, _DRAFT_OVERSAMPLING * size))
        if drafted is not None:
            # Exact: the sides of the smaller image are rounded up, and what is shown must not move by that.
            scale = drafted[1][2] / width
    image = load_rgb(image)
    if scale == 1.0:
        width, height = image.size
    left, top, right, bottom = (scale * edge for edge in kept_part(width, height, size))
    return image, (left, top, min(right, image.width), min(bottom, image.height))  # not beyond by a rounding


def decode_modality(data: bytes, value_range: ValueRange, max_pixels: int, size: int) -> tuple[Image.Image, Part]:
    """Likewise of another modality's image, decoded whole and brought to 8 bits as in training."""
    image = Image.fromarray(load_modality(data, value_range, max_pixels))
    return image, kept_part(*image.size, size)


def clean_view(image: Image.Image, part: Part, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The part of an RGB image as `size` x `size` pixels."""
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=part))


def kept_part(width: int, height: int, size: int) -> Part:
    """What the clean view of an image of this size shows."""
    short, long = min(width, height), max(width, height)
    # Both roundings, of the long side and of the crop's corner (half to even), are those of `views.render`.
    resized_long = int(size * long / short)
    corner = round((resized_long - size) / 2.0)
    pixels_per_step = long / resized_long
    first, last = corner * pixels_per_step, min((corner + size) * pixels_per_step, long)
    return (0, first, short, last) if height > width else (first, 0, last, short)


def normalised(
    pixels: UInt8[np.ndarray, "size size 3"], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float32[np.ndarray, "1 3 size size"]:
    """As the model's input `pixels`: a batch of one, from 0..255 to what has `mean` 0 and `std` 1."""
    factor = 1 / (255 * np.array(std))
    offset = -np.array(mean) / np.array(std)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    planes *= factor.astype(np.float32)[:, None, None]
    planes += offset.astype(np.float32)[:, None, None]
    return planes[None]
