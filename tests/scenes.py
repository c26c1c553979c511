"""Scenes whose pixels say where they are: the same in any size, so that two views of one can be compared."""

import numpy as np
from PIL import Image

from reinforce.sample import RGB
from tests.tars import encode


def gradient(width: int, height: int, level: float = 0.5) -> RGB:
    """Red is the place from left to right, green from top to bottom, blue `level` everywhere, as parts of 255."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    channels = (x[None, :].repeat(height, 0), y[:, None].repeat(width, 1), np.full((height, width), level))
    pixels: RGB = np.rint(255 * np.stack(channels, axis=-1)).astype(np.uint8)
    return pixels


def gradient_bytes(width: int, height: int, level: float = 0.5) -> bytes:
    return encode(Image.fromarray(gradient(width, height, level)))


def deep_gradient_bytes(width: int, height: int, highest: int) -> bytes:
    """A 16-bit grey image: 0 at the left, `highest` at the right."""
    row = np.rint(highest * (np.arange(width) + 0.5) / width)
    return encode(Image.fromarray(row[None, :].repeat(height, 0).astype(np.uint16)))
