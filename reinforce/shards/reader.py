"""Reads the files of a reinforced dataset: footers, columns, and rows joined by checked key.

The mirror image of `writer.py`. Page checksums are verified on every read; a file of another format version is refused.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16

from reinforce.shards.schema import FOOTER_KEY, FORMAT_VERSION
from reinforce.storage import StorageError, Store


class FormatError(ValueError):
    """A file that is not what the format says it should be, in one line that names it."""


class ShardFile:
    """One Parquet file of a dataset, opened: its footer at once, its columns on request. A context manager.

    `copy` holds its bytes, if they are at hand already.
    """

    def __init__(self, store: Store, path: str, *, copy: BinaryIO | None = None) -> None:
        self.path = store.uri_of(path)
        self._input = copy or store.open_input(path)
        try:
            self._file = pq.ParquetFile(self._input, page_checksum_verification=True, pre_buffer=False)
            self.footer = _read_footer(self._file)
            version = self.footer.get("format_version")
            if version != FORMAT_VERSION:
                raise FormatError(f"{self.path}: format version {version}; this software reads {FORMAT_VERSION}")
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            self._input.close()
            if isinstance(error, FormatError | StorageError):
                raise
            raise FormatError(f"{self.path}: not a file of this format ({_one_line(error)})") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._input.close()

    def of(self, expected: Mapping[str, Any]) -> Self:
        """Itself, if its footer has these values; else it is closed, and `FormatError` is raised."""
        for name, value in expected.items():
            if self.footer.get(name) != value:
                self._input.close()
                found = self.footer.get(name)
                raise FormatError(f"{self.path}: its {name} is {found}, not {value}: another file's")
        return self

    @property
    def num_rows(self) -> int:
        return int(self._file.metadata.num_rows)

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, without metadata."""
        return self._file.schema_arrow.remove_metadata()

    @property
    def row_groups(self) -> list[int]:
        """The rows of each row group."""
        metadata = self._file.metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    @property
    def columns(self) -> list[str]:
        return list(self._file.schema_arrow.names)

    @property
    def num_bytes(self) -> dict[str, int]:
        """Compressed bytes by top-level column."""
        sizes = dict.fromkeys(self.columns, 0)
        metadata = self._file.metadata
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                sizes[column.path_in_schema.split(".")[0]] += column.total_compressed_size
        return sizes

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """Columns as an Arrow table; raises `FormatError` for a missing column or a damaged page."""
        return self._read(columns, None)

    def head(self, columns: list[str], num_rows: int) -> pa.Table:
        """The first `num_rows` rows of some columns, or all if there are fewer; no row group after them is read."""
        groups: list[int] = []
        have = 0
        while have < num_rows and len(groups) < self._file.metadata.num_row_groups:
            have += self._file.metadata.row_group(len(groups)).num_rows
            groups.append(len(groups))
        return self._read(columns, groups).slice(0, num_rows)

    def _read(self, columns: list[str] | None, groups: list[int] | None) -> pa.Table:
        missing = set(columns or ()) - set(self.columns)
        if missing:
            raise FormatError(f"{self.path}: no column {sorted(missing)[0]}; it has {', '.join(self.columns)}")
        with self._damage():
            # For the one or two columns that a reader wants, handing them to threads costs as much as decoding them.
            if groups is None:
                return self._file.read(columns, use_threads=columns is None)
            return self._file.read_row_groups(groups, columns, use_threads=False)

    def read_groups(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The rows a row group at a time: all columns of a large shard need not be in memory together."""
        for group in range(self._file.metadata.num_row_groups):
            with self._damage():
                table = self._file.read_row_group(group, columns, use_threads=False)
            yield table

    @contextmanager
    def _damage(self) -> Iterator[None]:
        """What a damaged page raises, as a `FormatError`."""
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, StorageError):
                raise
            raise FormatError(f"{self.path}: damaged ({_one_line(error)})") from None

    def first_damaged_row(self, column: str) -> int | None:
        """The first row of the first row group in which a column cannot be read."""
        row = 0
        for group, num_rows in enumerate(self.row_groups):
            try:
                self._file.read_row_group(group, [column])
            except (pa.ArrowException, OSError):
                return row
            row += num_rows
        return None


def to_numpy(column: pa.ChunkedArray) -> Float16[np.ndarray, "rows dim"]:
    """An embedding column as a matrix; nulls become rows of NaN. Raises `FormatError` for a column of other values."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not pa.types.is_fixed_size_list(array.type) or not pa.types.is_float16(array.type.value_type):
        raise FormatError(f"a column of {array.type}, where embeddings are expected")
    dim = array.type.list_size
    if len(array) == 0:
        return np.empty((0, dim), np.float16)
    # `.flatten()` would drop the null rows and shift all that follow; `.values` keeps their place, but as nulls again:
    # hence the buffer itself.
    values = np.frombuffer(array.values.buffers()[1], np.float16)[array.values.offset :]
    rows = values[: len(array.values)].reshape(-1, dim)[array.offset : array.offset + len(array)]
    is_null = array.is_null().to_numpy(zero_copy_only=False)
    return np.where(is_null[:, None], np.float16(np.nan), rows) if is_null.any() else rows


def _read_footer(file: pq.ParquetFile) -> dict[str, Any]:
    footer = json.loads((file.metadata.metadata or {})[FOOTER_KEY])
    if not isinstance(footer, dict):
        raise ValueError("its footer is no JSON object")
    return footer


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
