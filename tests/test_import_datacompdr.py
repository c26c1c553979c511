"""Published tars in, a dataset out: every value where it belongs, and every sample that cannot be used told."""

import gzip
import io
import json
import pickle
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

import reinforce
from reinforce.cli import app
from reinforce.config import ConfigError
from reinforce.decode import decode
from reinforce.inspection.report import write_report
from reinforce.inspection.stats import inspect_dataset
from reinforce.inspection.verify import verify_dataset
from reinforce.sample import Box, View, ViewOp
from reinforce.shards.schema import round_mantissa
from reinforce.student.groups import ReadError
from reinforce.views.render import render
from tests.fakes import files_of
from tests.forgery import flipped, forge_file
from tests.published import (
    NUM_SYNTHETIC,
    NUM_VIEWS,
    SIZE,
    WIDTHS,
    published_sample,
    unit_rows,
    with_arrays,
    with_json,
    write_published,
)
from tests.students import facts, plan_of, read, text_of
from tests.tars import encode, image_bytes, write_tar
from tests.test_cli_students import STUDENT

DIMS = ",".join(f"{name}={dim}" for name, dim in WIDTHS.items())


def import_(source: Path, output: Path, *arguments: str) -> Result:
    options = [] if "--dims" in arguments else ["--dims", DIMS]
    return CliRunner().invoke(app, ["import-datacompdr", str(source), "--output", str(output), *options, *arguments])


