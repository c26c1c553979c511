"""`reinforce label --modality`: images read as in training, folders with both kinds, one line for what cannot be."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reinforce.deploy.label.command import main
from reinforce.deploy.label.preprocess import clean_view, decode_modality
from reinforce.deploy.model_file import ModelCard, ModelFileError, ModelModality
from reinforce.modality import load_modality
from reinforce.sample import View
from reinforce.views.render import render
from tests.labelling import colour_card, save_colour_model
from tests.tars import encode

DEPTH = ModelModality(suffix="depth.png", range=(1000.0, 3000.0), agreement={"top1": 1.0})
HEAT = ModelModality(suffix="ir.jpg", range="type", agreement={})
CARD = replace(colour_card(), mean=(0.5, 0.0, 0.0), std=(0.5, 1.0, 1.0), modalities={"depth": DEPTH, "heat": HEAT})


def grey_score(value: float) -> float:
    """The cosine to red of a grey image of this value, from 0 to 1, by the model of `CARD`."""
    pixel = np.array([(value - 0.5) / 0.5, value, value])
    return float(pixel[0] / np.linalg.norm(pixel))


def deep(value: int) -> bytes:
    return encode(Image.fromarray(np.full((30, 40), value, np.uint16)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("modalities")
    save_colour_model(path / "model.onnx", CARD)
    save_colour_model(path / "only.onnx", replace(CARD, modalities={"heat": HEAT}, takes_rgb=False))
    (path / "both").mkdir()
    (path / "both" / "a.depth.png").write_bytes(deep(2500))
    (path / "both" / "b.DEPTH.PNG").write_bytes(deep(9000))
    (path / "both" / "a.ir.jpg").write_bytes(encode(Image.new("L", (40, 30), 204), "JPEG"))
    (path / "both" / "a.jpg").write_bytes(encode(Image.new("RGB", (40, 30), (255, 0, 0)), "JPEG"))
    (path / "both" / "a.txt").write_text("a caption")
    return path


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def label(capsys: pytest.CaptureFixture[str], *arguments: str, model: str = "model.onnx") -> tuple[int, Any, list[str]]:
    """Exit status, rows of JSON without times, lines of standard error."""
    status = main([model, *arguments, "--json", "--scores", "independent", "--labels", "red.txt"])
    out, error = capsys.readouterr()
    return status, [json.loads(line) for line in out.splitlines()], error.splitlines()


def scores(rows: list[dict[str, Any]]) -> list[tuple[str, str, Any]]:
    return [(row["path"], row["modality"], dict(zip(row["labels"], row["scores"], strict=True))["red"]) for row in rows]


@pytest.fixture(autouse=True)
def red_alone(folder: Path) -> None:
    (folder / "red.txt").write_text("red\n")


def test_a_folder_of_both_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    _, rows, notes = label(capsys, "both", "--modality", "depth")
    expected = [("both/a.depth.png", "depth", grey_score(0.75)), ("both/b.DEPTH.PNG", "depth", grey_score(1))]
    # 2500 of 1000 to 3000 is 191 of 255.
    assert scores(rows) == [(path, name, pytest.approx(score, abs=3e-3)) for path, name, score in expected]
    assert notes == [
        "reinforce: left out of the folders, as their names are no depth image's: 3 files",
        "reinforce: 1 image lies wholly outside the range 1000 to 3000 of depth",
    ]
    _, rows, notes = label(capsys, "both", "--modality", "heat")
    assert scores(rows) == [("both/a.ir.jpg", "heat", pytest.approx(grey_score(0.8), abs=3e-3))]
    _, rows, notes = label(capsys, "both")
    assert [(path, name) for path, name, _ in scores(rows)] == [("both/a.jpg", "rgb")]
    assert notes == ["reinforce: left out of the folders, as their names are no RGB image's: 4 files"]


def test_a_named_file_is_read_as_the_modality_whatever_it_is_called(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(deep(1400))
    status, rows, _ = label(capsys, str(tmp_path / "x"), "both/a.txt", str(tmp_path), "--modality", "depth")
    assert status == 1
    assert scores(rows[:1]) == [(str(tmp_path / "x"), "depth", pytest.approx(grey_score(0.2), abs=3e-3))]
    assert rows[1]["error"].startswith("not an image (begins with")
    assert rows[2]["error"] == "no depth image in this folder (.depth.png)"
    # By RGB's rule the same bytes are another picture: the upper byte of each value.
    _, rows, _ = label(capsys, str(tmp_path / "x"))
    assert rows[0]["scores"] == [pytest.approx(grey_score(5 / 255), abs=3e-3)]


def test_a_stream_of_grey_jpegs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO(encode(Image.new("L", (40, 30), 51), "JPEG") * 2)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
    _, rows, _ = label(capsys, "-", "--modality", "heat")
    assert [(row["index"], row["modality"]) for row in rows] == [(0, "heat"), (1, "heat")]
    assert rows[0]["scores"] == [pytest.approx(grey_score(0.2), abs=3e-3)]


def test_a_stream_that_the_range_leaves_black_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(encode(Image.new("L", (40, 30), 51), "JPEG"))))
    beyond = "its range 1000 to 3000 lies beyond the 8 bits of a stream's JPEGs; name 16-bit files"
    assert label(capsys, "-", "--modality", "depth") == (2, [], [f"reinforce: --modality depth: {beyond}"])


def test_images_outside_the_range_and_files_named_as_of_another_modality_are_counted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "black").write_bytes(deep(1000))
    (tmp_path / "none").write_bytes(b"no image")
    given = ["both/b.DEPTH.PNG", "both/a.depth.png", str(tmp_path / "black"), str(tmp_path / "none")]
    _, rows, notes = label(capsys, *given, "--modality", "depth")
    assert [row["modality"] for row in rows] == ["depth"] * 4  # that of the error too
    assert notes[0] == "reinforce: 2 images lie wholly outside the range 1000 to 3000 of depth"
    _, _, notes = label(capsys, "both/a.depth.png", "both/a.ir.jpg", "both/a.jpg")
    read_as = "read as RGB, though named as of another modality (.depth.png .ir.jpg), see --modality: 2 files"
    assert notes == [f"reinforce: {read_as}"]


def test_the_benchmark_is_of_one_modality(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.depth.png").write_bytes(deep(2000))
    (tmp_path / "a.jpg").write_bytes(b"no image")
    status, (figures,), _ = label(capsys, str(tmp_path), "--modality", "depth", "--benchmark", "--seconds", "0.01")
    assert (status, figures["modality"]) == (0, "depth")


@pytest.mark.parametrize(
    ("model", "given", "says"),
    [
        ("model.onnx", ["--modality", "swir"], "--modality swir: model model.onnx knows rgb, depth, heat"),
        ("only.onnx", [], "model only.onnx: was trained on heat alone; pass --modality heat"),
        ("only.onnx", ["--modality", "rgb"], "--modality rgb: model only.onnx knows heat"),
    ],
)
def test_a_modality_that_the_model_does_not_know_is_a_line(
    capsys: pytest.CaptureFixture[str], model: str, given: list[str], says: str
) -> None:
    assert label(capsys, "both", *given, model=model) == (2, [], [f"reinforce: {says}"])


def test_what_the_model_sees_is_what_it_was_trained_on() -> None:
    y, x = np.mgrid[0:60, 0:97]
    data = encode(Image.fromarray((2000 + 600 * np.sin(x * 0.2) + 500 * np.cos(y * 0.3)).astype(np.uint16)))
    image, part = decode_modality(data, (1000, 3000), 10**6, 32)
    expected = render(load_modality(data, (1000, 3000), 10**6), View(None), 32)
    difference = np.abs(clean_view(image, part, 32).astype(int) - expected)
    assert (difference.max(), expected.std() > 40) == (pytest.approx(0, abs=1), True)


def test_the_card_says_how_each_modality_is_read() -> None:
    card = ModelCard.from_metadata(CARD.to_metadata())
    assert card.modalities == {"depth": DEPTH, "heat": HEAT}
    plain = colour_card().to_metadata()
    assert "modalities" not in plain["reinforce.model"]  # what older software reads
    assert ModelCard.from_metadata(plain).modalities == {}
    for wrong in ('"wide"', "[1]", '["a", 2]', "[2, 1]", "null"):
        metadata = CARD.to_metadata()
        metadata["reinforce.model"] = metadata["reinforce.model"].replace('"type"', wrong)
        with pytest.raises(ModelFileError, match=r"damaged \(the range of a modality"):
            ModelCard.from_metadata(metadata)
