"""Images on their way in and out: what their header says, and smaller copies of them.

The header costs 0.02 ms; a copy of a photograph of 640 x 480 with a shorter side of 256 costs 4 ms.
"""

import io
import math
from dataclasses import dataclass

from PIL import Image

from reinforce.decode import decode, is_turned, open_image
from reinforce.sample import Drop
from reinforce.shards.explicit import Size

JPEG_QUALITY = 90
"""Of images that are encoded again, with Pillow's default subsampling."""

_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""Formats that loaders of the layout know by their suffix."""


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of an image before it is decoded. `size` is as stored, before EXIF orientation."""

    size: Size
    is_turned: bool
    suffix: str | None
    """None: a format that loaders may not know."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as it is packed."""

    data: bytes
    suffix: str
    size: Size
    size_before: Size
    """Upright, before it was made smaller."""
    was_turned: bool
    """By EXIF: the pixels were not stored upright."""
    is_encoded_again: bool


def read_header(data: bytes, max_pixels: int) -> Header | Drop:
    """The header of an image, or why it has none that can be used."""
    image = open_image(data, max_pixels)
    if isinstance(image, Drop):
        return image
    return Header(image.size, is_turned(image), _SUFFIXES.get(image.format or ""))


def pack_picture(data: bytes, max_pixels: int, shortest_side: int | None) -> Picture | Drop:
    """The image as it is packed: its own bytes, unless it has to be made smaller or turned upright.

    An image is never enlarged. What is encoded again is a JPEG of `JPEG_QUALITY`, upright, without metadata.
    """
    header = read_header(data, max_pixels)
    if isinstance(header, Drop):
        return header
    is_small = shortest_side is None or min(header.size) <= shortest_side
    if is_small and not header.is_turned and header.suffix is not None:
        return Picture(data, header.suffix, header.size, header.size, was_turned=False, is_encoded_again=False)
    pixels = decode(data, max_pixels)
    if isinstance(pixels, Drop):
        return pixels
    image = Image.fromarray(pixels)
    size_before = image.size
    if shortest_side is not None and min(image.size) > shortest_side:
        image = image.resize(shrunk_size(image.size, shortest_side), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return Picture(file.getvalue(), "jpg", image.size, size_before, header.is_turned, is_encoded_again=True)


def shrunk_size(size: Size, shortest_side: int) -> Size:
    """The size whose shorter side is `shortest_side`, the other in proportion, to the nearest pixel, halves up."""
    width, height = size
    short = min(size)
    other = (2 * max(size) * shortest_side + short) // (2 * short)
    return (shortest_side, other) if width <= height else (other, shortest_side)


def scaled_edges(start: int, length: int, of_side: int, to_side: int) -> tuple[int, int]:
    """An interval of a side of `of_side` pixels in whole pixels of one of `to_side`: edges rounded, never empty."""
    first = min(math.floor(start * to_side / of_side + 0.5), to_side - 1)
    stop = max(math.floor((start + length) * to_side / of_side + 0.5), first + 1)
    return first, stop - first
