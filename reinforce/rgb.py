"""Image bytes to 8-bit RGB by Pillow: what the web does to images (EXIF rotation, CMYK, 16 bit, palettes, alpha).

Becomes what open_clip's own preprocessing makes of it. Shared by `decode`, for datasets, and `label`, on devices: numpy
and Pillow alone. The pixel count is checked on the header, before anything is decoded.
"""

import io
import warnings
from enum import StrEnum

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# Pillow's own limit is a process-wide setting that warns first; ours is the caller's, checked on the header below.
Image.MAX_IMAGE_PIXELS = None
# Damaged EXIF and palette oddities are common on the web and harmless here.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

_TURNED = range(2, 9)
"""EXIF orientations that are not upright; 1 is, and others, 0 among them, mean nothing."""


class ImageFault(StrEnum):
    """Why bytes give no image; named as in `sample.DropReason`."""

    EMPTY_IMAGE = "empty_image"
    NOT_AN_IMAGE = "not_an_image"
    CORRUPT_IMAGE = "corrupt_image"
    TOO_MANY_PIXELS = "too_many_pixels"


class ImageError(ValueError):
    """Bytes that give no image: the `fault`, and as the message what was found."""

    def __init__(self, fault: ImageFault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """The image by its header alone, its pixels not read yet. Raises ImageError."""
    if not data:
        raise ImageError(ImageFault.EMPTY_IMAGE, "zero bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(ImageFault.NOT_AN_IMAGE, f"begins with {data[:8].hex(' ')}") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever a damaged header leads them to
        raise ImageError(ImageFault.CORRUPT_IMAGE, _describe(error)) from None
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(ImageFault.TOO_MANY_PIXELS, f"{width}x{height}")
    return image


def load_rgb(image: Image.Image) -> Image.Image:
    """Reads the pixels: mode RGB, upright by EXIF orientation. Raises ImageError.

    Alpha is discarded, as `Image.convert("RGB")` does.
    """
    upright = load_upright(image)
    try:
        return _to_rgb(upright)
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(ImageFault.CORRUPT_IMAGE, _describe(error)) from None


def load_upright(image: Image.Image) -> Image.Image:
    """Reads the pixels in the mode they are stored in, upright by EXIF orientation. Raises ImageError."""
    try:
        image.load()
        return _upright(image)
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(ImageFault.CORRUPT_IMAGE, _describe(error)) from None


def is_turned(image: Image.Image) -> bool:
    """Whether EXIF says that the image is to be turned or mirrored to stand upright."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
    except Exception:  # an unreadable EXIF block says nothing about the orientation
        return False


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image) if is_turned(image) else image
    except Exception:
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey to 255 instead of scaling it.
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    elif image.mode == "P":
        image = image.convert("RGBA")
    return image.convert("RGB")


def _describe(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
