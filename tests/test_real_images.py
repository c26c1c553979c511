"""Real images through real teachers, against open_clip itself; the whole sets are `tests/benchmarks/truth.py`."""

from pathlib import Path

import numpy as np
import pytest
import torch

import reinforce
from reinforce.config import ViewPolicy, load_recipe
from reinforce.decode import decode
from reinforce.inspection.verify import verify_dataset
from reinforce.shards.dataset import Dataset
from reinforce.shards.source import SourceShard
from reinforce.teachers import load_teacher
from reinforce.views.draw import draw, view_seed
from reinforce.views.render import render
from tests.benchmarks import truth
from tests.test_views import reference_render


@pytest.fixture(scope="module")
def cifar10(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """200 test images of CIFAR-10 in 3 views, two teachers."""
    output = str(tmp_path_factory.mktemp("cifar10"))
    source = str(shared / "data" / "cifar10" / "test")
    summary = reinforce.build(
        source, output, "cifar10", overrides=["build.views.count=2"], limit_shards=1, limit_samples=200
    )
    assert (summary.failed, summary.done.num_kept, summary.done.drops["not_selected"]) == ({}, 200, 800)
    return reinforce.open_dataset(output)


@pytest.mark.parametrize("teacher", ["cifar10_a", "cifar10_b"])
def test_the_clean_view_is_open_clips_own(cifar10: Dataset, teacher: str) -> None:
    cosines, (ours, theirs) = truth.check_test_set(cifar10, teacher)
    assert cosines.min() >= 0.999
    assert abs(ours - theirs) <= 0.005
    assert ours > 0.6


def test_random_cells_follow_from_the_source_image_alone(cifar10: Dataset) -> None:
    folder = cifar10.store.uri.removeprefix("file://")
    assert truth.recompute_cells(folder, 12, seed=1, split="test", num_views=3).min() >= 0.999


def test_photographs_of_many_sizes(shared: Path, tmp_path: Path) -> None:
    """Captions from a JSON list, every photograph upright and kept."""
    overrides = ["build.views.count=1", "build.source.captions=[json.captions]", "build.source.max_captions=3"]
    output = str(tmp_path / "out")
    source = str(shared / "data" / "coco_mini")
    summary = reinforce.build(source, output, "cifar10", overrides=overrides, limit_shards=1, limit_samples=10)
    assert summary.done.num_kept == 10
    assert summary.done.counts["captions_over_bound"] == 20
    spine = reinforce.open_dataset(output).spine("00000").slice(0, 10).to_pylist()
    assert len({(row["image_width"], row["image_height"]) for row in spine}) > 3
    assert all(len(row["captions"]) == 3 for row in spine)


@pytest.mark.parametrize("name", ["cifar10_a", "cifar10_b"])
def test_a_teacher_sees_the_same_in_our_views_as_in_torchvisions(shared: Path, name: str) -> None:
    config = load_recipe("cifar10").build
    teacher = load_teacher(name, config.teachers[name], device=torch.device("cpu"), batch_size=64)
    samples = list(SourceShard(shared / "data" / "coco_mini" / "00000.tar", config.source).samples())[:20]
    ours, theirs = [], []
    for sample in samples:
        image = decode(sample.image, 10**9)
        assert isinstance(image, np.ndarray)
        for index in range(4):
            view = draw(ViewPolicy(), view_seed(0, sample.key), index, image.shape[1], image.shape[0])
            ours.append(render(image, view, teacher.image_size))
            theirs.append(reference_render(image, view, teacher.image_size))
    cosines = (teacher.embed_images(np.stack(ours)) * teacher.embed_images(np.stack(theirs))).sum(axis=1)
    print(f"{name}: cosine of our views to torchvision's, median {np.median(cosines):.5f}, worst {cosines.min():.5f}")
    assert np.median(cosines) >= 0.99
    assert cosines.min() >= 0.9


def test_a_second_modality_is_carried(shared: Path, tmp_path: Path) -> None:
    overrides = ["build.views.count=0", "build.modalities={thermal: ir.jpg}"]
    source = str(shared / "data" / "roadscene")
    for name, extra, limit in (("declared", overrides, None), ("not", overrides[:1], 5)):
        reinforce.build(source, str(tmp_path / name), "cifar10", overrides=extra, limit_shards=1, limit_samples=limit)
    dataset = reinforce.open_dataset(str(tmp_path / "declared"))
    declared = dataset.read("00000", ["modalities/thermal"])
    assert declared.column("modalities").to_pylist() == [["thermal"]] * 75
    assert declared.column("captions").to_pylist() == [[]] * 75
    # Registered pairs of one size each, and of many sizes.
    for name in ("width", "height"):
        assert declared.column(f"modalities/thermal/{name}").equals(declared.column(f"image_{name}"))
    assert declared.column("modalities/thermal/null_reason").null_count == 75
    assert verify_dataset(str(tmp_path / "declared")).faults == ()
    with reinforce.open_dataset(str(tmp_path / "not")).open_spine("00000") as file:
        assert (file.num_rows, file.footer["counts"]) == (75, {"unused_members": 75})
    keys = np.array(declared.column("key").to_pylist())
    assert not any(key.endswith(".ir") for key in keys)
