"""What the embeddings of one teacher are like: norms, cosines to captions and between views, agreement with another.

Kept are cosines (4 bytes each) and the clean views of the sampled rows (float16), never another column.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from jaxtyping import Float16, Float32

from reinforce.inspection.figures import AgreementFigures, CosineFigures, Distribution, DriftFigures
from reinforce.inspection.values import Cosines, Matrix, cosines, evenly
from reinforce.neighbours import nearest_neighbours

_MOST_COMPARED = 2048
"""Images that teachers are compared on: a second of products each."""
_NUM_NEIGHBOURS = 10


@dataclass(slots=True)
class TeacherValues:
    """What was read of one teacher so far, shard by shard. `start` opens a shard, whose image signal comes first."""

    matched: defaultdict[str, list[Cosines]] = field(default_factory=lambda: defaultdict(list))
    mismatched: defaultdict[str, list[Cosines]] = field(default_factory=lambda: defaultdict(list))
    drifts: defaultdict[int, list[Cosines]] = field(default_factory=lambda: defaultdict(list))
    others: list[Cosines] = field(default_factory=list)
    _clean: list[Float16[np.ndarray, "rows dim"] | int] = field(default_factory=list)
    """By shard: the clean views, or the number of rows if they are not there."""
    _current: Matrix | None = None

    def start(self, num_rows: int) -> None:
        """Begins the next sampled shard."""
        self._clean.append(num_rows)
        self._current = None

    def add_clean(self, matrix: Matrix) -> None:
        self._clean[-1] = matrix.astype(np.float16)  # as it was stored
        self._current = matrix
        if len(matrix) > 1:
            self.others.append(cosines(matrix, np.roll(matrix, 1, axis=0)))

    def add_view(self, number: int, matrix: Matrix) -> None:
        if self._current is not None:
            self.drifts[number].append(cosines(matrix, self._current))

    def add_text(self, source: str, matrix: Matrix) -> None:
        """A column of text embeddings, of the captions of `source`."""
        if self._current is not None:
            self.matched[source].append(cosines(self._current, matrix))
            if len(matrix) > 1:
                self.mismatched[source].append(cosines(self._current, np.roll(matrix, 1, axis=0)))

    def clean_views(self) -> Float32[np.ndarray, "rows dim"] | None:
        """Of all sampled rows, NaN where there is none; None if there are none at all."""
        dim = next((part.shape[1] for part in self._clean if not isinstance(part, int)), None)
        if dim is None:
            return None
        parts = [np.full((part, dim), np.nan, np.float16) if isinstance(part, int) else part for part in self._clean]
        return np.concatenate(parts).astype(np.float32)

    def cosine_figures(self, teacher: str) -> list[CosineFigures]:
        figures = []
        for source, arrays in self.matched.items():
            if matched := Distribution.of(np.concatenate(arrays)):
                figures.append(CosineFigures(teacher, source, matched, _mean(self.mismatched[source])))
        return figures

    def drift_figures(self, teacher: str) -> DriftFigures | None:
        """None if there are no views but the clean one."""
        arrays = [array for parts in self.drifts.values() for array in parts]
        drift = Distribution.of(np.concatenate(arrays)) if arrays else None
        by_view = tuple(_mean(self.drifts[number]) for number in sorted(self.drifts))
        return DriftFigures(teacher, len(by_view), drift, by_view, _mean(self.others)) if drift else None


def agreements(teachers: Mapping[str, TeacherValues]) -> tuple[AgreementFigures, ...]:
    """How far each two teachers agree on which images are alike, by the 10 nearest of up to 2,048 images."""
    views = {name: found for name, values in teachers.items() if (found := values.clean_views()) is not None}
    figures = []
    for one, two in combinations(views, 2):
        both = np.flatnonzero(np.isfinite(views[one]).all(axis=1) & np.isfinite(views[two]).all(axis=1))
        rows = np.array(evenly(both.tolist(), _MOST_COMPARED), np.int64)
        if len(rows) > 2 * _NUM_NEIGHBOURS:
            first, second = (nearest_neighbours(views[name][rows], _NUM_NEIGHBOURS) for name in (one, two))
            shared = [len(set(a) & set(b)) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
            chance = _NUM_NEIGHBOURS / (len(rows) - 1)
            overlap = float(np.mean(shared)) / _NUM_NEIGHBOURS
            figures.append(AgreementFigures((one, two), len(rows), _NUM_NEIGHBOURS, overlap, chance))
    return tuple(figures)


def _mean(arrays: list[Cosines]) -> float | None:
    found = Distribution.of(np.concatenate(arrays)) if arrays else None
    return found.mean if found else None
