"""The parts of a chart: bars, histograms and dots, placed in percent of the plot, and scales with round ticks.

Percent, not pixels, so that a plot fits a telephone and its text keeps its size. `page/charts.html` draws them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reinforce.inspection.figures import Distribution

_MOST_TICKS = 6


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a bar chart, in percent of its longest possible bar. `bad` follows `good`; `tick` is a mark across."""

    name: str
    value: str
    good: float = 0.0
    bad: float = 0.0
    tick: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A line across a plot with its label, or a place on an axis."""

    position: float
    words: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """`columns` are (left, width, height). `mean` is of what is drawn, `other` of what it is compared with."""

    columns: tuple[tuple[float, float, float], ...]
    ticks: tuple[Mark, ...]
    mean: Mark
    other: Mark | None = None


@dataclass(frozen=True, slots=True)
class Dots:
    """A value for each view: `dots` are (left, top, words), `levels` are placed from the top, `ticks` from the left."""

    dots: tuple[tuple[float, float, str], ...]
    levels: tuple[Mark, ...]
    ticks: tuple[Mark, ...]


def number_words(value: float, digits: int = 2) -> str:
    words = f"{value:.{digits}f}"
    return words.removeprefix("-") if float(words) == 0 else words.replace("-", "−")


@dataclass(frozen=True, slots=True)
class Scale:
    """What an axis spans."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float]) -> "Scale":
        """From the smallest to the largest value and a little beyond."""
        low, high = min(values), max(values)
        beyond = max(0.02 * (high - low), 1e-3)
        return cls(low - beyond, high + beyond)

    def percent(self, value: float) -> float:
        return 100 * (value - self.low) / (self.high - self.low)

    def span(self, width: float) -> float:
        return 100 * width / (self.high - self.low)


def histogram(found: Distribution, scale: Scale, other: Mark | None = None) -> Histogram:
    """A distribution's own bins, placed on a scale that several may share."""
    width = (found.high - found.low) / len(found.histogram)
    most = max(found.histogram)
    columns = tuple(
        (scale.percent(found.low + index * width), max(scale.span(width), 0.5), 100 * number / most)
        for index, number in enumerate(found.histogram)
        if number
    )
    ticks = round_ticks(scale.low, scale.high)
    digits = 2 if len(ticks) > 1 and ticks[1] - ticks[0] < 0.0999 else 1
    marks = tuple(Mark(scale.percent(tick), number_words(tick, digits)) for tick in ticks)
    return Histogram(columns, marks, Mark(scale.percent(found.mean), f"mean {number_words(found.mean)}"), other)


def columns_of_integers(words: Distribution) -> list[tuple[float, float, float]]:
    """(first integer, how many of them, count for each).

    Equal bins hold unequal numbers of integers, which would show as a comb.
    """
    low, high, num_bins = int(words.low), int(words.high), len(words.histogram)
    bins: dict[int, list[int]] = {}
    for value in range(low, high + 1):
        bins.setdefault(min((value - low) * num_bins // (high - low), num_bins - 1), []).append(value)
    return [(values[0], len(values), words.histogram[index] / len(values)) for index, values in bins.items()]


def round_ticks(low: float, high: float, most: int = _MOST_TICKS) -> list[float]:
    """Round numbers from `low` to `high`, at most `most`."""
    if high <= low:
        return [low]
    exponent = math.floor(math.log10(high - low)) - 1
    for step in (digit * 10.0**power for power in range(exponent, exponent + 3) for digit in (1, 2, 5)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [round(index * step, 10) + 0.0 for index in range(first, last + 1)]
