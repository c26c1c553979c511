"""Files of sentences as records: every format says the same, every record is kept or dropped for a reason."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reinforce.config import CorpusConfig
from reinforce.sample import Sentence
from reinforce.shards import sentences as sentences_module
from reinforce.shards.sentences import read_sentences
from reinforce.shards.source import ShardError

TEXTS = ["a cat", "ein Hund läuft", "两只猫", "a cat", "x" * 30]


def records(data: bytes, suffix: str, folder: Path, *, limit: int | None = None, **fields: Any) -> list[Sentence]:
    path = folder / "spooled"
    path.write_bytes(data)
    return list(read_sentences(path, suffix, CorpusConfig(files="-", **fields), limit=limit))


def outcome(data: bytes, suffix: str, folder: Path, **options: Any) -> list[str]:
    """Each record's text, or the reason it was dropped for in brackets."""
    found = records(data, suffix, folder, **options)
    assert [sentence.key for sentence in found] == [str(number) for number in range(1, len(found) + 1)]
    assert not any(sentence.text for sentence in found if sentence.drop)
    return [f"[{sentence.drop.reason}]" if sentence.drop else sentence.text for sentence in found]


def lines(texts: list[str], end: str = "\n") -> bytes:
    return "".join(text + end for text in texts).encode()


def objects(texts: list[Any], column: str = "text") -> bytes:
    return lines([json.dumps({"id": 1, column: text}) for text in texts])


def gz(data: bytes) -> bytes:
    """The same bytes whenever it is called: they name the tests."""
    return gzip.compress(data, mtime=0)


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue().to_pybytes())


def parquet(texts: Sequence[str], kind: pa.DataType | None = None, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    column = pa.array(texts, kind or pa.string())
    pq.write_table(pa.table({"text": column, "id": range(len(texts))}), sink, **options)
    return bytes(sink.getvalue().to_pybytes())


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        (".txt", lines(TEXTS)),
        (".txt", lines(TEXTS).removesuffix(b"\n")),
        (".txt", b"\xef\xbb\xbf" + lines([f"  {text}\t" for text in TEXTS], "\r\n")),
        (".txt.gz", gz(lines(TEXTS))),
        (".txt.gz", gz(lines(TEXTS[:2])) + gz(lines(TEXTS[2:]))),
        (".txt.zst", zst(lines(TEXTS))),
        (".txt.zst", zst(lines(TEXTS[:2])) + zst(lines(TEXTS[2:]))),
        (".jsonl", objects(TEXTS)),
        (".jsonl", b"\xef\xbb\xbf" + objects(TEXTS)),
        (".jsonl.gz", gz(objects(TEXTS))),
        (".jsonl.zst", zst(objects(TEXTS))),
        (".parquet", parquet(TEXTS)),
        (".parquet", parquet(TEXTS, pa.large_string(), row_group_size=2)),
        (".parquet", parquet(TEXTS, pa.dictionary(pa.int32(), pa.string()))),
    ],
)
def test_all_formats_say_the_same(suffix: str, data: bytes, tmp_path: Path) -> None:
    expected = [*TEXTS[:3], "[duplicate_sentence]", "[too_long_sentence]"]
    assert outcome(data, suffix, tmp_path, max_characters=29) == expected


def test_lines_that_are_no_sentences(tmp_path: Path) -> None:
    data = b"good\n\n \t \n\xff\xfe bad\nline\xe2\x80\xa8separator\n" + b"y" * 9 + b"\n"
    expected = ["good", "[empty_sentence]", "[empty_sentence]", "[not_utf8]", "line\u2028separator"]
    assert outcome(data, ".txt", tmp_path, max_characters=14) == [*expected, "y" * 9]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_no_utf_8(encoding: str, tmp_path: Path) -> None:
    found = records("a cat\na dog\n".encode(encoding), ".txt", tmp_path)
    assert {sentence.drop and sentence.drop.reason.value for sentence in found} == {"not_utf8"}
    assert found[0].drop
    assert found[0].drop.detail == f"a NUL at character {int(encoding == 'utf-16-le')}"
    assert outcome(objects(["a cat", "a\0dog"]), ".jsonl", tmp_path) == ["a cat", "[not_utf8]"]
    assert outcome(parquet(["a cat", "a\0dog"]), ".parquet", tmp_path) == ["a cat", "[not_utf8]"]


def test_objects_that_are_no_sentences(tmp_path: Path) -> None:
    texts = [b'{"text": "good"}', b"{", b'["text"]', b'{"other": "x"}', b'{"text": 7}', b'{"text": null}', b""]
    texts += [b'{"text": " "}', b'{"text": "\\ud800"}', b'{"text": "\xff"}', b"[" * 100_000, b'{"text": "good"}']
    found = records(b"\n".join(texts), ".jsonl", tmp_path)
    reasons = [(sentence.drop.reason.value, sentence.drop.detail) for sentence in found if sentence.drop]
    assert reasons == [
        ("not_a_sentence", "not JSON"),
        ("not_a_sentence", "not a JSON object"),
        ("not_a_sentence", "no text"),
        ("not_a_sentence", "text is no string"),
        ("not_a_sentence", "text is no string"),
        ("empty_sentence", ""),
        ("empty_sentence", ""),
        ("not_utf8", "half of a surrogate pair"),
        ("not_utf8", "at byte 10"),
        ("not_a_sentence", "not JSON"),
        ("duplicate_sentence", ""),
    ]