def stored(rows: np.ndarray) -> np.ndarray:
    return round_mantissa(np.asarray(rows, np.float32), 7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float32 in one tar; bfloat16, views in a string and a text row too many in the other; imported."""
    folder = tmp_path_factory.mktemp("published")
    write_published(folder / "source/0/00.tar", [published_sample(index) for index in range(6)])
    more = [published_sample(index, is_bf16=True, is_string=True, num_text_rows=4) for index in range(5)]
    write_published(folder / "source/0/01.tar", more)
    result = import_(folder / "source", folder / "imported", "--captioner", "coca", "--logit-scale", "first=70")
    assert result.exit_code == 0, result.output
    assert "extra_text_rows 5" in result.stdout
    assert "11 images are not those" in result.stdout
    return folder


@pytest.mark.parametrize(("stem", "num_samples", "num_text_rows"), [("0/00", 6, 3), ("0/01", 5, 4)])
def test_every_value_is_where_it_belongs(folder: Path, stem: str, num_samples: int, num_text_rows: int) -> None:
    dataset = reinforce.open_dataset(str(folder / "imported"))
    table = dataset.read(stem, list(dataset.signals))
    assert table.num_rows == num_samples
    assert {signal.folder for signal in dataset.signals} == {
        "captions/coca",
        *(f"embeddings/{name}/{of}" for name in WIDTHS for of in ("image", "text/coca", "text/original")),
    }
    first = 0
    for name, dim in WIDTHS.items():
        for index in range(num_samples):
            generator = np.random.default_rng(index)
            images, texts = with_arrays(generator, num_text_rows)
            cut = slice(first, first + dim)
            for view in range(NUM_VIEWS):
                found = dataset.numpy(f"embeddings/{name}/image", stem, f"view_{view + 1:03d}")[index]
                np.testing.assert_array_equal(found, stored(images[view, cut]))
            original = dataset.numpy(f"embeddings/{name}/text/original", stem, "caption_000")[index]
            np.testing.assert_array_equal(original, stored(texts[0, cut]))
            for caption in range(NUM_SYNTHETIC):
                found = dataset.numpy(f"embeddings/{name}/text/coca", stem, f"caption_{caption:03d}")[index]
                np.testing.assert_array_equal(found, stored(texts[1 + caption, cut]))
        first += dim
    row = table.slice(3, 1).to_pylist()[0]
    assert (row["image_width"], row["image_height"], row["captions"]) == (*SIZE, ["original caption of 3"])
    assert row["captions/coca/captions"] == ["synthetic 0 of 3", "synthetic 1 of 3"]
    scales = {
        signal.model: doc["model"]["logit_scale"] for signal, doc in dataset.signals.items() if signal.kind == "image"
    }
    assert scales == {"first": 70.0, "second": 100.0}


def test_a_student_sees_the_views_the_teachers_saw(folder: Path) -> None:
    """Pixels and embeddings of a batch against the members themselves, through nothing of ours but the renderer."""
    plan = plan_of(folder / "imported", verify_images=False)
    seen: Counter[int] = Counter()
    # At 64 pixels a translation in pixels of any crop but 224 moves to another one.
    for batch in read(plan, image_size=64, epochs=3):
        for row, key in enumerate(batch.keys):
            sample = published_sample(int(key, 16))
            views = json.loads(sample["paug.json"])["param_aug"]
            images, _ = with_arrays(np.random.default_rng(int(key, 16)), 3)
            found = batch.teacher_images["second"][row].numpy()
            (index,) = [i for i in range(NUM_VIEWS) if np.array_equal(found, stored(images[i, WIDTHS["first"] :]))]
            (top, left, height, width), _ = views[index]
            # -30.453 pixels of 224, and a sharpness of 1.27.
            ops = (ViewOp("TranslateY", -30.453 / 224), ViewOp("Sharpness", 0.27))
            image = decode(sample["jpg"], 10**6)
            assert isinstance(image, np.ndarray)
            expected = render(image, View(Box(top, left, height, width, *SIZE), ops=ops), 64)
            np.testing.assert_array_equal(batch.images[row].permute(1, 2, 0).numpy(), expected)
            assert text_of(batch.texts["original"][row]) == f"original caption of {int(key, 16)}"
            seen[index] += 1
    assert seen.total() == 33
    assert set(seen) == {0, 1, 2}


BAD: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str, str]] = {
    "no views": (lambda s: _without(s, "paug.json"), "missing_signals", "no paug.json"),
    "no captions": (lambda s: _without(s, "syn.json"), "missing_signals", "no syn.json"),
    "no embeddings": (lambda s: _without(s, "npz"), "missing_signals", "no npz, pth.gz"),
    "cut zip": (lambda s: s | {"npz": s["npz"][:-30]}, "bad_signals", "no zip"),
    "no JSON": (lambda s: s | {"paug.json": b"{"}, "bad_signals", "not JSON"),
    "a view less": (lambda s: with_json(s, "paug.json", "param_aug", lambda v: v[1:]), "bad_signals", "3 rows for 2"),
    "a text more": (lambda s: with_json(s, "syn.json", "syn_text", lambda v: [*v, "x"]), "bad_signals", "3 rows for 4"),
    "operation 14": (lambda s: _with_op(s, [14, 0.0]), "bad_signals", "operation 14"),
    "9 bits": (lambda s: _with_op(s, [10, 9.0]), "bad_signals", "Posterize"),
    "no float": (lambda s: _with_box(s, [0, 0, 9, 10**400]), "bad_signals", "whole pixels"),
    "no magnitude": (lambda s: _with_op(s, [4, 10**400]), "bad_signals", "not [number, magnitude]"),
    "half a letter": (
        lambda s: with_json(s, "syn.json", "syn_text", lambda v: ["\ud800", "x"]),
        "bad_signals",
        "UTF-8",
    ),
    "narrow": (lambda s: s | {"npz": _npz_of_width(16)}, "bad_signals", "16 wide, not 20"),
    "broad": (lambda s: s | {"npz": _npz_of_width(25)}, "bad_signals", "25 wide, not 20"),
    "two clean views": (lambda s: s | {"npz": _npz_of_width(20, num_clean=2)}, "bad_signals", "clean_emb"),
    "bzip2": (lambda s: s | {"npz": _zip_of(bytes(99), zipfile.ZIP_BZIP2)}, "bad_signals", "other means"),
    "half a pixel": (lambda s: _with_box(s, [0, 0.5, 9, 9]), "bad_signals", "whole pixels"),
    "box beyond": (lambda s: _with_box(s, [0, 20, 10, 41]), "views_do_not_fit", "not within 60 x 40"),
    "turned": (lambda s: s | {"jpg": _turned()}, "views_do_not_fit", "EXIF"),
    "no image": (lambda s: s | {"jpg": b"text"}, "not_an_image", "begins with"),
    "pickled array": (lambda s: s | {"npz": _object_npz()}, "bad_signals", "image_emb is damaged"),
    "lying array": (lambda s: s | {"npz": _lying_npz()}, "bad_signals", "image_emb is damaged"),
    "npz bomb": (lambda s: s | {"npz": _npz_bomb()}, "bad_signals", "unpacks to more"),
    "gzip bomb": (lambda s: _with_pth(s, bytes(80 << 20)), "bad_signals", "unpacks to more"),
    "pickle": (lambda s: _with_pth(s, pickle.dumps(print)), "bad_signals", "no zip"),
    "code": (lambda s: _with_pth(s, _saved({"image_emb": print})), "bad_signals", "does not load"),
    "wide": (lambda s: _with_pth(s, _saved({"image_emb": torch.zeros(1).expand(10**9, 20)})), "bad_signals", "size"),
}


def _without(sample: dict[str, bytes], suffix: str) -> dict[str, bytes]:
    return {name: data for name, data in sample.items() if name != suffix}


def _with_op(sample: dict[str, bytes], op: list[float]) -> dict[str, bytes]:
    return with_json(sample, "paug.json", "param_aug", lambda views: [[views[0][0], [op, None]], *views[1:]])


def _with_box(sample: dict[str, bytes], box: list[float]) -> dict[str, bytes]:
    return with_json(sample, "paug.json", "param_aug", lambda views: [[box, None], *views[1:]])


def _with_pth(sample: dict[str, bytes], unpacked: bytes) -> dict[str, bytes]:
    return _without(sample, "npz") | {"pth.gz": gzip.compress(unpacked, 1)}


def _saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _turned() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return encode(Image.open(io.BytesIO(image_bytes(1, *SIZE))), "JPEG", exif=exif)


def _npz(image_emb: np.ndarray, **more: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, image_emb=image_emb, **more)  # type: ignore[arg-type]
    return file.getvalue()


def _object_npz() -> bytes:
    return _npz(np.array([[print]], object))


def _lying_npz() -> bytes:
    """Its header tells of 2^40 rows."""
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 20)})
    return _zip_of(data.getvalue() + bytes(80), zipfile.ZIP_STORED)


def _zip_of(data: bytes, compression: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("image_emb.npy", data)
    return file.getvalue()


def _npz_of_width(width: int, num_clean: int = 1) -> bytes:
    arrays = {name: np.ones((rows, width), np.float32) for name, rows in (("text_emb", 3), ("clean_emb", num_clean))}
    return _npz(np.ones((NUM_VIEWS, width), np.float32), **arrays)


def _npz_bomb() -> bytes:
    return _npz(np.zeros((20 << 20, 1), np.float32))


def test_samples_that_cannot_be_used_are_dropped_with_their_reason(tmp_path: Path) -> None:
    samples = [published_sample(0), *(break_(published_sample(i)) for i, (break_, _, _) in enumerate(BAD.values()))]
    write_published(tmp_path / "source/a.tar", samples)
    result = import_(tmp_path / "source", tmp_path / "imported")
    assert result.exit_code == 0, result.output
    rows = pq.read_table(tmp_path / "imported/samples/a.parquet").to_pylist()
    assert rows[0]["drop_reason"] is None
    for row, (name, (_, reason, detail)) in zip(rows[1:], BAD.items(), strict=True):
        assert row["drop_reason"] == reason, (name, row["drop_reason"], row["drop_detail"])
        assert detail in row["drop_detail"], (name, row["drop_detail"])
    assert len(pq.read_table(tmp_path / "imported/views/a.parquet")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dims", "first=12,second=9"], "12 + 9 is 21, the embeddings are 20 wide"),
        (["--dims", "second=8,first=12"], "second=8: columns 0..7 have the norm"),
        (["--dims", "first=12,first=8"], "first is named twice"),
        (["--dims", "First=12,second=8"], "must be of a-z"),
        (["--dims", "first"], "give NAME=WIDTH"),
        (["--logit-scale", "third=70"], "names no such teacher"),
        (["--captioner", "original"], "is taken"),
    ],
)
def test_what_is_wrong_with_all_samples_is_one_line(
    folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = import_(folder / "source", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out/dataset.json").exists()


def test_shards_called_as_sentences_are_cannot_be_imported(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "corpora" / "s.tar", [])
    result = import_(tmp_path / "in", tmp_path / "out")
    assert result.exit_code == 2
    assert "corpora/s: that is what sentences of a corpus are called; rename the folder" in result.stderr


def test_fewer_views_and_captions_are_nulls_and_so_are_rows_that_are_no_unit_vectors(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    few = with_json(published_sample(1), "paug.json", "param_aug", lambda views: views[:2])
    few = with_json(few, "syn.json", "syn_text", lambda texts: texts[:1])
    texts = unit_rows(generator, 2)
    few["npz"] = _npz(unit_rows(generator, 2), text_emb=texts)
    odd = published_sample(2)
    images = unit_rows(generator, NUM_VIEWS)
    images[1] *= 1.1
    images[2, -1] = np.nan
    odd["npz"] = _npz(images, text_emb=unit_rows(generator, 1 + NUM_SYNTHETIC))
    write_published(tmp_path / "source/a.tar", [published_sample(0), few, odd])
    assert import_(tmp_path / "source", tmp_path / "imported").exit_code == 0
    dataset = reinforce.open_dataset(str(tmp_path / "imported"))
    nulls = {}
    for signal in dataset.signals:
        with dataset.open(signal, "a") as file:
            nulls[signal.folder] = file.footer["nulls"]
    assert nulls["embeddings/first/image"] == {"no_view": 1, "not_unit": 1}
    assert nulls["embeddings/second/image"] == {"no_view": 1, "not_unit": 1, "non_finite": 1}
    assert nulls["embeddings/first/text/datacompdr"] == {"no_caption": 1}
    assert dataset.table("embeddings/second/image", "a").column("view_003").is_null().to_pylist() == [False, True, True]
    np.testing.assert_array_equal(
        dataset.numpy("embeddings/first/text/datacompdr", "a", "caption_000")[1], stored(texts[1, : WIDTHS["first"]])
    )
    # An inspection knows no clean view and has nothing to compare with it: all else is as it should be.
    figures = inspect_dataset(str(tmp_path / "imported"))
    assert figures.problems == ()
    assert figures.cosines == ()
    without_teachers = read(plan_of(tmp_path / "imported", uses_teachers=False, verify_images=False), epochs=3)
    assert sum((batch.counts for batch in without_teachers), Counter())["no_view"] == 1


def test_images_may_come_later_and_must_hold_the_boxes(tmp_path: Path) -> None:
    bare = [published_sample(index, is_joined=False) for index in range(4)]
    write_published(tmp_path / "source/a.tar", [sample | {"txt": b"a caption"} for sample in bare])
    assert import_(tmp_path / "source", tmp_path / "imported").exit_code == 0
    row = pq.read_table(tmp_path / "imported/views/a.parquet").to_pylist()[0]
    assert (row["image_width"], row["image_height"]) == (None, None)
    joined = [published_sample(index) for index in range(4)]
    joined[2]["jpg"] = image_bytes(2, SIZE[0] // 8, SIZE[1] // 8, "JPEG")
    write_published(tmp_path / "joined/a.tar", joined)
    options: dict[str, Any] = {"root": str(tmp_path / "joined"), "verify_images": False}
    with pytest.raises(ReadError, match=r"view \d: the box .* is not within 7 x 5"):
        list(read(plan_of(tmp_path / "imported", **options), epochs=1))
    batches = list(read(plan_of(tmp_path / "imported", damaged="skip", **options), epochs=3, batch_size=3))
    assert sum(map(len, batches)) == 9
    assert sum((batch.counts for batch in batches), Counter())["image_mismatch"] == 3
    # By the sha256 that came with the set none of them is the image it was made from.
    with pytest.raises(ReadError, match="sha256"):
        list(read(plan_of(tmp_path / "imported", root=options["root"]), epochs=1))


def test_a_run_goes_on_where_the_last_one_ended(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("00", "01", "02"):
        tar = source / f"0/{name}.tar"
        tar.parent.mkdir(parents=True, exist_ok=True)
        tar.write_bytes((folder / f"source/0/{min(int(name), 1):02d}.tar").read_bytes())
    whole = (source / "0/02.tar").read_bytes()
    (source / "0/02.tar").write_bytes(whole[: len(whole) // 2])
    first = import_(source, tmp_path / "imported", "--captioner", "coca", "--logit-scale", "first=70")
    assert first.exit_code == 1
    assert "truncated" in json.loads((tmp_path / "imported/failures/0/02.json").read_text())["error"]
    expected = {path: data for path, data in files_of(folder / "imported").items() if path != "dataset.json"}
    assert files_of(tmp_path / "imported").items() >= expected.items()
    (source / "0/02.tar").write_bytes(whole)
    for path in ("embeddings/first/image/0/01.parquet", "views/0/00.parquet"):
        (tmp_path / "imported" / path).unlink()
    again = import_(source, tmp_path / "imported", "--captioner", "coca", "--logit-scale", "first=70")
    assert again.exit_code == 0, again.output
    assert "(0 were before this run)" in again.stdout
    assert files_of(tmp_path / "imported").items() >= expected.items()
    assert not list((tmp_path / "imported/failures").rglob("*.json"))
    assert "(3 were before this run)" in import_(source, tmp_path / "imported", "--captioner", "coca").stdout
    other = import_(source, tmp_path / "imported", "--captioner", "coca", "--dims", "only=20")
    assert other.exit_code == 2


def test_views_that_are_not_stored_cannot_be_asked_for(folder: Path) -> None:
    with pytest.raises(ConfigError, match="0 is the clean view"):
        plan_of(folder / "imported", views=0)
    with pytest.raises(ConfigError, match="4 wanted"):
        plan_of(folder / "imported", views=4, uses_teachers=False)
    assert len(facts(next(iter(read(plan_of(folder / "imported", views=2, verify_images=False)))))) == 4


def test_it_verifies_and_an_edited_view_does_not(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "imported", tmp_path / "imported")
    result = CliRunner().invoke(app, ["inspect", str(copy), "--verify"])
    assert result.exit_code == 0, result.output

    def widen(table: pa.Table) -> pa.Table:
        views = table.column("view_002").to_pylist()
        views[1]["width"] = SIZE[0] + 1
        column = pa.array(views, table.schema.field("view_002").type)
        return table.set_column(table.column_names.index("view_002"), table.schema.field("view_002"), column)

    forge_file(copy / "views/0/00.parquet", widen)
    result = CliRunner().invoke(app, ["inspect", str(copy), "--verify", "--json"])
    assert result.exit_code == 1
    (fault,) = json.loads(result.stdout)["faults"]
    assert (fault["path"], fault["column"], fault["row"]) == ("views/0/00.parquet", "view_002", 1)


def test_a_bit_flipped_in_the_name_of_the_digest_of_views(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder / "imported", tmp_path / "imported"))
    path = copy / "views/0/00.parquet"
    start = path.read_bytes().rindex(b'"file_sha256":"')
    for position in range(8 * start, 8 * (start + 15), 5):
        with flipped(path, position):
            faults = verify_dataset(str(copy), with_source=False).faults
            assert "views/0/00.parquet" in {fault.path for fault in faults}, position


def test_norms_that_an_import_lets_pass_are_no_fault(tmp_path: Path) -> None:
    samples = [with_scaled_rows(published_sample(index), 1.008) for index in range(3)]
    write_published(tmp_path / "source/00.tar", [*samples, published_sample(3)])
    assert import_(tmp_path / "source", tmp_path / "imported").exit_code == 0
    assert verify_dataset(str(tmp_path / "imported")).faults == ()
    assert inspect_dataset(str(tmp_path / "imported")).doubts == ()


def test_the_report_of_a_sample_with_fewer_views(tmp_path: Path) -> None:
    samples = [published_sample(index) for index in range(3)]
    samples[1] = with_json(samples[1], "paug.json", "param_aug", lambda views: views[:1])
    write_published(tmp_path / "source/00.tar", samples)
    assert import_(tmp_path / "source", tmp_path / "imported").exit_code == 0
    figures = inspect_dataset(str(tmp_path / "imported"))
    assert write_report(str(tmp_path / "imported"), tmp_path / "page.html", figures) == []
    assert verify_dataset(str(tmp_path / "imported")).faults == ()


def with_scaled_rows(sample: dict[str, bytes], factor: float) -> dict[str, bytes]:
    arrays = dict(np.load(io.BytesIO(sample["npz"])))
    file = io.BytesIO()
    np.savez_compressed(file, **{name: rows * np.float32(factor) for name, rows in arrays.items()})
    return sample | {"npz": file.getvalue()}


def test_the_report_shows_the_stored_views(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = CliRunner().invoke(app, ["inspect", str(folder / "imported"), "--html", str(page)])
    assert result.exit_code == 0, result.output
    assert "cannot be replayed" not in page.read_text()
    assert page.read_text().count(f"shift y −{30.453 / 224:.0%}") >= NUM_VIEWS * 6


def test_train_student_runs_on_it(folder: Path, tmp_path: Path) -> None:
    data = {"workers": 0, "verify_images": False}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"student": STUDENT | {"data": data}}))
    arguments = ["--dataset", str(folder / "imported"), "--recipe", str(tmp_path / "recipe.yaml")]
    result = CliRunner().invoke(app, ["train-student", *arguments, "--output", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run/student").is_dir()
