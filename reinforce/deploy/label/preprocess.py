"""From bytes to what the model takes: decode, the clean view, normalised.

The clean view is that of `views.render` (shortest side to the size, bicubic and antialiased, the centre), resized by
Pillow, which computes only what the crop keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from reinforce.rgb import load_rgb, open_image

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8


def decode_rgb(data: bytes, max_pixels: int) -> Image.Image:
    """The image in RGB, upright. Raises `rgb.ImageError`."""
    return load_rgb(open_image(data, max_pixels))


def clean_view(image: Image.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The clean view of an RGB image."""
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=kept_part(*image.size, size)))


def kept_part(width: int, height: int, size: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what the clean view shows, in pixels of the image, fractions of one included."""
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