def test_rows_that_are_no_sentences(tmp_path: Path) -> None:
    bad = pa.array([b"ok", b"\xff", None, b" "]).cast(pa.binary()).view(pa.string())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"caption": bad}), sink)
    expected = ["ok", "[not_utf8]", "[not_a_sentence]", "[empty_sentence]"]
    assert outcome(sink.getvalue().to_pybytes(), ".parquet", tmp_path, column="caption") == expected


def test_long_sentences_are_cut_by_characters_and_then_compared(tmp_path: Path) -> None:
    data = lines(["äöüäöü", "äöü", "ab cd", "ab d"])
    found = records(data, ".txt", tmp_path, max_characters=3, too_long="truncate")
    texts = [(sentence.text, sentence.is_cut) for sentence in found if not sentence.drop]
    assert texts == [("äöü", True), ("ab", True)]
    assert [sentence.key for sentence in found if sentence.drop] == ["2", "4"]


@pytest.mark.parametrize("too_long", ["drop", "truncate"])
def test_a_line_of_any_length_is_not_read_whole(too_long: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences_module, "MAX_LINE_BYTES", 101)
    data = lines(["first", "ä" * 5000, " " * 5000, "last"])
    cut = ["ä" * 10, "[too_long_sentence]"] if too_long == "truncate" else ["[too_long_sentence]"] * 2
    assert outcome(data, ".txt", tmp_path, max_characters=10, too_long=too_long) == ["first", *cut, "last"]
    # A byte order mark is a part of the line that is measured.
    for start in ("\ufeff", "\ufeff" + "z" * 97, "\ufeff" + "z" * 98):
        marked = outcome(lines([start + "ä" * 5000, "last"]), ".txt", tmp_path, max_characters=10, too_long=too_long)
        assert len(marked) == 2, len(start)
    # Half a JSON object says nothing.
    found = outcome(objects(["first", "ä" * 5000, "last"]), ".jsonl", tmp_path, max_characters=10, too_long=too_long)
    assert found == ["first", "[too_long_sentence]", "last"]


def test_a_limit_leaves_rows(tmp_path: Path) -> None:
    assert outcome(lines(["a", "a", "b"]), ".txt", tmp_path, limit=2) == ["a", "[duplicate_sentence]", "[not_selected]"]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


MANY = [f"sentence number {index}" for index in range(5000)]


@pytest.mark.parametrize("damage", [cut, flip])
@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        (".txt.gz", gz(lines(MANY))),
        (".jsonl.zst", zst(objects(MANY))),
        (".parquet", parquet(MANY, use_dictionary=False, write_page_checksum=True)),
    ],
)
def test_a_damaged_file_is_no_shorter_one(
    suffix: str, data: bytes, damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    with pytest.raises(ShardError, match="is cut or damaged") as raised:
        outcome(damage(data), suffix, tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("suffix", "data", "message"),
    [
        (".txt", b"", "holds no sentences"),
        (".txt.gz", gz(b""), "holds no sentences"),
        (".txt.gz", b"a cat\n", "Not a gzipped file"),
        (".parquet", parquet([]), "holds no sentences"),
        (".parquet", b"PAR1", "is cut or damaged"),
    ],
)
def test_a_file_of_nothing(suffix: str, data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=message):
        outcome(data, suffix, tmp_path)


def test_a_column_that_is_not_there_or_holds_no_strings(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="has no column caption; it has text, id"):
        outcome(parquet(["a"]), ".parquet", tmp_path, column="caption")
    with pytest.raises(ShardError, match="has no strings in column id: it is of type int64"):
        outcome(parquet(["a"]), ".parquet", tmp_path, column="id")


def test_objects_without_the_field(tmp_path: Path) -> None:
    data = b"no JSON\n" + objects(["a", "b"]) + b'{"other": "c"}\n'
    with pytest.raises(ShardError, match="has no field caption in any object; the first one has id, text") as raised:
        outcome(data, ".jsonl", tmp_path, column="caption")
    assert "\n" not in str(raised.value)
    with pytest.raises(ShardError, match=r"the first one has 'a\\nb\\ud800'$"):
        outcome(b'{"a\\nb\\ud800": 1}\n', ".jsonl", tmp_path)
    # One object is enough, if what it has is no string, and after the limit too.
    expected = ["[not_a_sentence]", "[not_a_sentence]", "[not_selected]"]
    assert outcome(b'{"id": 1}\n{}\n{"text": null}\n', ".jsonl", tmp_path, limit=2) == expected
    assert outcome(b"no JSON\n\n", ".jsonl", tmp_path) == ["[not_a_sentence]", "[empty_sentence]"]


def test_a_column_whose_name_is_that_of_a_field(tmp_path: Path) -> None:
    """Parquet calls the field `b` of a struct `a` as it calls a column `a.b`."""
    sink = pa.BufferOutputStream()
    table = pa.table({"a": [{"b": "field"}], "a.b": ["column"], "c": [{"d": "field"}]})
    pq.write_table(table, sink)
    data = sink.getvalue().to_pybytes()
    assert outcome(data, ".parquet", tmp_path, column="a.b") == ["column"]
    with pytest.raises(ShardError, match=r"has no column c\.d; it has a, a\.b, c"):
        outcome(data, ".parquet", tmp_path, column="c.d")


def test_long_texts_of_parquet_are_not_held_together(tmp_path: Path) -> None:
    data = parquet([f"{number}" + "x" * 20_000 for number in range(1500)], write_batch_size=8, use_dictionary=False)
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    try:
        found = outcome(data, ".parquet", tmp_path)
    finally:
        pa.set_memory_pool(default)
    assert found == ["[too_long_sentence]"] * 1500
    assert 0 < pool.max_memory() < 8e6, "all are 30 MB"
