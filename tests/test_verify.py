"""`reinforce inspect --verify`: a clean dataset has no fault, and each fault put into it is found where it is."""

import json
import re
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
from reinforce.inspection.cells import Cell, Recomputation, ShardCells, draw_cells
from reinforce.inspection.faults import Fault, Verification
from reinforce.inspection.recompute import cosine_bound
from reinforce.inspection.vectors import rounding_error
from reinforce.inspection.verify import verify_dataset
from reinforce.runners.failures import record_failure
from reinforce.selection import Selection
from reinforce.shards.digests import FILE_DIGEST
from reinforce.shards.schema import FOOTER_KEY, Signal, fingerprint, round_mantissa
from reinforce.storage import StorageError, open_store
from reinforce.weights import ModelError
from tests import golden
from tests.fakes import fake_plan, run
from tests.forgery import (
    Members,
    build_small,
    captions_digest,
    flipped,
    forge_document,
    forge_file,
    kind_of,
    members_of_one,
    members_of_two,
    random_bits,
    with_column,
)
from tests.models import save_open_clip
from tests.s3_server import S3Server, use_test_credentials
from tests.tars import image_bytes, write_tar

ALL = Recomputation(1000)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `source`, `models` and `dataset`."""
    folder = tmp_path_factory.mktemp("verify")
    build_small(folder)
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, to be damaged; its source is at its recorded place."""
    return Path(shutil.copytree(built / "dataset", tmp_path / "dataset"))


def verify(dataset: Path, **options: Any) -> Verification:
    return verify_dataset(str(dataset), **options)


def only_fault(dataset: Path, **options: Any) -> Fault:
    (fault,) = verify(dataset, **options).faults
    return fault


def test_a_clean_dataset_has_no_fault(built: Path) -> None:
    found = verify(built / "dataset", recompute=ALL)
    files = [path for path in (built / "dataset").rglob("*") if path.is_file()]
    assert (found.faults, found.num_shards, found.num_files) == ((), 2, len(files))
    assert found.num_bytes == sum(path.stat().st_size for path in files)
    assert found.source_bytes == sum(path.stat().st_size for path in (built / "source").rglob("*.tar"))
    assert found.num_without_digest == 0
    assert found.recomputed
    assert {signal.folder: signal.num_cells for signal in found.recomputed.signals} == {
        "embeddings/a/image": 24,
        "embeddings/a/text/fake": 16,
        "embeddings/a/text/original": 7,
        "embeddings/b/image": 24,
        "embeddings/b/text/fake": 16,
        "embeddings/b/text/original": 7,
    }
    assert all(signal.num_equal == signal.num_cells for signal in found.recomputed.signals)


def test_the_golden_dataset_has_no_fault() -> None:
    folder = Path(golden.__file__).parent
    found = verify(folder / "dataset", root=str(folder / "source"))
    assert (found.faults, found.num_files, found.num_sources) == ((), 19, 1)


def test_a_selection_among_repeated_keys_has_no_fault(tmp_path: Path) -> None:
    members = [(f"k{i}.png", image_bytes(i)) for i in range(4)] + [
        ("k3.png", image_bytes(8)),
        ("k0.png", image_bytes(9)),
    ]
    write_tar(tmp_path / "source/a.tar", members)
    selection = Selection(pa.table({"stem": ["a", "a"], "key": ["k0", "k2"]}))
    assert not run(fake_plan(selection=selection), tmp_path / "source", tmp_path / "dataset").failed
    assert verify(tmp_path / "dataset").faults == ()


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bits_are_found_in_any_kind_of_file(copy: Path, seed: int) -> None:
    record_failure(open_store(str(copy)), "gone", ["is truncated"], "run")
    found = verify(copy, with_source=False)
    assert (found.faults, found.failures) == ((), {"gone": "is truncated"})
    files = [path for path in copy.rglob("*") if path.is_file()]
    assert len(set(map(kind_of, files))) == 10
    for path, position in random_bits(files, 16, seed):
        with flipped(path, position):
            faults = verify(copy, with_source=False).faults
            assert str(path.relative_to(copy)) in {fault.path for fault in faults}, (path, position)
    assert verify(copy, with_source=False).faults == ()


