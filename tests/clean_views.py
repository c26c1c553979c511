"""Datasets of spines and clean views written by the schema's own writer, from given embeddings, without images."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from reinforce.shards.schema import FORMAT_VERSION, SPINE_SCHEMA, round_mantissa, view_column
from reinforce.shards.writer import ShardFileWriter, embeddings_batch, spine_batch
from reinforce.storage import open_store


def write_clean_views(
    dataset: Path, shards: Mapping[str, np.ndarray], teacher: str, *, keys: Mapping[str, list[str]] | None = None
) -> None:
    """A dataset of one image signal: stem -> a row for each sample, NaN for a null.

    A key is the number of the sample over all shards, in eight digits, unless `keys` gives those of its shard.
    """
    store = open_store(str(dataset), create=True)
    dim = next(iter(shards.values())).shape[1]
    signal = {
        "fingerprint": "0" * 64,
        "content": {"weights_sha256": "0" * 64},
        "columns": [view_column(0)],
        "model": {"dim": dim},
    }
    store.put("dataset.json", json.dumps({"format_version": 1, "spine_fingerprint": "0" * 64}).encode())
    store.put(f"embeddings/{teacher}/image/signal.json", json.dumps(signal).encode())
    start = 0
    for stem, views in shards.items():
        of_shard = (keys or {}).get(stem) or [f"{start + row:08d}" for row in range(len(views))]
        start += len(views)
        spine = spine_batch([{"key": key, "captions": [], "modalities": [], "view_seed": 0} for key in of_shard])
        stored = embeddings_batch(of_shard, {view_column(0): round_mantissa(views.astype(np.float32), 7)})
        _write(dataset, f"samples/{stem}.parquet", stem, SPINE_SCHEMA, spine)
        _write(dataset, f"embeddings/{teacher}/image/{stem}.parquet", stem, stored.schema, stored)


def _write(dataset: Path, path: str, stem: str, schema: pa.Schema, batch: pa.RecordBatch) -> None:
    writer = ShardFileWriter(dataset.with_name(f"{dataset.name}.spool.parquet"), schema)
    writer.append(batch)
    footer = {"format_version": FORMAT_VERSION, "fingerprint": "0" * 64, "stem": stem}
    assert writer.commit(open_store(str(dataset)), path, footer), f"{path} was there already"
    writer.spool.unlink()
