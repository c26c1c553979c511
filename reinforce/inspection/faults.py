"""What verifying a dataset found: each fault by file, column and row, and what was looked at."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_MOST_ROWS = 20
"""Rows of one file that are named for one and the same fault; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not what the format, or the rest of the dataset, says it should be.

    `path` is below the dataset, or the URI of a source shard. `row` counts from 0.
    """

    path: str
    what: str
    column: str | None = None
    row: int | None = None
    key: str | None = None


class FileFaults:
    """The faults of one file while it is read, and what of it was."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.found: list[Fault] = []
        self.num_bytes = 0
        self.num_cells = 0
        self.num_nulls = 0
        self.has_digest = True

    def add(self, what: str, *, column: str | None = None, row: int | None = None, key: str | None = None) -> None:
        """Notes one fault."""
        self.found.append(Fault(self.path, what, column, row, key))

    def add_rows(self, what: str, rows: Sequence[int], keys: Sequence[str], column: str) -> None:
        """Notes the same fault of several rows of a column; the first 20 by name."""
        self.add_samples(what, [(row, keys[row]) for row in rows], column)

    def add_samples(self, what: str, samples: Sequence[tuple[int | None, str]], column: str | None) -> None:
        """Likewise, of samples given as row and key."""
        for row, key in samples[:_MOST_ROWS]:
            self.add(what, column=column, row=row, key=key)
        if len(samples) > _MOST_ROWS:
            self.add(f"{what}: {len(samples) - _MOST_ROWS:,} more rows", column=column)


@dataclass(frozen=True, slots=True)
class Totals:
    """What was read of some files."""

    num_files: int
    num_bytes: int
    num_cells: int
    num_without_digest: int

    @classmethod
    def of(cls, files: Sequence[FileFaults]) -> "Totals":
        """Sums over files."""
        return cls(
            len(files),
            sum(file.num_bytes for file in files),
            sum(file.num_cells for file in files),
            sum(not file.has_digest for file in files),
        )


@dataclass(frozen=True, slots=True)
class SignalCosines:
    """Recomputed cells of one signal: cosines to the stored ones. `bound` is the least that rounding allows.

    `precision` is what they were recomputed in, `num_equal` of them are the stored ones bit for bit.
    """

    folder: str
    num_cells: int
    num_equal: int
    min_cosine: float | None
    bound: float
    precision: str


@dataclass(frozen=True, slots=True)
class Recomputed:
    """What `--recompute` did: `seed` chose the cells."""

    seed: int
    num_cells: int
    signals: tuple[SignalCosines, ...]
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Verification:
    """Everything a verification found. `source` is the URI of the root that spines were compared with, if they were.

    `failures` are the shards with a file in `failures/`, with their errors: incomplete, not at fault. `num_ignored` are
    objects that are no part of the format.
    """

    uri: str
    num_shards: int
    num_files: int
    num_bytes: int
    num_cells: int
    num_without_digest: int
    num_ignored: int
    source: str | None
    num_sources: int
    source_bytes: int
    failures: dict[str, str]
    faults: tuple[Fault, ...]
    elapsed_s: float
    recomputed: Recomputed | None = None
    num_sentence_files: int = 0
    num_sentence_sources: int = 0
    """Files of sentences that were read again, of `sentence_source_bytes`."""
    sentence_source_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """The findings as JSON data."""
        return asdict(self)
