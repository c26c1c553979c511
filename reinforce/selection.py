"""Selections: a Parquet of (stem, key) that narrows a build to the samples it names."""

import hashlib
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reinforce.config import ConfigError
from reinforce.shards.schema import canonical_json
from reinforce.storage import open_store


class Selection:
    """The samples a build or a training run keeps, by shard. `sha256` is that of its sorted (stem, key) pairs."""

    def __init__(self, pairs: pa.Table) -> None:
        table = pairs.select(["stem", "key"]).combine_chunks().sort_by([("stem", "ascending"), ("key", "ascending")])
        stems, self._starts = np.unique(table.column("stem").to_numpy(), return_index=True)
        self._index = {stem: i for i, stem in enumerate(stems)}
        self._keys = table.column("key")
        digest = hashlib.sha256()
        for stem, key in zip(table.column("stem").to_pylist(), self._keys.to_pylist(), strict=True):
            digest.update(canonical_json([stem, key]).encode() + b"\n")
        self.sha256 = digest.hexdigest()

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


def read_selection(uri: str) -> Selection:
    """Reads a selection file; raises `ConfigError` if it has not the columns `stem` and `key`."""
    path, _, query = uri.partition("?")
    parent, _, name = path.rpartition("/")
    root = parent or ("/" if path.startswith("/") else str(PurePosixPath(".")))
    try:
        store = open_store(root + (f"?{query}" if query else ""))
        with store.open_input(name) as file:
            table = pq.read_table(file)
    except FileNotFoundError:
        raise ConfigError(f"--select {uri}: no such file") from None
    except pa.ArrowInvalid as error:
        raise ConfigError(f"--select {uri}: not a Parquet file ({' '.join(str(error).split())[:100]})") from None
    for name in ("stem", "key"):
        if name not in table.column_names or not pa.types.is_string(table.column(name).type):
            raise ConfigError(f"--select {uri}: needs a string column {name!r}; it has {table.column_names}")
    if pc.any(pc.is_null(table.column("key"))).as_py():
        raise ConfigError(f"--select {uri}: column 'key' has nulls")
    return Selection(table)
