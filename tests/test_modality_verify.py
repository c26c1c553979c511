"""What `inspect --verify` finds in the files of further modalities: rows, footers, bits, documents, the source."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reinforce.inspection.stats import inspect_dataset
from reinforce.inspection.verify import verify_dataset
from tests.forgery import flipped, forge_document, forge_file, with_column
from tests.modality_shards import build_modalities, members
from tests.tars import image_bytes, write_tar

ONE = "modalities/thermal/one.parquet"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_modalities(tmp_path_factory.mktemp("modalities"))


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built / "dataset", tmp_path / "dataset"))


def test_a_shard_without_its_file_and_a_file_without_its_document(copy: Path) -> None:
    (copy / "modalities/depth/sub/two.parquet").unlink()
    (copy / "modalities/thermal/signal.json").unlink()
    figures = inspect_dataset(str(copy))
    assert {signal.folder: signal.missing.examples for signal in figures.signals}["modalities/depth"] == ("sub/two",)
    assert [problem.path for problem in figures.problems if "signal.json" in problem.what] == ["modalities/thermal"]
    whats = {fault.path: fault.what for fault in verify_dataset(str(copy)).faults}
    assert whats["modalities/depth/sub/two.parquet"] == "is missing"
    assert whats[ONE] == "no signal.json says what it is"


def test_nothing_wrong_is_found_in_what_was_built(built: Path) -> None:
    found = verify_dataset(str(built / "dataset"))
    assert (found.faults, found.num_shards, found.num_sources) == ((), 2, 2)


def first(table: Any, name: str, value: object) -> Any:
    return with_column(table, name, [value, *table.column(name).to_pylist()[1:]])


@pytest.mark.parametrize(
    ("change", "column", "what"),
    [
        (lambda t: first(t, "null_reason", "bored"), "null_reason", "'bored' is none of the format"),
        (lambda t: first(t, "null_reason", "no_modality"), "null_reason", "the spine says that the sample has it"),
        (lambda t: first(t, "width", None), "width", "is None in a row that is not null"),
        (lambda t: first(t, "height", 0), "height", "is 0 in a row that is not null"),
        (lambda t: first(t, "sha256", None), "sha256", "is null in a row that is not null"),
        (lambda t: t.take([1, 0, *range(2, len(t))]), "key", "the same rows in another order"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be(copy: Path, change: Callable[[Any], Any], column: str, what: str) -> None:
    forge_file(copy / ONE, change)
    faults = verify_dataset(str(copy), with_source=False).faults
    assert any((fault.path, fault.column, fault.row) == (ONE, column, 0) and what in fault.what for fault in faults)


def test_a_modality_that_the_spine_does_not_have(copy: Path) -> None:
    reasons = [None] * 8
    forge_file(copy / ONE, lambda table: with_column(table, "null_reason", reasons), lambda f: f.update(nulls={}))
    whats = [(fault.key, fault.what) for fault in verify_dataset(str(copy)).faults if fault.column == "null_reason"]
    assert whats == [(key, "is None, and the spine says that the sample has none") for key in ("00001", "00002")]


def test_footers_and_documents_that_lie(copy: Path) -> None:
    forge_file(copy / ONE, change_footer=lambda footer: footer["nulls"].update(no_modality=3))
    forge_document(copy / "modalities/depth/signal.json", lambda document: document["content"].update(suffix="d.png"))
    forge_document(copy / "modalities/thermal/signal.json", lambda document: document["columns"].reverse())
    faults = verify_dataset(str(copy), with_source=False).faults
    found = {(fault.path, fault.what) for fault in faults}
    assert (
        "modalities/depth/signal.json",
        "content.suffix is not that of spine.source.modalities in dataset.json",
    ) in found
    assert any("columns null_reason, sha256, height, width are not those of a modality" in what for _, what in found)
    forge_document(copy / "modalities/thermal/signal.json", lambda document: document["columns"].reverse())
    assert any("nulls is" in fault.what for fault in verify_dataset(str(copy)).faults if fault.path == ONE)


def test_flipped_bits(copy: Path) -> None:
    for path in (copy / "modalities").rglob("*.*"):
        for position in range(5 * 8, 8 * path.stat().st_size, 8 * path.stat().st_size // 5):
            with flipped(path, position):
                faults = verify_dataset(str(copy), with_source=False).faults
            assert str(path.relative_to(copy)) in {fault.path for fault in faults}, (path, position)


def test_other_images_in_the_tar(built: Path, copy: Path, tmp_path: Path) -> None:
    """Another image, and a row that says another size than the image has."""
    shutil.copytree(built / "source", tmp_path / "source")
    changed = [(name, image_bytes(70) if name == "00000.ir.png" else data) for name, data in members()]
    write_tar(tmp_path / "source/one.tar", changed)
    forge_file(copy / ONE, lambda table: with_column(table, "width", [33, None, None, None, None, None, 8, 10]))
    faults = verify_dataset(str(copy), root=str(tmp_path / "source")).faults
    assert {(fault.column, fault.key, fault.what) for fault in faults if fault.column} == {
        ("modalities/thermal", "00000", "has another image than the dataset was made from"),
        ("modalities/thermal", "00006", "is 9 x 8, in the dataset 8 x 8"),
    }
