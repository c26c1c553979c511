"""Generated photographs with captions, in tars: for benchmarks that must not need data."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.tars import encode, write_tar

_IMAGES_PER_SHARD = 1024
WORDS = ["a", "photo", "of", "the", "red", "cat", "and", "two", "small", "dogs", "in", "front", "house", "at", "night"]


def photographs(count: int = 64) -> list[bytes]:
    """Distinct JPEGs of 640 x 480 with detail at every scale, as large as photographs."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(count):
        pixels = np.full((480, 640, 3), 127.0)
        for scale in (2, 4, 8, 16, 32, 64, 128):
            noise = generator.integers(0, 255, (480 // scale + 1, 640 // scale + 1, 3), dtype=np.uint8)
            coarse = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
            pixels += (np.asarray(coarse, np.float64) - 127) * scale**0.5 / 14
        found.append(encode(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), "JPEG", quality=94))
    return found


def write_shards(folder: Path, images: Sequence[bytes], num_images: int) -> None:
    """Tars of photographs that repeat, under keys and captions that do not."""
    generator = np.random.default_rng(1)

    def caption() -> str:
        return " ".join(generator.choice(WORDS, generator.integers(6, 16)))

    for start in range(0, num_images, _IMAGES_PER_SHARD):
        members = []
        for index in range(start, min(num_images, start + _IMAGES_PER_SHARD)):
            synthetic = json.dumps({"synthetic": [caption(), caption()]}).encode()
            members += [(f"{index:06d}.jpg", images[index % len(images)]), (f"{index:06d}.txt", caption().encode())]
            members.append((f"{index:06d}.json", synthetic))
        write_tar(folder / f"{start // _IMAGES_PER_SHARD:05d}.tar", members)
