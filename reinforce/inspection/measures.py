"""What figures are made of: what is missing, what was dropped, how values are spread."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_NUM_BINS = 24
_NUM_EXAMPLES = 3
MOST_STEMS = 10_000
"""Of the stems named for one thing that is missing."""


@dataclass(frozen=True, slots=True)
class Missing:
    """How many shards lack something, and which: the first 10,000 of their stems, in order."""

    count: int
    stems: tuple[str, ...] = ()

    @property
    def examples(self) -> tuple[str, ...]:
        return self.stems[:_NUM_EXAMPLES]


@dataclass(frozen=True, slots=True)
class DropExample:
    """A dropped sample."""

    stem: str
    key: str
    detail: str


@dataclass(frozen=True, slots=True)
class DropFigures:
    """Samples dropped for one reason, in all shards."""

    reason: str
    count: int
    examples: tuple[DropExample, ...]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Some values: mean, quantiles and a histogram."""

    count: int
    mean: float
    q05: float
    median: float
    q95: float
    low: float
    high: float
    histogram: tuple[int, ...]
    """How many values are in each of 24 equal parts of `low`..`high`, the smallest and the largest value."""

    @classmethod
    def of(cls, values: Float[np.ndarray, " count"]) -> "Distribution | None":
        """The distribution of the finite values, None if there are none."""
        finite = values[np.isfinite(values)]
        if not finite.size:
            return None
        q05, median, q95 = np.quantile(finite, [0.05, 0.5, 0.95]).tolist()
        low, high = float(finite.min()), float(finite.max())
        counts, _ = np.histogram(finite, _NUM_BINS, (low, high))
        return cls(
            int(finite.size), float(finite.mean(dtype=np.float64)), q05, median, q95, low, high, tuple(counts.tolist())
        )
