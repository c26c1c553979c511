"""Writes the files of one shard to a local spool, row group by row group, and commits each in one atomic step.

The mirror image of `reader.py`. Memory is bounded by a row group; a file becomes visible in the dataset only when it
is whole, by one create-if-absent of one object.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16

from reinforce.sample import ModalityImage, Sentence
from reinforce.shards.digests import seal_file, unsealed
from reinforce.shards.schema import (
    CAPTIONS_SCHEMA,
    FOOTER_KEY,
    MAX_ROW_GROUP_ROWS,
    MODALITY_SCHEMA,
    SENTENCES_SCHEMA,
    SPINE_SCHEMA,
    canonical_json,
    embeddings_schema,
)
from reinforce.storage import Store


class ShardFileWriter:
    """One Parquet file in the making. `append` buffers Arrow batches; `commit` closes and publishes it."""

    def __init__(self, spool: Path, schema: pa.Schema) -> None:
        self.spool = spool
        self.schema = schema
        self.num_rows = 0
        self._pending: list[pa.RecordBatch] = []
        self._num_pending = 0
        self._is_embeddings = any(pa.types.is_fixed_size_list(field.type) for field in schema)
        self._writer = pq.ParquetWriter(
            spool,
            schema,
            compression="zstd",
            compression_level=3,
            # Embeddings never repeat, and DuckDB refuses byte-stream-split half floats: PLAIN.
            use_dictionary=False,
            write_statistics=["key"] if self._is_embeddings else True,
            write_page_checksum=True,
            store_schema=True,
        )

    def append(self, batch: pa.RecordBatch) -> None:
        """Adds rows; writes a row group each time there are enough, so that groups never depend on batches."""
        self._pending.append(batch)
        self._num_pending += batch.num_rows
        self.num_rows += batch.num_rows
        while self._num_pending >= MAX_ROW_GROUP_ROWS:
            self._write_row_group(MAX_ROW_GROUP_ROWS)

    def commit(self, store: Store, path: str, footer: dict[str, Any]) -> bool:
        """Writes the footer, closes the file and creates it in the store. False if another had created it already.

        The whole file is read once more, from the page cache, for the digest that its footer carries.
        """
        if self._num_pending:
            self._write_row_group(self._num_pending)
        self._writer.add_key_value_metadata({FOOTER_KEY: canonical_json(unsealed(footer)).encode()})
        self._writer.close()
        seal_file(self.spool)
        return store.put_if_absent(path, self.spool)

    def abandon(self) -> None:
        """Releases the file without publishing it."""
        self._writer.close()

    def _write_row_group(self, num_rows: int) -> None:
        table = pa.Table.from_batches(self._pending, self.schema)
        self._writer.write_table(table.slice(0, num_rows).combine_chunks(), row_group_size=num_rows)
        rest = table.slice(num_rows)
        self._pending = rest.to_batches()
        self._num_pending = rest.num_rows


def spine_batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    """Rows of the spine, one dict a sample, by column name."""
    return pa.RecordBatch.from_pylist(rows, SPINE_SCHEMA)


def sentences_batch(sentences: list[Sentence]) -> pa.RecordBatch:
    """Rows of the spine of a file of sentences."""
    rows = [
        {
            "key": sentence.key,
            "text": None if sentence.drop else sentence.text,
            "drop_reason": sentence.drop.reason.value if sentence.drop else None,
            "drop_detail": sentence.drop.detail if sentence.drop else None,
        }
        for sentence in sentences
    ]
    return pa.RecordBatch.from_pylist(rows, SENTENCES_SCHEMA)


def captions_batch(keys: list[str], captions: list[list[str] | None]) -> pa.RecordBatch:
    """Rows of a captions file; None where the captioner gave none."""
    return pa.RecordBatch.from_arrays(
        [pa.array(keys, pa.string()), pa.array(captions, CAPTIONS_SCHEMA.field("captions").type)],
        schema=CAPTIONS_SCHEMA,
    )


def modality_batch(keys: list[str], images: list[ModalityImage]) -> pa.RecordBatch:
    """Rows of a modality's file."""
    rows = [{"key": key, **asdict(image)} for key, image in zip(keys, images, strict=True)]
    return pa.RecordBatch.from_pylist(rows, MODALITY_SCHEMA)


def embeddings_batch(keys: list[str], embeddings: dict[str, Float16[np.ndarray, "rows dim"]]) -> pa.RecordBatch:
    """Rows of an embedding file, by column; a row of NaN becomes a null."""
    dim = next(iter(embeddings.values())).shape[1]
    schema = embeddings_schema(list(embeddings), dim)
    arrays = [pa.array(keys, pa.string())]
    for name, values in embeddings.items():
        is_null = np.isnan(values).any(axis=1)
        flat = pa.array(np.where(is_null[:, None], np.float16(0), values).reshape(-1))
        arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=schema.field(name).type, mask=pa.array(is_null)))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
