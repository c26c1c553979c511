"""What is read of a large dataset: the footers of so many shards, the first rows of so many more few.

Both are spread evenly over the sorted stems, and always the same for the same dataset.
"""

from dataclasses import dataclass

import numpy as np

from reinforce.inspection.listing import Listing
from reinforce.inspection.values import evenly

MOST_FOOTER_SHARDS = 1024
"""Whose footers are read unless all are asked for. Of 65,536 shards with 9 signals that is 10,240 small reads."""
MOST_ROWS = 8192
"""Kept samples whose values are read, over all shards."""
_FEWEST_SHARDS = 8
MOST_VALUE_SHARDS = 16


@dataclass(frozen=True, slots=True)
class ValueSample:
    """The shards whose values are read, as numbers into the sorted stems, and how many rows of each at most."""

    numbers: list[int]
    rows_per_shard: int


def footer_shards(listing: Listing, *, is_full: bool) -> list[int]:
    """The shards whose footers are read."""
    return evenly(range(len(listing.stems)), len(listing.stems) if is_full else MOST_FOOTER_SHARDS)


def value_shards(listing: Listing, mean_kept: float, most_shards: int) -> ValueSample:
    """8 to 16 shards, the more the smaller they are, so that about 8,192 rows come together and never more.

    Shards with most of the signals go first: while a build runs, few may have what it adds.
    """
    count = min(most_shards, max(_FEWEST_SHARDS, int(MOST_ROWS / max(mean_kept, 1.0))))
    num_signals = listing.num_signals()
    numbers: list[int] = []
    for tier in np.unique(num_signals)[::-1]:
        numbers += evenly(np.flatnonzero(num_signals == tier).tolist(), count - len(numbers))
    return ValueSample(sorted(numbers), MOST_ROWS // max(len(numbers), 1))
