"""A reinforced dataset as a whole: what it was made with, which files are there, and rows joined across signals.

`dataset.json` and each `signal.json` are created once and compared ever after: a build that would mix two meanings in
one folder is refused with the fields that differ. What is done is what a listing shows; there is no ledger.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float16

from reinforce.shards.digests import document_text
from reinforce.shards.explicit import EXPLICIT
from reinforce.shards.reader import FormatError, ShardFile, to_numpy
from reinforce.shards.schema import BANK_FILE, FORMAT_VERSION, Signal, canonical_json, check_stem, spine_file
from reinforce.storage import Store, open_store

DATASET_FILE = "dataset.json"
SIGNAL_FILE = "signal.json"
_MOST_SHOWN = 80


class DatasetMismatchError(ValueError):
    """The recipe would change the meaning of what is in the dataset already; the message lists the fields."""


def open_dataset(uri: str) -> "Dataset":
    """Opens a reinforced dataset for reading; raises `FormatError` if there is none.

    >>> dataset = open_dataset("tests/golden/dataset")
    >>> dataset.stems
    ['scenes']
    >>> [signal.folder for signal in dataset.signals][:2]
    ['captions/fake', 'embeddings/large/image']
    >>> dataset.spine("scenes").column("drop_reason").to_pylist()[:3]
    [None, None, 'corrupt_image']
    >>> dataset.numpy("embeddings/large/image", "scenes", "view_001").shape
    (6, 12)
    >>> dataset.read("scenes", ["captions/fake"]).column_names[-1]
    'captions/fake/captions'
    """
    store = open_store(uri)
    document = read_document(store, DATASET_FILE)
    if document is None:
        raise FormatError(f"{store.uri}: not a reinforced dataset (it has no {DATASET_FILE})")
    if document.get("format_version") != FORMAT_VERSION:
        version = document.get("format_version")
        raise FormatError(f"{store.uri}: format version {version}; this software reads {FORMAT_VERSION}")
    return Dataset(store, document)


class Dataset:
    """An opened reinforced dataset. Listings are taken once, when first asked for."""

    def __init__(self, store: Store, document: dict[str, Any]) -> None:
        self.store = store
        self.document = document

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of every object, by path."""
        return {info.path: info.size for info in self.store.list()}

    @property
    def stores_views(self) -> bool:
        """Whether views are in `views/` instead of being drawn from seeds, as in imported datasets."""
        return self.document.get("views") == EXPLICIT

    @cached_property
    def stems(self) -> list[str]:
        """The stems of the shards with a spine, sorted."""
        return self._stems_below("samples")

    @cached_property
    def signals(self) -> dict[Signal, dict[str, Any]]:
        """Every signal with its `signal.json`."""
        found = {}
        for path in self.sizes:
            folder, _, name = path.rpartition("/")
            if name == SIGNAL_FILE and Signal.is_folder(folder):
                document = read_document(self.store, path)
                assert document is not None
                found[Signal.parse(folder)] = document
        return dict(sorted(found.items()))

    @property
    def banks(self) -> list[str]:
        """The names of its banks of labels, sorted; `read_bank` reads one."""
        folders = [path.split("/") for path in self.sizes if path.startswith("banks/")]
        return sorted(parts[1] for parts in folders if parts[2:] == [BANK_FILE])

    def stems_of(self, signal: Signal | str) -> list[str]:
        """The stems whose file of this signal is there, sorted."""
        return self._stems_below(_as_signal(signal).folder)

    def open(self, signal: Signal | str, stem: str) -> ShardFile:
        """The file of a signal for one shard, its footer read and its columns not."""
        return ShardFile(self.store, _as_signal(signal).file(stem))

    def open_spine(self, stem: str) -> ShardFile:
        """The spine file of one shard."""
        check_stem(stem)
        return ShardFile(self.store, spine_file(stem))

    def spine(self, stem: str) -> pa.Table:
        """Every source sample of a shard, dropped ones too, in source order."""
        with self.open_spine(stem) as file:
            return file.read()

    def table(self, signal: Signal | str, stem: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A signal's rows, one for each kept sample, in spine order; only `columns` (and never the rest) are read."""
        with self.open(signal, stem) as file:
            return file.read(list(columns) if columns is not None else None)

    def numpy(self, signal: Signal | str, stem: str, column: str) -> Float16[np.ndarray, "rows dim"]:
        """One embedding column as a matrix; a value that does not exist is a row of NaN."""
        return to_numpy(self.table(signal, stem, [column]).column(column))

    def read(self, stem: str, signals: Sequence[Signal | str]) -> pa.Table:
        """The kept samples of a shard with all columns of `signals`, joined by checked key.

        Signal columns are named `<signal folder>/<column>`. Raises `FormatError` if a signal's keys are not the
        spine's kept keys in the same order.
        """
        spine = self.spine(stem)
        joined = spine.filter(pc.is_null(spine.column("drop_reason")))
        for signal in map(_as_signal, signals):
            table = self.table(signal, stem)
            check_keys(joined.column("key").to_pylist(), table.column("key").to_pylist(), signal.file(stem))
            for name in table.column_names[1:]:
                joined = joined.append_column(f"{signal.folder}/{name}", table.column(name))
        return joined

    def _stems_below(self, folder: str) -> list[str]:
        prefix = f"{folder}/"
        return sorted(
            path.removeprefix(prefix).removesuffix(".parquet")
            for path in self.sizes
            if path.startswith(prefix) and path.endswith(".parquet")
        )


def check_keys(expected: list[str], found: list[str], path: str) -> None:
    """Refuses a signal whose rows are not those of the spine: nothing is aligned by position on faith."""
    if expected == found:
        return
    row = next((i for i, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), None)
    if row is None:
        raise FormatError(f"{path}: {len(found)} rows, the spine keeps {len(expected)}")
    raise FormatError(f"{path}: row {row} is {found[row]!r}, in the spine it is {expected[row]!r}")


def read_document(store: Store, path: str) -> dict[str, Any] | None:
    """A JSON document of the dataset, or None if there is none."""
    try:
        document = json.loads(store.read(path))
    except FileNotFoundError:
        return None
    except ValueError:
        raise FormatError(f"{store.uri_of(path)}: not JSON") from None
    if not isinstance(document, dict):
        raise FormatError(f"{store.uri_of(path)}: not a JSON object")
    return document


def create_or_compare(
    store: Store, path: str, document: dict[str, Any], compared: Sequence[str], advice: Mapping[str, str] | None = None
) -> None:
    """Creates a document, or refuses if one is there whose `compared` fields differ.

    Raises `DatasetMismatchError`, naming each differing field with both values, then what to do: the `advice` on the
    first field that has any, else the common one.
    """
    if store.put_if_absent(path, document_text(document).encode()):
        return
    existing = read_document(store, path)
    assert existing is not None
    changed = [
        line for field in compared for line in differences(field, existing.get(field), _plain(document.get(field)))
    ]
    if changed:
        special = (text for field, text in (advice or {}).items() if any(line.startswith(field) for line in changed))
        todo = next(special, "Use the same recipe, another name in the recipe, or another --output")
        raise DatasetMismatchError(f"{store.uri_of(path)} was made differently: {'; '.join(changed)}. {todo}")


def differences(field: str, existing: Any, wanted: Any) -> list[str]:
    """The fields, below `field`, in which two JSON documents differ, each with both values."""
    if isinstance(existing, dict) and isinstance(wanted, dict):
        names = sorted(existing.keys() | wanted.keys())
        return [line for name in names for line in differences(f"{field}.{name}", existing.get(name), wanted.get(name))]
    if existing == wanted:
        return []
    is_long = len(canonical_json([existing, wanted])) > _MOST_SHOWN
    if isinstance(existing, list) and isinstance(wanted, list) and is_long:
        return _first_difference(field, existing, wanted)
    return [f"{field} is {_shown(existing)} there and {_shown(wanted)} in this recipe"]


def _first_difference(field: str, existing: list[Any], wanted: list[Any]) -> list[str]:
    """Where two lists that are too long to be shown begin to differ."""
    pairs = enumerate(zip(existing, wanted, strict=False))
    index = next((index for index, (old, new) in pairs if old != new), None)
    if index is None:
        return [f"{field} has {len(existing):,} entries there and {len(wanted):,} in this recipe"]
    return differences(f"{field}[{index}]", existing[index], wanted[index])


def _plain(value: Any) -> Any:
    """The value as it would come back from JSON (tuples as lists)."""
    return json.loads(json.dumps(value))


def _shown(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def _as_signal(signal: Signal | str) -> Signal:
    return Signal.parse(signal) if isinstance(signal, str) else signal
