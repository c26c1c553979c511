"""Packed tars: what other loaders read of them, what comes back of them, and what a student sees in them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image
from torchvision.transforms import InterpolationMode, autoaugment
from torchvision.transforms import functional as tv
from typer.testing import CliRunner, Result

import reinforce
from reinforce.cli import app
from reinforce.config import ConfigError
from reinforce.exchange.datacompdr import import_datacompdr
from reinforce.exchange.layout import escape_key
from reinforce.exchange.pictures import scaled_edges, shrunk_size
from reinforce.sample import Box
from reinforce.shards.source import NOTES_MEMBER
from reinforce.student.groups import ReadError
from reinforce.views.draw import OP_NAMES, draw
from reinforce.views.render import matches, render
from tests.fakes import fake_plan, run
from tests.s3_server import S3Server, use_test_credentials
from tests.students import build_dataset, facts, plan_of, read
from tests.tars import encode, image_bytes, pairs, write_tar

DROPPED = {"corrupt_image": 1, "no_original_caption": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two teachers, three views, up to two original captions and two synthetic ones; packed three ways."""
    folder = tmp_path_factory.mktemp("packed")
    build_dataset(folder)
    for name, options in {"npz": [], "pth": ["--embeddings", "pth.gz"], "small": ["--shortest-side", "20"]}.items():
        result = pack(folder, name, *options)
        assert result.exit_code == 0, result.output
        assert "corrupt_image 1, no_original_caption 2" in result.stdout
    assert "21 images encoded again" in result.stdout
    return folder


def pack(folder: Path, output: str, *options: str) -> Result:
    return CliRunner().invoke(app, ["pack", str(folder / "reinforced"), "--output", str(folder / output), *options])


def samples_of(tar: Path) -> list[dict[str, Any]]:
    """As loaders of the published layout see a tar: WebDataset's grouping and decoding, then members by name."""
    with tar.open("rb") as stream:
        files = wds.tariterators.tar_file_expander([{"url": str(tar), "stream": stream}])
        grouped = list(wds.tariterators.group_by_keys(files))
    usable = [sample for sample in grouped if "txt" in sample and {"png", "jpg", "jpeg", "webp"} & set(sample)]
    named = wds.rename(image="jpg;png;jpeg;webp", text="txt", paug="paug.json", syn="syn.json", emb="npz;pth.gz")
    return list(named(wds.decode("pilrgb")(usable)))


@pytest.mark.parametrize("name", ["npz", "pth"])
def test_loaders_of_the_published_layout_read_them(folder: Path, name: str) -> None:
    dataset = reinforce.open_dataset(str(folder / "reinforced"))
    found = samples_of(folder / name / "folder/b.tar")
    rows = {row["key"]: row for row in dataset.read("folder/b", list(dataset.signals)).to_pylist()}
    assert [sample["__key__"] for sample in found] == [f"folder/b-{i:03d}" for i in range(12) if i != 3]
    for sample in found:
        row = rows[sample["__key__"]]
        assert sample["text"] == row["captions"][0]
        assert sample["syn"]["syn_text"] == row["captions/fake/captions"]
        assert sample["json"]["uid"] == row["key"]
        assert sample["json"]["sha256"] == row["image_sha256"].hex()
        emb = {key: np.asarray(torch.as_tensor(rows).float()) for key, rows in sample["emb"].items()}
        assert emb["image_emb"].shape == (3, 20)
        views = [_both(row, "image", f"view_{view:03d}") for view in (1, 2, 3)]
        np.testing.assert_array_equal(emb["image_emb"], views)
        np.testing.assert_array_equal(emb["clean_emb"], [_both(row, "image", "view_000")])
        # The first original caption, then the synthetic ones: text i of the latter is row 1 + i.
        texts = [_both(row, "text/original", "caption_000")]
        texts += [_both(row, "text/fake", f"caption_{i:03d}") for i in range(len(sample["syn"]["syn_text"]))]
        texts += [_both(row, "text/original", f"caption_{i:03d}") for i in range(1, len(row["captions"]))]
        np.testing.assert_array_equal(emb["text_emb"], texts)


def _both(row: dict[str, Any], of: str, column: str) -> list[float]:
    return [value for name in ("large", "small") for value in row[f"embeddings/{name}/{of}/{column}"]]


def test_torchvision_replays_their_parameters_to_our_views(folder: Path) -> None:
    policy = fake_plan({"views": {"count": 3}}).policy
    errors = []
    for sample in samples_of(folder / "npz/a.tar"):
        seed = sample["paug"]["view_seed"]
        image = sample["image"]
        for index, ((top, left, height, width), ops) in enumerate(sample["paug"]["param_aug"], start=1):
            assert len(ops) == policy.num_ops
            crop = tv.resized_crop(
                image, top, left, height, width, [224, 224], InterpolationMode.BICUBIC, antialias=True
            )
            for number, magnitude in ops:
                crop = autoaugment._apply_op(crop, OP_NAMES[number], magnitude, InterpolationMode.NEAREST, None)
            ours = render(np.asarray(image), draw(policy, seed, index, *image.size), 224)
            errors.append(np.abs(np.asarray(crop).astype(int) - ours).mean())
    assert len(errors) == 18
    assert max(errors) < 1.0
    assert float(np.median(errors)) < 0.1


