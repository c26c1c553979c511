"""`__reinforce__`: the one member a packed tar has beside those of the published layout, and `packed.json`.

It says what that layout cannot: what the dataset was made with, which teachers and captioners there are, in which order
and how wide, and their scales. It comes first in the tar. WebDataset passes over members of such a name.
"""

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from reinforce.config import SourceConfig
from reinforce.exchange.layout import source_config
from reinforce.shards.dataset import DATASET_FILE, Dataset, open_dataset
from reinforce.shards.explicit import EXPLICIT
from reinforce.shards.reader import FormatError
from reinforce.shards.schema import FORMAT_VERSION, Signal, view_column
from reinforce.shards.source import NOTES_MEMBER, index_tar
from reinforce.storage import Store, open_store

PACKED_FILE = "packed.json"
_MOST_BYTES = 16 * 2**20
_OF_PACKING = ("format_version", "dataset", "signals", "teachers", "captioners", "embeddings", "shortest_side")
"""Fields that are the same in every tar of a packing and in `packed.json`; the others are a file's own."""


@dataclass(frozen=True)
class Notes:
    """What was packed. `document` is the JSON object as it is written."""

    document: Mapping[str, Any]

    def is_of(self, packing: "Notes") -> bool:
        """Whether the tar of these notes is of this packing."""
        return all(self.document.get(name) == packing.document.get(name) for name in _OF_PACKING)

    @cached_property
    def dataset(self) -> dict[str, Any]:
        """What is kept of `dataset.json`."""
        found: dict[str, Any] = self.document["dataset"]
        return found

    @cached_property
    def signals(self) -> dict[Signal, dict[str, Any]]:
        """Every `signal.json`."""
        return {Signal.parse(folder): document for folder, document in self.document["signals"].items()}

    @cached_property
    def widths(self) -> dict[str, int]:
        """Teacher -> length of an embedding, in the order of the columns."""
        return {name: int(dim) for name, dim in self.document["teachers"]}

    @cached_property
    def captioners(self) -> dict[str, int]:
        """Captioner -> bound on its captions, in the order of `syn_text`."""
        documents = self.signals
        return {
            name: int(documents[Signal("captions", name)]["content"]["num_captions"])
            for name in self.document["captioners"]
        }

    @cached_property
    def columns(self) -> list[str]:
        """The view columns that every teacher has."""
        found = [document["columns"] for signal, document in self.signals.items() if signal.kind == "image"]
        return [column for column in found[0] if all(column in columns for columns in found)]

    @cached_property
    def num_views(self) -> int:
        return sum(column != view_column(0) for column in self.columns)

    @cached_property
    def has_clean(self) -> bool:
        return view_column(0) in self.columns

    @cached_property
    def source(self) -> SourceConfig:
        """How the packed tars are read."""
        kept = self.dataset["spine"]["source"]
        return source_config(("json.captions",), int(kept["max_captions"]), int(kept["max_pixels"]))


def parse_notes(data: bytes, where: str) -> Notes:
    """Raises `FormatError` for what is not ours, or of another version."""
    try:
        document = json.loads(data)
        version = document["format_version"]
        notes = Notes(document)
        if version == FORMAT_VERSION:
            for asked in (notes.widths, notes.columns, notes.captioners, notes.source):
                assert asked is not None
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, AssertionError):
        raise FormatError(f"{where}: not what `reinforce pack` writes") from None
    if version != FORMAT_VERSION:
        raise FormatError(f"{where}: format version {version}; this software reads {FORMAT_VERSION}")
    return notes


def read_notes(tar: Path) -> Notes | None:
    """The notes of a tar, or None if it is not one of ours. Raises `ShardError` or `FormatError`."""
    member = next(index_tar(tar), None)
    if member is None or member.name != NOTES_MEMBER or member.num_bytes > _MOST_BYTES:
        return None
    with tar.open("rb") as file:
        file.seek(member.offset)
        return parse_notes(file.read(member.num_bytes), f"{tar.name}: {NOTES_MEMBER}")


def read_front(store: Store, path: str) -> Notes:
    """The notes of a tar in a store, without fetching the rest; raises `FormatError` if it is not one of ours."""
    where = store.uri_of(path)
    try:
        info = tarfile.TarInfo.frombuf(store.read_range(path, 0, tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        raise FormatError(f"{where}: not a tar of `reinforce pack`") from None
    if info.name != NOTES_MEMBER or info.size > _MOST_BYTES:
        raise FormatError(f"{where}: not a tar of `reinforce pack`")
    return parse_notes(store.read_range(path, tarfile.BLOCKSIZE, info.size), where)


class PackedDataset(Dataset):
    """A folder of packed tars as a dataset: its documents, and a shard for each tar."""

    def __init__(self, store: Store, notes: Notes) -> None:
        # The tars hold their views as parameters, however these came to be.
        super().__init__(store, {**notes.dataset, "view_policy": None, "views": EXPLICIT, "source_root": store.uri})
        self.notes = notes

    @cached_property
    def signals(self) -> dict[Signal, dict[str, Any]]:
        return self.notes.signals

    @cached_property
    def stems(self) -> list[str]:
        return sorted(path.removesuffix(".tar") for path in self.sizes if path.endswith(".tar"))


def open_dataset_or_packed(uri: str) -> Dataset:
    """A dataset of format 1, or a `PackedDataset`; raises `FormatError` if it is neither."""
    store = open_store(uri)
    if store.exists(DATASET_FILE) or not store.exists(PACKED_FILE):
        return open_dataset(uri)
    return PackedDataset(store, parse_notes(store.read(PACKED_FILE), store.uri_of(PACKED_FILE)))


class NotesWriter:
    """Writes the notes at the front of a tar before its counts are known: room is kept for them."""

    def __init__(self, tar: tarfile.TarFile, document: Mapping[str, Any], room: int = 1024) -> None:
        self._document = document
        self._num_bytes = len(_encoded(document)) + room
        tar.addfile(member_info(NOTES_MEMBER, self._num_bytes), io.BytesIO(b" " * self._num_bytes))

    def finish(self, path: Path, counts: Mapping[str, Any]) -> None:
        """Fills the room in the closed tar with the whole document."""
        data = _encoded({**self._document, **counts})
        assert len(data) <= self._num_bytes, "no room for the counts"
        with path.open("r+b") as file:
            file.seek(tarfile.BLOCKSIZE)
            file.write(data.ljust(self._num_bytes))


def member_info(name: str, num_bytes: int) -> tarfile.TarInfo:
    """A header with nothing in it that depends on when or by whom it is written."""
    info = tarfile.TarInfo(name)
    info.size = num_bytes
    info.mode = 0o644
    return info


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
