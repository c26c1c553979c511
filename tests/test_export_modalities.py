"""Exports of students of several modalities: checked and calibrated on images of each, and the file says how."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from reinforce.cli.export import describe
from reinforce.config import ConfigError
from reinforce.deploy import export
from reinforce.deploy.export import ExportReport, export_onnx
from reinforce.deploy.images import ChosenImages, NormalisedImages, choose_images
from reinforce.deploy.model_file import ModelCard
from reinforce.student.models import Student, load_student
from reinforce.weights import ModelError
from tests.tars import encode, write_tar
from tests.test_export import saved

DEPTH = {"suffix": "depth.png", "range": [0, 4000]}
NUM_SAMPLES = 24


def faint(index: int) -> bytes:
    return encode(Image.fromarray(123 + np.random.default_rng(index).integers(0, 9, (40, 50, 3), np.uint8)))


def deep(index: int) -> bytes:
    y, x = np.mgrid[0:40, 0:50]
    waves = np.sin(x * (0.11 + 0.03 * index)) + np.cos(y * (0.17 + 0.01 * index) + index)
    return encode(Image.fromarray((2000 + 1000 * waves).astype(np.uint16)))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """RGB images of next to no contrast and depth images of all values; three samples have no depth, one a torn one."""
    folder = tmp_path_factory.mktemp("shards")
    members = [(f"{index}.png", faint(index)) for index in range(NUM_SAMPLES)]
    members += [(f"{index}.depth.png", deep(index)[: 90 if index == 20 else None]) for index in range(NUM_SAMPLES - 3)]
    write_tar(folder / "a.tar", members)
    return str(folder)


def with_modalities(folder: Path, **document: Any) -> Path:
    path = folder / "student.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"modalities": {"depth": DEPTH}} | document))
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = saved(tmp_path_factory.mktemp("student") / "student", "test_efficientnet", image_size=32)
    return with_modalities(folder)


def export_int8(student: Path, shards: str, output: Path) -> ExportReport:
    return export_onnx(student, output, target="x86", shards=[shards], num_images=10, num_calibration_images=20)


@pytest.fixture(scope="module")
def report(student: Path, shards: str, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return export_int8(student, shards, tmp_path_factory.mktemp("exported") / "model.onnx")


def test_int8_agrees_on_every_modality_and_the_file_says_so(report: ExportReport) -> None:
    assert {name: agreement.num_images for name, agreement in report.agreements.items()} == {"rgb": 6, "depth": 6}
    assert report.num_calibration_images == 14
    assert dict(report.drops) == {"no_modality": 3, "corrupt_image": 1}
    model = onnx.load(report.output)
    card = ModelCard.from_metadata({item.key: item.value for item in model.metadata_props})
    assert (card.takes_rgb, list(card.modalities)) == (True, ["depth"])
    depth = card.modalities["depth"]
    assert (depth.suffix, depth.range) == ("depth.png", (0, 4000))
    assert card.agreement["mean_cosine"] == report.agreements["rgb"].mean_cosine
    assert depth.agreement["mean_cosine"] == report.agreements["depth"].mean_cosine != card.agreement["mean_cosine"]
    lines = describe(report).splitlines()
    assert lines[2].endswith("; 6 depth images")
    assert lines[3:5] == [
        "of 30 samples wanted, 20 could be used",
        "samples left out: corrupt_image 1, no_modality 3",
    ]


def test_what_disagrees_on_one_of_them_is_not_written(
    report: ExportReport, student: Path, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a calibration that has seen RGB images alone, whose range is a fraction of depth's."""

    def of_rgb(student: Student, chosen: ChosenImages, num_checked: int) -> NormalisedImages:
        return NormalisedImages(chosen.images["rgb"][num_checked:], student)

    assert min(agreement.mean_cosine for agreement in report.agreements.values()) > 0.999
    monkeypatch.setattr(export, "_calibration_images", of_rgb)
    monkeypatch.setattr(export, "MIN_MEAN_COSINE_INT8", 0.995)  # embeddings of random weights differ little
    with pytest.raises(ModelError, match=r"agree on depth images to a cosine on average of 0\.9\d+, less than 0.995"):
        export_int8(student, shards, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_images_of_one_modality_are_not_copied_to_calibrate(student: Path) -> None:
    chosen = ChosenImages({"rgb": np.full((5, 40, 40, 3), 255, np.uint8)})
    pixels = export._calibration_images(load_student(student), chosen, 2)
    before = pixels[:]
    chosen.images["rgb"][2:] = 0
    assert bool((pixels[:] < before).all())
    assert len(pixels) == 3


def test_images_of_a_sample_are_row_by_row_the_same_and_read_by_its_range(student: Path, shards: str) -> None:
    modalities = {"rgb": None} | load_student(student).modalities
    chosen = choose_images([shards], 40, NUM_SAMPLES, seed=1, modalities=modalities)
    alone = choose_images([shards], 40, NUM_SAMPLES, seed=1)
    assert (chosen.num_samples, alone.num_samples) == (20, 24)
    shown = {clean_view(faint(index)).tobytes(): index for index in range(NUM_SAMPLES)}
    indexes = [shown[image.tobytes()] for image in chosen.images["rgb"]]
    assert sorted(indexes) == list(range(20)) != indexes
    for index, image in zip(indexes, chosen.images["depth"], strict=True):
        values = np.asarray(Image.open(io.BytesIO(deep(index))))[:, 5:45] / 4000 * 255
        np.testing.assert_allclose(image[:, :, 0], values, atol=0.51)


def clean_view(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))[:, 5:45]


def test_a_student_of_one_modality_alone_and_without_shards(student: Path, tmp_path: Path) -> None:
    recipe = {"student": {"data": {"modalities": ["depth"]}}}
    alone = with_modalities(shutil.copytree(student, tmp_path / "student"), recipe=recipe)
    report = export_onnx(alone, tmp_path / "model.onnx")
    assert (list(report.agreements), report.card.takes_rgb) == (["depth"], False)
    assert report.card.modalities["depth"].agreement == {}
    assert "not checked with images of depth, which noise is not: pass --shards" in describe(report).splitlines()
    write_tar(tmp_path / "rgb" / "a.tar", [("0.png", faint(0)), ("1.png", faint(1))])
    with pytest.raises(ConfigError, match=r"no image of \S+ can be used"):
        export_onnx(alone, tmp_path / "model.onnx", shards=[str(tmp_path / "rgb")])
