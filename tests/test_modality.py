"""Images of further modalities to 8 bits: every kind of file they come in, by every kind of range, and what is none."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from reinforce.modality import ValueRange, load_modality
from reinforce.rgb import ImageError, ImageFault
from tests.tars import encode

MANY = 10**6
DEPTHS = np.array([[0, 1000, 65535], [256, 30000, 500]], np.uint16)


def deep_png(values: np.ndarray, size: tuple[int, int] | None = None) -> bytes:
    """A PNG of 16 bits a channel, grey [height width] or colour [height width 3], which Pillow cannot write.

    `size` is the width and height that its header says.
    """
    width, height = size or (values.shape[1], values.shape[0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if values.ndim == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def deep_tiff(values: np.ndarray, order: str) -> bytes:
    """A TIFF of one strip with 16 bits a channel, in either byte order, grey or colour."""
    height, width = values.shape[:2]
    num_channels = values.shape[2] if values.ndim == 3 else 1
    pixels = values.astype(f"{order}u2").tobytes()
    bits_at, directory_at = 8 + len(pixels), 8 + len(pixels) + 4 * num_channels
    tags = {256: width, 257: height, 258: 16 if num_channels == 1 else bits_at, 259: 1, 262: 1 + (num_channels == 3)}
    tags |= {273: 8, 277: num_channels, 278: height, 279: len(pixels)}
    directory = b"".join(
        struct.pack(f"{order}HHII", tag, 4, num_channels if tag == 258 else 1, value) for tag, value in tags.items()
    )
    head = (b"MM" if order == ">" else b"II") + struct.pack(f"{order}HI", 42, directory_at)
    bits = struct.pack(f"{order}{num_channels}I", *[16] * num_channels)
    return head + pixels + bits + struct.pack(f"{order}H", len(tags)) + directory + bytes(4)


def grey(values: np.ndarray, value_range: tuple[float, float]) -> list[list[int]]:
    """What the values become, by the words of the recipe's page."""
    low, high = value_range
    expected: list[list[int]] = (
        np.rint(255 * (values.astype(float).clip(low, high) - low) / (high - low)).astype(int).tolist()
    )
    return expected


def channels_of(data: bytes, value_range: ValueRange = "type") -> np.ndarray:
    pixels = load_modality(data, value_range, MANY)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2:] == (3,)
    return pixels


def one_channel_of(data: bytes, value_range: ValueRange = "type") -> list[list[int]]:
    pixels = channels_of(data, value_range)
    assert (pixels == pixels[:, :, :1]).all()
    rows: list[list[int]] = pixels[:, :, 0].tolist()
    return rows


def test_grey_of_8_bits() -> None:
    values = np.array([[0, 7, 255], [100, 128, 31]], np.uint8)
    for data in (encode(Image.fromarray(values)), encode(Image.fromarray(values).convert("LA"))):
        assert one_channel_of(data) == values.tolist()
        assert one_channel_of(data, (50, 160)) == grey(values, (50, 160))
        assert one_channel_of(data, (-100, 355)) == grey(values, (-100, 355))
    narrow = np.array([[20, 60, 40]], np.uint8)
    assert one_channel_of(encode(Image.fromarray(narrow)), "image") == [[0, 255, 128]]


@pytest.mark.parametrize("kind", ["png", "<tiff", ">tiff"])
def test_grey_of_16_bits(kind: str) -> None:
    data = deep_png(DEPTHS) if kind == "png" else deep_tiff(DEPTHS, kind[0])
    assert one_channel_of(data) == grey(DEPTHS, (0, 65535))
    assert one_channel_of(data, (500, 30000)) == grey(DEPTHS, (500, 30000))
    assert one_channel_of(data, "image") == grey(DEPTHS, (0, 65535))


def test_what_pillow_writes_of_16_bits() -> None:
    for image_format in ("PNG", "TIFF"):
        assert one_channel_of(encode(Image.fromarray(DEPTHS), image_format), (0, 1000)) == grey(DEPTHS, (0, 1000))


@pytest.mark.parametrize("kind", ["png", "<tiff", ">tiff"])
def test_colour_of_16_bits_keeps_its_units(kind: str) -> None:
    values = np.stack([DEPTHS, DEPTHS[::-1], DEPTHS // 2], axis=2)
    data = deep_png(values) if kind == "png" else deep_tiff(values, kind[0])
    assert channels_of(data).tolist() == (values >> 8).tolist()
    expected = np.array(grey((values >> 8) * 257, (0, 30000)))
    assert channels_of(data, (0, 30000)).tolist() == expected.tolist()


def test_colour_and_palettes() -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    assert channels_of(encode(Image.fromarray(values))).tolist() == values.tolist()
    assert channels_of(encode(Image.fromarray(values)), "image").tolist() == grey(values, (0, 230))
    palette = Image.fromarray(values).quantize(8)
    assert channels_of(encode(palette)).tolist() == np.array(palette.convert("RGB")).tolist()


def test_floats() -> None:
    metres = np.array([[0.5, 2.25, 10.0], [np.nan, np.inf, -np.inf]], np.float32)
    data = encode(Image.fromarray(metres), "TIFF")
    assert one_channel_of(data, (0, 10)) == [[13, 57, 255], [0, 0, 0]]
    assert one_channel_of(data, "image") == [[0, 47, 255], [0, 0, 0]]
    says = r"holds float32 values; the recipe of build and student must give their range, \[LOW, HIGH\] or image"
    with pytest.raises(ImageError, match=says) as raised:
        load_modality(data, "type", MANY)
    assert raised.value.fault == ImageFault.NOT_AN_IMAGE
    nothing = encode(Image.fromarray(np.full((1, 2), np.nan, np.float32)), "TIFF")
    assert one_channel_of(nothing, "image") == [[0, 0]]


def test_integers_of_32_bits() -> None:
    values = np.array([[-5, 100_000, 200_000]], np.int32)
    data = encode(Image.fromarray(values), "TIFF")
    assert one_channel_of(data, (0, 200_000)) == [[0, 128, 255]]
    assert one_channel_of(data, "image") == [[0, 128, 255]]


def test_one_value_is_black_by_image() -> None:
    assert one_channel_of(encode(Image.new("L", (2, 1), 77)), "image") == [[0, 0]]
    assert one_channel_of(deep_png(np.full((1, 2), 4000, np.uint16)), "image") == [[0, 0]]


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB"])
def test_it_is_turned_upright(mode: str) -> None:
    values = np.arange(6, dtype=np.uint16 if mode == "I;16" else np.uint8).reshape(2, 3)
    image = Image.fromarray(values) if mode != "RGB" else Image.fromarray(np.stack([values] * 3, axis=2))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(image, exif=exif)
    assert one_channel_of(data, (0, 255)) == np.rot90(values, -1).tolist()


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", ImageFault.EMPTY_IMAGE),
        (b"P5 2 2 255\n1234", ImageFault.NOT_AN_IMAGE),
        (deep_png(DEPTHS)[:45], ImageFault.CORRUPT_IMAGE),
        (encode(Image.new("L", (40, 40)), "JPEG")[:-100], ImageFault.CORRUPT_IMAGE),
        (deep_png(DEPTHS, (60_000, 60_000)), ImageFault.TOO_MANY_PIXELS),
        (encode(Image.new("L", (1001, 1000))), ImageFault.TOO_MANY_PIXELS),
    ],
)
def test_what_is_no_image(data: bytes, fault: ImageFault) -> None:
    with pytest.raises(ImageError) as raised:
        load_modality(data, "type", MANY)
    assert raised.value.fault == fault
