"""Evaluation on a modality: read as a student records it or as the user says, retrieval between it and RGB."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from reinforce.config import ModalityConfig
from reinforce.evaluation import CrossModalTask, RetrievalTask, evaluate_models, render_table
from reinforce.weights import ModelError
from tests.models import save_open_clip
from tests.tars import encode, write_tar
from tests.test_evaluate import painter, refused, write_selection

HUES = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]
HEAT = ModalityConfig(suffix="heat.png")
NAMES = ("cat", "dog")


def plain(colour: tuple[int, int, int]) -> bytes:
    return encode(Image.new("RGB", (12, 9), colour))


def deep(index: int) -> bytes:
    """A picture in 16 bits, its values between 1000 and 1600."""
    y, x = np.mgrid[0:30, 0:40]
    waves = np.sin(x * (0.11 + 0.03 * index)) + np.cos(y * 0.17 + index)
    return encode(Image.fromarray((1300 + 150 * waves).astype(np.uint16)))


def students(folder: Path, *ranges: Any) -> list[str]:
    """The same model again and again, each with another range for its modality; a model that records none last."""
    found = []
    for index, value_range in enumerate(ranges):
        found.append(save_open_clip(folder / f"student{index}"))
        document = {"modalities": {"depth": {"suffix": "depth.png", "range": value_range}}}
        (folder / f"student{index}" / "student.json").write_text(json.dumps(document))
    return [*found, save_open_clip(folder / "teacher")]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Samples whose RGB images are all alike and whose depth images differ; one without depth, one torn."""
    folder = tmp_path_factory.mktemp("labelled")
    members = []
    for index in range(8):
        depth = deep(index)[: 60 if index == 7 else None]
        members += [(f"{index}.png", plain((9, 9, 9))), (f"{index}.cls", b"%d" % (index % 2))]
        members += [(f"{index}.depth.png", depth)] * (index != 6)
    write_tar(folder / "test" / "a.tar", members)
    (folder / "classnames.txt").write_text("\n".join(NAMES))
    return str(folder / "test")


def test_retrieval_between_a_modality_and_rgb(tmp_path: Path) -> None:
    """Sample 5's heat is that of 4: found by RGB, both of them stand before 4; from heat, only 5 goes astray."""
    members = [(f"{index}.png", plain(hue)) for index, hue in enumerate(HUES)]
    members += [(f"{index}.heat.png", plain(HUES[min(index, 4)])) for index in range(6)]
    members += [("cold.png", plain(HUES[0])), ("torn.png", b"?"), ("torn.heat.png", plain(HUES[1]))]
    write_tar(tmp_path / "a.tar", [*members, ("dark.heat.png", plain(HUES[2]))])
    result = CrossModalTask(str(tmp_path), name="heat", modality=HEAT).evaluate(painter())
    assert result.num_pairs == 6
    assert result.modality_to_rgb == {1: pytest.approx(5 / 6), 5: 1.0, 10: 1.0}
    assert result.rgb_to_modality[1] == pytest.approx(4 / 6)
    assert result.drops == {"missing_image": 1, "no_modality": 1, "not_an_image": 1}
    assert result.to_json() | {"modality": "heat", "task": "retrieval"} == result.to_json()
    select = write_selection(tmp_path / "s.parquet", [("a", "4"), ("a", "0")])
    result = CrossModalTask(str(tmp_path), name="heat", modality=HEAT, select=select).evaluate(painter())
    assert (result.num_pairs, result.modality_to_rgb[1], result.rgb_to_modality[1]) == (2, 1.0, 1.0)


def test_an_image_tower_is_told_how_it_can_be_compared(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.png", plain(HUES[0])), ("0.txt", b"red")])
    tower = replace(painter(), encode_text=None, tokenize=None)
    with pytest.raises(
        ModelError,
        match="an image tower alone; --texts DATASET has its teacher's texts, --modality NAME compares it",
    ):
        RetrievalTask(str(tmp_path)).evaluate(tower)


def test_a_table_of_models_that_record_the_modality_and_do_not(labelled: str, tmp_path: Path) -> None:
    """All are one model, so all of them see the same; a range of their own makes it something else."""
    student, teacher = students(tmp_path, [1000, 1600])
    found = evaluate_models([student, teacher], labelled, modality="depth")
    assert [(result.modality, result.modality_range) for result in found] == [("depth", (1000, 1600))] * 2  # type: ignore[union-attr]
    assert found[0].drops == {"corrupt_image": 1, "no_modality": 1}
    figures = [{**result.to_json(), "model": ""} for result in found]
    assert figures[0] == figures[1]
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(render_table(found))
    assert "of depth images, range 1000 to 1600" in console.export_text()
    by_suffix = evaluate_models([student], labelled, modality=".depth.png", modality_range="1000:1600")
    assert by_suffix[0].to_json()["classes"] == figures[0]["classes"]
    assert by_suffix[0].to_json()["modality"] == "depth.png"
    rgb = evaluate_models([student], labelled)[0].to_json()
    assert (rgb["modality"], rgb["modality_range"], rgb["num_samples"]) == ("rgb", None, 8)
    (pairs,) = evaluate_models([teacher], labelled, task="retrieval", modality="depth.png", modality_range="image")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_table([replace(pairs, model="m")]))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert lines[:3] == [
        "depth.png depth.png depth.png RGB to RGB to RGB to",
        "params to RGB to RGB to RGB depth.png depth.png depth.png",
        "model (M) R@1 R@5 R@10 R@1 R@5 R@10",
    ]
    says = (
        "Of 6 pairs each depth.png image looks for its RGB image among all, and each RGB image for its depth.png image."
    )
    assert says in " ".join(lines)
    assert pairs.to_json() | {"num_pairs": 6, "modality": "depth.png", "modality_range": "image"} == pairs.to_json()


def test_modalities_that_nobody_can_read_are_a_line(labelled: str, tmp_path: Path) -> None:
    one, other, teacher = students(tmp_path, "type", "image")

    def refusal(models: list[str], **options: Any) -> str:
        return refused(lambda: evaluate_models(models, labelled, **options))

    assert "no model here records it (depth, rgb); give the suffix" in refusal([one, teacher], modality="heat")
    assert "--modality depth: no model here records it (rgb)" in refusal([teacher], modality="depth")
    assert "as .depth.png, range type, " in refusal([one, other], modality="depth")
    assert "--modality x.cls/: suffix 'x.cls/' is not" in refusal([one], modality="x.cls/")
    assert "goes with --modality SUFFIX" in refusal([one], modality="depth", modality_range="type")
    for text in ("wide", "1", "2:1", "1:nan", "1:2:3"):
        message = refusal([one], modality="depth.png", modality_range=text)
        assert message == f"--modality-range {text}: must be type, image or LOW:HIGH, two numbers"
    assert "has a .heat.png member" in refusal([one], modality="heat.png")
    assert "images are found by images" in refusal([one], modality="depth", task="retrieval", captions="txt")
    (tmp_path / "student0" / "student.json").write_text('{"modalities": {"depth": {"range": "type"}}}')
    assert "student.json is damaged" in refusal([one], modality="depth")
