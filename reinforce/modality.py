"""Bytes of a further modality (depth, thermal, short-wave infrared) to three channels of 8 bits, by Pillow and numpy.

What becomes black and white is the recipe's `range`, so a value means the same in training and on a device: shared by
the reader and by `label`. Grey images of 8, 16 and 32 bits and of floats, and those with three channels; of three
channels with 16 bits each Pillow reads the upper byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from reinforce.rgb import ImageError, ImageFault, load_rgb, load_upright, open_image

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

ValueRange = Literal["type", "image"] | tuple[float, float]
"""As in `config.modality`, which a device has not."""

_LARGEST = {8: 255, 16: 65535}
_PNG_DEPTH = slice(24, 25)
_GREY_MODES = ("1", "L", "LA", "La")


def load_modality(data: bytes, value_range: ValueRange, max_pixels: int) -> UInt8[np.ndarray, "height width 3"]:
    """The image, upright by its EXIF orientation, one channel repeated three times. Raises ImageError.

    `value_range`: `type`, `image` or (LOW, HIGH), as `ModalityConfig.range`; LOW and HIGH are in the file's own units.
    An image of one value is black by range `image`. Values that are not finite are black.
    """
    image = open_image(data, max_pixels)
    bits = 16 if image.mode.startswith("I;16") or _is_deep_png(data) else 8
    values = _values(image)
    if bits == 16 and values.dtype == np.uint8:
        values = values.astype(np.uint16) * 257
    low, high = _bounds(values, value_range, bits)
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return values
    scaled = np.nan_to_num((values.astype(np.float64) - low) * (255 / (high - low) if high > low else 0.0))
    pixels: UInt8[np.ndarray, "height width 3"] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return pixels


def _values(image: Image.Image) -> Float[np.ndarray, "height width 3"] | UInt8[np.ndarray, "height width 3"]:
    """The values as the file has them, in its type; colour by way of RGB."""
    if image.mode.startswith(("I", "F")):
        grey = np.asarray(load_upright(image))
    elif image.mode in _GREY_MODES:
        grey = np.asarray(load_upright(image).convert("L"))
    else:
        return np.array(load_rgb(image))
    return np.repeat(grey[:, :, None], 3, axis=2)


def _bounds(values: np.ndarray, value_range: ValueRange, bits: int) -> tuple[float, float]:
    if isinstance(value_range, tuple):
        return value_range
    if value_range == "image":
        finite = values[np.isfinite(values)]
        return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if values.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            ImageFault.NOT_AN_IMAGE, f"holds {values.dtype} values; give the modality's range, [LOW, HIGH] or image"
        )
    return 0.0, float(_LARGEST[bits])


def _is_deep_png(data: bytes) -> bool:
    """Whether this is a PNG of 16 bits a channel; Pillow says so of grey ones alone."""
    return data.startswith(b"\x89PNG") and data[_PNG_DEPTH] == b"\x10"
