"""Further modalities in a dataset: what is stored of them, that they cost no sample, how they are shown."""

import base64
import hashlib
import io
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jaxtyping import UInt8
from PIL import Image
from typer.testing import CliRunner

import reinforce
from reinforce.cli import app
from reinforce.config import BuildConfig, parse_recipe
from reinforce.exchange.datacompdr import import_datacompdr
from reinforce.inspection.charts import nulls
from reinforce.inspection.dataset_card import write_dataset_card
from reinforce.inspection.figures import SampleName
from reinforce.inspection.gather import note_nulls
from reinforce.inspection.report import write_report
from reinforce.inspection.stats import inspect_dataset
from reinforce.inspection.verify import verify_dataset
from reinforce.modality import load_modality
from reinforce.plan import BuildOutline
from reinforce.prefetch import Prefetcher, PreparedShard, StageTimes, missing_of
from reinforce.runners import describe
from reinforce.sample import Embeddings
from reinforce.shard_report import stored_report
from reinforce.shards.dataset import DatasetMismatchError
from reinforce.shards.schema import CARD_FILE, Signal, spine_file
from reinforce.storage import find_shards, open_store
from reinforce.teachers import FakeTeacher, TokenizedText
from tests.fakes import fake_plan, files_of, run
from tests.modality_shards import MODALITIES, SOURCE, build_modalities, depth, members, plan
from tests.tars import write_tar

THERMAL, DEPTH = Signal("modality", "thermal"), Signal("modality", "depth")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_modalities(tmp_path_factory.mktemp("modalities"))


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built / "dataset", tmp_path / "dataset"))


def test_a_row_for_each_kept_sample(built: Path) -> None:
    dataset = reinforce.open_dataset(str(built / "dataset"))
    rows = dataset.read("one", [THERMAL, DEPTH])
    assert rows.column("key").to_pylist() == [f"{index:05d}" for index in range(8)]
    assert rows.column("modalities/thermal/null_reason").to_pylist() == [
        None, "no_modality", "no_modality", "not_an_image", "corrupt_image", "too_many_pixels", None, None,
    ]  # fmt: skip
    # The last is turned: its header says 12 x 10.
    for name, expected in (("width", [33, 9, 10]), ("height", [22, 8, 12])):
        assert [size for size in rows.column(f"modalities/thermal/{name}").to_pylist() if size] == expected
    assert rows.column("modalities/depth/null_reason").to_pylist() == [None] * 7 + ["no_modality"]
    hashes = [hashlib.sha256(depth(index)).digest() for index in range(7)]
    assert rows.column("modalities/depth/sha256").to_pylist() == [*hashes, None]
    with dataset.open(THERMAL, "one") as file:
        footer = file.footer
    assert (footer["kind"], footer["weights_sha256"], footer["num_rows"]) == ("modality", None, 8)
    assert footer["nulls"] == {"no_modality": 2, "not_an_image": 1, "corrupt_image": 1, "too_many_pixels": 1}
    report = stored_report(dataset.store, "one", [THERMAL, DEPTH])
    assert (report.num_kept, report.nulls["no_modality in modalities/thermal"]) == (8, 2)
    document = dataset.signals[DEPTH]
    spine = dataset.document["spine_fingerprint"]
    assert document["content"] == {"spine": spine, "suffix": "depth.png", "range": [200.0, 4000.0]}
    assert (document["columns"], document["model"]) == (["width", "height", "sha256", "null_reason"], None)


