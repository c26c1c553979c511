"""One local file of sentences as records: lines of text, a JSON object a line, or rows of Parquet.

Read as a stream: in memory are 16 MiB of a line, or a page and some rows of one column, and a digest a distinct
sentence (about 100 bytes), by which exact duplicates are found. A file that is cut or damaged is an error, never a
shorter one.
"""

import codecs
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from reinforce.config import CorpusConfig
from reinforce.sample import Drop, DropReason, Sentence
from reinforce.shards.source import ShardError

MAX_LINE_BYTES = 16 * 1024**2
"""What is looked at of a line: a longer one is too long a sentence, whatever comes after."""

_ROWS_AT_ONCE = 64
_DIGEST_BYTES = 16
_NUL = "\0"


@dataclass(frozen=True, slots=True)
class _Record:
    """The bytes of a record's text. `is_whole` is false of a line that is longer than what is looked at."""

    data: bytes
    is_whole: bool = True


def read_sentences(path: Path, suffix: str, config: CorpusConfig, *, limit: int | None = None) -> Iterator[Sentence]:
    """Every record of a file once, in order; those past the first `limit` are dropped as `not_selected`.

    `suffix` says what the file is, such as `.txt.gz`. Raises `ShardError` where it is cut, damaged or empty, or has no
    such column; of JSON that is known when all of it is read.
    """
    number, seen = 0, set[bytes]()
    with _damage():
        for number, record in enumerate(_records(path, suffix, config.column), start=1):
            if limit is not None and number > limit:
                yield Sentence(str(number), drop=Drop(DropReason.NOT_SELECTED, f"after the first {limit} records"))
            elif isinstance(record, Drop):
                yield Sentence(str(number), drop=record)
            else:
                yield _sentence(str(number), record, config, seen)
    if number == 0:
        raise ShardError("holds no sentences: it has no records")


def _sentence(key: str, record: _Record, config: CorpusConfig, seen: set[bytes]) -> Sentence:
    """A record's text as a sentence, or why it is none. `seen` are the digests of those before it, and then its own."""
    try:
        # Of a line that is not whole the last character may be cut in two.
        text, _ = codecs.utf_8_decode(record.data, "strict", record.is_whole)
    except UnicodeDecodeError as error:
        return Sentence(key, drop=Drop(DropReason.NOT_UTF8, f"at byte {error.start}"))
    if _NUL in text:  # what UTF-16 looks like
        return Sentence(key, drop=Drop(DropReason.NOT_UTF8, f"a NUL at character {text.index(_NUL)}"))
    text = text.strip()
    is_cut = not record.is_whole or len(text) > config.max_characters
    if not text and record.is_whole:
        return Sentence(key, drop=Drop(DropReason.EMPTY_SENTENCE))
    if is_cut and (config.too_long == "drop" or len(text) < config.max_characters):
        size = f"{len(text)} characters" if record.is_whole else f"more than {MAX_LINE_BYTES} bytes"
        return Sentence(key, drop=Drop(DropReason.TOO_LONG_SENTENCE, size))
    text = text[: config.max_characters].rstrip()
    digest = hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()
    if digest in seen:
        return Sentence(key, drop=Drop(DropReason.DUPLICATE_SENTENCE))
    seen.add(digest)
    return Sentence(key, text, is_cut)


def _records(path: Path, suffix: str, column: str) -> Iterator[_Record | Drop]:
    if suffix == ".parquet":
        yield from _rows(path, column)
        return
    with _open(path, suffix) as file:
        lines = _lines(file)
        yield from _fields(lines, column) if suffix.startswith(".jsonl") else lines


def _open(path: Path, suffix: str) -> BinaryIO:
    """The file's content, decompressed on the way."""
    if suffix.endswith(".gz"):
        return io.BufferedReader(cast(io.RawIOBase, gzip.open(path)))
    if suffix.endswith(".zst"):
        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    return path.open("rb")


def _lines(file: BinaryIO) -> Iterator[_Record]:
    line, mark = file.readline(MAX_LINE_BYTES + 1), codecs.BOM_UTF8
    while line:
        is_whole = line.endswith(b"\n") or len(line) <= MAX_LINE_BYTES
        if data := line.removeprefix(mark):
            yield _Record(data, is_whole)
        mark = b""
        if not is_whole:
            while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
        line = file.readline(MAX_LINE_BYTES + 1)


def _fields(lines: Iterator[_Record], name: str) -> Iterator[_Record | Drop]:
    """The string in a field of the JSON object of each line. If not one object has the field its name is a mistake."""
    names_of_first: list[str] | None = None
    is_there = False
    for line in lines:
        value = _object(line)
        if isinstance(value, dict):
            names_of_first = list(value) if names_of_first is None else names_of_first
            is_there |= name in value
        yield _field(value, name) if isinstance(value, dict) else value
    if names_of_first is not None and not is_there:
        raise ShardError(f"has no field {name} in any object; the first one has {_listed(names_of_first)}")


def _object(line: _Record) -> dict[str, Any] | _Record | Drop:
    """The JSON object on a line; the line itself if there is nothing on it."""
    if not line.is_whole:
        return Drop(DropReason.TOO_LONG_SENTENCE, f"a line of more than {MAX_LINE_BYTES} bytes")
    if not line.data.strip():
        return line
    try:
        value = json.loads(line.data.decode())
    except UnicodeDecodeError as error:
        return Drop(DropReason.NOT_UTF8, f"at byte {error.start}")
    except (ValueError, RecursionError):
        return Drop(DropReason.NOT_A_SENTENCE, "not JSON")
    return value if isinstance(value, dict) else Drop(DropReason.NOT_A_SENTENCE, "not a JSON object")


def _field(value: dict[str, Any], name: str) -> _Record | Drop:
    if not isinstance(value.get(name), str):
        return Drop(DropReason.NOT_A_SENTENCE, f"{name} is no string" if name in value else f"no {name}")
    try:
        return _Record(value[name].encode())
    except UnicodeEncodeError:
        return Drop(DropReason.NOT_UTF8, "half of a surrogate pair")


def _listed(names: list[str]) -> str:
    """Names of fields or columns, which may be anything, on a line."""
    return ", ".join(name if name.isprintable() else ascii(name) for name in names)[:200] or "none"


def _rows(path: Path, column: str) -> Iterator[_Record | Drop]:
    """One column of a Parquet file, some rows at a time."""
    with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False, buffer_size=1024**2) as file:
        schema = file.schema_arrow
        index = schema.get_field_index(column)
        if index < 0:
            raise ShardError(f"has no column {column}; it has {_listed(schema.names)}")
        if not _is_text(schema.field(index).type):
            raise ShardError(f"has no strings in column {column}: it is of type {schema.field(index).type}")
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[column], use_threads=False):
            values = batch.column(column)  # a column `a.b` comes with the field `b` of a struct `a`
            for value in values.dictionary_decode() if pa.types.is_dictionary(values.type) else values:
                data = value.as_buffer()
                yield Drop(DropReason.NOT_A_SENTENCE, "null") if data is None else _Record(data.to_pybytes())


def _is_text(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


@contextmanager
def _damage() -> Iterator[None]:
    """What a file that is cut or damaged raises while it is read, as a `ShardError`."""
    try:
        yield
    except (EOFError, OSError, zlib.error, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise ShardError(f"is cut or damaged ({reason})") from None
