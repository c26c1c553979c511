"""Image bytes to RGB, or a drop with its reason; of a further modality's, whether they decode.

Pillow decides what an image is (`rgb`); torchvision decodes plain JPEGs, to Pillow's pixels. torch is loaded where the
first of those is decoded.
"""

import hashlib
import io

import numpy as np
from PIL import Image

from reinforce.modality import ValueRange, load_modality
from reinforce.rgb import FORMATS, ImageError, is_turned, load_rgb
from reinforce.rgb import open_image as open_or_raise
from reinforce.sample import RGB, Drop, DropReason, ModalityImage, NullReason

__all__ = ["decode", "decode_modality", "examine_modality", "is_stored_turned", "is_turned", "open_image"]


def decode(data: bytes, max_pixels: int) -> RGB | Drop:
    """Decodes an image of any common format and mode to RGB, upright by its EXIF orientation.

    Returns a `Drop` (`empty_image`, `not_an_image`, `too_many_pixels`, `corrupt_image`) instead of raising: one bad
    image is a fact about the source, not an error. Alpha is discarded, as `Image.convert("RGB")` does.
    """
    try:
        image = open_or_raise(data, max_pixels)
        try:
            if image.format == "JPEG" and image.mode == "RGB" and not is_turned(image):
                return _jpeg_to_rgb(data)
        except RuntimeError:  # what that decoder refuses is Pillow's to judge
            pass
        return np.array(load_rgb(image))
    except ImageError as error:
        return _drop(error)


def decode_modality(data: bytes, value_range: ValueRange, max_pixels: int) -> RGB | Drop:
    """Decodes an image of a further modality to three channels of 8 bits, as `load_modality`, or says why not."""
    try:
        return load_modality(data, value_range, max_pixels)
    except ImageError as error:
        return _drop(error)


def examine_modality(data: bytes | None, value_range: ValueRange, max_pixels: int) -> ModalityImage:
    """Decodes an image of a further modality, None where the sample has none, to know that it can be used."""
    if data is None:
        return ModalityImage(null_reason=NullReason.NO_MODALITY)
    try:
        height, width, _ = load_modality(data, value_range, max_pixels).shape
    except ImageError as error:
        return ModalityImage(null_reason=DropReason(error.fault))
    return ModalityImage(width, height, hashlib.sha256(data).digest())


def open_image(data: bytes, max_pixels: int) -> Image.Image | Drop:
    """The image by its header alone, its pixels not read yet; or the `Drop` that `decode` would return."""
    try:
        return open_or_raise(data, max_pixels)
    except ImageError as error:
        return _drop(error)


def is_stored_turned(data: bytes) -> bool:
    """Whether `decode` turns this image, so that its stored pixels are not the upright ones. Reads the header only."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return is_turned(image)
    except Exception:  # what does not open is not turned either
        return False


def _jpeg_to_rgb(data: bytes) -> RGB:
    """torchvision's decoder: bit for bit Pillow's pixels, a sixth faster, in memory that may be written to."""
    # As long to import as torch, and processes that see no JPEG, such as drivers, need neither.
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    pixels: RGB = decode_jpeg(buffer, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()
    return pixels


def _drop(error: ImageError) -> Drop:
    return Drop(DropReason(error.fault), str(error))
