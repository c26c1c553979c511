"""The images an export is checked and calibrated with: clean views of a random choice from source shards, or noise.

Of a student of several modalities, images of each, of the same samples. A few shards are read, one at a time, and of
these only the chosen members. In memory: the rendered images, 150 KB each at 224 pixels.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from reinforce.config import ConfigError, ModalityConfig, SourceConfig
from reinforce.decode import decode, decode_modality
from reinforce.formatting import format_counts
from reinforce.sample import RGB_MODALITY, Drop, NullReason, Pixels, View
from reinforce.shards.source import Member, ShardError, SourceShard
from reinforce.storage import ShardRef, find_shards
from reinforce.student.models import Student
from reinforce.views.render import render

Images = UInt8[np.ndarray, "images size size 3"]

Modalities = Mapping[str, ModalityConfig | None]
"""By name, `rgb` without a config; at least one."""

ONLY_RGB: Modalities = {RGB_MODALITY: None}

_MOST_SHARDS = 8
_NUM_NOISE_IMAGES = 8


@dataclass(frozen=True, eq=False)
class ChosenImages:
    """Images of samples in random order, by modality, row by row of the same ones, and by reason what was not used.

    `drops` counts the chosen samples that could not be used, and as `no_modality` those of the shards that lack one.
    """

    images: dict[str, Images]
    drops: Counter[str] = field(default_factory=Counter)

    @property
    def num_samples(self) -> int:
        return len(next(iter(self.images.values())))


def choose_images(
    uris: Sequence[str], size: int, num_samples: int, seed: int, modalities: Modalities = ONLY_RGB
) -> ChosenImages:
    """Clean views of `size` pixels of at most `num_samples`, as many from each of up to eight shards drawn at random.

    The same shards and seed give the same images. A sample is used that has an image of every modality. Raises
    ConfigError for a shard that is not a whole tar, and where no image can be used.
    """
    root, refs = find_shards(uris)
    generator = np.random.default_rng(seed)
    order = [refs[index] for index in generator.permutation(len(refs))][:_MOST_SHARDS]
    found: list[list[Pixels]] = []
    drops: Counter[str] = Counter()
    for index, ref in enumerate(order):
        num_wanted = -(-(num_samples - len(found)) // (len(order) - index))
        found += _choose_of_shard(ref, num_wanted, size, generator, modalities, drops)
    if not found:
        raise ConfigError(f"--shards: no image of {root} can be used ({format_counts(drops) or 'there is none'})")
    shuffled = [found[index] for index in generator.permutation(len(found))]
    return ChosenImages(dict(zip(modalities, map(np.stack, zip(*shuffled, strict=True)), strict=True)), drops)


def _choose_of_shard(
    ref: ShardRef,
    num_wanted: int,
    size: int,
    generator: np.random.Generator,
    modalities: Modalities,
    drops: Counter[str],
) -> list[list[Pixels]]:
    """Views of each sample, in the order of `modalities`; what cannot be used is added to `drops`."""
    suffixes = {name: modality.suffix for name, modality in modalities.items() if modality}
    config = SourceConfig(captions=(), modalities=suffixes)
    with TemporaryDirectory(prefix="reinforce-export-") as spool:
        path = ref.store.local_path(ref.path)
        if path is None:
            path = Path(spool) / "shard.tar"
            ref.store.download(ref.path, path, size=ref.size)
        try:
            shard = SourceShard(path, config)
        except ShardError as error:
            raise ConfigError(f"shard {ref.uri} {error}; mend it or leave it out") from None
        members = [shard.modality(name) if name in suffixes else shard.images() for name in modalities]
        keys = [key for key in members[0] if all(key in of_modality for of_modality in members)]
        drops.update(+Counter({NullReason.NO_MODALITY.value: len(set().union(*members)) - len(keys)}))
        chosen = [keys[index] for index in generator.permutation(len(keys))[:num_wanted]]
        with path.open("rb") as tar:
            samples = [
                _views_of_sample(
                    tar, [of_modality[key] for of_modality in members], modalities, config.max_pixels, size
                )
                for key in chosen
            ]
    drops.update(sample.reason.value for sample in samples if isinstance(sample, Drop))
    return [sample for sample in samples if not isinstance(sample, Drop)]


def _views_of_sample(
    tar: BinaryIO, members: list[Member], modalities: Modalities, max_pixels: int, size: int
) -> list[Pixels] | Drop:
    views = []
    for member, modality in zip(members, modalities.values(), strict=True):
        tar.seek(member.offset)
        data = tar.read(member.num_bytes)
        image = decode(data, max_pixels) if modality is None else decode_modality(data, modality.range, max_pixels)
        if isinstance(image, Drop):
            return image
        views.append(render(image, View(None), size))
    return views


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
