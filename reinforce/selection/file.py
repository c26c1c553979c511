"""The file of a selection: read by whatever narrows, written by `select_samples`.

Readers need the columns `stem` and `key` and look at no other. Costs the memory of the pairs.
"""

import hashlib
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reinforce.config import ConfigError
from reinforce.shards.schema import FOOTER_KEY, canonical_json
from reinforce.storage import StorageError, open_parent

SELECTION_SCHEMA = pa.schema(
    [
        pa.field("stem", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("weight", pa.float32()),
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("confidence", pa.float32()),
    ]
)
"""What is written. `weight` is null: nothing here gives weights or heeds them yet."""

SENTENCE_SELECTION_SCHEMA = pa.schema(
    [
        pa.field("stem", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("image_stem", pa.string(), nullable=False),
        pa.field("image_key", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
    ]
)
"""Likewise, of sentences: the cosine to the nearest image, which that is, and the best place, from 0, that the sentence
has among the nearest of an image."""

_PAIRS = ("stem", "key")


class Selection:
    """The samples a build or a training run keeps, by shard. `sha256` is that of its distinct pairs, sorted."""

    def __init__(self, pairs: pa.Table) -> None:
        pairs = pairs.group_by(["stem", "key"]).aggregate([])
        table = pairs.combine_chunks().sort_by([("stem", "ascending"), ("key", "ascending")])
        stems, self._starts = np.unique(table.column("stem").to_numpy(), return_index=True)
        self._index = {stem: i for i, stem in enumerate(stems)}
        self._keys = table.column("key")
        digest = hashlib.sha256()
        for stem, key in zip(table.column("stem").to_pylist(), self._keys.to_pylist(), strict=True):
            digest.update(canonical_json([stem, key]).encode() + b"\n")
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def stems(self) -> list[str]:
        return list(self._index)

    def keys(self, stem: str) -> frozenset[str]:
        """The selected keys of one shard."""
        index = self._index.get(stem)
        if index is None:
            return frozenset()
        stop = self._starts[index + 1] if index + 1 < len(self._starts) else len(self._keys)
        return frozenset(self._keys.slice(self._starts[index], stop - self._starts[index]).to_pylist())


def read_selection(uri: str, *, option: str = "--select") -> Selection:
    """Reads a selection file; raises `ConfigError`, naming `option`, if it has not the columns `stem` and `key`."""
    try:
        store, name = open_parent(uri)
        with store.open_input(name) as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            schema = parquet.schema_arrow
            for column in _PAIRS:
                _check_column(schema, column, f"{option} {uri}")
            table = parquet.read(list(_PAIRS))
    except FileNotFoundError:
        raise ConfigError(f"{option} {uri}: no such file") from None
    except StorageError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{option} {uri}: not a whole Parquet file ({' '.join(str(error).split())[:100]})") from None
    for column in _PAIRS:
        if table.column(column).null_count:
            raise ConfigError(f"{option} {uri}: column {column!r} has nulls")
    return Selection(pa.table({column: table.column(column).cast(pa.string()) for column in _PAIRS}))


def write_selection(uri: str, table: pa.Table, footer: dict[str, Any], schema: pa.Schema = SELECTION_SCHEMA) -> None:
    """Writes rows of a schema, replacing the file: the same rows and footer give the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(
        table.cast(schema.with_metadata({FOOTER_KEY: canonical_json(footer).encode()})),
        buffer,
        compression="zstd",
        write_page_checksum=True,
    )
    store, name = open_parent(uri)
    store.put(name, buffer.getvalue())


def _check_column(schema: pa.Schema, name: str, where: str) -> None:
    index = schema.get_field_index(name)
    if index < 0 or not (pa.types.is_string(schema.types[index]) or pa.types.is_large_string(schema.types[index])):
        found = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise ConfigError(f"{where}: needs a string column {name!r}; it has {found}")