def test_teachers_see_nothing_of_it(built: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    without = [(name, data) for name, data in members() if "depth" not in name.lower() and ".ir." not in name]
    write_tar(bare / "one.tar", without)
    run(fake_plan({"source": SOURCE}), bare, tmp_path / "dataset")
    ours, theirs = (reinforce.open_dataset(str(path)) for path in (built / "dataset", tmp_path / "dataset"))
    for signal in theirs.signals:
        assert ours.table(signal, "one").equals(theirs.table(signal, "one"))
    drops = [(row["key"], row["drop_reason"]) for row in ours.spine("one").to_pylist() if row["drop_reason"]]
    assert drops == [("bad", "not_an_image"), ("alone", "missing_image"), ("00000", "duplicate_key")]


def test_the_bytes_of_a_modality_do_not_travel_on(built: Path, tmp_path: Path) -> None:
    """A batch holds rows, not images: else a batch of large depth maps would be in memory beside its views."""
    _, refs = find_shards([str(built / "source")])
    task = missing_of(refs[0], plan(), ())
    assert task
    output = open_store(str(tmp_path / "out"), create=True)
    with Prefetcher(plan(), output, spool=tmp_path, workers=1, times=StageTimes()) as prefetcher:
        shard = next(iter(prefetcher.shards([task])))
        assert isinstance(shard, PreparedShard)
        kept = [prepared for prepared in shard.samples() if prepared.drop is None]
    assert [sorted(prepared.sample.modalities) for prepared in kept[:2]] == [["depth", "thermal"], ["depth"]]
    assert not any(data for prepared in kept for data in (prepared.sample.image, *prepared.sample.modalities.values()))


class NoTeacher(FakeTeacher):
    """It is loaded and never asked."""

    def embed_images(self, views: UInt8[np.ndarray, "rows size size 3"]) -> Embeddings:
        raise AssertionError("a teacher was asked")

    def embed_tokens(self, texts: Sequence[TokenizedText]) -> Embeddings:
        raise AssertionError("a teacher was asked")


def test_what_is_missing_is_all_that_is_made(built: Path, copy: Path) -> None:
    """Also of a dataset of an earlier version, which has the names of modalities in its spines and no such files."""
    complete = files_of(copy)
    shutil.rmtree(copy / "modalities/thermal")
    (copy / "modalities/depth/one.parquet").unlink()
    outline = BuildOutline(plan().config)
    existing = {info.path for info in open_store(str(copy)).list()}
    assert spine_file("one") in existing
    assert not outline.is_complete("one", existing)
    assert outline.is_complete("one", files_of(built / "dataset"))
    kept = {path: path.stat().st_ino for path in copy.rglob("*.parquet")}
    teachers = [NoTeacher("large", dim=12, image_size=24), NoTeacher("small", dim=8, image_size=16)]
    summary = run(plan(teachers=teachers), built / "source", copy)
    assert (summary.failed, summary.done.num_files, summary.done.num_views) == ({}, 3, 0)
    assert files_of(copy) == complete
    assert kept.items() <= {path: path.stat().st_ino for path in copy.rglob("*.parquet")}.items()


@pytest.mark.parametrize(
    ("modalities", "parts"),
    [
        (MODALITIES | {"thermal": {"suffix": "ir.png", "range": "image"}}, [
            "modalities/thermal/signal.json was made differently", 'content.range is "type" there and "image" in this',
            "a student may be given another range by student.data.modality_ranges",
        ]),
        (MODALITIES | {"swir": "swir.png"}, [
            'spine.source.modalities.swir is null there and "swir.png" in this recipe. A dataset has the modalities '
            "that it was begun with: use the same build.modalities, or another --output",
        ]),
        ({}, ['spine.source.modalities.thermal is "ir.png" there and null in this recipe', "another --output"]),
    ],
)  # fmt: skip
def test_another_declaration_is_refused(built: Path, copy: Path, modalities: dict[str, Any], parts: list[str]) -> None:
    before = files_of(copy)
    with pytest.raises(DatasetMismatchError) as raised:
        run(plan({"modalities": modalities}), built / "source", copy)
    assert all(part in str(raised.value) for part in parts), raised.value
    assert "\n" not in str(raised.value)
    assert files_of(copy) == before


def test_inspection_counts_them(built: Path, tmp_path: Path) -> None:
    figures = inspect_dataset(str(built / "dataset"))
    assert (figures.problems, figures.incomplete.count) == ((), 0)
    found = {signal.folder: signal for signal in figures.signals}["modalities/thermal"]
    assert (found.num_files, found.missing.count, found.num_values, found.max_norm_error) == (2, 0, 8, None)
    assert found.nulls == {"corrupt_image": 1, "no_modality": 2, "not_an_image": 1, "too_many_pixels": 1}
    named = {reason: [name.key for name in names] for reason, names in figures.null_examples[THERMAL.folder].items()}
    assert named == {
        "corrupt_image": ["00004"],
        "no_modality": ["00001", "00002"],
        "not_an_image": ["00003"],
        "too_many_pixels": ["00005"],
    }
    bar = {bar.name: bar for bar in nulls(figures)}["corrupt_image in modalities/thermal"]
    assert (bar.value, bar.note) == ("1 = 7.7 %", "one/00004")
    noted: defaultdict[tuple[str, str], list[SampleName]] = defaultdict(list)
    with reinforce.open_dataset(str(built / "dataset")).open(DEPTH, "one") as file:
        note_nulls(noted, DEPTH, "one", file, ["no_modality"])
    assert noted == {("modalities/depth", "no_modality"): [SampleName("one", "00007")]}
    assert {drift.teacher for drift in figures.drifts} == {"large", "small"}
    result = CliRunner().invoke(app, ["inspect", str(built / "dataset")])
    assert "\nmodalities/thermal " in result.stdout
    assert "modality    depth: .depth.png, range 200 to 4000; 7 of 13 samples " in result.stdout
    assert "thermal: .ir.png, range type; 8 of 13 samples " in result.stdout
    assert "1 too_many_pixels in modalities/thermal: one/00005 " in result.stdout
    page = tmp_path / "page.html"
    assert write_report(str(built / "dataset"), page, figures) == []
    text = page.read_text().replace("<wbr>", "")
    assert "too_many_pixels in modalities/thermal" in text
    # Beside its RGB image each modality of a shown sample, by its range; or why there is none.
    captions = re.findall(r"<figcaption>(thermal|depth): (.*?)</figcaption>", text)
    assert {("thermal", "33 × 22"), ("thermal", "corrupt_image"), ("depth", "no_modality")} <= set(captions)
    picture = re.search(r'src="data:image/png;base64,([^"]+)" alt="depth of 00003"', text)
    assert picture
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture[1]))))
    np.testing.assert_array_equal(shown, load_modality(depth(3), (200, 4000), 600))


