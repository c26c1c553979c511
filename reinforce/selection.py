"""Selections: a Parquet of (stem, key) that narrows a build to the samples it names."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reinforce.config import ConfigError
from reinforce.shards.schema import canonical_json
from reinforce.storage import open_parent


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
    try:
        store, name = open_parent(uri)
        with store.open_input(name) as file:
            table = pq.read_table(file)
    except FileNotFoundError:
        raise ConfigError(f"--select {uri}: no such file") from None
    except pa.ArrowInvalid as error:
        raise ConfigError(f"--select {uri}: not a Parquet file ({' '.join(str(error).split())[:100]})") from None
    columns = {}
    for name in ("stem", "key"):
        found = table.column(name) if name in table.column_names else None
        if found is None or not (pa.types.is_string(found.type) or pa.types.is_large_string(found.type)):
            schema = ", ".join(f"{field.name}: {field.type}" for field in table.schema)
            raise ConfigError(f"--select {uri}: needs a string column {name!r}; it has {schema}")
        if found.null_count:
            raise ConfigError(f"--select {uri}: column {name!r} has nulls")
        columns[name] = found.cast(pa.string())
    return Selection(pa.table(columns))
