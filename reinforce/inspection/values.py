"""How values are read: a column at a time, the whole of it or the first rows, never before the keys are checked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from jaxtyping import Float32

from reinforce.shards.dataset import Dataset, check_keys
from reinforce.shards.reader import ShardFile, to_numpy
from reinforce.shards.schema import Signal

ORIGINAL = "original"

Item = TypeVar("Item")
Matrix = Float32[np.ndarray, "rows dim"]
Cosines = Float32[np.ndarray, " rows"]


@contextmanager
def open_checked(dataset: Dataset, signal: Signal, stem: str, kept_keys: list[str]) -> Iterator[ShardFile]:
    """A signal's file, once its keys are known to be the spine's. Raises `FormatError`."""
    with dataset.open(signal, stem) as file:
        check_keys(kept_keys, file.read(["key"]).column("key").to_pylist(), file.path)
        yield file


@contextmanager
def open_head(dataset: Dataset, signal: Signal, stem: str, kept_keys: list[str]) -> Iterator[ShardFile]:
    """A signal's file, once its first keys are known to be these of the spine. Raises `FormatError`."""
    with dataset.open(signal, stem) as file:
        check_keys(kept_keys, file.head(["key"], len(kept_keys)).column("key").to_pylist(), file.path)
        yield file


def read_matrix(file: ShardFile, column: str, num_rows: int | None = None) -> Matrix:
    """One embedding column, or the head of it, in float32; a value that does not exist is a row of NaN."""
    table = file.read([column]) if num_rows is None else file.head([column], num_rows)
    return to_numpy(table.column(column)).astype(np.float32)


def cosines(one: Matrix, other: Matrix) -> Cosines:
    """Row by row; stored rows have unit norm but for their rounding, which is divided out."""
    norms = np.sqrt((one * one).sum(axis=1) * (other * other).sum(axis=1))
    return np.asarray((one * other).sum(axis=1) / np.where(norms > 0, norms, np.float32(1)))


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly spread and always the same ones."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]
