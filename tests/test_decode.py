"""Images as the web has them: RGB, upright, or a drop with its reason."""

import io
import random
import warnings

import numpy as np
import pytest
from PIL import Image

from reinforce.decode import decode
from reinforce.sample import RGB, Drop, DropReason
from tests.tars import encode, image_bytes

PIXELS = np.asarray(Image.open(io.BytesIO(image_bytes(1, 48, 32))))
LIMIT = 10_000_000


def decoded(data: bytes) -> RGB:
    image = decode(data, LIMIT)
    assert not isinstance(image, Drop), image
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    return image


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "BMP", "TIFF"])
def test_lossless_formats_are_exact(image_format: str) -> None:
    data = encode(Image.fromarray(PIXELS), image_format, **({"lossless": True} if image_format == "WEBP" else {}))
    np.testing.assert_array_equal(decoded(data), PIXELS)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb_as_pillow_converts_it(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    data = encode(image, "TIFF" if mode == "CMYK" else "PNG")
    np.testing.assert_array_equal(decoded(data), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg() -> None:
    data = encode(Image.fromarray(PIXELS).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decoded(data).astype(int) - PIXELS).mean() < 6


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = (PIXELS[..., 0].astype(np.uint16) << 8) + 17
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(grey)))[..., 2], PIXELS[..., 0])


def test_palette_with_transparency_warns_nobody() -> None:
    image = Image.fromarray(PIXELS).convert("P")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        decoded(encode(image, "PNG", transparency=bytes(range(256))))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, lambda p: p), (3, lambda p: p[::-1, ::-1]), (6, lambda p: np.rot90(p, 3)), (8, lambda p: np.rot90(p, 1))],
)
def test_exif_orientation_is_applied(orientation: int, upright: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(PIXELS), "PNG", exif=exif)
    np.testing.assert_array_equal(decoded(data), upright(PIXELS))  # type: ignore[operator]


def test_a_turned_jpeg_is_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(PIXELS), "JPEG", exif=exif, quality=95)
    np.testing.assert_array_equal(
        decoded(data), np.rot90(decoded(encode(Image.fromarray(PIXELS), "JPEG", quality=95)), 3)
    )


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_have_the_pixels_of_pillow(subsampling: int, progressive: bool) -> None:
    image = Image.open(io.BytesIO(image_bytes(3, 97, 61)))
    data = encode(image, "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
    # Damage too: what is still an image must be the same image.
    rng = random.Random(7)
    for position in [None, *(rng.randrange(200, len(data)) for _ in range(60))]:
        damaged = bytearray(data)
        if position is not None:
            damaged[position] ^= 1 << rng.randrange(8)
        try:
            expected = np.asarray(Image.open(io.BytesIO(damaged)).convert("RGB"))
        except OSError:
            assert isinstance(decode(bytes(damaged), LIMIT), Drop)
        else:
            np.testing.assert_array_equal(decoded(bytes(damaged)), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_no_reason_to_drop() -> None:
    data = encode(Image.fromarray(PIXELS), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\xff" + bytes(20))
    assert decoded(data).shape == PIXELS.shape


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", DropReason.EMPTY_IMAGE),
        (b"<html>not found</html>", DropReason.NOT_AN_IMAGE),
        (b"\0" * 100, DropReason.NOT_AN_IMAGE),
        (image_bytes(0, image_format="JPEG")[:-300], DropReason.CORRUPT_IMAGE),
        (image_bytes(0)[:-100], DropReason.CORRUPT_IMAGE),
        (image_bytes(0, image_format="WEBP")[:-100], DropReason.CORRUPT_IMAGE),
        (image_bytes(0, image_format="JPEG")[:15], DropReason.CORRUPT_IMAGE),
    ],
)
def test_bad_bytes_are_a_drop(data: bytes, reason: DropReason) -> None:
    drop = decode(data, LIMIT)
    assert isinstance(drop, Drop)
    assert drop.reason in (reason, DropReason.NOT_AN_IMAGE)
    assert "\n" not in drop.detail


def test_bombs_are_refused_before_they_are_decoded() -> None:
    bomb = encode(Image.new("1", (20_000, 20_000)))
    drop = decode(bomb, LIMIT)
    assert drop == Drop(DropReason.TOO_MANY_PIXELS, "20000x20000")
    assert isinstance(decode(image_bytes(0, 40, 30), 40 * 30 - 1), Drop)
    assert not isinstance(decode(image_bytes(0, 40, 30), 40 * 30), Drop)
