"""Captions that someone already has: in a field of the source sample, or in Parquet files beside it.

The Parquet files are read once into one Arrow table sorted by key: a few hundred bytes a sample, a binary search each.
"""

import bisect
import fnmatch
import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reinforce import storage
from reinforce.captioners import CaptionRequest
from reinforce.captioners.cleaning import distinct_captions
from reinforce.config import CaptionerConfig
from reinforce.weights import ModelError

_STRINGS = pa.large_list(pa.large_string())


def load_files_captioner(name: str, config: CaptionerConfig) -> "FieldCaptioner | ParquetCaptioner":
    """Raises `ModelError` for a path that holds no usable captions."""
    if config.field is not None:
        return FieldCaptioner(name, config.field, config.num_captions)
    assert config.path is not None, "CaptionerConfig checks it"
    table, sha256 = _read(config.path)
    if config.sha256 not in (None, sha256):
        raise ModelError(f"path {config.path}: sha256 is {sha256}, the recipe says {config.sha256}")
    return ParquetCaptioner(name, config.path, table, sha256, config.num_captions)


class FieldCaptioner:
    """Hands over what the source sample holds under a field."""

    image_size: int | None = None
    micro_batch: int | None = None
    is_remote = False

    def __init__(self, name: str, field: str, num_captions: int) -> None:
        self.name, self.num_captions, self.field = name, num_captions, field

    def describe(self) -> dict[str, Any]:
        return self.content()

    def content(self) -> dict[str, Any]:
        return {"kind": "files", "field": self.field, "num_captions": self.num_captions}

    def caption(self, requests: Sequence[CaptionRequest]) -> list[list[str]]:
        return [distinct_captions(request.found, self.num_captions) for request in requests]


class ParquetCaptioner:
    """Looks captions up by key, and by stem where the table has that column. Several rows of one key are joined."""

    image_size: int | None = None
    micro_batch: int | None = None
    is_remote = False
    field: str | None = None

    def __init__(self, name: str, path: str, table: pa.Table, sha256: str, num_captions: int) -> None:
        """`table` has `key`, `captions` (list of strings) and perhaps `stem`; `sha256` is of its files."""
        self.name, self.num_captions = name, num_captions
        self._path, self._sha256 = path, sha256
        # A stable sort: rows of one key keep the order of the files. UTF-8 sorts as Python's strings do.
        table = table.sort_by("key").combine_chunks()
        self._keys, self._captions = table["key"].chunk(0), table["captions"].chunk(0)
        self._stems = table["stem"].chunk(0) if "stem" in table.column_names else None

    def describe(self) -> dict[str, Any]:
        return {**self.content(), "path": self._path, "rows": len(self._keys)}

    def content(self) -> dict[str, Any]:
        return {"kind": "files", "files_sha256": self._sha256, "num_captions": self.num_captions}

    def caption(self, requests: Sequence[CaptionRequest]) -> list[list[str]]:
        return [distinct_captions(self._find(request), self.num_captions) for request in requests]

    def _find(self, request: CaptionRequest) -> list[str]:
        rows = range(len(self._keys))
        first = bisect.bisect_left(rows, request.key, key=lambda row: self._keys[row].as_py())
        found: list[str] = []
        for row in rows[first:]:
            if self._keys[row].as_py() != request.key:
                break
            if self._stems is None or self._stems[row].as_py() == request.stem:
                found += [caption for caption in self._captions[row].as_py() or [] if caption is not None]
        return found


def _read(path: str) -> tuple[pa.Table, str]:
    """The captions of a Parquet file, a glob of them or a folder, and the sha256 of the files' sha256, in order."""
    tables, digests = [], []
    try:
        store, names = _list(path)
        for file_name in names:
            data = store.read(file_name)
            digests.append(hashlib.sha256(data).hexdigest())
            tables.append(_table(f"{path}: {file_name}", data))
    except OSError as error:
        raise ModelError(f"path {path}: {error}") from None
    if not any(table.num_rows for table in tables):
        raise ModelError(f"path {path}: no Parquet file with rows there")
    if len({tuple(table.column_names) for table in tables}) > 1:
        raise ModelError(f"path {path}: some of its files have a column stem and some have not")
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return pa.concat_tables(tables), digest


def _list(path: str) -> tuple[storage.Store, list[str]]:
    """The store that holds `path` and the files there: those a glob matches, the one file, or all of a folder."""
    location, _, query = path.partition("?") if "://" in path else (path, "", "")
    suffix = f"?{query}" if query else ""
    parts = location.split("/")
    globbed = next((i for i, part in enumerate(parts) if set(part) & set("*[")), None)
    if globbed is not None:
        folder, pattern = "/".join(parts[:globbed]), "/".join(parts[globbed:])
        store = storage.open_store((folder or ("/" if globbed else ".")) + suffix)
        return store, [info.path for info in store.list() if _matches(info.path, pattern)]
    folder, _, file_name = location.rpartition("/")
    if file_name.endswith(".parquet"):
        store = storage.open_store((folder or ("/" if location.startswith("/") else ".")) + suffix)
        return store, [file_name]
    store = storage.open_store(location + suffix)
    return store, [info.path for info in store.list() if info.path.endswith(".parquet")]


def _matches(name: str, pattern: str) -> bool:
    """As a shell does: `*` stays within a folder, `**/` is any number of them."""
    if "**/" not in pattern and name.count("/") != pattern.count("/"):
        return False
    return fnmatch.fnmatchcase(name, pattern.replace("**/", "*"))


def _table(where: str, data: bytes) -> pa.Table:
    """`key`, `captions` as lists and, if there, `stem`; rows without a key are left out."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = [name for name in ("key", "captions", "stem") if name in file.schema_arrow.names]
        if names[:2] != ["key", "captions"]:
            raise ModelError(f"path {where}: needs columns key and captions, has {', '.join(file.schema_arrow.names)}")
        table = file.read(columns=names)
        columns = {name: table[name].cast(pa.large_string()) for name in names if name != "captions"}
        columns["captions"] = _lists(table["captions"].combine_chunks())
        table = pa.table(columns)
    except (pa.ArrowException, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"path {where}: {' '.join(str(error).split())[:300]}") from None
    return table.filter(table["key"].is_valid())


def _lists(captions: pa.Array) -> pa.Array:
    if pa.types.is_nested(captions.type):
        return captions.cast(_STRINGS)
    texts = captions.cast(pa.large_string())
    return pa.LargeListArray.from_arrays(pa.array(range(len(texts) + 1), pa.int64()), texts)
