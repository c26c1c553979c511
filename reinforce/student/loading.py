"""The pixels of one row, or what a run does without them: an error, or a count, as its recipe says."""

from collections import Counter

from reinforce.replay import ImageMismatchError
from reinforce.sample import Drop, Pixels
from reinforce.student.groups import ReadError
from reinforce.student.shard import HOW_TO_SKIP, VisitedShard
from reinforce.student.stopwatch import Stopwatch


def load_or_count(
    shard: VisitedShard, row: int, size: int, clock: Stopwatch, counts: Counter[str]
) -> list[tuple[Pixels, ...]] | None:
    """The views of a row, by reading, then by modality; None, and counted, if the recipe skips what is wrong with it.

    Raises `ReadError` if it does not.
    """
    plan = shard.plan
    try:
        pixels = shard.load(row, size, clock)
    except ImageMismatchError as error:
        if plan.data.damaged == "error":
            raise ReadError(
                f"shard {shard.visit.stem}: {error}; is {plan.source_root} what the dataset was built from? "
                "Give --root, or --set student.data.damaged=skip"
            ) from None
        counts["image_mismatch"] += len(shard.readings)
        return None
    if not isinstance(pixels, Drop):
        return pixels
    if plan.data.unusable == "error":
        raise ReadError(
            f"shard {shard.visit.stem}: sample {shard.keys[row]}: {pixels.reason} ({pixels.detail}); {HOW_TO_SKIP}"
        )
    counts[pixels.reason] += len(shard.readings)
    return None
