"""What an inspection found: frozen, plain numbers and short strings, ready for a table, a page or JSON."""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

_NUM_BINS = 24


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
    num_samples_without: int = 0
    """Samples with no caption of this source."""
    num_copies: int = 0
    """Captions of a captioner that are an original caption of the same sample, but for case, spaces and full stops."""
    words: Distribution | None = None


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
    """Augmented views to the clean one, over all samples and views; `by_view` has the mean of each of views 1..K."""

    teacher: str
    num_views: int
    cosine: Distribution
    by_view: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class AgreementFigures:
    """Of the `num_neighbours` nearest images by one teacher's clean views, the mean share that another's agree on.

    `chance` is the share that two teachers who know nothing of each other would have.
    """

    teachers: tuple[str, str]
    num_images: int
    num_neighbours: int
    overlap: float
    chance: float


@dataclass(frozen=True, slots=True)
class SampleName:
    """Where a sample is."""

    stem: str
    key: str


@dataclass(frozen=True, slots=True)
class DuplicateFigures:
    """Images that look alike: a clean view's cosine to another's, by one teacher, is at least `threshold`.

    `num_duplicates` is the number of images that would go if one of each group stayed. `is_full`: all kept images were
    compared, else those of the sampled shards. `groups` are the largest, at most a few.
    """

    teacher: str
    threshold: float
    num_images: int
    num_groups: int
    num_duplicates: int
    is_full: bool
    groups: tuple[tuple[SampleName, ...], ...]


@dataclass(frozen=True, slots=True)
class RunFigures:
    """What one run did and cost, from its folder in `runs/`. `stages` are busy seconds, of all workers together.

    `end` is None while it runs, or if it was killed.
    """

    run: str
    start: str
    end: str | None
    elapsed_s: float
    num_workers: int
    num_shards: int
    num_failed: int
    num_samples: int
    stages: dict[str, float]
    hardware: str


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
    agreements: tuple[AgreementFigures, ...] = ()
    duplicates: tuple[DuplicateFigures, ...] = ()
    runs: tuple[RunFigures, ...] = ()
    null_examples: dict[str, tuple[SampleName, ...]] = field(default_factory=dict)
    """Signal folder -> a few samples of the sampled shards with a null in it."""

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON data."""
        plain = _plain(self)
        assert isinstance(plain, dict)
        return plain


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
