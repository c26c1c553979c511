"""Image bytes to RGB, or a drop with its reason.

Pillow decides what an image is; torchvision decodes plain JPEGs, to Pillow's pixels. What the web does to images (EXIF
rotation, CMYK, 16 bit, palettes, alpha) becomes 8-bit RGB as open_clip's own preprocessing makes it. The pixel count is
checked before anything is decoded.
"""

import io
import warnings

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from reinforce.sample import RGB, Drop, DropReason

# Pillow's own limit is a process-wide setting that warns first; ours is the recipe's, checked on the header below.
Image.MAX_IMAGE_PIXELS = None
# Damaged EXIF and palette oddities are common on the web and harmless here.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

_TURNED = range(2, 9)
"""EXIF orientations that are not upright; 1 is, and others, 0 among them, mean nothing."""


def decode(data: bytes, max_pixels: int) -> RGB | Drop:
    """Decodes an image of any common format and mode to RGB, upright by its EXIF orientation.

    Returns a `Drop` (`empty_image`, `not_an_image`, `too_many_pixels`, `corrupt_image`) instead of raising: one bad
    image is a fact about the source, not an error. Alpha is discarded, as `Image.convert("RGB")` does.
    """
    image = open_image(data, max_pixels)
    if isinstance(image, Drop):
        return image
    try:
        if image.format == "JPEG" and image.mode == "RGB" and not is_turned(image):
            return _jpeg_to_rgb(data)
    except RuntimeError:  # what that decoder refuses is Pillow's to judge
        pass
    try:
        image.load()
        return np.array(_to_rgb(_upright(image)))
    except MemoryError:
        raise
    except Exception as error:
        return Drop(DropReason.CORRUPT_IMAGE, _describe(error))


def open_image(data: bytes, max_pixels: int) -> Image.Image | Drop:
    """The image by its header alone, its pixels not read yet; or the `Drop` that `decode` would return."""
    if not data:
        return Drop(DropReason.EMPTY_IMAGE, "zero bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        return Drop(DropReason.NOT_AN_IMAGE, f"begins with {data[:8].hex(' ')}")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever a damaged header leads them to
        return Drop(DropReason.CORRUPT_IMAGE, _describe(error))
    width, height = image.size
    if width * height > max_pixels:
        return Drop(DropReason.TOO_MANY_PIXELS, f"{width}x{height}")
    return image


def is_stored_turned(data: bytes) -> bool:
    """Whether `decode` turns this image, so that its stored pixels are not the upright ones. Reads the header only."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return is_turned(image)
    except Exception:  # what does not open is not turned either
        return False


def _jpeg_to_rgb(data: bytes) -> RGB:
    """torchvision's decoder: bit for bit Pillow's pixels, a sixth faster, in memory that may be written to."""
    # As long to import as torch, and processes that see no JPEG, such as drivers, need none of it.
    from torchvision.io import ImageReadMode, decode_jpeg

    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    pixels: RGB = decode_jpeg(buffer, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()
    return pixels


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
