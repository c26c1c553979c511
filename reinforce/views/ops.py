"""RandAugment's 14 operations on 8-bit pixels: our own code, with the pixels of torchvision on Pillow images.

Part of the dataset format, because stored embeddings depend on them. Geometric operations pick the nearest source
pixel by Pillow's 16.16 fixed-point steps and fill with black; those that map each value alone are tables of 256
entries; blends truncate float32 as Pillow does. At most 0.7 ms each at 224 pixels; numpy releases the
GIL for most of it.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Int, UInt8, UInt16

from reinforce.sample import Pixels, ViewOp

Table = UInt8[np.ndarray, "256"]
Grey = UInt8[np.ndarray, "size size"]


def apply_op(image: Pixels, op: ViewOp) -> Pixels:
    """`image` after one operation, with the value's meaning as `ViewOp` documents it.

    The argument is never written to, but may be returned as it is. Raises ValueError for an unknown operation.
    """
    if op.name not in _OPS:
        raise ValueError(f"unknown view operation {op.name!r}; known are {', '.join(_OPS)}")
    return _OPS[op.name](image, op.value)


def _identity(image: Pixels, value: float) -> Pixels:
    return image


def _shear_x(image: Pixels, value: float) -> Pixels:
    return _affine(image, (1.0, value, 0.0, 0.0, 1.0, 0.0))


def _shear_y(image: Pixels, value: float) -> Pixels:
    return _affine(image, (1.0, 0.0, 0.0, value, 1.0, 0.0))


def _translate_x(image: Pixels, value: float) -> Pixels:
    shift = round(value * len(image))
    moved = np.zeros_like(image)
    moved[:, max(shift, 0) : max(len(image) + shift, 0)] = image[:, max(-shift, 0) : max(len(image) - shift, 0)]
    return moved


def _translate_y(image: Pixels, value: float) -> Pixels:
    shift = round(value * len(image))
    moved = np.zeros_like(image)
    moved[max(shift, 0) : max(len(image) + shift, 0)] = image[max(-shift, 0) : max(len(image) - shift, 0)]
    return moved


def _rotate(image: Pixels, value: float) -> Pixels:
    angle = -math.radians(value % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    center = len(image) / 2
    offset_x = cos * -center + sin * -center + center
    offset_y = -sin * -center + cos * -center + center
    return _affine(image, (cos, sin, offset_x, -sin, cos, offset_y))


def _affine(image: Pixels, matrix: tuple[float, float, float, float, float, float]) -> Pixels:
    """Output pixel centre (x, y) shows the source pixel that holds (a x + b y + c, d x + e y + f)."""
    size = len(image)
    a, b, c, d, e, f = matrix
    # Accumulating rounded steps, not rounding each position, is what makes the source pixel Pillow's in every case.
    steps = np.arange(size, dtype=np.int32)
    source_x = (_fixed(c + a * 0.5 + b * 0.5) + _fixed(b) * steps[:, None] + _fixed(a) * steps) >> 16
    source_y = (_fixed(f + d * 0.5 + e * 0.5) + _fixed(e) * steps[:, None] + _fixed(d) * steps) >> 16
    # As unsigned numbers, negative positions are beyond the last pixel too.
    is_outside = (source_x.view(np.uint32) >= size) | (source_y.view(np.uint32) >= size)
    position = source_y * np.int32(size) + source_x
    np.putmask(position, is_outside, size * size)
    black_at_end = np.zeros((size * size + 1, 3), dtype=np.uint8)
    black_at_end[:-1] = image.reshape(-1, 3)
    return black_at_end.take(position, axis=0)


def _fixed(value: float) -> int:
    return math.floor(value * 65536.0 + 0.5)


def _brightness(image: Pixels, value: float) -> Pixels:
    return _blend_table(0, value).take(image)


def _contrast(image: Pixels, value: float) -> Pixels:
    grey = _grey(image)
    mean = int(int(grey.sum(dtype=np.int64)) / grey.size + 0.5)
    return _blend_table(mean, value).take(image)


def _color(image: Pixels, value: float) -> Pixels:
    return _blend(np.repeat(_grey(image), 3).reshape(image.shape), image, value)


def _sharpness(image: Pixels, value: float) -> Pixels:
    return _blend(_smooth(image), image, value)


def _blend_table(degenerate: int, value: float) -> Table:
    return _blend(np.full(256, degenerate, dtype=np.uint8), np.arange(256, dtype=np.uint8), value)


def _blend(
    degenerate: UInt8[np.ndarray, "*shape"], image: UInt8[np.ndarray, "*shape"], value: float
) -> UInt8[np.ndarray, "*shape"]:
    """`degenerate` + (1 + value) (`image` - `degenerate`) in float32, clipped, truncated."""
    base = degenerate.astype(np.float32)
    mixed = image - base
    mixed *= np.float32(1.0 + value)
    mixed += base
    np.clip(mixed, 0.0, 255.0, out=mixed)
    return mixed.astype(np.uint8)


def _grey(image: Pixels) -> Grey:
    """ITU-R 601-2 luma with weights of 16 bits, rounded. Exact: no term or sum needs more than float32's 24 bits."""
    total = image[:, :, 0] * np.float32(19595 / 65536)
    total += image[:, :, 1] * np.float32(38470 / 65536)
    total += image[:, :, 2] * np.float32(7471 / 65536)
    total += np.float32(0.5)
    return total.astype(np.uint8)


