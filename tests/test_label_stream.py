"""A stream of JPEGs is cut where its images end, whatever lies in and between them."""

import io
import random
from pathlib import Path

import pytest
from PIL import Image

from reinforce.deploy.label.inputs import Encoded, Inputs, Unusable
from reinforce.deploy.label.jpeg_stream import Frame, JpegStream
from tests.tars import encode, image_bytes

LIMIT = 1 << 20


class Trickle(io.BytesIO):
    """A pipe that gives at most so many bytes at a time."""

    def __init__(self, data: bytes, at_a_time: int) -> None:
        super().__init__(data)
        self._at_a_time = at_a_time

    def read1(self, size: int | None = -1, /) -> bytes:
        return self.read(self._at_a_time)


def jpegs() -> list[bytes]:
    """Images of every structure: plain, progressive, with restarts, with JPEGs and markers in their segments."""
    picture = Image.open(io.BytesIO(image_bytes(5, 97, 61)))
    thumbnail = encode(picture.resize((32, 20)), "JPEG")
    return [
        encode(picture, "JPEG", quality=95),
        encode(picture, "JPEG", progressive=True),
        encode(picture, "JPEG", restart_marker_blocks=1),
        encode(picture, "JPEG", exif=b"Exif\0\0" + thumbnail + thumbnail[:300]),
        encode(picture, "JPEG", comment=b"\xff\xd9\xff\xd8\xff\xe0 and \xff"),
        encode(Image.effect_noise((64, 48), 90), "JPEG", quality=100),  # many stuffed bytes
        encode(picture.convert("CMYK"), "JPEG"),
        b"\xff\xd8" + b"\xff" * 9 + encode(picture, "JPEG")[3:],  # markers may be filled
    ]


def cut(data: bytes, at_a_time: int = 1 << 16, limit: int = LIMIT) -> tuple[list[Frame], int]:
    stream = JpegStream(Trickle(data, at_a_time), limit)
    return list(stream), stream.num_skipped_bytes


@pytest.mark.parametrize("at_a_time", [1, 13, 1 << 16])
def test_images_come_out_as_they_went_in(at_a_time: int) -> None:
    images = jpegs()
    assert b"\xff\x00" in images[5]
    assert b"\xff\xd0" in images[2]
    frames, num_skipped = cut(b"".join(images), at_a_time)
    assert [frame.fault for frame in frames] == [None] * len(images)
    assert [frame.data for frame in frames] == images
    assert num_skipped == 0


@pytest.mark.parametrize("at_a_time", [1, 13, 1 << 16])
def test_what_lies_between_images_is_skipped_and_counted(at_a_time: int) -> None:
    between = [
        b"--frame\r\nContent-Type: image/jpeg\r\n\r\n",
        b"\0" * 100,
        b"\xff",
        b"\xff\xd8\0",
        b"",
    ]
    images = jpegs()[: len(between)]
    data = b"".join(part for pair in zip(between, images, strict=True) for part in pair) + b"\xff\xd8"
    frames, num_skipped = cut(data, at_a_time)
    assert [frame.data for frame in frames] == images
    assert num_skipped == len(data) - sum(map(len, images))


def test_a_cut_image_is_a_fault_and_the_next_is_whole() -> None:
    one, two = jpegs()[5], jpegs()[0]
    for end in range(3, len(one) - 1):
        frames, _ = cut(one[:end] + two)
        assert frames[0].fault is not None
        assert [frame.data for frame in frames[1:]] == [two], end
    for end in (3, 25, len(one) // 2, len(one) - 2):
        assert cut(two + one[:end])[0] == [Frame(two), Frame(b"", "truncated: the stream ends within it")]
    frames, _ = cut(one[: len(one) // 2] + two)
    assert frames == [Frame(b"", "truncated: the next image begins within it"), Frame(two)]


@pytest.mark.parametrize("marker", [0x01, 0xC4, 0xDA, 0xE1, 0xFE])
def test_a_bad_byte_in_a_scan_costs_no_other_image(marker: int) -> None:
    one, two = jpegs()[5], jpegs()[0]
    place = one.index(b"\xff\x00", len(one) // 2)
    bad = one[: place + 1] + bytes([marker]) + one[place + 2 :]
    # As a length these bytes reach into the next image, and beyond the last.
    for length in (len(one) - place + 200, 0xFFFE):
        bad = bad[: place + 2] + length.to_bytes(2) + bad[place + 4 :]
        for images in ([two], [two] * 99):
            frames, _ = cut(bad + b"".join(images))
            assert frames[0].fault is not None
            assert [frame.data for frame in frames[1:]] == images


def test_no_table_is_taken_for_an_image() -> None:
    picture = Image.open(io.BytesIO(image_bytes(5, 97, 61)))
    images = [encode(picture, "JPEG", quality=quality) for quality in range(1, 101)]
    assert cut(b"".join(images))[0] == [Frame(image) for image in images]


def test_memory_is_bounded() -> None:
    endless = jpegs()[0][:-2] + bytes(3 * LIMIT)
    frames, num_skipped = cut(endless + jpegs()[1])
    assert frames == [Frame(b"", "larger than 1 MiB"), Frame(jpegs()[1])]
    assert LIMIT < num_skipped < len(endless)
    stream = JpegStream(Trickle(endless * 3, 1 << 16), LIMIT)
    for _ in stream:
        assert len(stream._buffer) <= LIMIT + (1 << 16)
    many_segments = b"\xff\xd8" + (b"\xff\xfe\xff\xff" + bytes(65533)) * 40
    assert cut(many_segments)[0][0].fault == "larger than 1 MiB"


def test_noise_is_survived() -> None:
    rng = random.Random(7)
    for _ in range(30):
        data = bytearray(b"".join(jpegs()[:3]))
        for _ in range(5):
            data[rng.randrange(len(data))] = rng.choice((0xFF, 0xD8, 0xD9, rng.randrange(256)))
        frames, num_skipped = cut(bytes(data), 100)
        assert len(frames) < 10
        assert num_skipped + sum(len(frame.data) for frame in frames) <= len(data)


def test_a_stream_among_the_inputs(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    one, two = jpegs()[:2]
    inputs = Inputs([str(tmp_path / "file"), "-"], io.BufferedReader(io.BytesIO(b"junk" + one + two[:-9] + two)))
    fault = Unusable(1, "truncated: the next image begins within it")
    assert list(inputs) == [Encoded(str(tmp_path / "file"), b"x"), Encoded(0, one), fault, Encoded(2, two)]
    assert inputs.notes() == ["skipped in the stream, as they are no part of an image: 4 bytes"]
    nothing = Inputs(["-"], io.BufferedReader(io.BytesIO(image_bytes(0))))
    assert list(nothing) == [Unusable("-", f"no JPEG in its {len(image_bytes(0)):,} bytes")]