@pytest.mark.parametrize(
    ("glob", "name"),
    [
        ("samples/one.parquet", b'"file_sha256"'),
        ("embeddings/a/text/fake/one.parquet", b'"file_sha256"'),
        ("dataset.json", b'"sha256"'),
        ("captions/fake/signal.json", b'"sha256"'),
        ("runs/*/00000.jsonl", b'"end_of_part"'),
    ],
)
def test_a_digest_that_lost_its_name_is_not_one_of_an_older_version(copy: Path, glob: str, name: bytes) -> None:
    (path,) = copy.glob(glob)
    with flipped(path, 8 * (path.read_bytes().rindex(name) + 3)):
        found = verify(copy)
    assert {fault.path for fault in found.faults} == {str(path.relative_to(copy))}
    assert found.num_without_digest == 1


def _without_digest(path: Path) -> None:
    """As an older version wrote it, in another container."""
    table, metadata = pq.read_table(path), pq.read_metadata(path).metadata
    footer = json.loads(metadata[FOOTER_KEY])
    del footer[FILE_DIGEST]
    table = table.replace_schema_metadata({FOOTER_KEY: json.dumps(footer).encode()})
    options = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
    pq.write_table(table, path, **options)


def test_files_of_an_older_version_are_read_and_counted(copy: Path) -> None:
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    for path in files:
        if path.suffix == ".parquet":
            _without_digest(path)
        elif path.suffix == ".json":
            document = json.loads(path.read_text())
            del document["sha256"]
            path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        else:
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    found = verify(copy)
    assert (found.faults, found.num_without_digest) == ((), len(files))
    path = copy / "embeddings/a/image/one.parquet"
    column = pq.ParquetFile(path).metadata.row_group(0).column(2)
    with flipped(path, 8 * (column.data_page_offset + column.total_compressed_size - 5)):
        fault = only_fault(copy)
    assert (fault.path, fault.column, fault.row) == ("embeddings/a/image/one.parquet", "view_001", 0)
    with flipped(path, 8 * path.read_bytes().rindex(b'"nulls"') + 9):  # the name of a field of the footer
        assert {fault.what for fault in verify(copy).faults} >= {"its footer has no field nulls"}


def test_files_swapped_between_shards(copy: Path) -> None:
    one, two = copy / "embeddings/a/image/one.parquet", copy / "embeddings/a/image/sub/two.parquet"
    one.rename(copy / "x")
    two.rename(one)
    (copy / "x").rename(two)
    faults = verify(copy).faults
    assert [fault.path for fault in faults] == ["embeddings/a/image/one.parquet", "embeddings/a/image/sub/two.parquet"]
    assert all("stem is" in fault.what for fault in faults)


def test_files_swapped_between_teachers(copy: Path) -> None:
    shutil.copy(copy / "embeddings/a/text/fake/one.parquet", copy / "embeddings/b/text/fake/one.parquet")
    fault = only_fault(copy)
    assert fault.path == "embeddings/b/text/fake/one.parquet"
    assert "signal is" in fault.what


def test_teachers_swapped_by_name_with_every_digest_right(copy: Path) -> None:
    """The folders of two models change places whole; each says in itself what it is."""
    for path in ("a/image/signal.json", "b/image/signal.json"):
        other = path.replace("a/", "c/") if path[0] == "a" else path.replace("b/", "a/")
        (copy / "embeddings" / other).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(copy / "embeddings" / path, copy / "embeddings" / other)
    shutil.move(copy / "embeddings/c/image/signal.json", copy / "embeddings/b/image/signal.json")
    faults = verify(copy).faults
    said = {fault.path: fault.what for fault in reversed(faults)}
    assert said["embeddings/a/image/signal.json"] == "says that it is embeddings/b/image"
    assert "embeddings/a/image/one.parquet" in said
    assert any("texts and images of two models" in fault.what for fault in faults)


def test_reordered_rows(copy: Path) -> None:
    forge_file(copy / "embeddings/a/image/one.parquet", lambda table: table.take([0, 2, 1, 3, 4, 5]))
    fault = only_fault(copy)
    assert (fault.path, fault.column, fault.row, fault.key) == ("embeddings/a/image/one.parquet", "key", 1, "k1")
    assert fault.what.endswith("the same rows in another order")


