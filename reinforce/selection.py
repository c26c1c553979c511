"""Selections: a Parquet of (stem, key) that narrows a build, a training run or an evaluation to the samples it names.

`select_split` writes one from the spines of a dataset: a share of its samples chosen by a hash of the key alone, so
that splits are the same whatever the order and number of shards. Costs the key column of every spine.
"""

import hashlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reinforce.config import ConfigError
from reinforce.shards.dataset import open_dataset
from reinforce.shards.schema import canonical_json
from reinforce.storage import open_parent

_SCHEMA = pa.schema([("stem", pa.string()), ("key", pa.string())])


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


def select_split(dataset_uri: str, output_uri: str, low: float, high: float, *, salt: str = "") -> int:
    """Writes the kept samples of a dataset whose key hashes into [low, high); returns how many.

    Splits that touch (0:0.9 and 0.9:1) share no sample and leave none out, and a key is on one side in every shard.
    Another `salt` gives another split. Replaces the file. Raises `ConfigError` if no sample is chosen.
    """
    if not 0 <= low < high <= 1:
        raise ConfigError(f"--split {low:g}:{high:g}: LOW:HIGH must satisfy 0 <= LOW < HIGH <= 1, such as 0:0.9")
    dataset = open_dataset(dataset_uri)
    pairs = []
    num_kept = 0
    for stem in dataset.stems:
        with dataset.open_spine(stem) as file:
            rows = file.read(["key", "drop_reason"]).to_pylist()
        kept = [row["key"] for row in rows if row["drop_reason"] is None]
        num_kept += len(kept)
        pairs += [{"stem": stem, "key": key} for key in kept if _is_between(key, salt, low, high)]
    if not pairs:
        raise ConfigError(f"--split {low:g}:{high:g}: none of the {num_kept:,} kept samples of {dataset_uri} is in it")
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(pairs, _SCHEMA), buffer, compression="zstd")
    store, name = open_parent(output_uri)
    store.put(name, buffer.getvalue())
    return len(pairs)


def parse_split(text: str) -> tuple[float, float]:
    """`LOW:HIGH` as numbers; `select_split` checks their bounds."""
    low, colon, high = text.partition(":")
    try:
        if colon:
            return float(low), float(high)
    except ValueError:
        pass
    raise ConfigError(f"--split {text}: give LOW:HIGH, such as 0:0.9")


def _is_between(key: str, salt: str, low: float, high: float) -> bool:
    hashed = int.from_bytes(hashlib.blake2b((key + salt).encode(), digest_size=8).digest(), "little")
    # Multiplied, not divided: a hash near 2**64 would be rounded to 1 and be in no split. Exact, as Python compares
    # integers with floats exactly.
    return low * 2.0**64 <= hashed < high * 2.0**64
