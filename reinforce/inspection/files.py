"""One Parquet file of a dataset while it is verified: its digest, its footer's fields, its layout, its pages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from reinforce.inspection.faults import FileFaults
from reinforce.shards.digests import FILE_DIGEST, file_digests
from reinforce.shards.reader import FormatError, ShardFile
from reinforce.shards.schema import MAX_ROW_GROUP_ROWS
from reinforce.storage import StorageError, Store

Found = TypeVar("Found")


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
