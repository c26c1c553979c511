"""What `inspect --verify` finds in corpora: rows, footers, bits, documents, files, the source; each by one check."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from reinforce.cli import app
from reinforce.config import BuildConfig
from reinforce.inspection.cells import Recomputation
from reinforce.inspection.faults import Fault, Verification
from reinforce.inspection.verify import verify_dataset
from reinforce.plan import load_plan
from reinforce.runners.failures import record_failure
from reinforce.shards.schema import SENTENCES_SCHEMA
from reinforce.storage import StorageError, open_store
from tests.fakes import fake_plan, files_of
from tests.forgery import flipped, forge_document, forge_file, with_column
from tests.golden import make
from tests.models import save_open_clip
from tests.s3_server import S3Server, use_test_credentials
from tests.test_corpora_build import build, plan_of, write_lines

NEWS = "corpora/news"
LINES = f"{NEWS}/sentences/lines.parquet"
SMALL = f"{NEWS}/embeddings/small/lines.parquet"
ROWS = "corpora/titles/sentences/rows.parquet"
ROOTS = {name: str(make.SENTENCES_SOURCE / name) for name in ("news", "titles")}

Change = Callable[[pa.Table], pa.Table]
ChangeFooter = Callable[[dict[str, Any]], Any]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(make.SENTENCES_DATASET, tmp_path / "dataset"))


def verify(dataset: Path, **options: Any) -> Verification:
    return verify_dataset(str(dataset), **({"with_source": False} | options))


def only_fault(dataset: Path, **options: Any) -> Fault:
    (fault,) = verify(dataset, **options).faults
    return fault


def replaced(name: str, row: int, value: object) -> Change:
    """Another value in one row of a column."""

    def change(table: pa.Table) -> pa.Table:
        values = table.column(name).to_pylist()
        return with_column(table, name, [*values[:row], value, *values[row + 1 :]])

    return change


def unchanged(table: pa.Table) -> pa.Table:
    return table


def test_the_golden_corpora_have_no_fault(copy: Path) -> None:
    found = verify(copy, with_source=True, corpus_roots=ROOTS)
    assert (found.faults, found.num_sentence_files, found.num_sentence_sources) == ((), 3, 3)
    assert found.num_files == len([path for path in copy.rglob("*") if path.is_file()])
    assert found.sentence_source_bytes == sum(f.stat().st_size for f in make.SENTENCES_SOURCE.rglob("*.*"))


@pytest.mark.parametrize(
    ("change", "column", "row", "what"),
    [
        (replaced("key", 3, "14"), "key", 3, "is not the number of its record"),
        (replaced("text", 8, None), "text", 8, "is null, and the sentence is kept"),
        (replaced("text", 3, "x"), "text", 3, "is there, and the sentence was dropped"),
        (replaced("drop_detail", 0, "x"), "drop_detail", 0, "for dropped sentences alone"),
        (replaced("drop_detail", 2, None), "drop_detail", 2, "for dropped sentences alone"),
        (replaced("text", 7, "木" * 41), "text", 7, "has more than 40 characters"),
        (replaced("text", 7, " spare"), "text", 7, "is empty, or not stripped"),
        (replaced("text", 7, ""), "text", 7, "is empty, or not stripped"),
        (replaced("text", 7, "sp\0are"), "text", 7, "holds U+0000"),
        (replaced("text", 7, "A dog runs over grass."), "text", 7, "was there before"),
        (lambda t: t.cast(SENTENCES_SCHEMA.set(1, pa.field("text", pa.large_string()))), None, None, "another schema"),
    ],
)  # fmt: skip
def test_a_row_of_sentences_that_cannot_be(copy: Path, change: Change, column: str, row: int, what: str) -> None:
    forge_file(copy / LINES, change)
    fault = only_fault(copy)
    assert (fault.path, fault.column, fault.row) == (LINES, column, row)
    assert what in fault.what


@pytest.mark.parametrize(
    ("reason", "what"),
    [("corrupt_image", "is none of the format for sentences"), ("not_selected", "after the first None alone")],
)
def test_a_drop_reason_of_something_else(copy: Path, reason: str, what: str) -> None:
    drops = {"empty_sentence": 1, reason: 1, "not_utf8": 1, "duplicate_sentence": 1, "too_long_sentence": 1}
    forge_file(copy / LINES, replaced("drop_reason", 3, reason), lambda footer: footer.update(drops=drops))
    fault = only_fault(copy)
    assert (fault.path, fault.column) == (LINES, "drop_reason")
    assert what in fault.what


@pytest.mark.parametrize(
    ("path", "change", "what"),
    [
        (LINES, {"num_kept": 5}, "num_kept is 5 in its footer, counted 4"),
        (LINES, {"drops": {"not_utf8": 5}}, "drops is"),
        (LINES, {"counts": {"words": 1}}, "'words', which is nothing that is counted"),
        (LINES, {"counts": {"truncated_sentences": 1}}, "at most 0 can have been cut"),
        (ROWS, {"counts": {"truncated_sentences": 4}}, "at most 3 can have been cut"),
        (LINES, {"corpus": "titles"}, "corpus is"),
        (LINES, {"stem": "corpora/news/other"}, "stem is"),
        (LINES, {"kind": "samples"}, "kind is"),
        (LINES, {"fingerprint": "0" * 64}, "fingerprint is"),
        (LINES, {"num_rows": 8}, "9 rows, its footer says 8"),
        (SMALL, {"source_sha256": "0" * 64}, "source_sha256 is"),
        (SMALL, {"source_bytes": 1}, "source_bytes is"),
        (SMALL, {"weights_sha256": "1" * 64}, "weights_sha256 is"),
        (SMALL, {"fingerprint": "0" * 64}, "fingerprint is"),
        (SMALL, {"signal": f"{NEWS}/embeddings/exact"}, "signal is"),
        (SMALL, {"stem": "corpora/news/more/objects"}, "stem is"),
        (SMALL, {"kind": "text"}, "kind is"),
        (SMALL, {"nulls": {"non_finite": 1}}, "its footer counts 1"),
        (SMALL, {"nulls": {"no_caption": 0}}, "'no_caption', which is no reason"),
        (SMALL, {"num_truncated_texts": 5}, "num_truncated_texts is 5, of 4 sentences"),
    ],
)
def test_a_footer_that_lies(copy: Path, path: str, change: dict[str, Any], what: str) -> None:
    forge_file(copy / path, change_footer=lambda footer: footer.update(change))
    fault = only_fault(copy)
    assert (fault.path, what in fault.what) == (path, True), fault


@pytest.mark.parametrize("path", [LINES, SMALL])
def test_a_footer_that_lacks_a_field(copy: Path, path: str) -> None:
    field = "corpus" if path == LINES else "num_truncated_texts"
    forge_file(copy / path, change_footer=lambda footer: footer.pop(field))
    assert field in only_fault(copy).what


@pytest.mark.parametrize(
    ("change", "column", "row", "what"),
    [
        (lambda t: t.take([0, 2, 1, 3]), "key", 1, "the same rows in another order"),
        (replaced("key", 2, "7"), "key", 2, "the key is '7', in the spine it is '8'"),
        (replaced("embedding", 1, [1.0, 0.5, 0.0, 0.0]), "embedding", 1, "not of unit norm"),
        (replaced("embedding", 1, [0.99951171875, 0.0, 0.0, 0.0]), "embedding", 1, "not rounded to 7 bits"),
        (replaced("embedding", 1, [float("nan"), 0.0, 0.0, 0.0]), "embedding", 1, "not finite"),
        (replaced("embedding", 1, None), "embedding", 1, "its footer explains 0"),
    ],
)  # fmt: skip
def test_a_row_of_embeddings_that_cannot_be(copy: Path, change: Change, column: str, row: int, what: str) -> None:
    forge_file(copy / SMALL, change)
    fault = only_fault(copy)
    assert (fault.path, fault.column, fault.row) == (SMALL, column, row)
    assert what in fault.what


def test_embeddings_of_other_dims_or_rows(copy: Path) -> None:
    wide = pa.list_(pa.field("element", pa.float16(), nullable=False), 2)
    unit = pa.FixedSizeListArray.from_arrays(pa.array(np.array([1, 0] * 4, np.float16)), type=wide)
    forge_file(copy / SMALL, lambda t: t.set_column(1, pa.field("embedding", wide), unit))
    assert "another schema" in only_fault(copy).what
    forge_file(copy / SMALL, lambda t: t.slice(0, 3), lambda footer: footer.update(num_rows=3))
    assert "num_rows is 3 in its footer, expected 4" in only_fault(copy).what


@pytest.mark.parametrize(
    ("corpus", "change", "what"),
    [
        ("news", lambda d: d.update(corpus="titles"), "says that it is titles"),
        ("news", lambda d: d.update(fingerprint="0" * 64), "fingerprint is not that of content"),
        ("news", lambda d: d["content"].update(more=1), "content is not that of format version 1"),
        ("news", lambda d: d["content"].update(max_characters=0), "says nothing that can be checked"),
        ("news", lambda d: d["content"].update(too_long="sometimes"), "says nothing that can be checked"),
        ("news", lambda d: d["content"].update(limit_samples=-1), "content.limit_samples is -1"),
        ("news", lambda d: d.update(source_root=None), "source_root is no text"),
    ],
)
def test_a_corpus_document_that_lies(copy: Path, corpus: str, change: ChangeFooter, what: str) -> None:
    path = f"corpora/{corpus}/corpus.json"
    forge_document(copy / path, change)
    assert any(fault.path == path and what in fault.what for fault in verify(copy).faults)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda d: d.update(signal=f"{NEWS}/embeddings/exact"), "says that it is corpora/news/embeddings/exact"),
        (lambda d: d.update(fingerprint="0" * 64), "fingerprint is not that of content"),
        (lambda d: d.update(columns=["caption_000"]), "columns caption_000 are not those of sentences"),
        (lambda d: d["content"].update(sentences="0" * 64), "content.sentences is not the fingerprint of corpus.json"),
        (lambda d: d["content"].update(weights_sha256="1" * 64), "sentences and images of two models"),
        (lambda d: d["model"].update(weights_sha256="1" * 64), "weights_sha256 of model is not that of content"),
        (lambda d: d["model"].update(dim=5), "dim is not that of embeddings/small/image"),
        (lambda d: d["content"].update(mantissa_bits=99), "99 mantissa bits"),
    ],
)
def test_a_teachers_document_that_lies(copy: Path, change: ChangeFooter, what: str) -> None:
    path = f"{NEWS}/embeddings/small/signal.json"
    forge_document(copy / path, change)
    assert any(fault.path == path and what in fault.what for fault in verify(copy).faults)


def test_files_that_are_missing_or_that_nothing_explains(copy: Path) -> None:
    record_failure(open_store(str(copy)), "corpora/news/lines", ["no room"], "run")
    (copy / SMALL).unlink()
    shutil.copy(copy / ROWS, copy / "corpora/titles/sentences/rows.json")
    shutil.copy(copy / "corpora/titles/embeddings/small/rows.parquet", copy / "corpora/titles/embeddings/small.parquet")
    assert {fault.path: fault.what for fault in verify(copy).faults} == {
        SMALL: "is missing; the file failed: no room",
        "corpora/titles/sentences/rows.json": "no file of this format",
        "corpora/titles/embeddings/small.parquet": "no file of this format",
    }


def test_files_without_what_explains_them(copy: Path) -> None:
    (copy / LINES).unlink()
    (copy / "corpora/titles/corpus.json").unlink()
    (copy / f"{NEWS}/embeddings/exact/signal.json").unlink()
    found = {fault.path: fault.what for fault in verify(copy).faults}
    assert found == {
        SMALL: f"no sentences: {LINES} is not there",
        f"{NEWS}/embeddings/exact/lines.parquet": "no signal.json says what it is",
        f"{NEWS}/embeddings/exact/more/objects.parquet": "no signal.json says what it is",
        ROWS: "no corpus.json says what it is",
        "corpora/titles/embeddings/exact/rows.parquet": "no corpus.json says what it is",
        "corpora/titles/embeddings/small/rows.parquet": "no corpus.json says what it is",
    }


def test_files_swapped_between_teachers_and_corpora(copy: Path) -> None:
    shutil.copy(copy / f"{NEWS}/embeddings/exact/lines.parquet", copy / SMALL)
    shutil.copy(copy / LINES, copy / ROWS)
    found = {fault.path: fault.what for fault in verify(copy).faults}
    assert found.keys() == {SMALL, ROWS}
    assert "signal is" in found[SMALL]
    assert "corpus is" in found[ROWS]


def test_a_shard_of_images_under_the_name_of_sentences(copy: Path) -> None:
    (copy / "samples/corpora").mkdir(parents=True)
    shutil.copy(make.DATASET / "samples/scenes.parquet", copy / "samples/corpora/x.parquet")
    path = "samples/corpora/x.parquet"
    whats = [fault.what for fault in verify(copy).faults if fault.path == path]
    assert "a shard of images under the name of a file of sentences" in whats


def test_flipped_bits_are_found_in_any_file(copy: Path) -> None:
    for path in sorted((copy / "corpora").rglob("*.*")):
        num_bits = 8 * path.stat().st_size
        for position in range(5 * 8, num_bits, num_bits // 5):
            with flipped(path, position):
                found = {fault.path for fault in verify(copy).faults}
            assert str(path.relative_to(copy)) in found, (path, position)


@pytest.mark.parametrize("path", [LINES, SMALL])
def test_a_digest_that_lost_its_name_is_not_one_of_an_older_version(copy: Path, path: str) -> None:
    with flipped(copy / path, 8 * ((copy / path).read_bytes().rindex(b'"file_sha256"') + 3)):
        assert "none of a file without a digest" in only_fault(copy).what


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return Path(shutil.copytree(make.SENTENCES_SOURCE / "news", tmp_path / "news"))


def of_source(copy: Path, source: Path) -> list[Fault]:
    return list(verify(copy, with_source=True, corpus_roots=ROOTS | {"news": str(source)}).faults)


def test_a_changed_source_names_its_records(copy: Path, source: Path) -> None:
    path = source / "lines.txt"
    path.write_bytes(
        path.read_bytes().replace(b"caf\xe9", b"cafe").replace(b"no line feed", b"a last word ") + b"\nnew"
    )
    changed, records, reason, text = of_source(copy, source)
    assert {fault.path for fault in (changed, records, reason, text)} == {path.as_uri()}
    assert "has changed" in changed.what
    assert "has 10 records, the sentences have 9 rows" in records.what
    assert (reason.column, reason.row, reason.key) == ("drop_reason", 4, "5")
    assert "is a sentence, in the dataset it is not_utf8" in reason.what
    assert (text.column, text.row, text.key) == ("text", 8, "9")


def test_sentences_that_are_not_those_of_the_source(copy: Path, source: Path) -> None:
    """Every digest is right, and nothing but the source can tell."""
    forge_file(copy / LINES, replaced("text", 7, "two red cats"))
    forge_file(copy / ROWS, change_footer=lambda footer: footer.update(counts={"truncated_sentences": 2}))
    for path in copy.glob(f"{NEWS}/**/objects.parquet"):
        forge_file(path, change_footer=lambda footer: footer.update(source_bytes=7))
    assert verify(copy).faults == ()
    faults = of_source(copy, source)
    assert [(Path(fault.path).name, fault.row, fault.what) for fault in faults] == [
        ("lines.txt", 7, "is another sentence than in the dataset"),
        ("objects.jsonl.gz", None, "has 159 bytes, in the footer of the sentences they are 7"),
        ("rows.parquet", None, "has 1 sentences that are cut, in the footer of the sentences it is 2"),
    ]


def test_a_source_file_that_is_gone_damaged_or_there_twice(copy: Path, source: Path) -> None:
    (source / "lines.jsonl").write_text("{}")
    assert of_source(copy, source) == []
    packed = source / "more/objects.jsonl.gz"
    packed.write_bytes(packed.read_bytes()[:-9])
    (source / "lines.txt").unlink()
    (source / "lines.jsonl").unlink()
    assert [(Path(fault.path).name, fault.what.partition(" (")[0]) for fault in of_source(copy, source)] == [
        ("lines", "the source file is not there"),
        ("objects.jsonl.gz", "its sha256 is not that of the file the sentences are from: it has changed"),
        ("objects.jsonl.gz", "is cut or damaged"),
    ]


def test_a_source_that_cannot_be_reached_is_one_line_and_options_are_checked(copy: Path) -> None:
    with pytest.raises(StorageError, match=r"corpus news: no file .* give --corpus-root news=URI .* or --no-source"):
        verify(copy, with_source=True)
    with pytest.raises(StorageError, match="--corpus-root web: the dataset has no such corpus"):
        verify(copy, with_source=True, corpus_roots={"web": "/"})
    roots = [word for name, root in ROOTS.items() for word in ("--corpus-root", f"{name}={root}")]
    done = CliRunner().invoke(app, ["inspect", str(copy), "--verify", *roots])
    assert done.exit_code == 0, done.output
    assert "3 files, 1.2 kB, read again" in done.output
    done = CliRunner().invoke(app, ["inspect", str(copy), "--verify", "--no-source"])
    assert "source not checked" in done.output
    for given in (["--corpus-root", "news"], [*roots, "--no-source"]):
        assert CliRunner().invoke(app, ["inspect", str(copy), "--verify", *given]).exit_code == 2


def test_the_first_records_of_each_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "in/a.txt", ["one", "two", "three"])
    plan = plan_of(str(tmp_path / "in"))
    limited = fake_plan({"corpora": plan.config.model_dump(mode="json")["corpora"]}, captioners=[], limit_samples=2)
    assert not build(limited, tmp_path / "out").failed
    assert verify(tmp_path / "out", with_source=True).faults == ()
    path = tmp_path / "out/corpora/web/sentences/a.parquet"
    forge_file(path, replaced("drop_reason", 2, "empty_sentence"), lambda f: f.update(drops={"empty_sentence": 1}))
    assert "is not_selected for the records after the first 2 alone" in only_fault(tmp_path / "out").what


def test_reordered_values_with_every_digest_right(tmp_path: Path) -> None:
    """Nothing but computing them again can tell."""
    write_lines(tmp_path / "in/a.txt", ["one", "", "two red cats", "three boats"])
    config = BuildConfig.model_validate(
        {
            "device": "cpu",
            "batch_size": 4,
            "teachers": {"a": {"model": save_open_clip(tmp_path / "model")}},
            "corpora": {"web": {"files": str(tmp_path / "in")}},
        }
    )
    assert not build(load_plan(config), tmp_path / "out").failed
    found = verify(tmp_path / "out", recompute=Recomputation(100))
    assert found.faults == ()
    assert found.recomputed
    cells = {signal.folder: (signal.num_cells, signal.num_equal) for signal in found.recomputed.signals}
    assert cells["corpora/web/embeddings/a"] == (3, 3)
    path = "corpora/web/embeddings/a/a.parquet"
    values = pq.read_table(tmp_path / "out" / path).column("embedding").to_pylist()
    forge_file(tmp_path / "out" / path, lambda t: with_column(t, "embedding", [values[0], values[2], values[1]]))
    assert verify(tmp_path / "out").faults == ()
    faults = verify(tmp_path / "out", recompute=Recomputation(100)).faults
    assert [(fault.path, fault.column, fault.row, fault.key) for fault in faults] == [
        (path, "embedding", 1, "3"), (path, "embedding", 2, "4"),
    ]  # fmt: skip


def test_it_works_in_a_bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    use_test_credentials(monkeypatch)
    server.make_bucket("verify-corpora")
    stores = {}
    for name, folder in (("dataset", make.SENTENCES_DATASET), ("source", make.SENTENCES_SOURCE)):
        stores[name] = open_store(f"s3://verify-corpora/{name}?endpoint_url={server.endpoint}")
        for path, data in files_of(folder).items():
            stores[name].put(path, data)
    roots = {name: stores["source"].uri_of(name) for name in ROOTS}
    found = verify_dataset(stores["dataset"].uri, corpus_roots=roots)
    assert (found.faults, found.num_sentence_files, found.num_sentence_sources) == ((), 3, 3)
    stores["source"].put("news/lines.txt", b"a word")
    (changed, *_) = verify_dataset(stores["dataset"].uri, corpus_roots=roots).faults
    assert "has changed" in changed.what
