"""Source tars made by arithmetic: images whose rows can be told apart, members as odd as a test wants them."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

Members = Iterable[tuple[str, bytes]]


def image_bytes(index: int, width: int = 40, height: int = 30, image_format: str = "PNG") -> bytes:
    """An image of a smooth pattern that is another one for each index."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x * (0.11 + 0.013 * index) + c) + np.cos(y * 0.17 + index * 0.7 + 2 * c) for c in range(3)]
    pixels = (127 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)
    return encode(Image.fromarray(pixels), image_format)


def encode(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def write_tar(path: Path, members: Members, *, tar_format: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of these members, in this order, repeated names and all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pairs(num_samples: int, start: int = 0) -> list[tuple[str, bytes]]:
    """Members of `num_samples` good samples: an image and a caption each."""
    members = []
    for index in range(start, start + num_samples):
        members.append((f"{index:05d}.png", image_bytes(index)))
        members.append((f"{index:05d}.txt", f"caption of picture {index}".encode()))
    return members
