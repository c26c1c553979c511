"""One source tar as samples, whatever the order and the names of its members.

The tar is on the local disk already, whole. It is indexed once (names and offsets, a few hundred bytes a member), its
members are grouped by key, and each sample's bytes are read when its turn comes, so memory does not grow with the
shard. webdataset's own grouping raises on repeated keys and splits keys that are not adjacent; hence ours.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from reinforce.config import SourceConfig
from reinforce.sample import Drop, DropReason, Sample

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
NOTES_MEMBER = "__reinforce__"
"""What tars of `reinforce pack` begin with. It belongs to no sample, and nothing is lost without it."""
_BLOCK = 512


class ShardError(ValueError):
    """A source shard that cannot be used as it is, in one line. Trying again will not help."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file inside the tar."""

    name: str
    offset: int
    num_bytes: int


@dataclass(slots=True)
class _Entry:
    """The members of one key, by suffix."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    is_duplicate: bool = False


class SourceShard:
    """The samples of one local tar, in order of the first appearance of their keys.

    Raises `ShardError` at once if the tar is empty, truncated, damaged or not a tar. `counts` holds what was left out
    short of a whole sample: `unused_members`, `captions_over_bound`, `captions_empty`, `captions_undecodable`; it is
    complete once `samples` is exhausted.
    """

    def __init__(self, path: Path, config: SourceConfig) -> None:
        self.path = path
        self.config = config
        self.counts: Counter[str] = Counter()
        self._entries = self._group(list(index_tar(path)))
        if not self._entries:
            raise ShardError("holds no samples: no member has a known suffix (jpg, jpeg, png, webp, txt, json, cls)")

    def __len__(self) -> int:
        return len(self._entries)

    def images(self) -> dict[str, Member]:
        """Where in the tar each key's image is, of the keys that have one."""
        found = {}
        for entry in self._entries:
            suffix = next((suffix for suffix in entry.members if suffix in IMAGE_SUFFIXES), None)
            if suffix is not None and not entry.is_duplicate:
                found[entry.key] = entry.members[suffix]
        return found

    def modality(self, name: str) -> dict[str, Member]:
        """Where in the tar each key's member of a declared modality is, of the keys that have one."""
        suffix = self.config.modalities[name]
        entries = [entry for entry in self._entries if not entry.is_duplicate]
        return {entry.key: entry.members[suffix] for entry in entries if suffix in entry.members}

    def samples(
        self,
        *,
        selected: Collection[str] | None = None,
        limit: int | None = None,
        extra_fields: tuple[str, ...] = (),
        with_labels: bool = False,
    ) -> Iterator[Sample]:
        """Every sample once. Those not in `selected` or past the first `limit` keys are dropped as `not_selected`.

        `extra_fields` are further caption fields (`json.FIELD`) whose texts the samples carry in `fields`, as they
        stand; `with_labels` reads the `.cls` members, which a build has no use for.
        """
        num_keys = 0
        with self.path.open("rb") as tar:
            for entry in self._entries:
                num_keys += not entry.is_duplicate
                if entry.is_duplicate:
                    yield Sample(entry.key, drop=Drop(DropReason.DUPLICATE_KEY, ", ".join(sorted(entry.members))))
                elif selected is not None and entry.key not in selected:
                    yield Sample(entry.key, drop=Drop(DropReason.NOT_SELECTED))
                elif limit is not None and num_keys > limit:
                    yield Sample(entry.key, drop=Drop(DropReason.NOT_SELECTED, f"after the first {limit} keys"))
                else:
                    yield self._read(entry, tar, extra_fields, with_labels)

    def _group(self, members: list[Member]) -> list[_Entry]:
        suffixes = sorted(
            (*IMAGE_SUFFIXES, "txt", "json", "cls", *self.config.modalities.values()), key=len, reverse=True
        )
        entries: dict[tuple[str, int], _Entry] = {}
        repeats: Counter[tuple[str, str]] = Counter()
        for member in members:
            if member.name == NOTES_MEMBER:
                continue
            split = split_name(member.name, suffixes)
            if split is None:
                self.counts["unused_members"] += 1
                continue
            key, suffix = split
            occurrence = repeats[split]
            repeats[split] += 1
            entry = entries.setdefault((key, occurrence), _Entry(key, is_duplicate=occurrence > 0))
            entry.members[suffix] = member
        return [entry for entry in entries.values() if not self._is_unused(entry, entries)]

    def _is_unused(self, entry: _Entry, entries: dict[tuple[str, int], _Entry]) -> bool:
        """Whether this is `a.ir.jpg` beside `a.jpg`, with `ir` undeclared: a member of `a` that nobody asked for."""
        folder, slash, name = entry.key.rpartition("/")
        bare = entries.get((folder + slash + name.rpartition(".")[0], 0))
        is_unused = (
            bare is not None
            and all(suffix in IMAGE_SUFFIXES for suffix in entry.members)
            and any(suffix in IMAGE_SUFFIXES for suffix in bare.members)
        )
        self.counts["unused_members"] += len(entry.members) if is_unused else 0
        return is_unused

    def _read(self, entry: _Entry, tar: BinaryIO, extra_fields: tuple[str, ...], with_labels: bool) -> Sample:
        def read(suffix: str) -> bytes | None:
            member = entry.members.get(suffix)
            if member is None:
                return None
            tar.seek(member.offset)
            return tar.read(member.num_bytes)

        modalities = {name: data for name, suffix in self.config.modalities.items() if (data := read(suffix))}
        wants_json = any(name != "txt" for name in (*self.config.captions, *extra_fields))
        document = _parse_json(read("json")) if wants_json and "json" in entry.members else None
        captions = [text.strip() for text in self._texts(self.config.captions, read("txt"), document, self.counts)]
        # Not counted: what a spine counts must not depend on who else asked for fields when it was built.
        fields = {name: tuple(self._texts((name,), None, document, Counter())) for name in extra_fields}
        self.counts["captions_over_bound"] += max(0, len(captions) - self.config.max_captions)
        images = [suffix for suffix in entry.members if suffix in IMAGE_SUFFIXES]
        self.counts["unused_members"] += max(0, len(images) - 1)
        image = read(images[0]) if images else None
        return Sample(
            key=entry.key,
            image=image or b"",
            captions=tuple(captions[: self.config.max_captions]),
            fields=fields,
            modalities=modalities,
            drop=Drop(DropReason.MISSING_IMAGE, ", ".join(sorted(entry.members))) if image is None else None,
            label=read("cls") if with_labels else None,
        )

    @staticmethod
    def _texts(names: tuple[str, ...], txt: bytes | None, document: Any, counts: Counter[str]) -> list[str]:
        """The texts of some fields as they stand, the others counted by what is wrong with them."""
        found: list[Any] = []
        for name in names:
            if name == "txt":
                found += [txt] if txt is not None else []
            elif isinstance(document, dict):
                value = document.get(name.removeprefix("json."))
                found += value if isinstance(value, list) else [] if value is None else [value]
            elif document is not None:
                counts["captions_undecodable"] += 1
        texts = []
        for value in found:
            text = _text(value)
            if text and text.strip():
                texts.append(text)
            else:
                counts["captions_undecodable" if text is None else "captions_empty"] += 1
        return texts


