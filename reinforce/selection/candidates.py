"""The kept samples of a dataset, or sentences, while they are chosen from: who is still in, and why others are not.

Keys lie in Arrow, a byte or so more than their text; everything else is a few numbers a sample.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8

from reinforce.selection.criteria import Reason
from reinforce.shards.dataset import Dataset
from reinforce.shards.reader import ShardFile

_REASONS = tuple(Reason)


@dataclass
class Candidates:
    """Every kept sample of some shards, shards by stem, each in source order; a sample's number is its place here."""

    stems: list[str]
    keys: list[pa.StringArray]
    """By shard."""
    starts: Int64[np.ndarray, " shards_plus_1"]
    """The number of each shard's first sample, and at the end the number of samples."""
    verdicts: UInt8[np.ndarray, " samples"]
    """0: still in; else 1 + the place of the reason."""
    scores: Float32[np.ndarray, " samples"] | None = None
    """Image-text scores of those that were in when scores were asked; NaN where there is none."""
    labels: Int32[np.ndarray, " samples"] | None = None
    """Classes of those that were in when labels were asked; -1 where there is none."""
    label_names: tuple[str, ...] = ()
    confidences: Float32[np.ndarray, " samples"] | None = None
    certainties: Float64[np.ndarray, " samples"] | None = None
    stand_ins: Int64[np.ndarray, " samples"] | None = None
    """For a duplicate the number of the sample that stays in its place; for any other sample its own."""
    stand_in_cosines: Float32[np.ndarray, " samples"] | None = None

    @classmethod
    def of(cls, dataset: Dataset) -> "Candidates":
        """Reads the keys of every spine of images."""
        return cls.of_spines(dataset.stems, dataset.open_spine)

    @classmethod
    def of_spines(cls, stems: list[str], open_spine: Callable[[str], ShardFile]) -> "Candidates":
        """Reads the keys of these spines."""
        keys = []
        for stem in stems:
            with open_spine(stem) as file:
                table = file.read(["key", "drop_reason"])
            kept = table.column("key").filter(pc.is_null(table.column("drop_reason")))
            keys.append(kept.combine_chunks())
        starts = np.cumsum([0, *map(len, keys)], dtype=np.int64)
        return cls(stems, keys, starts, np.zeros(starts[-1], np.uint8))

    def __len__(self) -> int:
        return len(self.verdicts)

    @property
    def is_in(self) -> Bool[np.ndarray, " samples"]:
        return np.asarray(self.verdicts == 0)

    @property
    def num_in(self) -> int:
        return len(self) - int(np.count_nonzero(self.verdicts))

    def rows(self, shard: int) -> slice:
        """The numbers of a shard's samples."""
        return slice(int(self.starts[shard]), int(self.starts[shard + 1]))

    def shards_in(self) -> list[int]:
        """The shards with a sample that is still in."""
        is_in = self.is_in
        return [shard for shard in range(len(self.stems)) if is_in[self.rows(shard)].any()]

    def leave_out(self, reason: Reason, applies: Bool[np.ndarray, " samples"]) -> None:
        """Leaves out, for this reason, the samples that it applies to and that are still in."""
        self.verdicts[self.is_in & applies] = 1 + _REASONS.index(reason)

    def put_back(self, numbers: Int64[np.ndarray, " some"]) -> None:
        self.verdicts[numbers] = 0

    def left_out(self, reason: Reason) -> Int64[np.ndarray, " some"]:
        """The numbers of the samples left out for this reason."""
        return np.flatnonzero(self.verdicts == 1 + _REASONS.index(reason))

    def name(self, number: int) -> tuple[str, str]:
        """The stem and the key of a sample."""
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.stems[shard], self.keys[shard][number - int(self.starts[shard])].as_py()

    def names(self, numbers: Int64[np.ndarray, " some"]) -> tuple[pa.StringArray, pa.StringArray]:
        """The stems and the keys of samples, in any order."""
        order = np.argsort(numbers, kind="stable")
        bounds = np.searchsorted(numbers[order], self.starts)
        parts = [pa.array([], pa.string())]
        for shard, (start, stop) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
            if start < stop:
                parts.append(self.keys[shard].take(pa.array(numbers[order[start:stop]] - self.starts[shard])))
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        shards = np.searchsorted(self.starts, numbers, side="right") - 1
        return pa.array(self.stems, pa.string()).take(pa.array(shards)), pa.concat_arrays(parts).take(pa.array(places))

    def table(self) -> pa.Table:
        """The samples that are in, as rows of a selection file."""
        is_in = self.is_in
        parts = []
        for shard in self.shards_in():
            rows = self.rows(shard)
            chosen = is_in[rows]
            num_chosen = int(np.count_nonzero(chosen))
            columns = {
                "stem": pa.repeat(pa.scalar(self.stems[shard], pa.string()), num_chosen),
                "key": self.keys[shard].filter(pa.array(chosen)),
                "weight": pa.nulls(num_chosen, pa.float32()),
                "label": self._labels(rows, chosen),
                "score": _given(self.scores, rows, chosen),
                "confidence": _given(self.confidences, rows, chosen),
            }
            parts.append(pa.table(columns))
        return pa.concat_tables(parts)

    def _labels(self, rows: slice, chosen: Bool[np.ndarray, " rows"]) -> pa.StringArray:
        if self.labels is None:
            return pa.nulls(int(np.count_nonzero(chosen)), pa.string())
        labels = self.labels[rows][chosen]
        return pa.array(self.label_names, pa.string()).take(pa.array(labels, mask=labels < 0))


def _given(
    values: Float32[np.ndarray, " samples"] | None, rows: slice, chosen: Bool[np.ndarray, " rows"]
) -> pa.FloatArray:
    """Those of the chosen rows; null where there is none."""
    if values is None:
        return pa.nulls(int(np.count_nonzero(chosen)), pa.float32())
    return pa.array(values[rows][chosen], from_pandas=True)  # NaN is null
