"""What `label` shows a model is what a student was trained on: the clean view of the decoded image."""

import io

import numpy as np
import pytest
from PIL import Image

from reinforce.decode import decode
from reinforce.deploy.label.preprocess import clean_view, decode_rgb, kept_part, normalised
from reinforce.rgb import ImageError
from reinforce.sample import Drop, Pixels, View
from reinforce.views.render import render
from tests.tars import encode, image_bytes

LIMIT = 10_000_000


def picture(width: int, height: int) -> Image.Image:
    return Image.open(io.BytesIO(image_bytes(3, 97, 61))).resize((width, height))


def of_label(data: bytes, size: int) -> Pixels:
    image, part = decode_rgb(data, LIMIT, size)
    return clean_view(image, part, size)


def of_training(data: bytes, size: int) -> Pixels:
    image = decode(data, LIMIT)
    assert not isinstance(image, Drop)
    return render(image, View(box=None), size)


@pytest.mark.parametrize(
    ("width", "height"),
    [
        (64, 64),
        (97, 61),
        (61, 97),
        (640, 427),
        (375, 500),
        (333, 100),
        (20, 14),
        (700, 100),
        (2000, 3),
        (1, 90),
        (32, 33),
    ],
)
def test_pixels_are_those_of_the_clean_view(width: int, height: int) -> None:
    for size in (32, 33):
        data = encode(picture(width, height))
        difference = np.abs(of_label(data, size).astype(int) - of_training(data, size))
        assert difference.mean() < 0.1, (width, height, size)
        assert difference.max() <= 1


def oddities() -> dict[str, bytes]:
    turned = Image.Exif()
    turned[0x0112] = 6
    image, grey = picture(90, 60), np.asarray(picture(90, 60))[..., 0]
    return {
        "plain": encode(image, "JPEG", quality=90),
        "progressive": encode(image, "JPEG", progressive=True),
        "turned": encode(image, "JPEG", exif=turned),
        "turned PNG": encode(image, "PNG", exif=turned),
        "grey JPEG": encode(image.convert("L"), "JPEG"),
        "CMYK": encode(image.convert("CMYK"), "JPEG"),
        "16 bit": encode(Image.fromarray((grey.astype(np.uint16) << 8) + 17)),
        "palette": encode(image.convert("P"), "PNG", transparency=bytes(range(256))),
        "alpha": encode(image.convert("RGBA"), "PNG"),
        "1 bit": encode(image.convert("1"), "PNG"),
        "WEBP": encode(image, "WEBP"),
        "GIF": encode(image, "GIF"),
    }


@pytest.mark.parametrize("kind", oddities())
def test_what_the_web_does_to_images_is_decoded_alike(kind: str) -> None:
    data = oddities()[kind]
    image, _ = decode_rgb(data, LIMIT, 48)
    np.testing.assert_array_equal(np.asarray(image), decode(data, LIMIT))
    assert np.abs(of_label(data, 48).astype(int) - of_training(data, 48)).mean() < 0.1


@pytest.mark.parametrize(("width", "height"), [(641, 427), (1000, 777), (777, 1003), (1999, 600)])
def test_a_large_jpeg_is_decoded_smaller_and_does_not_move(width: int, height: int) -> None:
    """One step of the resized image would be two grey levels here."""
    data = encode(picture(width, height), "JPEG", quality=95)
    image, _ = decode_rgb(data, LIMIT, 64)
    assert 128 <= min(image.size) < min(width, height)
    assert np.abs(of_label(data, 64).astype(int) - of_training(data, 64)).mean() < 0.6
    turned = Image.Exif()
    turned[0x0112] = 6
    data = encode(picture(width, height), "JPEG", quality=95, exif=turned)
    assert decode_rgb(data, LIMIT, 64)[0].size == (height, width)


def test_the_limit_is_of_the_stored_image() -> None:
    with pytest.raises(ImageError, match="1000x777"):
        decode_rgb(encode(picture(1000, 777), "JPEG"), 1000 * 777 - 1, 64)


def test_only_the_kept_part_is_computed() -> None:
    left, top, right, bottom = kept_part(2_000_000, 1, 224)
    assert (top, bottom) == (0, 1)
    assert right - left == pytest.approx(1)
    assert of_label(encode(Image.new("RGB", (200_000, 1))), 224).shape == (224, 224, 3)


def test_pixels_are_normalised_as_in_training() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    expected = ((pixels / 255 - mean) / std).transpose(2, 0, 1)[None]
    found = normalised(pixels, mean, std)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected, atol=1e-6)
