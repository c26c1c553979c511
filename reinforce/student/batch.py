"""What the reader hands to a trainer: one batch of views, tokens and what the teachers said of exactly these."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float16, Int64, UInt8
from torch import Tensor

ORIGINAL = "original"
SYNTHETIC = "synthetic"


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the stream of one worker: `row` rows into the `group`-th group of shards it shuffles together.

    The images from there on fill a batch, and then, with other views, `turn` more batches that were read already.
    """

    worker: int = 0
    group: int = 0
    row: int = 0
    turn: int = 0


@dataclass(frozen=True)
class Batch:
    """Row i of every tensor is the sample `keys[i]` of shard `stems[i]`.

    `images` are views as bytes: divide by 255 and normalise as the student wants it. They are of the first modality the
    run sees, RGB unless the recipe says otherwise; `modalities` are the same views of the further ones, by name.
    `texts`, and the teachers' embeddings of them, are by role: `original` is a caption of the source, `synthetic` one
    of a captioner. Teachers are in the order of their names; their embeddings are unit-norm up to the rounding of
    `mantissa_bits` and belong to this view and these captions.
    """

    keys: list[str]
    stems: list[str]
    images: UInt8[Tensor, "batch 3 size size"]
    texts: dict[str, Int64[Tensor, "batch context"]]
    teacher_images: dict[str, Float16[Tensor, "batch dim"]]
    teacher_texts: dict[str, dict[str, Float16[Tensor, "batch dim"]]]
    """By role, then by teacher."""
    position: Position = Position()
    """Where the worker that made the batch goes on after it."""
    counts: Counter[str] = field(default_factory=Counter)
    """What that worker left out since its last batch, by reason, and the captions it cut."""
    reader_s: dict[str, float] = field(default_factory=dict)
    """The seconds that worker took for the batch: `open` (waiting for shards that are opened), `read`, `decode`,
    `render`, `batch` (tokens, and rows brought together), and `mine` where triplets were mined for it."""
    modalities: dict[str, UInt8[Tensor, "batch 3 size size"]] = field(default_factory=dict)
    images_of: Int64[Tensor, " batch"] | None = None
    """Where one image has several rows: a number by image, the same in every process. They are no negatives of one
    another."""

    sentences: dict[str, Float16[Tensor, "sentences dim"]] = field(default_factory=dict)
    """By teacher: embeddings of sentences that have nothing to do with the images; their number is another. Whole in
    every part of a `split`."""

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with its tensors on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """What a DataLoader with `pin_memory=True` calls."""
        return self.map(lambda tensor: tensor.pin_memory())

    def split(self, num_parts: int) -> list["Batch"]:
        """The rows in `num_parts` consecutive parts of equal size; raises ValueError if they do not divide."""
        size, rest = divmod(len(self), num_parts)
        if rest:
            raise ValueError(f"a batch of {len(self)} rows does not split into {num_parts} equal parts")
        return [self._rows(slice(start, start + size)) for start in range(0, len(self), size)]

    def _rows(self, rows: slice) -> "Batch":
        part = self.map(lambda tensor: tensor[rows])
        return replace(part, keys=self.keys[rows], stems=self.stems[rows], sentences=self.sentences)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with `function` applied to every tensor."""

        def of(value: Any) -> Any:
            if value is None:
                return None
            return {name: of(item) for name, item in value.items()} if isinstance(value, dict) else function(value)

        return replace(
            self,
            images=of(self.images),
            texts=of(self.texts),
            teacher_images=of(self.teacher_images),
            teacher_texts=of(self.teacher_texts),
            modalities=of(self.modalities),
            images_of=of(self.images_of),
            sentences=of(self.sentences),
        )