def _smooth(image: Pixels) -> Pixels:
    """The 3 x 3 mean in which the centre counts 5 of 13, rounded; the border pixels stay as they are."""
    wide = image.astype(np.uint16)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide[1:-1, 1:-1]
    smooth = image.copy()
    smooth[1:-1, 1:-1] = (2 * total + 13) // 26
    return smooth


def _posterize(image: Pixels, value: float) -> Pixels:
    mask = 0xFF << (8 - int(value)) & 0xFF
    return image & np.uint8(mask)


def _solarize(image: Pixels, value: float) -> Pixels:
    levels = np.arange(256)
    return np.where(levels < value, levels, 255 - levels).astype(np.uint8).take(image)


def _auto_contrast(image: Pixels, value: float) -> Pixels:
    # Columns first: numpy reduces long rows with vector instructions, and runs of three values one by one.
    lows = image.min(axis=0).min(axis=0).tolist()
    highs = image.max(axis=0).max(axis=0).tolist()
    tables = [_stretch_table(low, high) for low, high in zip(lows, highs, strict=True)]
    return np.concatenate(tables).take(_by_channel(image))


def _equalize(image: Pixels, value: float) -> Pixels:
    levels = _by_channel(image)
    histograms = np.bincount(levels.ravel(), minlength=3 * 256).reshape(3, 256)
    return np.concatenate([_equalize_table(histogram) for histogram in histograms]).take(levels)


def _by_channel(image: Pixels) -> UInt16[np.ndarray, "size size 3"]:
    """The values with 256 added in the second channel and 512 in the third: indices into three tables, joined."""
    offsets = np.tile(np.array([0, 256, 512], dtype=np.uint16), image.shape[1])
    return (image.reshape(len(image), -1) + offsets).reshape(image.shape)


def _stretch_table(low: int, high: int) -> Table:
    """Spreads the values `low` to `high` over 0..255."""
    if high <= low:
        return np.arange(256, dtype=np.uint8)
    scale = 255.0 / (high - low)
    table: Table = np.clip(np.arange(256) * scale + -low * scale, 0.0, 255.0).astype(np.uint8)
    return table


def _equalize_table(histogram: Int[np.ndarray, "256"]) -> Table:
    """Maps a value to the share of pixels below it, in integer steps as Pillow's."""
    last = int(histogram[np.flatnonzero(histogram)[-1]])
    step = (int(histogram.sum()) - last) // 255
    if step == 0:
        return np.arange(256, dtype=np.uint8)
    below = np.cumsum(histogram) - histogram
    table: Table = np.minimum((step // 2 + below) // step, 255).astype(np.uint8)
    return table


_OPS: dict[str, Callable[[Pixels, float], Pixels]] = {
    "Identity": _identity,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
}
