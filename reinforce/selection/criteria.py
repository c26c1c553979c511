"""What is asked of a sample or a sentence, as a person asks it: frozen, checked at once, in one order however given.

The order is that of `Reason`: set operations, split, scores, confidence, duplicates, sizes. Each criterion looks at
what those before it left.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal, Self

from reinforce.config import ConfigError

ScoreSource = Literal["original", "synthetic", "best"]
SCORE_SOURCES: tuple[ScoreSource, ...] = ("original", "synthetic", "best")
MAX_NEAREST = 1000
"""Sentences an image: what is known of a block of images takes 12 bytes each."""


class Reason(StrEnum):
    """Why a kept sample, or a kept sentence, is not in the selection, in the order in which it is asked."""

    NOT_WITHIN = "not_within"
    IN_WITHOUT = "in_without"
    OUTSIDE_SPLIT = "outside_split"
    MISSING_SIGNAL = "missing_signal"
    NO_SCORE = "no_score"
    NOT_NEAREST = "not_nearest"
    BELOW_MIN_SCORE = "below_min_score"
    NOT_IN_TOP = "not_in_top"
    NO_CONFIDENCE = "no_confidence"
    NOT_CONFIDENT = "not_confident"
    DUPLICATE = "duplicate"
    OVER_MAX_PER_IMAGE = "over_max_per_image"
    BEYOND_KEEP = "beyond_keep"


@dataclass(frozen=True, kw_only=True)
class _CommonCriteria:
    """What may be asked of samples and of sentences."""

    within: tuple[str, ...] = ()
    """Selections that a sample must be in, all of them."""
    without: tuple[str, ...] = ()
    """Selections that it must not be in, none of them."""
    split: tuple[float, float] | None = None
    """Bounds of the part of 0..1 in which the hash of a key must fall."""
    seed: int = 0
    """Another seed gives another split."""
    min_score: float | None = None
    dedup: float | None = None
    """Cosine from which on two images, or two sentences, are near-duplicates."""
    missing: Literal["error", "skip"] = "error"
    """What becomes of a shard without a signal that is needed."""

    def __post_init__(self) -> None:
        if self.split is not None and not 0 <= self.split[0] < self.split[1] <= 1:
            low, high = self.split
            raise ConfigError(f"--split {low:g}:{high:g}: LOW:HIGH must satisfy 0 <= LOW < HIGH <= 1, such as 0:0.9")
        if self.seed and self.split is None:
            raise ConfigError(f"--seed {self.seed}: goes with --split; nothing else is drawn")
        if self.min_score is not None and not -1 <= self.min_score <= 1:
            raise ConfigError(f"--min-score {self.min_score:g}: a cosine, from -1 to 1")
        if self.dedup is not None and not 0 < self.dedup < 1:
            raise ConfigError(f"--dedup {self.dedup:g}: a cosine above 0 and below 1, such as 0.97")


@dataclass(frozen=True, kw_only=True)
class Criteria(_CommonCriteria):
    """The options of `reinforce select`; all that are given must be met. Raises `ConfigError` for what cannot be."""

    union: tuple[str, ...] = ()
    """Selections whose samples are added at the end, whatever else is asked."""
    score: ScoreSource | None = None
    """Which captions an image is scored against; None: the original ones, if a score is needed."""
    keep_top: float | None = None
    """The share with the highest scores that is kept; with a bank and nothing else asked of scores see `with_bank`."""
    teachers: tuple[str, ...] = ()
    """Whose embeddings: scores are the mean over them, all else goes by the first. None named: all, by name."""
    keep_confident: float | None = None
    """The share with the most confident labels that is kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, share in (("--keep-top", self.keep_top), ("--keep-confident", self.keep_confident)):
            if share is not None and not 0 < share < 1:
                raise ConfigError(f"{option} {share:g}: a share above 0 and below 1, such as 0.3")
        _refuse_repeated("--teacher", self.teachers)

    def with_bank(self) -> Self:
        """What is asked where a bank gives labels: `keep_top` is of their confidence, unless scores are asked for.

        Raises `ConfigError` if two shares would be of the labels.
        """
        if self.keep_top is None or self.score is not None or self.min_score is not None:
            return self
        if self.keep_confident is not None:
            raise ConfigError("--keep-top, --keep-confident: without --score both are of the labels; give one")
        return replace(self, keep_top=None, keep_confident=self.keep_top)

    @property
    def score_source(self) -> ScoreSource | None:
        """Which captions scores are against; None if no score is needed."""
        if self.score is None and (self.min_score is not None or self.keep_top is not None):
            return "original"
        return self.score


@dataclass(frozen=True, kw_only=True)
class SentenceCriteria(_CommonCriteria):
    """The options of `reinforce select --corpus`. Raises `ConfigError` for what cannot be.

    `min_score` is of a sentence's cosine to its nearest image. `dedup` is asked next, then the two sizes.
    """

    corpora: tuple[str, ...]
    """Those whose sentences are chosen from."""
    nearest: int
    """How many sentences are near an image: a sentence is kept if it is among those of any image."""
    images: str | None = None
    """A selection: only its images are met."""
    teacher: str | None = None
    """In whose space; None: the first by name that has embedded images and all corpora."""
    max_per_image: int | None = None
    """How many sentences may have one and the same nearest image."""
    probe: int | None = None
    """In how many cells of like sentences an image looks for its nearest; None: in all, which is exact."""
    keep: int | None = None
    """How many are kept at most: every image's nearest first, then the second nearest, ..., each time by score."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.corpora:
            raise ConfigError("--corpus: none given")
        _refuse_repeated("--corpus", self.corpora)
        if not 1 <= self.nearest <= MAX_NEAREST:
            raise ConfigError(f"--nearest {self.nearest}: sentences an image, from 1 to {MAX_NEAREST:,}")
        for option, number in (
            ("--max-per-image", self.max_per_image),
            ("--keep", self.keep),
            ("--probe", self.probe),
        ):
            if number is not None and number < 1:
                raise ConfigError(f"{option} {number}: at least 1")


def _refuse_repeated(option: str, names: tuple[str, ...]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{option} {twice[0]}: given twice")


def parse_split(text: str) -> tuple[float, float]:
    """`LOW:HIGH` as numbers; `Criteria` checks their bounds."""
    low, colon, high = text.partition(":")
    try:
        if colon:
            return float(low), float(high)
    except ValueError:
        pass
    raise ConfigError(f"--split {text}: give LOW:HIGH, such as 0:0.9")


def num_of_share(share: float, num_samples: int) -> int:
    """How many samples a share of them is, at least one."""
    return max(1, math.floor(share * num_samples + 0.5))