def test_reordered_values_with_every_digest_right(copy: Path) -> None:
    """Nothing but computing them again can tell."""
    path = copy / "embeddings/a/image/one.parquet"

    def swap(table: pa.Table) -> pa.Table:
        values = table.column("view_001").to_pylist()
        return with_column(table, "view_001", [values[1], values[0], *values[2:]])

    forge_file(path, swap)
    assert verify(copy).faults == ()
    faults = verify(copy, recompute=ALL).faults
    assert [(f.path, f.column, f.row, f.key) for f in faults] == [
        ("embeddings/a/image/one.parquet", "view_001", 0, "k0"),
        ("embeddings/a/image/one.parquet", "view_001", 1, "k1"),
    ]
    assert "computed again" in faults[0].what


@pytest.mark.parametrize("path", ["samples/one.parquet", "embeddings/b/image/one.parquet", "dataset.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_object(copy: Path, path: str, share: float) -> None:
    data = (copy / path).read_bytes()
    (copy / path).write_bytes(data[: int(len(data) * share)])
    assert path in {fault.path for fault in verify(copy).faults}


def test_an_edited_caption_makes_its_embeddings_stale(copy: Path) -> None:
    path = copy / "captions/fake/one.parquet"

    def edit(table: pa.Table) -> pa.Table:
        texts = table.column("captions").to_pylist()
        return with_column(table, "captions", [*texts[:3], ["two red cats", texts[3][1]], *texts[4:]])

    forge_file(path, edit)
    faults = verify(copy).faults
    texts = [f"embeddings/{teacher}/text/fake/one.parquet" for teacher in "ab"]
    assert [fault.path for fault in faults] == texts
    assert all("other captions than those in captions/fake" in fault.what for fault in faults)
    # Somebody who computes this digest again too is found by the embeddings.
    for text in texts:
        forge_file(copy / text, change_footer=lambda footer: footer.update(captions_sha256=captions_digest(path)))
    assert verify(copy).faults == ()
    faults = verify(copy, recompute=ALL).faults
    assert [(f.path, f.column, f.row, f.key) for f in faults] == [(text, "caption_000", 3, "k3") for text in texts]


def test_an_edited_original_caption_is_not_that_of_the_source(copy: Path) -> None:
    def edit(table: pa.Table) -> pa.Table:
        captions = table.column("captions").to_pylist()
        return with_column(table, "captions", [["two red cats"], *captions[1:]])

    forge_file(copy / "samples/one.parquet", edit)
    assert verify(copy, with_source=False).faults == ()
    fault = only_fault(copy)
    assert (fault.column, fault.row, fault.key) == ("captions", 0, "k0")
    assert fault.path.endswith("/source/one.tar")
    found = verify(copy, with_source=False, recompute=ALL)
    texts = [f"embeddings/{name}/text/original/one.parquet" for name in "ab"]
    assert [(fault.path, fault.row) for fault in found.faults] == [(path, 0) for path in texts]
    assert found.recomputed
    assert all("/text/" in signal.folder for signal in found.recomputed.signals), "images need the source"


def _tar(folder: Path, members: Members) -> str:
    write_tar(folder / "source/one.tar", members)
    write_tar(folder / "source/sub/two.tar", members_of_two())
    return str(folder / "source")


def replaced(members: Members, name: str, data: bytes) -> Members:
    return [(found, data if found == name else before) for found, before in members]


@pytest.mark.parametrize(
    ("change", "column", "row", "key", "what"),
    [
        (lambda m: replaced(m, "k4.png", image_bytes(9, 44, 30)), "image_sha256", 4, "k4", "another image"),
        (lambda m: replaced(m, "k3.txt", b"the sea"), "captions", 3, "k3", "other captions"),
        (lambda m: [(n, d) for n, d in m if not n.startswith("k5")], None, 5, "k5", "is not there"),
        (lambda m: [*m, ("new.png", image_bytes(3))], None, None, "new", "does not have"),
        (lambda m: [m[1], m[0], *m[2:]], None, 0, "k0", "another order"),
        (lambda m: m[:-1], None, None, None, "its sha256"),
    ],
    ids=["image", "caption", "removed", "added", "order", "unused"],
)  # fmt: skip
def test_a_changed_source_names_its_samples(
    built: Path, tmp_path: Path, change: Callable[[Any], Any], column: str, row: int, key: str, what: str
) -> None:
    faults = verify(built / "dataset", root=_tar(tmp_path, change(members_of_one()))).faults
    assert {fault.path for fault in faults} == {(tmp_path / "source/one.tar").as_uri()}
    assert "has changed" in faults[0].what
    assert (faults[-1].column, faults[-1].row, faults[-1].key) == (column, row, key)
    assert what in faults[-1].what
    assert len(faults) == 1 + (key is not None)


def test_a_spine_that_says_another_size_or_count(copy: Path) -> None:
    def widen(table: pa.Table) -> pa.Table:
        return with_column(table, "image_width", [99, *table.column("image_width").to_pylist()[1:]])

    forge_file(copy / "samples/one.parquet", widen, lambda footer: footer.update(counts={"unused_members": 7}))
    size, counts = verify(copy).faults
    assert (size.column, size.key) == ("image_width", "k0")
    assert "{'unused_members': 1}" in counts.what


def test_a_source_that_cannot_be_read_is_a_fault_beside_others(built: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(built / "source", tmp_path / "source"))
    (source / "one.tar").unlink()
    (source / "one.tar").mkdir()
    assert "cannot be read" in only_fault(built / "dataset", root=str(source)).what


def test_a_missing_source_shard_and_no_source_at_all(built: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(built / "source", tmp_path / "source"))
    (source / "one.tar").unlink()
    assert only_fault(built / "dataset", root=str(source)).what == "the source shard is not there"
    shutil.rmtree(source)
    with pytest.raises(StorageError, match=r"no shard of this dataset is there; give --root .* or --no-source"):
        verify(built / "dataset", root=str(source))


def test_a_teacher_replaced_under_the_same_name(built: Path, tmp_path: Path) -> None:
    saved = Path(shutil.copytree(built / "models", tmp_path / "models"))
    try:
        shutil.rmtree(built / "models/a")
        save_open_clip(built / "models/a", seed=8)
        assert verify(built / "dataset").faults == ()
        fault = only_fault(built / "dataset", recompute=ALL)
        assert (fault.path, fault.row) == ("embeddings/a/image/signal.json", None)
        assert "another model is under the recorded name" in fault.what
        assert "sha256" in fault.what
        # The right one is elsewhere.
        moved = Recomputation(1000, teachers={"a": str(saved / "a")})
        found = verify(built / "dataset", recompute=moved)
        assert found.faults == ()
        assert found.recomputed
        assert len(found.recomputed.signals) == 6
        shutil.rmtree(built / "models/a")
        with pytest.raises(ModelError, match=r"build\.teachers\.a: .*; say where it is now: --teacher a=PATH"):
            verify(built / "dataset", recompute=ALL)
    finally:
        shutil.rmtree(built / "models")
        shutil.copytree(saved, built / "models")


def test_what_a_damaged_document_says_is_not_computed_again(copy: Path) -> None:
    path = copy / "embeddings/a/image/signal.json"
    path.write_text(path.read_text().replace('"precision"', '"precisiom"'))
    found = verify(copy, recompute=ALL)
    assert {fault.path for fault in found.faults} == {"embeddings/a/image/signal.json"}
    assert found.recomputed
    assert "embeddings/a/image" not in {signal.folder for signal in found.recomputed.signals}
    path = copy / "dataset.json"
    path.write_text(path.read_text().replace('"source_root"', '"source_rood"'))
    assert "dataset.json" in {fault.path for fault in verify(copy, recompute=ALL).faults}


def test_a_precision_that_this_machine_lacks_is_fp32_and_a_wider_bound(copy: Path) -> None:
    """A dataset that says it was made in bf16, verified on a CPU."""
    folder = copy / "embeddings/a/image"
    forge_document(folder / "signal.json", lambda document: document["content"].update(precision="bf16"))
    changed = fingerprint(json.loads((folder / "signal.json").read_text())["content"])
    forge_document(folder / "signal.json", lambda document: document.update(fingerprint=changed))
    for path in folder.rglob("*.parquet"):
        forge_file(path, change_footer=lambda footer: footer.update(fingerprint=changed))
    found = verify(copy, recompute=ALL)
    assert found.faults == ()
    assert found.recomputed
    image, text, *_ = found.recomputed.signals
    assert (image.folder, image.precision, image.num_equal) == ("embeddings/a/image", "fp32", 24)
    assert image.bound < 0.998 < 0.9997 < text.bound


@pytest.mark.parametrize(
    ("path", "what", "where"),
    [
        ("embeddings/a/image/one.parquet", "is missing", "embeddings/a/image/one.parquet"),
        ("captions/fake/sub/two.parquet", "is missing", "captions/fake/sub/two.parquet"),
        ("samples/sub/two.parquet", "no spine", "**/sub/two.parquet"),
        ("embeddings/b/image/signal.json", "no signal.json", "embeddings/b/image/**/*.parquet"),
        ("embeddings/b/image/signal.json", "no signal.json", "banks/things/b.parquet"),
        ("banks/things/bank.json", "no bank.json", "banks/things/*.parquet"),
    ],
)
def test_a_missing_file(copy: Path, path: str, what: str, where: str) -> None:
    expected = {str(found.relative_to(copy)) for found in copy.glob(where)}
    (copy / path).unlink()
    faults = [
        fault for fault in verify(copy).faults if fault.path.split("/")[0] == where.split("/")[0] or where[0] == "*"
    ]
    assert {fault.path for fault in faults} == expected - ({path} if what == "no spine" else set())
    assert all(what in fault.what for fault in faults)


def test_a_run_log_that_was_cut_between_two_lines(copy: Path) -> None:
    path = next((copy / "runs").rglob("*.jsonl"))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    (fault,) = verify(copy).faults
    assert fault.path == str(path.relative_to(copy))


def test_stray_and_foreign_files(copy: Path) -> None:
    (copy / "README.md").write_text("a card")
    (copy / "notes.txt").write_text("-")
    strays = ["banks/notes.txt", "banks/things/notes.txt", "embeddings/a/image/notes.txt"]
    for path in strays:
        (copy / path).write_text("-")
    found = verify(copy)
    assert found.num_ignored == 1
    assert [fault.path for fault in found.faults] == strays


def _scaled(table: pa.Table) -> pa.Table:
    values = np.array(table.column("view_000").to_pylist(), np.float16)
    values[2] = round_mantissa(values[2].astype(np.float32) * 1.02, 7)
    return with_column(table, "view_000", list(values))


def _unrounded(table: pa.Table) -> pa.Table:
    values = np.array(table.column("view_000").to_pylist(), np.float16)
    values[2] = (values[2].view(np.uint16) ^ 1).view(np.float16)
    return with_column(table, "view_000", list(values))


def _not_finite(table: pa.Table) -> pa.Table:
    values = np.array(table.column("view_000").to_pylist(), np.float16)
    values[2, 3] = np.inf
    return with_column(table, "view_000", list(values))


def _scaled_label(table: pa.Table) -> pa.Table:
    values = np.array(table.column("embedding").to_pylist(), np.float16)
    values[2] *= np.float16(1.01)
    return with_column(table, "embedding", list(values))


def _other_label(table: pa.Table) -> pa.Table:
    return with_column(table, "label", ["cat", "cow", "boat"])


BANK = "banks/things/a.parquet"


@pytest.mark.parametrize(
    ("change", "change_footer", "column", "row", "what"),
    [
        (_scaled_label, None, "embedding", 2, "not of unit norm"),
        (_other_label, None, "label", 1, "is 'cow', in bank.json it is 'dog'"),
        (None, lambda f: f.update(teacher="b"), None, None, 'its teacher is "b", not "a"'),
        (None, lambda f: f["content"].update(precision="bf16"), None, None, "its fingerprint is not that of its"),
        (None, lambda f: f.update(weights_sha256="0" * 64), None, None, "weights_sha256 is not that of embeddings/a"),
        (None, lambda f: f.update(num_truncated_texts=4), None, None, "num_truncated_texts is 4, of 3 prompts"),
        (None, lambda f: f.update(logit_scale=0.0), None, None, "logit_scale is 0.0"),
        (None, lambda f: f.update(logit_scale=50.5), None, None, "logit_scale is not that of embeddings/a/image"),
        (None, lambda f: f.pop("logit_bias"), None, None, "its footer has no field logit_bias"),
    ],
)  # fmt: skip
def test_a_bank_that_lies(
    copy: Path, change: Any, change_footer: Any, column: str | None, row: int | None, what: str
) -> None:
    forge_file(copy / BANK, change or (lambda table: table), change_footer or (lambda footer: None))
    faults = verify(copy, with_source=False).faults
    assert {fault.path for fault in faults} == {BANK}
    assert any((fault.column, fault.row) == (column, row) and what in fault.what for fault in faults), faults


def test_a_bank_of_another_list_or_another_teacher(copy: Path) -> None:
    shutil.copy(copy / "banks/things/b.parquet", copy / BANK)
    whats = [fault.what for fault in verify(copy, with_source=False).faults if fault.path == BANK]
    assert any("labels and images of two models" in what for what in whats)
    shutil.copytree(copy / "banks/things", copy / "banks/other")
    for path, what in (("bank.json", "says that it is things"), ("b.parquet", 'its bank is "things", not "other"')):
        assert what in {fault.path: fault.what for fault in verify(copy).faults}[f"banks/other/{path}"]


def _nulled(table: pa.Table) -> pa.Table:
    values = table.column("view_000").to_pylist()
    return with_column(table, "view_000", [*values[:2], None, *values[3:]])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_scaled, "not of unit norm"),
        (_unrounded, "not rounded to 7 bits"),
        (_not_finite, "not finite"),
        (_nulled, "of 1 such cells its footer explains 0"),
    ],
)
def test_a_bad_value_is_named_by_row_and_column(copy: Path, change: Callable[[Any], Any], what: str) -> None:
    forge_file(copy / "embeddings/a/image/one.parquet", change)
    fault = only_fault(copy)
    assert (fault.column, fault.row, fault.key) == ("view_000", 2, "k2")
    assert what in fault.what


