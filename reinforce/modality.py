"""Bytes of a further modality (depth, thermal, short-wave infrared) to three channels of 8 bits, by Pillow and numpy.

What becomes black and white is the recipe's `range`, so a value means the same in training and on a device: shared by
the reader and by `label`. Grey images of 8, 16 and 32 bits and of floats, and those with three channels; of three
channels with 16 bits each Pillow reads the upper byte.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from reinforce.rgb import ImageError, ImageFault, load_rgb, load_upright, open_image

if TYPE_CHECKING:
    from jaxtyping import UInt8

ValueRange = Literal["type", "image"] | tuple[float, float]
"""As in `config.modality`, which a device has not."""

Values = np.ndarray[Any, np.dtype[Any]]
"""Grey values [height width], or those of three channels [height width 3]."""

_PNG_DEPTH = slice(24, 25)
_GREY_MODES = ("1", "L", "LA", "La")
_BITS_PER_SAMPLE = 258


def load_modality(data: bytes, value_range: ValueRange, max_pixels: int) -> UInt8[np.ndarray, "height width 3"]:
    """The image, upright by its EXIF orientation, one channel repeated three times. Raises ImageError.

    `value_range`: `type`, `image` or (LOW, HIGH), as `ModalityConfig.range`; LOW and HIGH are in the file's own units.
    An image of one value is black by range `image`. Values that are not finite are black.
    """
    image = open_image(data, max_pixels)
    is_deep = _is_deep(image, data)
    values = _values(image)
    if is_deep and values.dtype == np.uint8:
        values = values.astype(np.uint16) * 257
    pixels = _scaled(values, *_bounds(values, value_range))
    return np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels


def _values(image: Image.Image) -> Values:
    """The values as the file has them, in its type and this machine's byte order; colour by way of RGB."""
    if image.mode.startswith(("I", "F")):
        grey: Values = np.asarray(load_upright(image))
        return grey.astype(grey.dtype.newbyteorder("="), copy=False)
    if image.mode in _GREY_MODES:
        return np.array(load_upright(image).convert("L"))
    return np.array(load_rgb(image))


def _bounds(values: Values, value_range: ValueRange) -> tuple[float, float]:
    if isinstance(value_range, tuple):
        return value_range
    if value_range == "image":
        finite = values[np.isfinite(values)]
        return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if values.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            ImageFault.NOT_AN_IMAGE,
            f"holds {values.dtype} values; the recipe of build and student must give their range, [LOW, HIGH] or image",
        )
    return 0.0, float(np.iinfo(values.dtype).max)


def _scaled(values: Values, low: float, high: float) -> Values:
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return values
    if values.dtype not in (np.uint8, np.uint16):
        return _to_bytes(np.where(np.isfinite(values), values, low), low, high)
    num_levels = int(np.iinfo(values.dtype).max) + 1
    if values.size < num_levels:
        return _to_bytes(values, low, high)
    return _table(num_levels, low, high)[values]


@lru_cache(maxsize=4)
def _table(num_levels: int, low: float, high: float) -> Values:
    """Kept, as most images come with one range; as floats one of `max_pixels` would take 8 times its bytes."""
    return _to_bytes(np.arange(num_levels), low, high)


def _to_bytes(values: Values, low: float, high: float) -> Values:
    """Black for `low` and less, white for `high` and more; all black where they are one."""
    scaled = (values.astype(np.float64) - low) * (255 / (high - low) if high > low else 0.0)
    pixels: Values = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return pixels


def _is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether the file has 16 bits a channel; Pillow says so of grey images alone."""
    if image.format == "PNG":
        return data[_PNG_DEPTH] == b"\x10"
    return image.format == "TIFF" and 16 in image.tag_v2.get(_BITS_PER_SAMPLE, ())  # type: ignore[attr-defined]
