"""The format on disk: literal values, a committed dataset, and the readers other people use."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import reinforce
from reinforce.shards.banks import bank_key, read_bank
from reinforce.shards.corpora import corpora_of, open_corpus
from reinforce.shards.reader import FormatError, ShardFile, to_numpy
from reinforce.shards.schema import (
    CAPTIONS_SCHEMA,
    FOOTER_KEY,
    Signal,
    canonical_json,
    check_stem,
    embeddings_schema,
    fingerprint,
    round_mantissa,
)
from reinforce.shards.writer import ShardFileWriter, captions_batch, embeddings_batch
from reinforce.storage import open_store
from reinforce.teachers import FakeTeacher
from tests.fakes import files_of
from tests.golden import make

LARGE = "embeddings/large/image/scenes.parquet"


@pytest.mark.parametrize(
    ("build", "dataset"),
    [
        (make.build, make.DATASET),
        (make.build_modalities, make.MODALITY_DATASET),
        (make.build_sentences, make.SENTENCES_DATASET),
    ],
)
def test_golden_build_is_the_same_bytes(tmp_path: Path, build: Callable[[Path], None], dataset: Path) -> None:
    build(tmp_path / "dataset")
    built, golden = files_of(tmp_path / "dataset"), files_of(dataset)
    for documents in (built, golden):
        content = json.loads(documents.pop("dataset.json"))
        del content["created_with"], content["sha256"]
        documents["dataset.json"] = json.dumps(content).encode()
    assert built.keys() == golden.keys()
    assert [name for name in built if built[name] != golden[name]] == []


def test_golden_source_is_what_its_script_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "SOURCE", tmp_path)
    make.write_source()
    golden = Path(__file__).parent / "golden"
    assert (tmp_path / "scenes.tar").read_bytes() == (golden / "source" / "scenes.tar").read_bytes()
    monkeypatch.setattr(make, "MODALITY_SOURCE", tmp_path)
    make.write_modality_source()
    assert (tmp_path / "pairs.tar").read_bytes() == (golden / "modalities" / "source" / "pairs.tar").read_bytes()
    monkeypatch.setattr(make, "SENTENCES_SOURCE", tmp_path / "sentences")
    make.write_sentences_source()
    assert files_of(tmp_path / "sentences") == files_of(golden / "sentences" / "source")


def test_golden_values() -> None:
    dataset = reinforce.open_dataset(str(make.DATASET))
    spine = dataset.spine("scenes").to_pylist()
    assert [(row["key"], row["drop_reason"]) for row in spine] == [
        ("plain", None),
        ("folder.v1/wide", None),
        ("corrupt", "corrupt_image"),
        ("tall", None),
        ("no_image", "missing_image"),
        ("unicode", None),
        ("tiny", None),
        ("last", None),
    ]
    assert spine[0]["view_seed"] == 3979220074808102096
    assert (spine[1]["image_width"], spine[1]["image_height"]) == (90, 30)
    assert spine[1]["captions"] == ["a wide picture", "it is wide"]
    assert spine[6]["captions"] == ["two by three"]
    view = dataset.numpy("embeddings/large/image", "scenes", "view_001")
    assert view[0, :4].tolist() == [0.185546875, -0.162109375, -0.33984375, -0.1142578125]
    with dataset.open_spine("scenes") as file:
        footer = file.footer
    assert footer["source_sha256"] == hashlib.sha256((make.SOURCE / "scenes.tar").read_bytes()).hexdigest()
    assert footer["drops"] == {"corrupt_image": 1, "missing_image": 1}


def test_golden_modalities() -> None:
    dataset = reinforce.open_dataset(str(make.MODALITY_DATASET))
    rows = dataset.read("pairs", ["modalities/thermal", "modalities/depth"]).to_pylist()
    assert [
        (row["key"], row["modalities"], row["modalities/thermal/null_reason"], row["modalities/depth/null_reason"])
        for row in rows
    ] == [
        ("both", ["depth", "thermal"], None, None),
        ("thermal", ["thermal"], None, "no_modality"),
        ("cut", ["thermal"], "corrupt_image", "no_modality"),
    ]
    assert (rows[0]["modalities/depth/width"], rows[0]["modalities/depth/height"]) == (12, 8)
    content = dataset.signals[Signal("modality", "depth")]["content"]
    assert content == {"spine": dataset.document["spine_fingerprint"], "suffix": "depth.png", "range": [500.0, 4000.0]}


def test_golden_sentences() -> None:
    dataset = reinforce.open_dataset(str(make.SENTENCES_DATASET))
    assert corpora_of(dataset) == ["news", "titles"]
    corpus = open_corpus(dataset, "news")
    assert corpus.stems == ["corpora/news/lines", "corpora/news/more/objects"]
    rows = [row for stem in corpus.stems for row in read(corpus.open_sentences(stem))]
    assert [(row["key"], row["text"] or row["drop_reason"]) for row in rows] == [
        ("1", "A dog runs over grass."),
        ("2", "Ein Bäumchen 木"),
        ("3", "empty_sentence"),
        ("4", "empty_sentence"),
        ("5", "not_utf8"),
        ("6", "duplicate_sentence"),
        ("7", "too_long_sentence"),
        ("8", "a dog runs over grass."),
        ("9", "no line feed at its end"),
        ("1", "two\nlines"),
        ("2", "not_a_sentence"),
        ("3", "not_a_sentence"),
        ("4", "not_a_sentence"),
        ("5", "not_a_sentence"),
        ("6", "empty_sentence"),
        ("7", "not_utf8"),
        ("8", "Straße"),
    ]
    titles = open_corpus(dataset, "titles")
    with titles.open_sentences("corpora/titles/rows") as file:
        assert file.footer["counts"] == {"truncated_sentences": 1}
        assert file.read().column("text").to_pylist()[2:4] == ["twelve chars", None]
    stored = read(titles.open_embeddings("corpora/titles/rows", "exact"))
    assert [row["key"] for row in stored] == ["1", "3", "6"]
    texts = FakeTeacher("", dim=6).embed_texts(["short", "twelve chars", "木" * 13])[0]
    np.testing.assert_array_equal(np.array([row["embedding"] for row in stored], np.float16), texts.astype(np.float16))


def read(opened: ShardFile) -> list[dict[str, Any]]:
    with opened as file:
        rows: list[dict[str, Any]] = file.read().to_pylist()
    return rows


def test_golden_bank() -> None:
    bank = read_bank(str(make.DATASET / "banks" / "scenes"), "large")
    assert bank.labels == ("plain picture", "Bäumchen 木", "wide one")
    assert (bank.logit_scale, bank.logit_bias) == (10.0, None)
    with ShardFile(open_store(str(make.DATASET)), "banks/scenes/large.parquet") as file:
        stored, footer = to_numpy(file.read().column("embedding")), file.footer
    assert stored[1, :3].tolist() == [0.6064453125, -0.25, 0.034912109375]
    assert footer["fingerprint"] == "34ad9bbb8120d8e4146b00e112f8021828f8616afd8bc4d3a77b85aa02750b29"
    assert footer["content"]["mantissa_bits"] == 10
    for row, label in enumerate(bank.labels):
        prompts = FakeTeacher("", dim=12).embed_texts([f"a photo of a {label}.", label])[0]
        mean = prompts.mean(axis=0)
        np.testing.assert_array_equal(stored[row], (mean / np.linalg.norm(mean)).astype(np.float16))
    assert [bank_key(label) for label in ("Straße", "STRASSE ", "a\u00a0\tB", "é", "e\u0301")] == [
        "strasse", "strasse", "a b", "é", "e\u0301",
    ]  # fmt: skip


def test_embedding_pages_are_plain_zstd_with_checksums() -> None:
    column = pq.ParquetFile(make.DATASET / LARGE).metadata.row_group(0).column(1)
    assert column.compression == "ZSTD"
    assert "BYTE_STREAM_SPLIT" not in column.encodings
    assert "PLAIN" in column.encodings
    assert str(pq.ParquetFile(make.DATASET / LARGE).schema_arrow.field("view_000").type) == (
        "fixed_size_list<element: halffloat not null>[12]"
    )


def test_duckdb_and_polars_read_it() -> None:
    expected = reinforce.open_dataset(str(make.DATASET)).numpy("embeddings/large/image", "scenes", "view_000")
    rows = duckdb.sql(f"SELECT key, view_000 FROM '{make.DATASET / LARGE}'").fetchall()
    assert [row[0] for row in rows][:2] == ["plain", "folder.v1/wide"]
    np.testing.assert_array_equal(np.array([row[1] for row in rows], np.float16), expected)
    frame = pl.read_parquet(make.DATASET / LARGE)
    np.testing.assert_array_equal(frame["view_000"].to_numpy(), expected)
    captions = duckdb.sql(
        f"SELECT s.key, len(c.captions) FROM '{make.DATASET}/samples/*.parquet' s "
        f"JOIN '{make.DATASET}/captions/fake/*.parquet' c USING (key) WHERE s.drop_reason IS NULL ORDER BY s.key"
    ).fetchall()
    assert captions[0] == ("folder.v1/wide", 2)
    assert len(captions) == 6


def test_duckdb_reads_nulls_as_nulls(tmp_path: Path) -> None:
    values = np.array([[1, 0], [np.nan, np.nan], [0, 1]], np.float16)
    path = _write_embeddings(tmp_path, {"view_000": values})
    rows = [row[0] for row in duckdb.sql(f"SELECT view_000 FROM '{path}'").fetchall()]
    assert rows[1] is None
    assert [list(rows[0]), list(rows[2])] == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("mantissa_bits", "value", "expected"),
    [
        (10, 0.1, 0.0999755859375),
        (7, 0.1, 0.10009765625),
        (4, 0.1, 0.1015625),
        (7, 1.00390625, 1.0),  # a tie goes to the even neighbour
        (7, 1.01171875, 1.015625),
        (4, -0.0537, -0.052734375),
        (7, 0.0, 0.0),
    ],
)
def test_round_mantissa(mantissa_bits: int, value: float, expected: float) -> None:
    assert float(round_mantissa(np.array([value], np.float32), mantissa_bits)[0]) == expected


@pytest.mark.parametrize("mantissa_bits", [4, 7, 10])
def test_rounding_error_is_as_documented(mantissa_bits: int) -> None:
    values = np.random.default_rng(0).normal(size=20_000).astype(np.float32) * 0.05
    error = np.abs(round_mantissa(values, mantissa_bits).astype(np.float64) - values)
    normal = np.abs(values) > 6.2e-5
    assert (error[normal] <= 2.0 ** -(mantissa_bits + 1) * np.abs(values[normal])).all()
    assert (error[~normal] <= 3.1e-8 + 2.0 ** -(mantissa_bits + 1) * 6.2e-5).all()
    bits = round_mantissa(values[normal], mantissa_bits).view(np.uint16)
    assert (bits & ((1 << (10 - mantissa_bits)) - 1) == 0).all()


def test_rounding_keeps_nan() -> None:
    assert np.isnan(round_mantissa(np.array([np.nan], np.float32), 7)).all()


def test_row_groups_do_not_depend_on_batches(tmp_path: Path) -> None:
    paths = []
    for batch_rows in (1, 100, 1500):
        store = open_store(str(tmp_path / str(batch_rows)), create=True)
        writer = ShardFileWriter(tmp_path / f"{batch_rows}.parquet", CAPTIONS_SCHEMA)
        keys = [f"{row:05d}" for row in range(2500)]
        for start in range(0, 2500, batch_rows):
            part = keys[start : start + batch_rows]
            writer.append(captions_batch(part, [[f"caption of {key}"] if key[-1] != "3" else None for key in part]))
        assert writer.commit(store, "x.parquet", {"format_version": 1})
        paths.append(tmp_path / str(batch_rows) / "x.parquet")
    metadata = pq.ParquetFile(paths[0]).metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [1024, 1024, 452]
    assert len({path.read_bytes() for path in paths}) == 1


def test_null_rows_do_not_shift_the_rest(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float16).reshape(6, 2)
    values[[0, 3]] = np.nan
    path = _write_embeddings(tmp_path, {"caption_000": values})
    with ShardFile(open_store(str(path.parent)), path.name) as file:
        np.testing.assert_array_equal(to_numpy(file.read(["caption_000"]).column(0)), values)
        np.testing.assert_array_equal(to_numpy(file.read().slice(2, 3).column("caption_000")), values[2:5])


def test_a_flipped_bit_in_a_page_is_refused(tmp_path: Path) -> None:
    shutil.copytree(make.DATASET, tmp_path / "d")
    path = tmp_path / "d" / LARGE
    column = pq.ParquetFile(path).metadata.row_group(0).column(2)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 5] ^= 1
    path.write_bytes(data)
    dataset = reinforce.open_dataset(str(tmp_path / "d"))
    with pytest.raises(FormatError, match=r"large/image/scenes\.parquet: damaged"):
        dataset.table("embeddings/large/image", "scenes", [pq.ParquetFile(path).schema_arrow.names[2]])


def test_another_version_is_refused(tmp_path: Path) -> None:
    shutil.copytree(make.DATASET, tmp_path / "d")
    document = json.loads((tmp_path / "d" / "dataset.json").read_text())
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(document | {"format_version": 2}))
    with pytest.raises(FormatError, match="format version 2; this software reads 1"):
        reinforce.open_dataset(str(tmp_path / "d"))
    store = open_store(str(tmp_path))
    table = pa.table({"key": ["a"]}).replace_schema_metadata({FOOTER_KEY: b'{"format_version": 3}'})
    pq.write_table(table, tmp_path / "file.parquet")
    with pytest.raises(FormatError, match="format version 3"):
        ShardFile(store, "file.parquet")


@pytest.mark.parametrize("content", [b"", b"not parquet at all", b"PAR1" + bytes(40) + b"PAR1"])
def test_what_is_not_ours_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.parquet").write_bytes(content)
    with pytest.raises(FormatError, match="not a file of this format"):
        ShardFile(open_store(str(tmp_path)), "file.parquet")


def test_a_parquet_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    writer = pl.DataFrame({"key": ["a"]})
    writer.write_parquet(tmp_path / "file.parquet")
    with pytest.raises(FormatError, match="not a file of this format"):
        ShardFile(open_store(str(tmp_path)), "file.parquet")


def test_stray_documents_are_no_signals(tmp_path: Path) -> None:
    shutil.copytree(make.DATASET, tmp_path / "d")
    (tmp_path / "d" / "embeddings" / "x" / "y").mkdir(parents=True)
    (tmp_path / "d" / "embeddings" / "x" / "y" / "signal.json").write_text("{}")
    assert len(reinforce.open_dataset(str(tmp_path / "d")).signals) == 7


def test_rows_are_joined_by_checked_key(tmp_path: Path) -> None:
    dataset = reinforce.open_dataset(str(make.DATASET))
    joined = dataset.read("scenes", ["captions/fake", "embeddings/small/text/original"])
    assert joined.column("key").to_pylist() == ["plain", "folder.v1/wide", "tall", "unicode", "tiny", "last"]
    assert joined.column("embeddings/small/text/original/caption_000").null_count == 1  # `tall` has no caption
    shutil.copytree(make.DATASET, tmp_path / "d")
    path = tmp_path / "d" / "captions" / "fake" / "scenes.parquet"
    footer = pq.read_metadata(path).metadata
    table = pq.read_table(path).replace_schema_metadata(footer)
    pq.write_table(table.take([1, 0, 2, 3, 4, 5]), path)
    with pytest.raises(FormatError, match=r"row 0 is 'folder\.v1/wide', in the spine it is 'plain'"):
        reinforce.open_dataset(str(tmp_path / "d")).read("scenes", ["captions/fake"])
    pq.write_table(table.slice(0, 5), path)
    with pytest.raises(FormatError, match="5 rows, the spine keeps 6"):
        reinforce.open_dataset(str(tmp_path / "d")).read("scenes", ["captions/fake"])


def test_only_asked_columns_are_read() -> None:
    dataset = reinforce.open_dataset(str(make.DATASET))
    assert dataset.table("embeddings/large/image", "scenes", ["view_002"]).column_names == ["view_002"]
    with pytest.raises(FormatError, match="no column view_009; it has key, view_000"):
        dataset.table("embeddings/large/image", "scenes", ["view_009"])


def test_signal_folders_round_trip() -> None:
    for signal in (Signal("captions", "coca"), Signal("image", "a"), Signal("text", "a", "original")):
        assert Signal.parse(signal.folder) == signal
    with pytest.raises(ValueError, match="is not a signal's folder"):
        Signal.parse("embeddings/a")


@pytest.mark.parametrize("stem", ["", "../x", "a/../b", "a//b", "/a", "a\nb", "."])
def test_stems_stay_below_the_dataset(stem: str) -> None:
    with pytest.raises(ValueError, match="cannot be a path below the dataset"):
        check_stem(stem)


def test_fingerprints_have_one_spelling() -> None:
    assert canonical_json({"b": [1, 0.5], "a": "ä"}) == '{"a":"ä","b":[1,0.5]}'
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1})
    assert fingerprint({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def _write_embeddings(folder: Path, columns: dict[str, np.ndarray]) -> Path:
    rows, dim = next(iter(columns.values())).shape
    writer = ShardFileWriter(folder / "spool.parquet", embeddings_schema(list(columns), dim))
    writer.append(embeddings_batch([str(row) for row in range(rows)], columns))
    writer.commit(open_store(str(folder / "out"), create=True), "file.parquet", {"format_version": 1})
    return folder / "out" / "file.parquet"
