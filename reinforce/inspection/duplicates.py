"""Images that look alike, by the clean views of one teacher: among the sampled rows, or among all of the dataset.

All of them lie in a temporary file as float16, mapped into memory: 1.5 GB for a million of 768 dims. The comparison
takes N^2 products; see `reinforce.neighbours`.
"""

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float

from reinforce.inspection.figures import DuplicateFigures, Problem, SampleName
from reinforce.inspection.footers import noted
from reinforce.inspection.listing import Listing
from reinforce.neighbours import near_duplicate_groups
from reinforce.shards.dataset import Dataset
from reinforce.shards.reader import to_numpy
from reinforce.shards.schema import Signal, view_column

THRESHOLD = 0.99
"""High, so that what is found is nearly one picture to the teacher, and not merely two of one thing."""
_MOST_GROUPS = 5
_MOST_NAMES = 6

Views = Float[np.ndarray, "rows dim"]


def chosen_teacher(listing: Listing) -> Signal | None:
    """The image signal with the most dims, the first by name of several, that has a clean view."""
    candidates = [
        (-int(document.get("model", {}).get("dim") or 0), signal)
        for signal, document in listing.signals.items()
        if signal.kind == "image" and view_column(0) in document.get("columns", ())
    ]
    return min(candidates)[1] if candidates else None


def find_duplicates(
    teacher: str, views: Views, name: Callable[[int], SampleName], *, is_full: bool
) -> DuplicateFigures | None:
    """Groups rows that are near each other. `name` says which sample a row is. None if no row has a value."""
    num_images = int(sum(np.isfinite(block).all(axis=1).sum() for block in _blocks(views)))
    if num_images == 0:
        return None
    leaders = near_duplicate_groups(views, THRESHOLD)
    rows, counts = np.unique(leaders, return_counts=True)
    shared = np.flatnonzero(counts > 1)
    largest = shared[np.argsort(-counts[shared], kind="stable")][:_MOST_GROUPS]
    groups = [np.flatnonzero(leaders == rows[index])[:_MOST_NAMES].tolist() for index in largest]
    return DuplicateFigures(
        teacher=teacher,
        threshold=THRESHOLD,
        num_images=num_images,
        num_groups=len(shared),
        num_duplicates=int((counts[shared] - 1).sum()),
        is_full=is_full,
        groups=tuple(tuple(name(row) for row in group) for group in groups),
    )


def find_all_duplicates(
    dataset: Dataset, listing: Listing, signal: Signal, unreadable: Collection[str], problems: list[Problem]
) -> DuplicateFigures | None:
    """Compares the clean views of all shards that have the signal."""
    stems = [stem for number, stem in enumerate(listing.stems) if listing.has(signal, number)]
    readable = [stem for stem in stems if signal.file(stem) not in unreadable]
    with _all_clean_views(dataset, signal, readable, problems) as (views, starts):

        def name(row: int) -> SampleName:
            index = int(np.searchsorted(starts, row, side="right")) - 1
            keys = dataset.table(signal, readable[index], ["key"]).column("key")
            return SampleName(readable[index], keys[row - starts[index]].as_py())

        return find_duplicates(signal.model, views, name, is_full=True) if len(views) else None


@contextmanager
def _all_clean_views(
    dataset: Dataset, signal: Signal, stems: Sequence[str], problems: list[Problem]
) -> Iterator[tuple[Views, list[int]]]:
    """The clean views of these shards, one after another, and the row that each shard begins at."""
    starts, num_rows, dim = [], 0, 1
    with tempfile.TemporaryDirectory(prefix="reinforce-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "clean-views.f16"
        with path.open("wb") as file:
            for stem in stems:
                starts.append(num_rows)
                with noted(problems, dataset, signal.file(stem)):
                    matrix = to_numpy(dataset.table(signal, stem, [view_column(0)]).column(view_column(0)))
                    file.write(np.ascontiguousarray(matrix).tobytes())
                    num_rows, dim = num_rows + len(matrix), matrix.shape[1]
        shape = (num_rows, dim)
        yield (np.memmap(path, np.float16, "r", shape=shape) if num_rows else np.empty(shape, np.float16)), starts


def _blocks(views: Views) -> Iterator[Views]:
    for start in range(0, len(views), 4096):
        yield views[start : start + 4096]
