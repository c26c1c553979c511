"""Training from unpaired images and sentences, end to end: a run, two processes, a resumed one, several teachers."""

from pathlib import Path
from typing import Any

import pytest

from reinforce.config import Recipe
from reinforce.student.journal import read_metrics
from reinforce.student.train import train_student
from tests.corpora import random_corpus
from tests.fakes import fake_plan, run
from tests.students import MODEL, recipe
from tests.tars import image_bytes, write_tar

TEACHERS = {"large": 12, "small": 8}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images without a single caption, and two corpora."""
    folder = tmp_path_factory.mktemp("unpaired")
    for name, first in (("a", 0), ("b", 6)):
        members = [(f"{index:05d}.png", image_bytes(index)) for index in range(first, first + 6)]
        write_tar(folder / f"source/{name}.tar", members)
    plan = fake_plan({"source": {"max_captions": 0}}, captioners=[])
    assert not run(plan, folder / "source", folder / "reinforced").failed
    assert not list((folder / "reinforced/embeddings").rglob("text"))
    random_corpus(folder / "reinforced", "news", {"0": 9, "sub/1": 5}, TEACHERS)
    random_corpus(folder / "reinforced", "web", {"0": 7}, TEACHERS, seed=1)
    return folder / "reinforced"


def dime_fm(teachers: tuple[str, ...] = ("small",), **changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "model": MODEL | {"text": None, "embed_dim": sum(TEACHERS[name] for name in teachers)},
        "data": {"workers": 0, "open_shards": 2, "teachers": teachers, "sentences": {"batch_size": 6, "open_files": 2}},
        "loss": {"kind": "dime_fm"},
    }
    for section, values in changes.items():
        settings[section] = settings.get(section, {}) | values if isinstance(values, dict) else values
    return recipe(**settings)


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(output) if row["kind"] == "train"]


def test_a_student_learns_without_a_single_pair(dataset: Path, tmp_path: Path) -> None:
    train_student(str(dataset), tmp_path / "run", dime_fm(steps=30, data={"workers": 1}))
    rows = read_metrics(tmp_path / "run")
    assert {"loss", "vl", "pvl"} <= rows[-1].keys()
    assert "udist" not in rows[-1]
    assert sum(losses(tmp_path / "run")[-5:]) < 0.8 * sum(losses(tmp_path / "run")[:5])
