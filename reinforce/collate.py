"""Prepared samples become batches for the models: consecutive kept rows, their views in one array for each size.

The arrays are used again and again, and on a CUDA machine their memory is page-locked, so that a copy to the device
needs no second one on the way. Every sample, kept or not, goes to the spine as it passes.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from reinforce.prefetch import PreparedSample, PreparedShard
from reinforce.shards.writer import ShardFileWriter, spine_batch

Views = UInt8[np.ndarray, "views rows size size 3"]


@dataclass
class Batch:
    """Consecutive kept samples (none, where only dropped ones were left), and what was passed to come by them."""

    samples: list[PreparedSample] = field(default_factory=list)
    """Without their views."""
    arrays: dict[int, Views] = field(default_factory=dict)
    """By size, with room for a whole batch."""
    num_samples: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    num_captions: int = 0
    """Written for it."""

    @property
    def views(self) -> dict[int, Views]:
        """By size; contiguous for every view."""
        return {size: array[:, : len(self.samples)] for size, array in self.arrays.items()}

    @property
    def keys(self) -> list[str]:
        return [prepared.sample.key for prepared in self.samples]


class Collator:
    """Makes the batches of a build. `release` a batch when the models have seen it."""

    def __init__(self, batch_size: int, *, pin_memory: bool = False) -> None:
        self._batch_size = batch_size
        self._pin_memory = pin_memory
        self._free: defaultdict[tuple[int, ...], list[Views]] = defaultdict(list)

    def batches(self, shard: PreparedShard, spine: ShardFileWriter | None) -> Iterator[Batch]:
        """The batches of a shard, in order."""
        batch = Batch()
        kept: list[PreparedSample] = []
        rows: list[dict[str, Any]] = []
        for prepared in shard.samples():
            batch.num_samples += 1
            if spine is not None:
                rows.append(_spine_row(prepared))
                if len(rows) == self._batch_size:
                    spine.append(spine_batch(rows))
                    rows = []
            if prepared.drop is not None:
                batch.drops[prepared.drop.reason] += 1
                continue
            kept.append(prepared)
            if len(kept) == self._batch_size:
                yield self._collated(batch, kept)
                batch, kept = Batch(), []
        if spine is not None and rows:
            spine.append(spine_batch(rows))
        if batch.num_samples:
            yield self._collated(batch, kept)

    def release(self, batch: Batch) -> None:
        """Takes back the arrays of a batch, which are overwritten from now on."""
        for size, array in batch.arrays.items():
            self._free[(len(array), size)].append(array)
        batch.arrays = {}

    def _collated(self, batch: Batch, kept: list[PreparedSample]) -> Batch:
        for size in kept[0].views if kept else ():
            array = self._array(len(kept[0].views[size]), size)
            np.stack([prepared.views[size] for prepared in kept], axis=1, out=array[:, : len(kept)])
            batch.arrays[size] = array
        batch.samples = [replace(prepared, views={}) for prepared in kept]
        return batch

    def _array(self, num_views: int, size: int) -> Views:
        free = self._free[(num_views, size)]
        if free:
            return free.pop()
        shape = (num_views, self._batch_size, size, size, 3)
        if self._pin_memory:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()  # type: ignore[no-any-return]
        return np.empty(shape, dtype=np.uint8)


def _spine_row(prepared: PreparedSample) -> dict[str, Any]:
    return {
        "key": prepared.sample.key,
        "captions": list(prepared.sample.captions),
        "modalities": sorted(prepared.sample.modalities),
        "image_width": prepared.width,
        "image_height": prepared.height,
        "image_sha256": prepared.sha256,
        "view_seed": prepared.view_seed,
        "drop_reason": prepared.drop.reason.value if prepared.drop else None,
        "drop_detail": prepared.drop.detail if prepared.drop else None,
    }