@pytest.mark.parametrize("name", ["npz", "pth", "small"])
def test_what_was_packed_comes_back_value_for_value(folder: Path, tmp_path: Path, name: str) -> None:
    summary = import_datacompdr(str(folder / name), str(tmp_path), dims={}, logit_scales={})
    assert summary.done.num_kept == 21
    before, after = reinforce.open_dataset(str(folder / "reinforced")), reinforce.open_dataset(str(tmp_path))
    assert list(after.signals) == list(before.signals)
    for signal, document in after.signals.items():
        if signal.kind != "captions":
            assert document["model"]["logit_scale"] == before.signals[signal]["model"]["logit_scale"]
            assert document["content"]["packed"] == before.signals[signal]["fingerprint"]
        for stem in before.stems:
            rows = {row["key"]: row for row in before.table(signal, stem).to_pylist()}
            assert all(rows[row["key"]] == row for row in after.table(signal, stem).to_pylist())
    captions = {row["key"]: row["captions"] for stem in before.stems for row in before.spine(stem).to_pylist()}
    assert all(captions[row["key"]] == row["captions"] for stem in after.stems for row in after.spine(stem).to_pylist())
    ours, theirs = plan_of(folder / "reinforced"), plan_of(tmp_path)
    same = slice(0, 2) if name == "small" else slice(0, None)
    assert [row[same] for row in stream(ours)] == [row[same] for row in stream(theirs)]


def stream(plan: Any, **options: Any) -> list[tuple[Any, ...]]:
    return [fact for batch in read(plan, epochs=6, **options) for fact in facts(batch)]


@pytest.mark.parametrize("options", [{}, {"views_per_decode": 3, "views_placement": "together"}, {"views": 0}])
def test_a_student_sees_the_same_in_packed_tars(folder: Path, options: dict[str, Any]) -> None:
    expected = stream(plan_of(folder / "reinforced", **options), batch_size=6)
    assert len(expected) == 6 * 21
    for name in ("npz", "pth"):
        plan = plan_of(folder / name, **options)
        assert stream(plan, batch_size=6) == expected
        assert plan.count_samples() == 21
    small = stream(plan_of(folder / "small", **options), batch_size=6)
    assert [fact[:2] + fact[3:] for fact in small] == [fact[:2] + fact[3:] for fact in expected]
    pixels = [np.frombuffer(data, np.uint8).astype(int) for fact in (small, expected) for _, _, data, *_ in fact]
    errors = [np.abs(a - b).mean() for a, b in zip(pixels[: len(small)], pixels[len(small) :], strict=True)]
    assert float(np.median(errors)) < 8
    with pytest.raises(ConfigError, match="--select: not from packed tars"):
        plan_of(folder / "npz", select="some.parquet")


def test_a_tar_of_another_packing_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("packed.json", "a.tar", "c.tar"):
        (tmp_path / name).write_bytes((folder / ("small" if name == "c.tar" else "npz") / name).read_bytes())
    with pytest.raises(ReadError, match=r"shard c: .* is not that of this packing"):
        stream(plan_of(tmp_path))
    skipping = list(read(plan_of(tmp_path, damaged="skip"), epochs=1, batch_size=6))
    assert {key[:2] for batch in skipping for key in batch.keys} == {"a-"}


def test_smaller_images_keep_the_relative_views(folder: Path) -> None:
    whole, small = (
        {sample["__key__"]: sample for sample in samples_of(folder / name / "c.tar")} for name in ("npz", "small")
    )
    assert whole.keys() == small.keys()
    for key, sample in small.items():
        paug, of_whole = sample["paug"], whole[key]["paug"]
        assert min(sample["image"].size) == 20
        assert [paug["image_width"], paug["image_height"]] == list(whole[key]["image"].size)
        assert paug["boxes"] == [box for box, _ in of_whole["param_aug"]]
        assert [ops for _, ops in paug["param_aug"]] == [ops for _, ops in of_whole["param_aug"]]
        width, height = sample["image"].size
        for (top, left, box_height, box_width), exact in zip(
            [b for b, _ in paug["param_aug"]], paug["boxes"], strict=True
        ):
            assert 0 <= top < top + box_height <= height
            assert 0 <= left < left + box_width <= width
            assert abs(top / height - exact[0] / paug["image_height"]) <= 0.5 / height + 1e-9
            assert abs(left / width - exact[1] / paug["image_width"]) <= 0.5 / width + 1e-9


