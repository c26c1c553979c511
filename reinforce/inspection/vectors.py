"""Columns of embeddings: nulls where they belong, finite, rounded, of unit norm."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64

from reinforce.inspection.faults import FileFaults
from reinforce.inspection.files import read_column
from reinforce.sample import NullReason
from reinforce.shards.explicit import IMPORTED, MAX_NORM_ERROR
from reinforce.shards.reader import ShardFile, to_numpy

_FP32_ERROR = 1e-5
"""Of the norm of a row of unit norm in fp32: a few times 1e-7, with room."""
_HALF_STEP = 2.0**-25
"""Largest error of a float16 below 2^-14, where its steps are all of 2^-24."""


def rounding_error(mantissa_bits: int, dim: int) -> float:
    """The largest distance of a stored row from the row of unit norm that was rounded.

    Of each value the error is at most 2^-(m+1) of it, or 2^-25 below float16's normal numbers. Added up over a row of
    norm 1 by the triangle inequality: 2^-(m+1) + 2^-25 sqrt(dim). A stored row's norm is within so much of 1.
    """
    return 2.0 ** -(mantissa_bits + 1) + _HALF_STEP * math.sqrt(dim) + _FP32_ERROR


def check_column(
    column: pa.ChunkedArray,
    name: str,
    keys: list[str],
    mantissa_bits: int,
    norm_error: float,
    may_exist: Bool[np.ndarray, " rows"],
    faults: FileFaults,
) -> Bool[np.ndarray, " rows"]:
    """Notes the rows that are not finite, not rounded to `mantissa_bits`, not of unit norm, or not to exist.

    Returns which rows are null.
    """
    values = to_numpy(column)
    is_null = np.asarray(column.is_null(), bool)
    with np.errstate(invalid="ignore", over="ignore"):
        is_finite = np.isfinite(values).all(axis=1)
        norms = np.sqrt(np.square(values, dtype=np.float32).sum(axis=1))
        is_off = np.abs(norms - 1) > norm_error + rounding_error(mantissa_bits, values.shape[1])
    is_good = is_finite & ~is_null
    bits = np.ascontiguousarray(values).view(np.uint16)
    is_rounded = ((bits & ((1 << (10 - mantissa_bits)) - 1)) == 0) | ((bits & 0x7C00) == 0)
    kinds = {
        "not finite": ~is_finite & ~is_null,
        f"not rounded to {mantissa_bits} bits": is_good & ~is_rounded.all(axis=1),
        f"not of unit norm, by more than rounding to {mantissa_bits} bits explains": is_good & is_off,
        "an embedding, and there is no such caption": ~is_null & ~may_exist,
    }
    for what, rows in kinds.items():
        faults.add_rows(what, np.flatnonzero(rows).tolist(), keys, name)
    return is_null


@dataclass(frozen=True)
class Nulls:
    """Nulls of a file of embeddings: how many of cells that have no caption, and the rows of the others by column."""

    num_missing: int
    rows: dict[str, list[int]]


def check_embeddings(
    file: ShardFile,
    document: dict[str, Any],
    keys: list[str],
    num_captions: Int64[np.ndarray, " rows"] | None,
    faults: FileFaults,
) -> Nulls | None:
    """Checks every column of a signal's file, one at a time; None if one cannot be read.

    `num_captions` are those of each row for texts; None if every cell may have a value.
    """
    num_missing = 0
    rows: dict[str, list[int]] = {}
    content = document["content"]
    bits = content["mantissa_bits"]
    norm_error = max(MAX_NORM_ERROR, 2.0**-bits) if content.get("kind") == IMPORTED else 0.0
    for index, name in enumerate(document["columns"]):
        column = read_column(file, name, faults)
        if column is None:
            return None
        may_exist = np.ones(len(keys), bool) if num_captions is None else num_captions > index
        is_null = check_column(column, name, keys, bits, norm_error, may_exist, faults)
        num_missing += int((~may_exist).sum())
        rows[name] = np.flatnonzero(is_null & may_exist).tolist()
    return Nulls(num_missing, rows)


def check_nulls(
    counted: dict[str, int], nulls: Nulls, reasons: Sequence[NullReason], keys: list[str], faults: FileFaults
) -> None:
    """Compares the nulls with those that the footer counts, which are for `reasons`; a null too many is named."""
    for name in sorted(set(counted) - {str(reason) for reason in reasons}):
        faults.add(f"nulls in its footer has {name!r}, which is no reason of this kind of file")
    if nulls.num_missing != counted.get(NullReason.NO_CAPTION, 0):
        counts = f"its footer counts {counted.get(NullReason.NO_CAPTION, 0)}"
        faults.add(f"{nulls.num_missing} cells have no caption, {counts}")
    num_nulls, expected = (
        sum(map(len, nulls.rows.values())),
        sum(counted.values()) - counted.get(NullReason.NO_CAPTION, 0),
    )
    if num_nulls < expected:
        faults.add(f"{num_nulls} cells have no embedding for another reason, its footer counts {expected}")
    elif num_nulls > expected:
        for name, rows in nulls.rows.items():
            faults.add_rows(f"no embedding: of {num_nulls} such cells its footer explains {expected}", rows, keys, name)
