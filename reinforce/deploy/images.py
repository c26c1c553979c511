"""The images an export is checked and calibrated with: clean views of a random choice from source shards, or noise.

A few shards are read, one at a time, and of these only the chosen members. In memory: the rendered images, 150 KB each
at 224 pixels.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from reinforce.config import ConfigError, SourceConfig
from reinforce.decode import decode
from reinforce.formatting import format_counts
from reinforce.sample import Drop, View
from reinforce.shards.source import ShardError, SourceShard
from reinforce.storage import ShardRef, find_shards
from reinforce.student.models import Student
from reinforce.views.render import render

Images = UInt8[np.ndarray, "images size size 3"]

_MOST_SHARDS = 8
_NUM_NOISE_IMAGES = 8


@dataclass(frozen=True, eq=False)
class ChosenImages:
    """Images in random order, and by reason how many of the chosen could not be used."""

    images: Images
    drops: Counter[str] = field(default_factory=Counter)


def choose_images(uris: Sequence[str], size: int, num_images: int, seed: int) -> ChosenImages:
    """At most `num_images` clean views of `size` pixels, as many from each of up to eight shards drawn at random.

    The same shards and seed give the same images. Raises ConfigError for a shard that is not a whole tar, and where
    no image can be used.
    """
    root, refs = find_shards(uris)
    generator = np.random.default_rng(seed)
    order = [refs[index] for index in generator.permutation(len(refs))][:_MOST_SHARDS]
    found: list[UInt8[np.ndarray, "size size 3"]] = []
    drops: Counter[str] = Counter()
    for index, ref in enumerate(order):
        num_wanted = -(-(num_images - len(found)) // (len(order) - index))
        for image in _choose_of_shard(ref, num_wanted, size, generator):
            if isinstance(image, Drop):
                drops[image.reason] += 1
            else:
                found.append(image)
    if not found:
        raise ConfigError(f"--shards: no image of {root} can be used ({format_counts(drops) or 'there is none'})")
    return ChosenImages(np.stack([found[index] for index in generator.permutation(len(found))]), drops)


def _choose_of_shard(
    ref: ShardRef, num_wanted: int, size: int, generator: np.random.Generator
) -> list[UInt8[np.ndarray, "size size 3"] | Drop]:
    config = SourceConfig(captions=())
    with TemporaryDirectory(prefix="reinforce-export-") as spool:
        path = ref.store.local_path(ref.path)
        if path is None:
            path = Path(spool) / "shard.tar"
            ref.store.download(ref.path, path, size=ref.size)
        try:
            shard = SourceShard(path, config)
            members = list(shard.images().values())
        except ShardError as error:
            raise ConfigError(f"shard {ref.uri} {error}; mend it or leave it out") from None
        chosen = [members[index] for index in generator.permutation(len(members))[:num_wanted]]
        with path.open("rb") as tar:
            images: list[UInt8[np.ndarray, "size size 3"] | Drop] = []
            for member in chosen:
                tar.seek(member.offset)
                image = decode(tar.read(member.num_bytes), config.max_pixels)
                images.append(image if isinstance(image, Drop) else render(image, View(None), size))
            return images


def noise_images(size: int) -> Images:
    """Smooth coloured noise of several grains: as bright and as contrasted as photographs, and the same every time."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for index in range(_NUM_NOISE_IMAGES):
        side = min(size, 4 << (index % 4))
        coarse = torch.rand(1, 3, side, side, generator=generator) * 255
        smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
        images.append(smooth + 8 * torch.randn(1, 3, size, size, generator=generator))
    return np.asarray(torch.cat(images).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


class NormalisedImages:
    """Images as a student takes them, normalised as they are sliced: a batch in float32 at a time, not all."""

    def __init__(self, images: Images, student: Student) -> None:
        self._images = images
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1) for values in (student.mean, student.std))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: slice) -> Float32[Tensor, "images 3 size size"]:
        scaled = torch.from_numpy(self._images[rows]).permute(0, 3, 1, 2).float() / 255
        return ((scaled - self._mean) / self._std).contiguous()
