"""What an inspection found: frozen, plain numbers and short strings, ready for a table, a page or JSON."""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that is not what the dataset says it should be. `path` is below the dataset."""

    path: str
    what: str


@dataclass(frozen=True, slots=True)
class Missing:
    """How many shards lack something, and a few of their stems."""

    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DropExample:
    """A dropped sample of one of the shards whose values were read."""

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
    """Some values in four numbers."""

    count: int
    mean: float
    q05: float
    median: float
    q95: float

    @classmethod
    def of(cls, values: Float[np.ndarray, " count"]) -> "Distribution | None":
        """The distribution of the finite values, None if there are none."""
        finite = values[np.isfinite(values)]
        if not finite.size:
            return None
        q05, median, q95 = np.quantile(finite, [0.05, 0.5, 0.95]).tolist()
        return cls(int(finite.size), float(finite.mean(dtype=np.float64)), q05, median, q95)


@dataclass(frozen=True, slots=True)
class SignalFigures:
    """One signal over all shards; `max_norm_error` is the largest |norm - 1| in the shards whose values were read."""

    folder: str
    num_columns: int
    num_files: int
    missing: Missing
    num_bytes: int
    bytes_per_kept: float | None
    nulls: dict[str, int]
    num_truncated_texts: int
    max_norm_error: float | None


@dataclass(frozen=True, slots=True)
class CaptionFigures:
    """The captions of one source (`original` or a captioner) in the shards whose values were read."""

    source: str
    num_samples: int
    num_captions: int
    captions_per_sample: float
    words_min: int
    words_median: float
    words_max: int
    distinct_ratio: float
    most_frequent: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class CosineFigures:
    """Clean image to caption, over all pairs of a sample and one of its captions.

    `mismatched_mean` is the mean with every image beside the captions of the sample before it: what chance gives.
    """

    teacher: str
    source: str
    matched: Distribution
    mismatched_mean: float | None


@dataclass(frozen=True, slots=True)
class DriftFigures:
    """Augmented views to the clean one, over all samples and views."""

    teacher: str
    num_views: int
    cosine: Distribution


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything an inspection found. Counts and bytes are of all shards, from footers; `captions`, `cosines`,
    `drifts`, norms and drop examples are of `sampled_stems`."""

    uri: str
    num_shards: int
    num_samples: int
    num_kept: int
    source_bytes: int
    spine_bytes: int
    total_bytes: int
    bytes_per_kept: float | None
    drops: tuple[DropFigures, ...]
    left_out: dict[str, int]
    signals: tuple[SignalFigures, ...]
    missing_shards: Missing | None
    """Source shards without a spine; None if no source was given to compare with."""
    failures: dict[str, str]
    problems: tuple[Problem, ...]
    sampled_stems: tuple[str, ...]
    captions: tuple[CaptionFigures, ...]
    cosines: tuple[CosineFigures, ...]
    drifts: tuple[DriftFigures, ...]

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON data."""
        plain = _plain(self)
        assert isinstance(plain, dict)
        return plain


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