def test_an_embedding_of_no_caption_and_a_caption_without_one(copy: Path) -> None:
    def move(table: pa.Table) -> pa.Table:
        values = table.column("caption_000").to_pylist()
        return with_column(table, "caption_000", [None, values[0], *values[2:]])

    forge_file(copy / "embeddings/a/text/original/one.parquet", move)
    faults = verify(copy).faults
    assert [(fault.row, fault.key, fault.what.partition(":")[0]) for fault in faults] == [
        (1, "k1", "an embedding, and there is no such caption"),
        (0, "k0", "no embedding"),
    ]


@pytest.mark.parametrize(
    ("path", "change", "what"),
    [
        ("samples/one.parquet", lambda f: f["drops"].update(corrupt_image=2), "drops is"),
        ("samples/one.parquet", lambda f: f.update(num_kept=5), "num_kept is 5 in its footer, counted 6"),
        ("embeddings/a/image/one.parquet", lambda f: f["nulls"].update(no_caption=1), "no reason of this kind"),
        ("embeddings/a/image/one.parquet", lambda f: f.update(weights_sha256="0" * 64), "weights_sha256 is"),
        ("embeddings/a/image/one.parquet", lambda f: f.update(source_sha256="0" * 64), "source_sha256 is"),
        ("embeddings/a/text/original/one.parquet", lambda f: f["nulls"].update(no_caption=3), "6 cells have no"),
        ("captions/fake/one.parquet", lambda f: f["nulls"].update(captioner_failed=1), "nulls is"),
    ],
)  # fmt: skip
def test_a_footer_that_lies(copy: Path, path: str, change: Callable[[Any], Any], what: str) -> None:
    forge_file(copy / path, change_footer=change)
    faults = verify(copy).faults
    assert any(fault.path == path and what in fault.what for fault in faults), faults


