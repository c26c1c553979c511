"""What the teachers said of a dataset's samples, a column of a shard at a time, each checked against the spine.

Says before anything is read which signals a selection needs and which shards lack them.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float16, Float32

from reinforce.config import ConfigError
from reinforce.selection.candidates import Candidates
from reinforce.selection.criteria import Criteria, Reason, ScoreSource
from reinforce.shards.dataset import Dataset, check_keys
from reinforce.shards.reader import FormatError, ShardFile, to_numpy
from reinforce.shards.schema import Signal, view_column

ORIGINAL = "original"
_NUM_EXAMPLES = 3

Rows = Float32[np.ndarray, "rows dim"]
"""Embeddings of the kept samples of a shard; a value that does not exist is a row of NaN."""
StoredRows = Float16[np.ndarray, "rows dim"]
"""The same as it is stored."""


class SignalRows:
    """Reads embedding columns of the shards of `candidates`."""

    def __init__(self, dataset: Dataset, candidates: Candidates) -> None:
        self._dataset = dataset
        self._candidates = candidates

    def num_columns(self, signal: Signal) -> int:
        return len(self._dataset.signals[signal]["columns"])

    def read(self, shard: int, signal: Signal, column: str) -> Rows:
        """One column of one shard; raises `FormatError` if its rows are not the spine's kept ones."""
        stem, keys = self._candidates.stems[shard], self._candidates.keys[shard]
        with self._open(shard, signal) as file:
            table = file.read(["key", column])
        if not table.column("key").combine_chunks().equals(keys):
            check_keys(keys.to_pylist(), table.column("key").to_pylist(), signal.file(stem))
        return to_numpy(table.column(column)).astype(np.float32)

    def read_groups(self, shard: int, signal: Signal, column: str) -> Iterator[StoredRows]:
        """Likewise, a row group at a time, as it is stored."""
        with self._open(shard, signal) as file:
            yield from read_checked_groups(file, self._candidates.keys[shard], column)

    def _open(self, shard: int, signal: Signal) -> ShardFile:
        stem = self._candidates.stems[shard]
        expected = {"stem": stem, "fingerprint": self._dataset.signals[signal]["fingerprint"]}
        return self._dataset.open(signal, stem).of(expected)


def read_checked_groups(file: ShardFile, keys: pa.StringArray, column: str) -> Iterator[StoredRows]:
    """An embedding column a row group at a time; raises `FormatError` if the rows are not those of `keys`."""
    start = 0
    for table in file.read_groups(["key", column]):
        found = table.column("key").combine_chunks()
        if not found.equals(keys.slice(start, len(found))):
            check_keys(keys.slice(start, len(found)).to_pylist(), found.to_pylist(), f"{file.path} from row {start}")
        start += len(found)
        yield to_numpy(table.column(column))
    if start != len(keys):
        raise FormatError(f"{file.path}: {start} rows, the spine keeps {len(keys)}")


def choose_teachers(dataset: Dataset, asked: Sequence[str]) -> list[str]:
    """The teachers asked for, or all with embeddings of images; raises `ConfigError` for one that is not there."""
    found = sorted(signal.model for signal in dataset.signals if signal.kind == "image")
    for name in asked:
        if name not in found:
            raise ConfigError(f"--teacher {name}: the dataset has no such teacher; it has {', '.join(found) or 'none'}")
    if not found:
        raise ConfigError(f"{dataset.store.uri}: has no teacher's embeddings of images, which this selection needs")
    return list(asked) or found


def text_signals(dataset: Dataset, teacher: str, score: ScoreSource) -> list[Signal]:
    """The embeddings of captions that a teacher's score is made of; raises `ConfigError` if the dataset has none."""
    found = [signal for signal in dataset.signals if signal.kind == "text" and signal.model == teacher]
    wanted = [signal for signal in found if score == "best" or (signal.source == ORIGINAL) == (score == "original")]
    if not wanted:
        has = ", ".join(signal.source for signal in found) or "none"
        raise ConfigError(f"--score {score}: teacher {teacher} has embedded no such captions; it has: {has}")
    return wanted


def needed_signals(dataset: Dataset, criteria: Criteria, teachers: Sequence[str], bank: str | None) -> list[Signal]:
    """Every signal that will be read, `bank` being the teacher that labels.

    Raises `ConfigError` if the dataset has no clean view of a teacher.
    """
    score = criteria.score_source
    scoring = teachers if score is not None else ()
    looking = [*scoring, *(teachers[:1] if criteria.dedup is not None else ()), *([bank] if bank is not None else ())]
    signals = [Signal("image", teacher) for teacher in dict.fromkeys(looking)]
    for signal in signals:
        if view_column(0) not in dataset.signals[signal]["columns"]:
            raise ConfigError(f"{dataset.store.uri}: {signal.folder} has no clean view, which this selection needs")
    if score is not None:
        signals += [signal for teacher in scoring for signal in text_signals(dataset, teacher, score)]
    return signals


def leave_out_unfinished(dataset: Dataset, candidates: Candidates, signals: Sequence[Signal], missing: str) -> None:
    """Leaves out shards without one of the signals, or refuses them, naming some."""
    lacking = {
        shard: next(s.folder for s in signals if s.file(candidates.stems[shard]) not in dataset.sizes)
        for shard in candidates.shards_in()
        if any(signal.file(candidates.stems[shard]) not in dataset.sizes for signal in signals)
    }
    leave_out_lacking(dataset, candidates, lacking, missing)


def leave_out_lacking(dataset: Dataset, candidates: Candidates, lacking: Mapping[int, str], missing: str) -> None:
    """Leaves out shards that lack a folder's file, or refuses them, naming some."""
    if lacking and missing == "error":
        shown = [f"{candidates.stems[shard]} has no {lacking[shard]}" for shard in list(lacking)[:_NUM_EXAMPLES]]
        more = ", ..." if len(lacking) > _NUM_EXAMPLES else ""
        raise ConfigError(
            f"{dataset.store.uri}: {len(lacking):,} of {len(candidates.stems):,} shards are not finished "
            f"({', '.join(shown)}{more}); run the build again, or leave them out with --missing skip"
        )
    applies = np.zeros(len(candidates), bool)
    for shard in lacking:
        applies[candidates.rows(shard)] = True
    candidates.leave_out(Reason.MISSING_SIGNAL, applies)
