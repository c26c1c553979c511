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

from reinforce.shards.reader import FormatError
from reinforce.shards.schema import FORMAT_VERSION, Signal, view_column
from reinforce.shards.source import index_tar

NOTES_MEMBER = "__reinforce__"
PACKED_FILE = "packed.json"
_MOST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Notes:
    """What was packed. `document` is the JSON object as it is written."""

    document: Mapping[str, Any]

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
    def max_captions(self) -> int:
        return int(self.dataset["spine"]["source"]["max_captions"])


def parse_notes(data: bytes, where: str) -> Notes:
    """Raises `FormatError` for what is not ours, or of another version."""
    try:
        document = json.loads(data)
        version = document["format_version"]
        notes = Notes(document)
        if version == FORMAT_VERSION:
            for asked in (notes.widths, notes.columns, notes.captioners, notes.max_captions):
                assert asked is not None
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, AssertionError):
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
