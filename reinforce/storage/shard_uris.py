"""From what the user types to the shards it means, of images in tars or of sentences in files.

A shard URI is a folder or prefix (all `*.tar` below it), one `.tar`, a brace pattern, a glob, or `@list.txt` with one
of these a line. The stem of a shard is its path below the source root, without `.tar`. As in a shell, wildcards do not
match names that start with a dot; folders are searched by the same rule.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import unquote

from .braces import expand_braces
from .location import Location, parse_location
from .store import ObjectInfo, StorageError, Store, check_path

MANY_SIBLINGS = 8
"""From so many files named in one folder, one listing of it is cheaper than asking for each."""

_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class FileKind:
    """What is looked for: how names end, the longest endings first, and what messages call it."""

    suffixes: tuple[str, ...]
    noun: str
    nouns: str
    one: str
    any: str
    root: str

    def suffix(self, path: str) -> str:
        """How a file's name ends; empty for a file of another kind."""
        return next((suffix for suffix in self.suffixes if path.endswith(suffix)), "")


TARS = FileKind((".tar",), "shard", "shards", "a .tar", "*.tar", "--root")
SENTENCES = FileKind(
    (".jsonl.zst", ".jsonl.gz", ".txt.zst", ".txt.gz", ".parquet", ".jsonl", ".txt"),
    "file of sentences",
    "files of sentences",
    "a .txt, .jsonl or .parquet (the first two also with .gz or .zst)",
    "*.txt, *.jsonl or *.parquet",
    "root",
)


@dataclass(frozen=True, slots=True)
class ShardRef:
    """One source shard: where it is, and its name for ever."""

    store: Store
    """The source root."""
    path: str
    stem: str
    size: int

    @property
    def uri(self) -> str:
        return self.store.uri_of(self.path)


class NothingThereError(StorageError):
    """What was asked for is not there: no file, no folder, or none of its kind below it."""


@dataclass(frozen=True)
class _Request:
    """One URI of the user's: the folder it lies in, and what it means there."""

    given: Location
    root: str
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    globs: tuple[str, ...] = ()


def find_shards(uris: Sequence[str], root: str | None = None, kind: FileKind = TARS) -> tuple[str, list[ShardRef]]:
    """The source root's URI and the shards, by stem.

    The root is `root`, or the deepest folder that holds everything asked for: a folder asked for is its own root, a
    pattern's is the part before its first special character. Shards outside the root, or with one stem, are refused.
    So is a URI that has nothing: with `NothingThereError` if all that was asked for is not there.
    """
    requests = [_request(location, kind) for location in _read_lists(uris, kind)]
    if not requests:
        raise StorageError(f"no {kind.nouns}: give a folder, {kind.one}, a pattern or @list.txt")
    first = requests[0].given
    for request in requests:
        _check_same_bucket(first, request.given)
    root_location = _root(requests, root)
    listing = _Listing(first, kind)
    found: dict[str, int] = {}
    for info in _all_of(requests, listing):
        if info.path in found:
            raise StorageError(f"{first.at(info.path).uri} is named twice: two {kind.nouns} with one stem")
        found[info.path] = info.size
    store = root_location.open()
    shards: dict[str, ShardRef] = {}
    for path, size in found.items():
        shard = _shard(store, root_location, path, size, kind)
        if shard.stem in shards:
            raise StorageError(f"{shards[shard.stem].uri} and {shard.uri} have one stem: rename one of them")
        shards[shard.stem] = shard
    return store.uri, [shards[stem] for stem in sorted(shards)]


def _all_of(requests: Sequence[_Request], listing: "_Listing") -> list[ObjectInfo]:
    """What all requests mean. That one of several has nothing is a mistake; that none has is told apart from it."""
    found: list[ObjectInfo] = []
    empty: list[NothingThereError] = []
    for request in requests:
        try:
            found += listing.shards(request)
        except NothingThereError as error:
            empty.append(error)
    if empty:
        raise empty[0] if len(empty) == len(requests) else StorageError(str(empty[0]))
    return found


def _shard(store: Store, root: Location, path: str, size: int, kind: FileKind) -> ShardRef:
    if root.path and not path.startswith(f"{root.path}/"):
        raise StorageError(f"{root.at(path).uri} is outside the source root {root.uri}: pass {kind.root}")
    below = check_path(path[len(root.path) + 1 :] if root.path else path)
    return ShardRef(store, below, below.removesuffix(kind.suffix(below)), size)


def _read_lists(uris: Iterable[str], kind: FileKind) -> Iterator[Location]:
    for uri in uris:
        if not uri.startswith("@"):
            yield parse_location(uri)
            continue
        location = parse_location(uri[1:])
        folder, _, name = location.path.rpartition("/")
        try:
            lines = location.at(folder).open().read(name).decode("utf-8-sig").splitlines()
        except (FileNotFoundError, UnicodeDecodeError) as error:
            raise StorageError(f"cannot read the list of {kind.nouns} {location.uri}: {_reason(error)}") from None
        stripped = (line.strip() for line in lines)
        yield from (parse_location(line) for line in stripped if line and not line.startswith("#"))


def _reason(error: Exception) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else "it is not UTF-8 text"


