"""What a selection kept and why it left out the rest: plain figures and a few examples, for a screen or JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from reinforce.selection.candidates import Candidates
from reinforce.selection.criteria import Criteria, Reason
from reinforce.selection.membership import Other

_NUM_EXAMPLES = 3
_MOST_LABELS = 12


@dataclass(frozen=True, slots=True)
class Example:
    """A sample that was left out. `value` is its score or confidence, or the cosine to `kept_instead`."""

    stem: str
    key: str
    value: float | None = None
    kept_instead: tuple[str, str] | None = None
    """For a duplicate, the stem and the key of the one that stays."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The samples left out for one reason; `asked` is the bound they missed, in words."""

    reason: Reason
    asked: str
    count: int
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the kept samples of a dataset."""

    output: str
    num_samples: int
    num_kept: int
    num_added: int
    """By `--union`, of those kept."""
    left_out: tuple[LeftOut, ...]
    """In the order in which it was asked."""
    num_scored: int
    score_quantiles: dict[str, float]
    """Of all scores that were taken, before any was left out for it: 5, 25, 50, 75 and 95 %."""
    labels: dict[str, int]
    """Samples kept by label; the frequent ones first."""
    largest_group: int
    """The most samples of which one stays, that one included; 1 without near-duplicates."""
    num_not_here: dict[str, int]
    """For each selection given, the pairs of it that are no kept sample of this dataset."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def outcome_of(
    candidates: Candidates, criteria: Criteria, output: str, *, num_added: int, others: Sequence[Other]
) -> Outcome:
    """The figures of a selection that is done."""
    scores = candidates.scores if candidates.scores is not None else np.empty(0, np.float32)
    scores = scores[~np.isnan(scores)]
    return Outcome(
        output=output,
        num_samples=len(candidates),
        num_kept=candidates.num_in,
        num_added=num_added,
        left_out=_left_out(candidates, criteria),
        num_scored=len(scores),
        score_quantiles=quantiles_of(scores),
        labels=_count_labels(candidates),
        largest_group=largest_group(candidates),
        num_not_here=count_not_here(others),
    )


def describe(outcome: Outcome) -> str:
    """A screen of what was kept and why the rest was not."""
    share = 100 * outcome.num_kept / outcome.num_samples
    lines = [f"{outcome.output}: kept {outcome.num_kept:,} of {outcome.num_samples:,} samples ({share:.1f} %)"]
    lines += describe_left_out(outcome.left_out)
    if outcome.num_added:
        lines.append(f"of those kept, {outcome.num_added:,} by --union alone")
    if outcome.score_quantiles:
        lines.append(f"scores of {outcome.num_scored:,} samples: {describe_quantiles(outcome.score_quantiles)}")
    if outcome.largest_group > 1:
        lines.append(f"largest group of near-duplicates: {outcome.largest_group:,} samples, one of which stays")
    if outcome.labels:
        shown = [f"{printable(name)} {count:,}" for name, count in list(outcome.labels.items())[:_MOST_LABELS]]
        more = f", and {len(outcome.labels) - _MOST_LABELS:,} more" if len(outcome.labels) > _MOST_LABELS else ""
        lines.append(f"labels: {', '.join(shown)}{more}")
    lines += [f"{name}: {count:,} of its pairs are not here" for name, count in outcome.num_not_here.items()]
    return "\n".join(lines)


def describe_left_out(left_out: Sequence[LeftOut]) -> list[str]:
    """A line for each reason."""
    width = max((len(left.asked) for left in left_out), default=0)
    return [
        f"  {left.count:>9,}  {left.asked:<{width}}  {', '.join(map(_describe_example, left.examples))}"
        for left in left_out
    ]


def describe_quantiles(quantiles: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in quantiles.items())