@pytest.mark.parametrize("shortest_side", [16, 100, 256])
def test_a_shrunk_image_still_fits_its_boxes(shortest_side: int) -> None:
    for width, height in ((640, 480), (333, 500), (1999, 301), (257, 4001), (300, 300)):
        size = shrunk_size((width, height), shortest_side)
        assert min(size) == shortest_side
        assert matches(Box(0, 0, 1, 1, width, height), *size)
        for start, length in ((0, 1), (width - 1, 1), (0, width), (width // 3, width // 2)):
            first, kept = scaled_edges(start, length, width, size[0])
            assert 0 <= first < first + kept <= size[0]


def test_the_same_bytes_again_and_nothing_twice(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "reinforced").symlink_to(folder / "reinforced")
    assert pack(tmp_path, "again").exit_code == 0
    tars = {path: (folder / "npz" / path).read_bytes() for path in ("a.tar", "folder/b.tar", "c.tar")}
    assert all((tmp_path / "again" / path).read_bytes() == data for path, data in tars.items())
    (tmp_path / "again/c.tar").unlink()
    marked = tars["a.tar"] + b"left alone"
    (tmp_path / "again/a.tar").write_bytes(marked)
    resumed = pack(tmp_path, "again")
    assert "(2 were before this run)" in resumed.stdout
    assert (tmp_path / "again/c.tar").read_bytes() == tars["c.tar"]
    assert (tmp_path / "again/a.tar").read_bytes() == marked
    other = pack(tmp_path, "again", "--shortest-side", "20")
    assert other.exit_code == 2
    assert "shortest_side is null there and 20" in other.stderr
    with tarfile.open(folder / "npz/folder/b.tar") as tar:
        first = tar.next()
        assert first is not None
        assert first.name == NOTES_MEMBER
        notes = json.load(tar.extractfile(first) or io.BytesIO())
        assert all(info.mtime == 0 for info in tar)
    assert (notes["stem"], notes["num_samples"], notes["left_out"]) == ("folder/b", 11, {"no_original_caption": 1})


def test_a_source_that_changed_is_not_packed(tmp_path: Path) -> None:
    build_dataset(tmp_path)
    members = [(f"a-{i:03d}.png", image_bytes(i, 40 + i % 3, 30)) for i in range(7)]
    members[1] = ("a-001.png", image_bytes(99, 41, 30))
    write_tar(tmp_path / "source/a.tar", [*members[:2], *members[3:5]])
    (tmp_path / "source/c.tar").write_bytes(b"no tar")
    result = pack(tmp_path, "packed")
    assert result.exit_code == 1
    assert "image_mismatch 1, missing_image 2" in result.stdout
    assert "failed: c: " in result.stdout
    assert json.loads((tmp_path / "packed/failures/c.json").read_text())["stem"] == "c"
    assert not (tmp_path / "packed/c.tar").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"views": {"count": 2, "hflip": 0.5}}, "mirrored with probability 0.5"),
        ({"source": {"max_captions": 0}}, "no original captions"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    write_tar(tmp_path / "source/a.tar", pairs(2))
    run(fake_plan({"views": {"count": 2}} | config), tmp_path / "source", tmp_path / "reinforced")
    result = pack(tmp_path, "packed")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_odd_keys_turned_images_and_other_formats(tmp_path: Path) -> None:
    """WebDataset cuts a key at its first dot and skips `__x__/`; loaders know no EXIF and not every format."""
    exif = Image.Exif()
    exif[274] = 6
    turned = encode(Image.open(io.BytesIO(image_bytes(3, 44, 30))), "JPEG", exif=exif)
    images = {"v1.2/a.b": image_bytes(0), "a.c": image_bytes(1), "__x__/d": image_bytes(2), "50%": turned}
    images["gif"] = image_bytes(4, image_format="GIF")
    members = [(f"{key}.jpg", data) for key, data in images.items()]
    write_tar(tmp_path / "source/a.tar", [*members, *((f"{key}.txt", b"words") for key in images)])
    run(fake_plan({"views": {"count": 2}}), tmp_path / "source", tmp_path / "reinforced")
    assert "2 images encoded again" in pack(tmp_path, "packed").stdout
    found = {sample["__key__"]: sample for sample in samples_of(tmp_path / "packed/a.tar")}
    assert set(found) == {"v1.2/a%2Eb", "a%2Ec", "%5F_x__/d", "50%25", "gif"}
    assert found["50%25"]["image"].size == (30, 44)
    assert set(found) == {escape_key(key) for key in images}
    keys = {key for batch in read(plan_of(tmp_path / "packed"), epochs=1) for key in batch.keys}
    assert keys == set(images)
    unchanged, packed = ({row[1]: row for row in stream(plan_of(tmp_path / name))} for name in ("reinforced", "packed"))
    assert all(unchanged[key] == packed[key] for key in ("v1.2/a.b", "a.c", "__x__/d"))


def test_tars_in_a_bucket(folder: Path, tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    use_test_credentials(monkeypatch, server.endpoint)
    uri = f"s3://{server.make_bucket('packed')}/set"
    result = CliRunner().invoke(app, ["pack", str(folder / "reinforced"), "--output", uri])
    assert result.exit_code == 0, result.output
    summary = import_datacompdr(uri, str(tmp_path), dims={}, logit_scales={})
    assert (summary.done.num_kept, summary.failed) == (21, {})
    local, remote = plan_of(folder / "npz"), plan_of(uri)  # type: ignore[arg-type]
    assert remote.count_samples() == 21
    assert [facts(batch) for batch in read(remote, epochs=1)] == [facts(batch) for batch in read(local, epochs=1)]
