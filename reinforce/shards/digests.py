"""The digest that every file of a dataset carries of itself, so that one changed bit anywhere in it is found.

Page checksums cover the pages of a Parquet file alone: not their headers, the statistics, the names or our own JSON.
Sealing a Parquet file reads it once more, from the page cache, just after it was written.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

from reinforce.shards.schema import canonical_json

FILE_DIGEST = "file_sha256"
"""Field of a Parquet file's footer."""
DOCUMENT_DIGEST = "sha256"
"""Field of a JSON document, its last one."""
END_OF_PART = "end_of_part"
"""Event of the last line of a part in `runs/`."""

_UNSEALED = "0" * 64
_FIELD = f'"{FILE_DIGEST}":"'.encode()
_TRAILER_BYTES = 8  # the length of the Parquet footer, 4 bytes little-endian, and the magic PAR1
_CHUNK_BYTES = 1 << 20


def unsealed(footer: dict[str, Any]) -> dict[str, Any]:
    """A footer with room for the digest of its file."""
    return footer | {FILE_DIGEST: _UNSEALED}


def seal_file(path: Path) -> None:
    """Puts the digest into a closed Parquet file whose footer was `unsealed`. Reads the whole file once."""
    with path.open("r+b") as file:
        place = _place_of_digest(file)
        assert place is not None, path
        file.seek(place)
        assert file.read(len(_UNSEALED)) == _UNSEALED.encode(), path
        digest = _digest_without(file, place)
        file.seek(place)
        file.write(digest.encode())


def file_digests(file: BinaryIO) -> tuple[str, str] | None:
    """The digest of a Parquet file's bytes and the one that it carries; None if it carries none."""
    place = _place_of_digest(file)
    if place is None:
        return None
    file.seek(place)
    recorded = file.read(len(_UNSEALED)).decode("latin-1")
    return _digest_without(file, place), recorded


def document_text(document: dict[str, Any]) -> str:
    """A JSON document of the dataset as it is written, with the digest of its canonical JSON as the last field."""
    content = json.loads(json.dumps(document, allow_nan=False))  # tuples as they come back, as lists
    content.pop(DOCUMENT_DIGEST, None)
    digest = hashlib.sha256(canonical_json(content).encode()).hexdigest()
    return _indented(content | {DOCUMENT_DIGEST: digest})


def document_fault(data: bytes, document: dict[str, Any]) -> str | None:
    """What is wrong with the bytes of a document, by its own digest; None if nothing is, or it carries no digest.

    `document` is what the bytes were parsed to. Its text too must be what a writer would write for it.
    """
    try:
        if DOCUMENT_DIGEST in document and document_text(document) != _indented(document):
            return "its sha256 is not the one it carries: it was damaged or edited"
        is_as_written = _indented(document).encode() == data
    except ValueError:  # NaN, or half a surrogate pair: no writer's
        is_as_written = False
    return None if is_as_written else "its text is not as it is written: it was damaged or edited"


def sealed_lines(lines: str) -> bytes:
    """The lines of a part of `runs/`, each with its line feed, and the one that ends it with their digest."""
    data = lines.encode()
    return data + _end_of_part(data)


def lines_fault(data: bytes) -> str | None:
    """What is wrong with the bytes of a part of `runs/`, by its last line; None if nothing is, or it has no digest."""
    lines, last = _split_last_line(data)
    if not has_end_of_part(data) or last == _end_of_part(lines):
        return None
    return "its sha256 is not the one it carries: it was damaged or edited"


def has_end_of_part(data: bytes) -> bool:
    """Whether a part of `runs/` ends with its digest."""
    return _split_last_line(data)[1].startswith(f'{{"event": "{END_OF_PART}"'.encode())


def _split_last_line(data: bytes) -> tuple[bytes, bytes]:
    start = data.rfind(b"\n", 0, -1) + 1
    return data[:start], data[start:]


def _end_of_part(data: bytes) -> bytes:
    event = {"event": END_OF_PART, "sha256": hashlib.sha256(data).hexdigest()}
    return json.dumps(event).encode() + b"\n"


def _indented(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _place_of_digest(file: BinaryIO) -> int | None:
    """Where the digest's 64 digits begin: behind the last `"file_sha256":"` of the Parquet footer.

    The key-value metadata follows the statistics, whose values are data and may hold anything.
    """
    num_bytes = file.seek(0, 2)
    if num_bytes < _TRAILER_BYTES:
        return None
    file.seek(num_bytes - _TRAILER_BYTES)
    length = int.from_bytes(file.read(4), "little")
    start = max(0, num_bytes - _TRAILER_BYTES - length)
    file.seek(start)
    found = file.read(num_bytes - start).rfind(_FIELD)
    return None if found < 0 else start + found + len(_FIELD)


def _digest_without(file: BinaryIO, place: int) -> str:
    """The sha256 of the whole file with 64 zeros in `place`."""
    digest = hashlib.sha256()
    file.seek(0)
    left = place
    while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
        digest.update(chunk)
        left -= len(chunk)
    digest.update(_UNSEALED.encode())
    file.seek(place + len(_UNSEALED))
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