@pytest.mark.parametrize(
    ("path", "change", "what"),
    [
        ("dataset.json", lambda d: d["spine"].update(seed=4), "spine_fingerprint is not that of spine"),
        ("dataset.json", lambda d: d["view_policy"].update(num_ops=1), "content.view_policy is not that"),
        ("dataset.json", lambda d: d.update(spine=[]), "says nothing that can be checked"),
        ("embeddings/a/image/signal.json", lambda d: d["content"].update(image_size=9), "fingerprint is not"),
        ("embeddings/a/image/signal.json", lambda d: d["columns"].pop(), "are not those that content asks for"),
        ("embeddings/a/image/signal.json", lambda d: d.update(model=None), "says nothing that can be checked"),
        ("embeddings/a/image/signal.json", lambda d: d["model"].update(weights_sha256="0"), "weights_sha256 of model"),
        ("captions/fake/signal.json", lambda d: d.update(fingerprint="0"), "content.captions is not the fingerprint"),
        ("banks/things/bank.json", lambda d: d["content"]["labels"].append("cow"), "content: it was edited"),
        ("banks/things/bank.json", lambda d: d["content"]["labels"].append("Cat"), "has a label twice"),
        ("banks/things/bank.json", lambda d: d["content"].pop("templates"), "says nothing that can be checked"),
    ],
)  # fmt: skip
def test_a_document_that_lies(copy: Path, path: str, change: Callable[[Any], Any], what: str) -> None:
    forge_document(copy / path, change)
    assert any(what in fault.what for fault in verify(copy, with_source=False).faults)