def index_tar(path: Path) -> Iterator[Member]:
    """The regular files of a tar, in order. Raises `ShardError` for whatever is not a whole tar.

    A tar cut at a member boundary, or with a damaged header, reads silently as a shorter one: the end marker, a block
    of zeros, is what tells.
    """
    num_bytes = path.stat().st_size
    if num_bytes == 0:
        raise ShardError("is empty (0 bytes)")
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            for info in tar:
                if info.offset_data + info.size > num_bytes:
                    raise ShardError(f"is truncated inside member {_printable(info.name)}")
                if info.isreg() and not info.issparse():
                    yield Member(_printable(info.name), info.offset_data, info.size)
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
            end = tar.offset
    except tarfile.TarError as error:
        what = "is truncated" if "unexpected end" in str(error) else f"is not a tar ({_one_line(error)})"
        raise ShardError(what) from None
    with path.open("rb") as file:
        file.seek(end)
        marker = file.read(_BLOCK)
    if len(marker) < _BLOCK:
        raise ShardError(f"is truncated: its end marker is missing at byte {end}")
    if any(marker):
        raise ShardError(f"is damaged: no tar header at byte {end}")


def split_name(name: str, suffixes: list[str]) -> tuple[str, str] | None:
    """Splits a member's name into (key, suffix in lower case), or None if it has no known suffix.

    `suffixes` come longest first. Folders and other dots belong to the key; a leading `./` does not.
    """
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    lower = name.lower()
    for suffix in suffixes:
        key = name[: -len(suffix) - 1]
        if lower.endswith(f".{suffix}") and key and not key.endswith("/"):
            return key, suffix
    return None


def _text(value: Any) -> str | None:
    """A text as it stands, or None if it is none that UTF-8 can hold."""
    try:
        if isinstance(value, bytes):
            value = value.decode("utf-8-sig")
        if not isinstance(value, str):
            return None
        value.encode("utf-8")
    except UnicodeError:
        return None
    return value


def _parse_json(data: bytes | None) -> Any:
    try:
        return json.loads(data or b"")
    except (ValueError, RecursionError):
        return ()  # not None: present, but unreadable


def _printable(name: str) -> str:
    """A name that UTF-8 can hold; bytes that are not UTF-8 stay distinct as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
