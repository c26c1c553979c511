"""What a selection of sentences kept and why it left out the rest, and how many images it says something of."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from reinforce.selection.candidates import Candidates
from reinforce.selection.criteria import Reason, SentenceCriteria
from reinforce.selection.membership import Other
from reinforce.selection.outcome import (
    LeftOut,
    count_not_here,
    describe_left_out,
    describe_quantiles,
    largest_group,
    left_out_of,
    quantiles_of,
)


@dataclass(frozen=True, slots=True)
class SentenceOutcome:
    """What became of the kept sentences of some corpora."""

    output: str
    teacher: str
    num_sentences: int
    num_kept: int
    left_out: tuple[LeftOut, ...]
    """In the order in which it was asked."""
    num_images: int
    """Kept samples of the dataset."""
    num_images_met: int
    """Those whose clean view was compared with the sentences."""
    images_left_out: tuple[LeftOut, ...]
    num_images_covered: int
    """Those met one of whose nearest sentences is kept, or is a near-duplicate of one that is."""
    num_scored: int
    score_quantiles: dict[str, float]
    """Of all sentences that are among the nearest of an image: 5, 25, 50, 75 and 95 %."""
    largest_group: int
    """The most sentences of which one stays, that one included; 1 without near-duplicates."""
    num_not_here: dict[str, int]
    """For each selection given, the pairs of it that are no kept sentence, or no kept sample, of this dataset."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sentence_outcome_of(
    sentences: Candidates,
    images: Candidates,
    criteria: SentenceCriteria,
    output: str,
    teacher: str,
    num_covered: int,
    others: Sequence[Other],
) -> SentenceOutcome:
    """The figures of a selection that is done."""
    scores = sentences.scores if sentences.scores is not None else np.empty(0, np.float32)
    scores = scores[~np.isnan(scores)]
    of_images = {
        Reason.NOT_WITHIN: "not in --images",
        Reason.MISSING_SIGNAL: "in unfinished shards",
        Reason.NO_SCORE: "without a clean view",
    }
    return SentenceOutcome(
        output=output,
        teacher=teacher,
        num_sentences=len(sentences),
        num_kept=sentences.num_in,
        left_out=_left_out(sentences, criteria),
        num_images=len(images),
        num_images_met=images.num_in,
        images_left_out=left_out_of(images, of_images, {}),
        num_images_covered=num_covered,
        num_scored=len(scores),
        score_quantiles=quantiles_of(scores),
        largest_group=largest_group(sentences),
        num_not_here=count_not_here(others),
    )


def describe_sentences(outcome: SentenceOutcome) -> str:
    """A screen of what was kept and why the rest was not."""
    share = 100 * outcome.num_kept / outcome.num_sentences
    lines = [f"{outcome.output}: kept {outcome.num_kept:,} of {outcome.num_sentences:,} sentences ({share:.1f} %)"]
    lines += describe_left_out(outcome.left_out)
    lines.append(f"met {outcome.num_images_met:,} of {outcome.num_images:,} images, as {outcome.teacher} sees them")
    lines += describe_left_out(outcome.images_left_out)
    covered = 100 * outcome.num_images_covered / outcome.num_images_met
    lines.append(f"of these, {outcome.num_images_covered:,} have one of their nearest sentences ({covered:.1f} %)")
    lines.append(f"scores of {outcome.num_scored:,} sentences near one: {describe_quantiles(outcome.score_quantiles)}")
    if outcome.largest_group > 1:
        lines.append(f"largest group of near-duplicates: {outcome.largest_group:,} sentences, one of which stays")
    lines += [f"{name}: {count:,} of its pairs are not here" for name, count in outcome.num_not_here.items()]
    return "\n".join(lines)


def _left_out(sentences: Candidates, criteria: SentenceCriteria) -> tuple[LeftOut, ...]:
    low, high = criteria.split or (0, 1)
    asked = {
        Reason.NOT_WITHIN: "not in --within",
        Reason.IN_WITHOUT: "in --without",
        Reason.OUTSIDE_SPLIT: f"outside --split {low:g}:{high:g}",
        Reason.MISSING_SIGNAL: "in unfinished files",
        Reason.NO_SCORE: "without an embedding",
        Reason.NOT_NEAREST: f"not among any image's nearest {criteria.nearest:,}",
        Reason.BELOW_MIN_SCORE: f"score below {criteria.min_score or 0:g}",
        Reason.DUPLICATE: f"near-duplicate, cosine {criteria.dedup or 0:g}",
        Reason.OVER_MAX_PER_IMAGE: f"more than {criteria.max_per_image or 0:,} with the same nearest image",
        Reason.BEYOND_KEEP: f"beyond --keep {criteria.keep or 0:,}",
    }
    values = {
        Reason.BELOW_MIN_SCORE: sentences.scores,
        Reason.DUPLICATE: sentences.stand_in_cosines,
        Reason.OVER_MAX_PER_IMAGE: sentences.scores,
        Reason.BEYOND_KEEP: sentences.scores,
    }
    return left_out_of(sentences, asked, values)