def test_the_card_names_it_and_its_recipe_is_one(copy: Path) -> None:
    teachers = {"large": {"model": "m"}, "small": {"model": "m"}}
    config = BuildConfig.model_validate({"modalities": MODALITIES, "teachers": teachers})
    assert write_dataset_card(open_store(str(copy)), config)
    card = (copy / CARD_FILE).read_text()
    assert "| `modalities/depth` |  | depth.png, range [200.0, 4000.0] |" in card
    assert "what `depth` says" not in card
    assert "has no line for" not in card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert "source" not in recipe["build"]
    assert parse_recipe(recipe).build == config


def test_packed_tars_say_that_they_have_none(built: Path, tmp_path: Path) -> None:
    assert not run(plan({"views": {"count": 2}}), built / "source", tmp_path / "dataset").failed
    result = CliRunner().invoke(app, ["pack", str(tmp_path / "dataset"), "--output", str(tmp_path / "packed")])
    assert result.exit_code == 0, result.output
    assert "the packed layout has one image a sample: those of depth, thermal are left out" in result.stderr
    import_datacompdr(str(tmp_path / "packed"), str(tmp_path / "back"), dims={}, logit_scales={})
    assert verify_dataset(str(tmp_path / "back")).faults == ()
    assert not (tmp_path / "back" / "modalities").exists()


def test_a_suffix_that_no_member_has_is_said(built: Path, tmp_path: Path) -> None:
    modalities = {"thermal": "ir.png", "depth": "dpeth.png"}
    captioners = {"given": {"kind": "files", "field": "json.c"}}
    recipe = parse_recipe({"build": {"captioners": captioners, "modalities": modalities, "source": SOURCE}})
    summary = reinforce.build(str(built / "source/sub"), str(tmp_path / "out"), recipe)
    lines = describe(summary).splitlines()
    assert "null: captioner_failed 5, no_modality in modalities/depth 5" in lines
    assert [line for line in lines if "none of" in line] == ["depth: none of 5 samples has a .dpeth.png member"]
