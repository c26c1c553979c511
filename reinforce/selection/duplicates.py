"""Near-duplicate images by the clean view of one teacher: one stays in the place of those that are like it.

The views of the samples still in lie in a temporary file, four bytes a value: memory is that of two blocks of them,
whatever the dataset. Time grows with the square of the samples: see `reinforce.neighbours`.
"""

import tempfile
from typing import BinaryIO

import numpy as np

from reinforce.neighbours import stand_ins
from reinforce.selection.candidates import Candidates
from reinforce.selection.criteria import Reason
from reinforce.selection.signals import Rows, SignalRows
from reinforce.shards.schema import Signal, view_column

_ROWS_AT_A_TIME = 2048


def leave_out_duplicates(candidates: Candidates, signals: SignalRows, teacher: str, threshold: float) -> None:
    """Keeps the sample with the highest score, or without scores the first, and what is not close to it; and so on.

    Notes who stands for whom. A sample without a clean view is like no other and stays.
    """
    numbers = np.flatnonzero(candidates.is_in)
    order = np.arange(len(numbers))
    if candidates.scores is not None:
        order = np.argsort(-candidates.scores[numbers], kind="stable")  # those without a score last
    stand_for, cosines = np.arange(len(candidates)), np.ones(len(candidates), np.float32)
    with tempfile.TemporaryFile(prefix="reinforce-") as file:
        views = _spool_views(file, candidates, signals, teacher)
        found = stand_ins(views, threshold, order)
        rows = np.flatnonzero(found != np.arange(len(found)))
        for start in range(0, len(rows), _ROWS_AT_A_TIME):
            some = rows[start : start + _ROWS_AT_A_TIME]
            cosines[numbers[some]] = (views[some] * views[found[some]]).sum(axis=1)
    stand_for[numbers] = numbers[found]
    candidates.stand_ins, candidates.stand_in_cosines = stand_for, cosines
    candidates.leave_out(Reason.DUPLICATE, stand_for != np.arange(len(candidates)))


def _spool_views(file: BinaryIO, candidates: Candidates, signals: SignalRows, teacher: str) -> Rows:
    """The clean views of the samples that are in, of norm 1 to the last bit of float32, as a map of the file."""
    is_in, dim = candidates.is_in, 0
    for shard in candidates.shards_in():
        views = signals.read(shard, Signal("image", teacher), view_column(0))[is_in[candidates.rows(shard)]]
        # Stored ones were rounded: an image beside itself would have a cosine of 0.999 or 1.001.
        views /= np.linalg.norm(views, axis=1, keepdims=True)
        file.write(views.tobytes())
        dim = views.shape[1]
    file.flush()
    return np.memmap(file, np.float32, "r", shape=(candidates.num_in, dim))