def test_a_row_of_the_spine_that_cannot_be(copy: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        seeds = table.column("view_seed").to_pylist()
        table = with_column(table, "view_seed", [7, *seeds[1:]])
        reasons = table.column("drop_reason").to_pylist()
        where = reasons.index("corrupt_image")
        return with_column(table, "drop_reason", [*reasons[:where], "bored", *reasons[where + 1 :]])

    forge_file(copy / "samples/one.parquet", change)
    whats = {(fault.column, fault.key): fault.what for fault in verify(copy).faults if fault.column}
    assert whats["view_seed", "k0"] == "is not that of the key and the dataset's seed"
    assert any("'bored' is none of the format" in what for what in whats.values())


def test_another_schema(copy: Path) -> None:
    def loosen(table: pa.Table) -> pa.Table:
        return table.cast(pa.schema([table.schema.field(0).with_nullable(True), *list(table.schema)[1:]]))

    forge_file(copy / "captions/fake/one.parquet", loosen)
    assert "another schema" in only_fault(copy).what


def test_shards_narrow_it(built: Path, copy: Path, tmp_path: Path) -> None:
    shutil.copy(copy / "embeddings/a/image/one.parquet", copy / "embeddings/a/image/sub/two.parquet")
    source = built / "source"
    assert verify(copy, shards=[str(source / "one.tar")], root=str(source)).faults == ()
    assert verify(copy, shards=[str(source / "sub")], root=str(source)).faults != ()
    found = verify(copy, shards=[str(source / "one.tar")], root=str(source), with_source=False, recompute=ALL)
    assert found.recomputed
    assert (found.num_sources, len(found.recomputed.signals)) == (0, 4)
    write_tar(tmp_path / "more/new.tar", members_of_two())
    fault = only_fault(copy, shards=[str(tmp_path / "more/new.tar")], root=str(tmp_path / "more"))
    assert (fault.path, fault.what) == ("samples/new.parquet", "is missing")


def test_cells_are_drawn_evenly_over_signals() -> None:
    image, text = Signal("image", "a"), Signal("text", "a", "original")
    shards = [ShardCells(f"{i}", 100, {image: 0, text: 400}) for i in range(20)]
    cells = draw_cells({image: 3, text: 5}, shards, 60, seed=5)
    of_image = [cell for cells_of in cells.values() for cell in cells_of if cell.signal == image]
    of_text = [cell for cells_of in cells.values() for cell in cells_of if cell.signal == text]
    # A fifth of the text cells has a value: five times as many are drawn.
    assert (len(of_image), len(of_text), len(set(of_text))) == (30, 150, 150)
    assert len({cell.stem for cell in of_image}) > 12
    assert all(0 <= cell.row < 100 and 0 <= cell.column < 3 for cell in of_image)
    assert cells == draw_cells({image: 3, text: 5}, shards, 60, seed=5) != draw_cells({image: 3}, shards, 60, seed=6)
    every = draw_cells({image: 3}, shards[:1], 1000, seed=5)
    assert every == {"0": [Cell("0", image, row, column) for row in range(100) for column in range(3)]}


@pytest.mark.parametrize("mantissa_bits", [4, 7, 10])
def test_bounds_hold_for_rows_as_bad_as_may_be(mantissa_bits: int) -> None:
    """Rows near the middle between two roundings, all to one side; and turned by what is promised for fp32."""
    generator = np.random.default_rng(mantissa_bits)
    rows = generator.normal(size=(2000, 24))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    other = generator.normal(size=rows.shape)
    other -= (other * rows).sum(axis=1, keepdims=True) * rows
    turned = 0.9999 * rows + np.sqrt(1 - 0.9999**2) * other / np.linalg.norm(other, axis=1, keepdims=True)
    stored = round_mantissa(rows.astype(np.float32), mantissa_bits).astype(np.float64)
    again = round_mantissa(turned.astype(np.float32), mantissa_bits).astype(np.float64)
    assert (np.abs(np.linalg.norm(stored, axis=1) - 1) <= rounding_error(mantissa_bits, 24)).all()
    cosines = (stored * again).sum(axis=1) / np.linalg.norm(stored, axis=1) / np.linalg.norm(again, axis=1)
    assert (cosines >= cosine_bound(mantissa_bits, 24, "fp32")).all()
    assert cosine_bound(mantissa_bits, 24, "fp32") > {4: 0.996, 7: 0.9997, 10: 0.9998}[mantissa_bits]


def command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def test_the_command_prints_one_screen(built: Path, copy: Path) -> None:
    result = command(built / "dataset", "--verify", "--recompute", "12", "--seed", "4")
    assert result.exit_code == 0, result.output
    assert "no fault found" in result.stdout
    assert re.search(r"computed again +1\d cells \(seed 4\)", result.stdout)
    for path in (copy / "embeddings/a/image").glob("*.parquet"):
        forge_file(path, lambda table: table.slice(1))
    (copy / "embeddings/b/image/one.parquet").unlink()
    result = command(copy, "--verify", "--no-source")
    assert result.exit_code == 1
    assert "not checked" in result.stdout
    assert "embeddings/b/image/one.parquet: is missing" in result.stdout
    document = json.loads(command(copy, "--verify", "--no-source", "--json").stdout)
    assert len(document["faults"]) == 2
    assert set(document["faults"][0]) == {"path", "what", "column", "row", "key"}


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--recompute", "3"], "--recompute belongs to --verify"),
        (["--verify", "--seed", "3"], "--seed belongs to --recompute"),
        (["--verify", "--html", "x.html"], "ask for one of them"),
        (["--verify", "--recompute", "3", "--teacher", "a"], "must be NAME=PATH"),
        (["--verify", "--recompute", "3", "--teacher", "z=/x"], "no such teacher"),
        (["--verify", "--root", "/nowhere"], "--no-source"),
    ],
)
def test_what_cannot_be_asked_is_one_line(built: Path, arguments: list[str], what: str) -> None:
    result = command(built / "dataset", *arguments)
    assert result.exit_code == 2
    assert what in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_teacher_without_weights_cannot_be_loaded_again() -> None:
    folder = Path(golden.__file__).parent
    with pytest.raises(ModelError, match=r"signal\.json does not say how to load it"):
        verify(folder / "dataset", root=str(folder / "source"), recompute=ALL)


def test_it_works_in_a_bucket(built: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    use_test_credentials(monkeypatch)
    server.make_bucket("verify")
    stores = {}
    for name in ("dataset", "source"):
        stores[name] = open_store(f"s3://verify/{name}?endpoint_url={server.endpoint}")
        for path in (built / name).rglob("*"):
            if path.is_file():
                stores[name].put(str(path.relative_to(built / name)), path.read_bytes())
    found = verify_dataset(stores["dataset"].uri, root=stores["source"].uri, recompute=Recomputation(12))
    assert (found.faults, found.num_shards, found.num_sources) == ((), 2, 2)
    assert found.recomputed
    assert found.recomputed.num_cells >= 12
    data = bytearray((built / "dataset/embeddings/a/image/one.parquet").read_bytes())
    data[len(data) // 2] ^= 4
    stores["dataset"].put("embeddings/a/image/one.parquet", bytes(data))
    (fault, *_) = verify_dataset(stores["dataset"].uri, with_source=False).faults
    assert fault.path == "embeddings/a/image/one.parquet"
