"""The nouns of evaluation: a rendered image with what stands beside it, and the embeddings of many."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from jaxtyping import Float

from reinforce.sample import Pixels


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an image is from: its shard, its key, and the sha256 of its bytes."""

    stem: str
    key: str
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Facts:
    """What stands beside an image: a label, captions, or nothing but where it is from."""

    label: int = -1
    captions: tuple[str, ...] = ()
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """A rendered image and what stands beside it."""

    pixels: Pixels
    facts: Facts
    rgb: Pixels | None = None
    """With a modality and `needs` rgb: the sample's own image."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that cannot be used, and why: a `DropReason`, `missing_label`, `bad_label`, `no_caption` or
    `no_modality`."""

    reason: str


@dataclass
class EmbeddedImages:
    """Embeddings of every usable image, in order, and the rest by reason."""

    embeddings: Float[torch.Tensor, "rows dim"]
    facts: list[Facts] = field(default_factory=list)
    rgb: Float[torch.Tensor, "rows dim"] | None = None
    """With `needs` rgb, of the samples' own images."""
    drops: Counter[str] = field(default_factory=Counter)

    @property
    def labels(self) -> list[int]:
        return [facts.label for facts in self.facts]

    @property
    def captions(self) -> list[tuple[str, ...]]:
        return [facts.captions for facts in self.facts]

    @property
    def origins(self) -> list[Origin]:
        """Of all, where they were asked for."""
        return [facts.origin for facts in self.facts if facts.origin is not None]