def _request(given: Location, kind: FileKind) -> _Request:
    path = given.path
    is_folder, is_file = (given.is_local and check(f"/{path}") for check in (os.path.isdir, os.path.isfile))
    special = re.search(r"[*?\[{]", path)
    # What exists is meant, also with brackets in its name: a shell hands over such names as they are.
    if special is None or is_folder or is_file:
        if kind.suffix(path) and not is_folder:
            return _Request(given, _parent(path), files=(path,))
        if is_file:
            raise StorageError(f"{given.uri} is not {kind.one}; a list of {kind.nouns} is given as @FILE")
        return _Request(given, path, folders=(path,))
    members = expand_braces(path)
    globs = tuple(member for member in members if _WILDCARD.search(member))
    names = [member for member in members if not _WILDCARD.search(member)]
    files = tuple(name for name in names if kind.suffix(name))
    folders = tuple(name for name in names if not kind.suffix(name))
    return _Request(given, _parent(path[: special.start()]), files, folders, globs)


def _pattern(given: Location) -> str:
    """Its URI, with the special characters of a pattern as they were typed."""
    return re.sub("%(2A|3F|5B|5D|7B|7D|2C|21)", lambda quoted: unquote(quoted[0]), given.uri)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _root(requests: Sequence[_Request], root: str | None) -> Location:
    first = requests[0].given
    if root is None:
        folders = {request.root for request in requests}
        return first.at(os.path.commonpath([f"/{folder}" for folder in folders]).lstrip("/"))
    location = parse_location(root)
    if not location.options:
        location = Location(location.scheme, location.bucket, location.path, first.options)
    _check_same_bucket(location, first)
    return location


def _check_same_bucket(one: Location, other: Location) -> None:
    if (one.scheme, one.bucket, one.options) != (other.scheme, other.bucket, other.options):
        raise StorageError(f"{one.uri} and {other.uri} are not in one bucket reached one way: build them one by one")


class _Listing:
    """Looks things up in one bucket, or one machine's files, and lists no folder twice."""

    def __init__(self, anywhere: Location, kind: FileKind) -> None:
        self._kind = kind
        self._bucket, self._store = anywhere.at(""), anywhere.at("").open()
        self._listed: dict[tuple[str, bool], list[ObjectInfo]] = {}

    def shards(self, request: _Request) -> list[ObjectInfo]:
        """The shards a request means. That one of several files or folders has none is an error, too."""
        files = self._files(request.files)
        found = {name: [files[name]] if name in files else [] for name in request.files}
        found |= {folder: self._below(folder) for folder in request.folders}
        found |= {glob: self._matching(glob) for glob in request.globs}
        missing = [member for member, infos in found.items() if not infos]
        if missing:
            kind = NothingThereError if len(missing) == len(found) else StorageError
            raise kind(self._describe(request, len(found), missing))
        return list({info.path: info for infos in found.values() for info in infos}.values())

    def _files(self, names: Sequence[str]) -> dict[str, ObjectInfo]:
        siblings: dict[str, list[str]] = defaultdict(list)
        for name in names:
            siblings[_parent(name)].append(name)
        found: dict[str, ObjectInfo] = {}
        for folder, members in siblings.items():
            if len(members) >= MANY_SIBLINGS or (folder, False) in self._listed:
                listed = {info.path: info for info in self._list(folder, recursive=False)}
                found |= {name: listed[name] for name in members if name in listed}
                continue
            for name in members:
                with suppress(FileNotFoundError):
                    found[name] = ObjectInfo(name, self._store.size(name))
        return found

    def _below(self, folder: str) -> list[ObjectInfo]:
        start = len(folder) + 1 if folder else 0
        listed = self._list(folder, recursive=True)
        return [
            info
            for info in listed
            if self._kind.suffix(info.path) and _matches(info.path[start:].split("/"), ("**", "*"))
        ]

    def _matching(self, glob: str) -> list[ObjectInfo]:
        wildcard = _WILDCARD.search(glob)
        assert wildcard is not None
        folder = _parent(glob[: wildcard.start()])
        is_flat = bool(self._kind.suffix(glob)) and "/" not in glob[wildcard.start() :]
        pattern = glob.split("/")
        listed = self._list(folder, recursive=not is_flat)
        return [info for info in listed if self._kind.suffix(info.path) and _means(pattern, info.path.split("/"))]

    def _list(self, folder: str, recursive: bool) -> list[ObjectInfo]:
        if (folder, recursive) not in self._listed:
            self._listed[folder, recursive] = list(self._store.list(folder, recursive=recursive))
        return self._listed[folder, recursive]

    def _describe(self, request: _Request, count: int, missing: Sequence[str]) -> str:
        given, kind = request.given, self._kind
        if count > 1:
            few = ", ".join(self._bucket.at(member).uri for member in missing[:3])
            more = ", ..." * (len(missing) > 3)
            return f"{len(missing)} of {count} members of {_pattern(given)} have no {kind.noun}: {few}{more}"
        if request.globs:
            return f"no {kind.any} matches {_pattern(given)}"
        if given.is_local and not os.path.exists(f"/{given.path}"):
            return f"no such file or folder: {given.uri}"
        return f"no such object: {given.uri}" if request.files else f"no {kind.any} below {given.uri}"


def _means(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the glob means this shard: by its own name, or by a folder above it, as it would through a shell."""
    return any(
        _matches(parts[:depth], pattern) and not any(part.startswith(".") for part in parts[depth:])
        for depth in range(len(parts), 0, -1)
    )


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        if _matches(parts, pattern[1:]):
            return True
        return bool(parts) and not parts[0].startswith(".") and _matches(parts[1:], pattern)
    if not parts or (parts[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
