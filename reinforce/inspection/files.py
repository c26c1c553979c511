"""One Parquet file of a dataset while it is verified: its digest, its footer's fields, its layout, its pages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from reinforce.inspection.faults import FileFaults
from reinforce.shards.digests import FILE_DIGEST, file_digests
from reinforce.shards.reader import FormatError, ShardFile
from reinforce.shards.schema import MAX_ROW_GROUP_ROWS, canonical_json
from reinforce.storage import StorageError, Store

Found = TypeVar("Found")

COMMON_FIELDS = {"format_version", "kind", "stem", "fingerprint", "source_sha256", "source_bytes", "num_rows"}
"""Of the footers of all files of a shard."""


def read_checked(
    store: Store, local: Path, faults: FileFaults, check: Callable[[ShardFile], Found | None]
) -> Found | None:
    """The result of `check` on a file whose bytes are at `local`, after its digest; None if it cannot be read.

    Whatever damaged bytes lead `check` to is a fault of the file.
    """
    try:
        faults.num_bytes = local.stat().st_size
        with local.open("rb") as data:
            digests = file_digests(data)
            faults.has_digest = digests is not None
            if digests is not None and digests[0] != digests[1]:
                faults.add("its sha256 is not the one it carries: it was damaged or edited")
            with ShardFile(store, faults.path, copy=data) as file:
                return check(file)
    except FileNotFoundError:
        faults.add("was listed and is gone")
    except StorageError:
        raise
    except OSError as error:
        faults.add(f"cannot be read: {error.strerror or error}")
    except (FormatError, pa.ArrowException, MemoryError, ValueError, LookupError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        faults.add(text.removeprefix(f"{store.uri_of(faults.path)}: "))
    return None


def check_fields(footer: dict[str, Any], fields: set[str], faults: FileFaults) -> None:
    """Notes fields that are missing, and in a file without a digest those that are unknown."""
    for name in sorted(fields - set(footer)):
        faults.add(f"its footer has no field {name}")
    # A digest whose name was damaged is a field that nobody knows.
    for name in sorted(set(footer) - fields - {FILE_DIGEST}) if not faults.has_digest else ():
        faults.add(f"its footer has a field {name!r}, which is none of a file without a digest")


def compare_counts(footer: dict[str, Any], recounted: dict[str, Any], faults: FileFaults) -> None:
    """Notes what a footer says that was counted otherwise."""
    for name, value in recounted.items():
        if footer[name] != value:
            faults.add(f"{name} is {canonical_json(footer[name])} in its footer, counted {canonical_json(value)}")


def check_layout(file: ShardFile, schema: pa.Schema, faults: FileFaults) -> None:
    """Notes another schema than this one, to the last flag, and row groups of other sizes than the format's."""
    if not file.schema.equals(schema):
        found = next(
            (
                f"{ours} instead of {wanted}"
                for ours, wanted in zip(file.schema, schema, strict=False)
                if ours != wanted
            ),
            f"{len(file.schema)} columns instead of {len(schema)}",
        )
        faults.add(f"another schema than the format's: {found}")
    groups = file.row_groups
    if any(rows != MAX_ROW_GROUP_ROWS for rows in groups[:-1]) or any(rows > MAX_ROW_GROUP_ROWS for rows in groups):
        faults.add(f"row groups of {', '.join(map(str, groups[:4]))}...: {MAX_ROW_GROUP_ROWS} rows in all but the last")


def read_column(file: ShardFile, name: str, faults: FileFaults) -> pa.ChunkedArray | None:
    """A whole column; None, and a fault at the first row of the damaged row group, if it cannot be read."""
    try:
        column = file.read([name]).column(name)
    except FormatError as error:
        what = str(error).removeprefix(f"{file.path}: ")
        faults.add(what, column=name, row=file.first_damaged_row(name))
        return None
    if name != "key":
        faults.num_cells += len(column)
        faults.num_nulls += column.null_count
    return column


def read_rows(file: ShardFile, schema: pa.Schema, faults: FileFaults) -> pa.Table | None:
    """All rows of a file that should have this schema; None, and faults, if a column cannot be read."""
    check_layout(file, schema, faults)
    columns = {name: read_column(file, name, faults) for name in file.columns}
    return None if any(column is None for column in columns.values()) else pa.table(columns)


def check_keys(file: ShardFile, expected: list[str], faults: FileFaults) -> list[str] | None:
    """The keys of a file, if they are `expected`, which is those that its spine keeps, in their order."""
    column = read_column(file, "key", faults)
    if column is None:
        return None
    keys = column.to_pylist()
    if keys == expected:
        return expected
    row = next((i for i, pair in enumerate(zip(expected, keys, strict=False)) if pair[0] != pair[1]), None)
    if row is None:
        faults.add(f"{len(keys)} rows, the spine keeps {len(expected)}", column="key")
    else:
        order = ": the same rows in another order" if sorted(keys) == sorted(expected) else ""
        what = f"the key is {keys[row]!r}, in the spine it is {expected[row]!r}{order}"
        faults.add(what, column="key", row=row, key=expected[row])
    return None
