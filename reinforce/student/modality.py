"""A further modality of one shard's rows: where its images are in the tar, what a build found of them, their pixels.

Its rows are joined by checked key like every signal's. An image is read and decoded when its row's turn comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from reinforce.config import ModalityConfig
from reinforce.decode import decode_modality
from reinforce.sample import RGB, Drop
from reinforce.shards.source import Member, SourceShard
from reinforce.student.plan import ReadPlan
from reinforce.student.readings import SignalReader


@dataclass(frozen=True)
class ShardModality:
    """The images of one modality, by row of a shard."""

    name: str
    config: ModalityConfig
    members: Sequence[Member | None]
    """Each row's image in the tar, if it is there."""
    sha256s: Sequence[bytes | None]
    is_absent: Bool[np.ndarray, " rows"]
    """The rows without a usable image, as the build found them."""

    def decode(self, data: bytes, max_pixels: int) -> RGB | Drop:
        """The image in 8 bits by the run's range, or why there is none."""
        image = decode_modality(data, self.config.range, max_pixels)
        return replace(image, detail=f"{self.name}: {image.detail}") if isinstance(image, Drop) else image


def read_modalities(plan: ReadPlan, reader: SignalReader, source: SourceShard) -> dict[str, ShardModality]:
    """The modalities in use of the rows of `reader`; raises `FormatError` for a file of another shard or dataset."""
    found = {}
    for name, config in plan.modalities.items():
        table = reader.modality(name)
        members = source.modality(name)
        is_absent = table.column("null_reason").is_valid().to_numpy()
        sha256s = table.column("sha256").to_pylist()
        found[name] = ShardModality(name, config, [members.get(key) for key in reader.keys], sha256s, is_absent)
    return found
