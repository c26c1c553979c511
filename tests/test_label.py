"""`reinforce label` as a person runs it: labels and scores, files and folders, one line for every error of theirs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reinforce.config import SourceConfig
from reinforce.deploy.label.command import MAX_PIXELS, main
from reinforce.deploy.label.inputs import SUFFIXES
from reinforce.rgb import FORMATS
from tests.labelling import colour_card, save_colour_model
from tests.tars import encode

ORANGE = (200, 100, 20)


def softmax(values: list[float], scale: float) -> list[float]:
    powers = np.exp(scale * np.array(values))
    return [float(share) for share in powers / powers.sum()]


COSINES = (np.array(ORANGE) / np.linalg.norm(ORANGE)).tolist()
SHARES = softmax(COSINES, 10.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, images in a folder and below it, and a file that is no image."""
    path = tmp_path_factory.mktemp("label")
    save_colour_model(path / "model.onnx")
    for name, colour in {
        "b.png": (0, 255, 0),
        "a.JPG": (255, 0, 0),
        "sub/c.png": (0, 0, 255),
        "all/d.png": (0, 0, 255),
    }.items():
        (path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        suffix = "JPEG" if name.endswith("JPG") else "PNG"
        (path / "images" / name).write_bytes(encode(Image.new("RGB", (40, 30), colour), suffix))
    (path / "images" / "notes.txt").write_text("not an image")
    (path / "orange.png").write_bytes(encode(Image.new("RGB", (20, 20), ORANGE)))
    return path


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def label(capsys: pytest.CaptureFixture[str], *arguments: str, model: str = "model.onnx") -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    status = main([model, *arguments])
    return status, *capsys.readouterr()


def label_json(capsys: pytest.CaptureFixture[str], *arguments: str, model: str = "model.onnx") -> list[dict[str, Any]]:
    status, out, _ = label(capsys, "--json", *arguments, model=model)
    assert status == 0
    return [json.loads(line) for line in out.splitlines()]


def assert_usage_error(
    capsys: pytest.CaptureFixture[str], *arguments: str, says: str, model: str = "model.onnx"
) -> None:
    status, out, error = label(capsys, *arguments, model=model)
    assert (status, out) == (2, "")
    assert error.startswith("reinforce: ")
    assert error.count("\n") == 1
    assert says in error


def test_files_and_folders_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, error = label(capsys, "orange.png", "images", "--top-k", "1")
    assert status == 0
    assert out.splitlines() == [
        "orange.png: red 0.99",
        "images/a.JPG: red 1.00",
        "images/b.png: green 1.00",
        "images/all/d.png: blue 1.00",
        "images/sub/c.png: blue 1.00",
    ]
    assert error == "reinforce: left out of the folders, as their names are no image's: 1 file\n"


def test_a_named_file_is_opened_whatever_it_is_called(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "picture\nof.the day").write_bytes(Path("orange.png").read_bytes())
    path = str(tmp_path / "picture\nof.the day")
    status, out, _ = label(capsys, path, "--top-k", "1")
    assert (status, out) == (0, f"{tmp_path}/picture\\nof.the day: red 0.99\n")
    assert label_json(capsys, path)[0]["path"] == path


def test_softmax_at_the_teachers_scale_or_another(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = label_json(capsys, "orange.png")
    assert row["labels"] == ["red", "green", "blue"]
    assert row["scores"] == pytest.approx(SHARES, abs=1e-3)
    assert row["ms"] > 0
    (row,) = label_json(capsys, "orange.png", "--scale", "2", "--top-k", "2")
    assert row["scores"] == pytest.approx(softmax(COSINES, 2.0)[:2], abs=1e-3)


def test_independent_scores(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (row,) = label_json(capsys, "orange.png", "--scores", "independent")
    assert row["scores"] == pytest.approx(COSINES, abs=1e-3)
    save_colour_model(tmp_path / "siglip.onnx", colour_card(logit_bias=-5.0))
    (row,) = label_json(capsys, "orange.png", "--scores", "independent", model=f"{tmp_path}/siglip.onnx")
    assert row["scores"] == pytest.approx([1 / (1 + np.exp(5 - 10 * cosine)) for cosine in COSINES], abs=1e-3)
    (row,) = label_json(
        capsys, "orange.png", "--scores", "independent", "--scale", "9999", model=f"{tmp_path}/siglip.onnx"
    )
    assert row["scores"] == [1, 1, 1]
    assert_usage_error(capsys, "--scores", "independent", "--scale", "2", "orange.png", says="have no scale")


def test_equal_scores_are_in_the_order_of_the_labels(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "grey.png").write_bytes(encode(Image.new("RGB", (20, 20), (9, 9, 9))))
    assert label_json(capsys, f"{tmp_path}/grey.png", "--top-k", "2")[0]["labels"] == ["red", "green"]


def test_what_passes_no_threshold_is_unknown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert label(capsys, "orange.png", "--threshold", "0.99")[1] == "orange.png: unknown\n"
    assert label_json(capsys, "orange.png", "--threshold", "0.99")[0]["labels"] == []
    cosines = ("orange.png", "--scores", "independent", "--threshold", "0.3")
    assert label_json(capsys, *cosines)[0]["labels"] == ["red", "green"]
    for text in ('{"Red": 0.95, "blue": -1}', "blue\t-1\n\n  red\t0.95\n"):
        (tmp_path / "t").write_text(text)
        assert label_json(capsys, *cosines, "--thresholds", f"{tmp_path}/t")[0]["labels"] == ["green", "blue"]
    (tmp_path / "teal.png").write_bytes(encode(Image.new("RGB", (20, 20), ORANGE[::-1])))
    (tmp_path / "t").write_text("blue\t0.95\nred\t0.05")
    teal = (f"{tmp_path}/teal.png", *cosines[1:], "--thresholds", f"{tmp_path}/t")
    assert label_json(capsys, *teal)[0]["labels"] == ["green", "red"]


def test_labels_are_narrowed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "l").write_text("\ufeffblue \n\n GREEN\n", encoding="utf-8")
    (row,) = label_json(capsys, "orange.png", "--labels", f"{tmp_path}/l")
    assert row["labels"] == ["green", "blue"]
    assert row["scores"] == pytest.approx(softmax(COSINES[1:], 10.0), abs=1e-3)
    (tmp_path / "t").write_text("red\t0.5")
    arguments = ("--labels", f"{tmp_path}/l", "--thresholds", f"{tmp_path}/t", "orange.png")
    assert_usage_error(capsys, *arguments, says="'red' is not among the labels")


def test_limits_are_those_of_a_build(capsys: pytest.CaptureFixture[str]) -> None:
    assert SourceConfig().max_pixels == MAX_PIXELS
    assert label(capsys, "orange.png", "--max-pixels", "400")[0] == 0
    assert label(capsys, "orange.png", "--max-pixels", "399")[0] == 1
    extensions = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    assert set(SUFFIXES) <= extensions


def test_the_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--benchmark", "--seconds", "0.05", "--threads", "2", "orange.png", "images/a.JPG")
    status, out, error = label(capsys, *arguments, "--json")
    figures = json.loads(out)
    assert (status, error) == (0, "")
    assert (figures["precision"], figures["threads"], figures["num_labels"]) == ("fp32", 2, 3)
    assert figures["num_bytes"] == Path("model.onnx").stat().st_size
    assert figures["num_images"] >= 20
    assert figures["fps"] == pytest.approx(figures["num_images"] / figures["elapsed_s"])
    stages = figures["median_ms"]
    assert 0 < stages["infer"] < stages["total"] <= figures["p95_ms"]["total"]
    assert figures["peak_rss_bytes"] > 30e6
    status, out, error = label(capsys, *arguments, "images/notes.txt")
    assert status == 1
    assert error.splitlines()[-1] == "reinforce: left out: 1 inputs that cannot be labelled"
    assert [line.split()[0] for line in out.splitlines()[4:]] == [
        *(["median", "decode", "preprocess", "infer", "total", "end", "peak"])
    ]