def printable(text: str) -> str:
    """Keys and stems are data: what would move a cursor or colour a terminal is shown as its escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _describe_example(example: Example) -> str:
    name = printable(f"{example.stem}/{example.key}")
    if example.kept_instead is not None:
        return f"{name} is like {printable('/'.join(example.kept_instead))} ({example.value:.4f})"
    return name if example.value is None else f"{name} ({example.value:.4f})"


def _left_out(candidates: Candidates, criteria: Criteria) -> tuple[LeftOut, ...]:
    low, high = criteria.split or (0, 1)
    asked = {
        Reason.NOT_WITHIN: "not in --within",
        Reason.IN_WITHOUT: "in --without",
        Reason.OUTSIDE_SPLIT: f"outside --split {low:g}:{high:g}",
        Reason.MISSING_SIGNAL: "in unfinished shards",
        Reason.NO_SCORE: "without a score",
        Reason.BELOW_MIN_SCORE: f"score below {criteria.min_score or 0:g}",
        Reason.NOT_IN_TOP: f"score not in the top {criteria.keep_top or 0:g}",
        Reason.NO_CONFIDENCE: "without a label",
        Reason.NOT_CONFIDENT: f"label not among the surest {criteria.keep_confident or 0:g}",
        Reason.DUPLICATE: f"near-duplicate, cosine {criteria.dedup or 0:g}",
    }
    by_score, by_confidence = candidates.scores, candidates.confidences
    values = {
        Reason.BELOW_MIN_SCORE: by_score,
        Reason.NOT_IN_TOP: by_score,
        Reason.NOT_CONFIDENT: by_confidence,
        Reason.DUPLICATE: candidates.stand_in_cosines,
    }
    return left_out_of(candidates, asked, values)


def left_out_of(
    candidates: Candidates,
    asked: Mapping[Reason, str],
    values: Mapping[Reason, Float32[np.ndarray, " samples"] | None],
) -> tuple[LeftOut, ...]:
    """Who is left out, in the order in which it was asked: `asked` in words, `values` by which examples are chosen."""
    found = []
    for reason in Reason:
        numbers = candidates.left_out(reason)
        if len(numbers):
            examples = _examples(candidates, numbers, values.get(reason), is_duplicate=reason is Reason.DUPLICATE)
            found.append(LeftOut(reason, asked[reason], len(numbers), tuple(examples)))
    return tuple(found)


def _examples(
    candidates: Candidates,
    numbers: Int64[np.ndarray, " some"],
    values: Float32[np.ndarray, " samples"] | None,
    *,
    is_duplicate: bool,
) -> Iterator[Example]:
    """Where there are values those of the least, the middle and the largest; else evenly spread."""
    if values is not None:
        numbers = numbers[np.argsort(values[numbers], kind="stable")]
    places = np.unique(np.linspace(0, len(numbers) - 1, _NUM_EXAMPLES).round().astype(int))
    for number in numbers[places].tolist():
        stand_ins = candidates.stand_ins if is_duplicate else None
        yield Example(
            *candidates.name(number),
            value=None if values is None else float(values[number]),
            kept_instead=None if stand_ins is None else candidates.name(int(stand_ins[number])),
        )


def count_not_here(others: Sequence[Other]) -> dict[str, int]:
    """By option and selection, of those that name anything else."""
    return {f"{other.option} {other.uri}": other.num_not_here for other in others if other.num_not_here}


def quantiles_of(scores: Float32[np.ndarray, " scored"]) -> dict[str, float]:
    """5, 25, 50, 75 and 95 %."""
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    if not len(scores):
        return {}
    return {f"{share:.0%}": float(value) for share, value in zip(shares, np.quantile(scores, shares), strict=True)}


def _count_labels(candidates: Candidates) -> dict[str, int]:
    if candidates.labels is None:
        return {}
    labels = candidates.labels[candidates.is_in]
    counts = np.bincount(labels[labels >= 0], minlength=len(candidates.label_names))
    order = np.argsort(-counts, kind="stable")
    return {candidates.label_names[index]: int(counts[index]) for index in order.tolist() if counts[index]}


def largest_group(candidates: Candidates) -> int:
    """The most samples of which one stays, that one included."""
    if candidates.stand_ins is None or not len(candidates.stand_ins):
        return 1
    return int(np.bincount(candidates.stand_ins).max())
