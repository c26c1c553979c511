"""What a student sees of further modalities: the same part of the scene, from the same rows, each fault counted."""

import io
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from reinforce.config import ConfigError, ModalityConfig
from reinforce.evaluation.examples import Example, Skipped
from reinforce.evaluation.images import ShardImages
from reinforce.exchange.pack import pack
from reinforce.student.batch import Batch
from reinforce.student.groups import ReadError
from tests.fakes import fake_plan, fake_teachers, run
from tests.scenes import deep_gradient_bytes, gradient_bytes
from tests.students import plan_of, read
from tests.tars import encode, pairs, write_tar

SIZES = {"a": 6, "b": 5}
NO_THERMAL, TORN_DEPTH = "a-1", "b-2"
MODALITIES = {"thermal": "ir.png", "depth": {"suffix": "depth.png", "range": [0, 8000]}}


def members_of(stem: str, **replaced: bytes) -> list[tuple[str, bytes]]:
    """Scenes as RGB, as thermal of 1.5 times its size, as depth of another aspect ratio; `replaced` are by kind.

    Blue tells the samples apart.
    """
    members = []
    for number in range(SIZES[stem]):
        key, width, level = f"{stem}-{number}", 80 + 4 * number, (number + 6 * (stem == "b")) / 12
        members.append((f"{key}.png", replaced.get("rgb", gradient_bytes(width, 60, level))))
        if key != NO_THERMAL:
            members.append((f"{key}.ir.png", replaced.get("thermal", gradient_bytes(width * 3 // 2, 90, level))))
        depth = replaced.get("depth", deep_gradient_bytes(64, 64, 4000))
        members.append((f"{key}.depth.png", depth[:40] if key == TORN_DEPTH else depth))
    return members


def write_pairs(folder: Path, **replaced: bytes) -> Path:
    for stem in SIZES:
        write_tar(folder / f"{stem}.tar", members_of(stem, **replaced))
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modalities")
    views = {"count": 3, "hflip": 0.5, "photometric": False, "scale": [0.2, 1.0]}
    config = {"views": views, "source": {"captions": [], "max_captions": 0}, "modalities": MODALITIES}
    source = write_pairs(folder / "source")
    assert not run(fake_plan(config, teachers=fake_teachers()[:1], captioners=[]), source, folder / "data").failed
    return folder / "data"


def batches_of(dataset: Path, *modalities: str, **options: Any) -> list[Batch]:
    plan = plan_of(dataset, modalities=modalities, reads_captions=False, **options)
    return list(read(plan, image_size=32, epochs=options.get("views_per_decode", 1)))


def counts_of(batches: list[Batch]) -> Counter[str]:
    return sum((batch.counts for batch in batches), Counter[str]())


@pytest.mark.parametrize("options", [{}, {"views": 0}, {"views_per_decode": 2, "views_placement": "together"}])
def test_every_modality_shows_the_same_part_of_the_scene(dataset: Path, options: dict[str, Any]) -> None:
    if options.get("views") == 0:
        options = options | {"uses_teachers": False}
    batches = batches_of(dataset, "rgb", "thermal", "depth", **options)
    num_views = options.get("views_per_decode", 1)
    assert sum(map(len, batches)) == (sum(SIZES.values()) - 2) * num_views
    assert counts_of(batches) == {"no_thermal": num_views, "no_depth": num_views}
    for batch in batches:
        assert list(batch.modalities) == ["thermal", "depth"]
        rgb, thermal, depth = (rows.float() for rows in (batch.images, *batch.modalities.values()))
        assert (rgb - thermal).abs().max() <= 255 / 32 + 1
        # Depth ends at half of its range, and where geometric operations leave nothing there is black in both.
        assert (rgb[:, 0] / 2 - depth[:, 0]).abs().max() <= 255 / 32 + 1
        for part, half in zip(batch.split(len(batch)), depth, strict=True):
            assert torch.equal(part.modalities["depth"][0].float(), half)


def test_the_first_modality_is_that_of_images_and_the_order_is_the_recipe_s(dataset: Path) -> None:
    together = batches_of(dataset, "rgb", "thermal")
    turned = batches_of(dataset, "thermal", "rgb")
    alone = batches_of(dataset, "thermal")
    for one, other, single in zip(together, turned, alone, strict=True):
        assert one.keys == other.keys == single.keys
        assert torch.equal(one.images, other.modalities["rgb"])
        for images in (other.images, single.images):
            assert torch.equal(one.modalities["thermal"], images)
        assert not single.modalities
        assert torch.equal(one.teacher_images["large"], single.teacher_images["large"])


def test_rgb_is_not_read_where_it_is_not_in_use(dataset: Path, tmp_path: Path) -> None:
    source = write_pairs(tmp_path, rgb=b"no image")
    batches = batches_of(dataset, "thermal", root=str(source))
    assert sum(map(len, batches)) == sum(SIZES.values()) - 1
    with pytest.raises(ReadError, match=r"its image is not the one the signals were made from \(sha256\)"):
        batches_of(dataset, "rgb", "thermal", root=str(source))


def test_a_range_of_the_recipe_is_used_instead_of_the_dataset_s(dataset: Path) -> None:
    (whole, *_), (half, *_) = (
        batches_of(dataset, "depth", views=0, uses_teachers=False, modality_ranges=ranges)
        for ranges in ({"depth": [0, 4000]}, {})
    )
    assert (whole.images.float() / 2 - half.images.float()).abs().max() <= 1


def test_another_image_of_a_modality_is_refused_or_counted(dataset: Path, tmp_path: Path) -> None:
    other = write_pairs(tmp_path / "other", thermal=gradient_bytes(33, 21))
    with pytest.raises(ReadError, match=r"its thermal image is not the one the signals were made from .* Give --root"):
        batches_of(dataset, "rgb", "thermal", root=str(other))
    plan = plan_of(dataset, modalities=["thermal"], reads_captions=False, root=str(other), damaged="skip")
    with pytest.raises(ReadError, match=r"not one usable sample in 4 visits to shards .*image_mismatch"):
        list(read(plan, epochs=9))
    # Its size is nobody's business.
    batches = batches_of(dataset, "rgb", "thermal", root=str(other), verify_images=False)
    assert sum(map(len, batches)) == sum(SIZES.values()) - 1
    torn = write_pairs(tmp_path / "torn", thermal=b"no image", depth=b"nor this")
    options: dict[str, Any] = {"root": str(torn), "verify_images": False}
    with pytest.raises(ReadError, match=r"sample a-\d: not_an_image \(depth: begins with"):
        batches_of(dataset, "rgb", "depth", shards=[str(torn / "a.tar")], unusable="error", **options)
    write_tar(torn / "b.tar", members_of("b"))
    counts = counts_of(batches_of(dataset, "thermal", **options))
    assert counts == {"no_thermal": 1, "not_an_image": SIZES["a"] - 1}
    write_tar(torn / "a.tar", [(name, data) for name, data in members_of("a") if "ir" not in name])
    with pytest.raises(ReadError, match=r"sample a-\d: its thermal image is not in the tar"):
        batches_of(dataset, "thermal", root=str(torn))


def test_a_sample_without_one_stops_the_run_if_it_is_to(dataset: Path) -> None:
    with pytest.raises(ReadError, match="shard a: sample a-1: no_thermal"):
        batches_of(dataset, "rgb", "thermal", unusable="error")


def test_files_of_a_modality_are_checked_like_any_signal_s(dataset: Path, tmp_path: Path) -> None:
    own = shutil.copytree(dataset, tmp_path / "own")
    options: dict[str, Any] = {"root": str(dataset.parent / "source")}
    file = own / "modalities/thermal/b.parquet"
    shutil.copy(own / "modalities/depth/b.parquet", file)
    with pytest.raises(ReadError, match="its signal is modalities/depth, not modalities/thermal: another file's"):
        batches_of(own, "rgb", "thermal", **options)
    file.unlink()
    with pytest.raises(ConfigError, match=r"1 of 2 shards are not finished \(modalities/thermal lacks 1\)"):
        batches_of(own, "rgb", "thermal", **options)
    assert {stem for batch in batches_of(own, "thermal", missing="skip", **options) for stem in batch.stems} == {"a"}
    assert len(plan_of(own, reads_captions=False, **options).stems) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": ["rgb", "swir"]}, "data.modalities: the dataset has no 'swir'; it has depth, rgb, thermal"),
        ({"modality_ranges": {"swir": "image"}}, "data.modality_ranges: .* no 'swir'; it has depth, thermal"),
    ],
)
def test_a_modality_that_is_not_there_is_refused(dataset: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(dataset, reads_captions=False, **options)


def test_packed_tars_hold_rgb_alone(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "in" / "a.tar", pairs(2)).parent
    config = {"views": {"count": 1}, "source": {"max_captions": 1}}
    run(fake_plan(config, teachers=fake_teachers()[:1], captioners=[]), source, tmp_path / "data")
    pack(str(tmp_path / "data"), str(tmp_path / "packed"), console=Console(file=io.StringIO()))
    with pytest.raises(ConfigError, match=r"data.modalities: packed tars hold rgb alone"):
        plan_of(tmp_path / "packed", reads_captions=False, modalities=["thermal"])


def test_evaluation_reads_a_modality_in_place_of_rgb(tmp_path: Path) -> None:
    members = []
    for index, value in enumerate((1000, 3000, 9000)):
        deep = Image.fromarray(np.full((6, 9), value, np.uint16))
        members += [(f"{index}.png", encode(Image.new("RGB", (12, 8)))), (f"{index}.cls", b"1")]
        members.append((f"{index}.depth.png", encode(deep)))
    rest = [("plain.png", encode(Image.new("RGB", (4, 4)))), ("plain.cls", b"0"), ("alone.cls", b"0")]
    rest += [("alone.depth.png", encode(Image.fromarray(np.full((6, 9), 5000, np.uint16))))]
    rest += [("torn.png", encode(Image.new("RGB", (4, 4)))), ("torn.cls", b"0"), ("torn.depth.png", b"\x89PNG")]
    write_tar(tmp_path / "a.tar", members + rest)
    depth = ModalityConfig.model_validate({"suffix": "depth.png", "range": [1000, 9000]})
    found = list(ShardImages(str(tmp_path), needs="label", modality=depth).examples(4))
    values = [(int(each.pixels.mean()), each.facts.label) for each in found if isinstance(each, Example)]
    assert values == [(0, 1), (64, 1), (255, 1), (128, 0)]
    assert [each.reason for each in found if isinstance(each, Skipped)] == ["no_modality", "not_an_image"]
