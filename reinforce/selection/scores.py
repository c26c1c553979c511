"""Image-text scores: the cosine of the clean view and a caption, the best of a sample's captions, the mean of teachers.

Costs one view column and every caption column in question of each teacher, a column at a time.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

from reinforce.selection.candidates import Candidates
from reinforce.selection.criteria import Criteria, Reason, num_of_share
from reinforce.selection.signals import SignalRows
from reinforce.shards.schema import Signal, caption_column, view_column


def score_samples(
    candidates: Candidates, signals: SignalRows, teachers: Sequence[str], texts: Sequence[Signal]
) -> None:
    """Gives every sample that is in its score; NaN without a caption, or if a teacher said nothing finite of it."""
    scores = np.full(len(candidates), np.nan, np.float32)
    for shard in candidates.shards_in():
        by_teacher = [
            _best_cosine(shard, signals, teacher, [text for text in texts if text.model == teacher])
            for teacher in teachers
        ]
        scores[candidates.rows(shard)] = np.mean(by_teacher, axis=0)
    candidates.scores = scores


def leave_out_by_score(candidates: Candidates, criteria: Criteria) -> None:
    """`--min-score`, then `--keep-top` of what that left. A sample without a score meets neither."""
    scores = candidates.scores
    if scores is None or (criteria.min_score is None and criteria.keep_top is None):
        return
    num_reached = candidates.num_in
    candidates.leave_out(Reason.NO_SCORE, np.isnan(scores))
    if criteria.min_score is not None:
        candidates.leave_out(Reason.BELOW_MIN_SCORE, scores < np.float32(criteria.min_score))
        num_reached = candidates.num_in
    if criteria.keep_top is not None:
        leave_out_the_rest(candidates, scores, num_of_share(criteria.keep_top, num_reached), Reason.NOT_IN_TOP)


def leave_out_the_rest(
    candidates: Candidates, values: Float[np.ndarray, " samples"], num_kept: int, reason: Reason
) -> None:
    """Keeps the samples that are in with the largest values; of equal ones the first."""
    numbers = np.flatnonzero(candidates.is_in)
    ranked = numbers[np.argsort(-values[numbers], kind="stable")]
    applies = np.zeros(len(candidates), bool)
    applies[ranked[num_kept:]] = True
    candidates.leave_out(reason, applies)


def _best_cosine(
    shard: int, signals: SignalRows, teacher: str, texts: Sequence[Signal]
) -> Float32[np.ndarray, " rows"]:
    views = signals.read(shard, Signal("image", teacher), view_column(0))
    best = np.full(len(views), np.nan, np.float32)
    for text in texts:
        for caption in range(signals.num_columns(text)):
            captions = signals.read(shard, text, caption_column(caption))
            best = np.fmax(best, (views * captions).sum(axis=1))  # NaN only where both are
    return best
