"""Pictures for a page: pixels as inline images of bounded size, and what is left of bytes that are no image.

Small pictures are exact PNGs, larger ones WebP; a picture that would take too much room is compressed harder.
"""

import base64
import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from reinforce.decode import decode
from reinforce.sample import RGB, Drop

VIEW_SIDE = 160
"""Largest side of a replayed view, in pixels."""
SOURCE_SIDE = 240
"""Largest side of a source image, in pixels."""
LARGEST_PNG = 64
_MOST_BYTES_A_PIXEL = 0.3
_QUALITIES = (80, 60, 40, 20)
_NUM_PEEKED = 60
_MOST_RESCUED_PIXELS = 25_000_000
"""A damaged image of more is not worth the memory."""


def data_uri(pixels: RGB) -> str:
    """Pixels as an inline picture, at most about 0.3 bytes a pixel unless it is small."""
    image = Image.fromarray(pixels)
    if max(image.size) <= LARGEST_PNG:
        return _inline("png", _encoded(image, "PNG", optimize=True))
    most = _MOST_BYTES_A_PIXEL * image.width * image.height
    for quality in _QUALITIES:
        data = _encoded(image, "WEBP", quality=quality)
        if len(data) <= most:
            break
    return _inline("webp", data)


def thumbnail(pixels: RGB) -> str:
    """Pixels as an inline picture no larger than `SOURCE_SIDE`."""
    image = Image.fromarray(pixels)
    image.thumbnail((SOURCE_SIDE, SOURCE_SIDE), Image.Resampling.LANCZOS)
    return data_uri(np.asarray(image))


def source_image(data: bytes | None, sample: Mapping[str, Any]) -> tuple[RGB | None, str]:
    """The decoded source image of a spine row, or None and why it cannot be shown."""
    if data is None:
        return None, "not in the source shard any more"
    if hashlib.sha256(data).digest() != sample["image_sha256"]:
        return None, "the source image has changed since the build: its sha256 is another"
    width, height = sample["image_width"], sample["image_height"]
    image = decode(data, width * height)
    if isinstance(image, Drop):
        return None, f"does not decode here: {image.reason}, {image.detail}"
    if image.shape[:2] != (height, width):
        return None, f"decodes to {image.shape[1]} x {image.shape[0]} here, the spine says otherwise"
    return image, ""


def rescue(data: bytes) -> str | None:
    """What can still be seen of a damaged image, None if nothing can."""
    try:
        with _truncated_images_allowed(), Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > _MOST_RESCUED_PIXELS:
                return None
            return thumbnail(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
    except Exception:  # Pillow's plugins raise whatever a damaged file leads them to
        return None


def peek(data: bytes) -> str:
    """What the first of these bytes are: text if they read as text, else hex digits."""
    head = data[:_NUM_PEEKED]
    more = " …" if len(data) > len(head) else ""
    text = " ".join(head.decode("utf-8", "replace").split())
    if text and text.isprintable() and "\N{REPLACEMENT CHARACTER}" not in text:
        return text + more
    return data[:16].hex(" ") + (" …" if len(data) > 16 else "")


def _encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def _inline(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@contextmanager
def _truncated_images_allowed() -> Iterator[None]:
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
