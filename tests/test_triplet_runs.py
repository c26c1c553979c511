"""Runs of EdgeVL's second stage, interrupted or not, with layers rounded or not."""

from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from reinforce.student import triplet_reader
from reinforce.student.checkpoint import CHECKPOINT_FILE, load_triplets, read_progress
from reinforce.student.groups import ReadError
from reinforce.student.journal import read_metrics
from reinforce.student.mining import Triplets, mine
from reinforce.student.models import load_student
from reinforce.student.train import train_student
from tests.students import recipe, stopping_at
from tests.tars import image_bytes, write_tar
from tests.triplets import MODEL, build_pairs, settings


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pairs(tmp_path_factory.mktemp("triplets"))


def train(dataset: Path, output: Path, *, resume: bool = False, **student: Any) -> list[str]:
    """The lines it prints."""
    screen = StringIO()
    console = Console(file=screen, width=1000)
    train_student(str(dataset), output, recipe(**settings(**student)), resume=resume, console=console)
    return screen.getvalue().splitlines()


@pytest.mark.parametrize(
    ("student", "checkpoint_every"),
    [
        ({"quantization": "int8", "optimizer": {"warmup_steps": 2, "ema": 0.9}}, 6),
        ({}, 4),
    ],
    ids=["rounded, in the middle of an epoch", "at the end of one"],
)
def test_a_resumed_run_is_an_undisturbed_one(
    dataset: Path, tmp_path: Path, student: dict[str, Any], checkpoint_every: int
) -> None:
    train(dataset, tmp_path / "whole", steps=9, **student)
    with stopping_at(7), pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "stopped", steps=9, checkpoint_every=checkpoint_every, **student)
    checkpoint = tmp_path / "stopped" / CHECKPOINT_FILE
    assert read_progress(checkpoint).step == checkpoint_every
    mined = load_triplets(checkpoint)
    assert mined is not None
    row = read_progress(checkpoint).positions[0][0].row
    assert (row == -(-len(mined) // 5)) == (checkpoint_every == 4)
    train(dataset, tmp_path / "stopped", steps=9, checkpoint_every=checkpoint_every, resume=True, **student)
    runs = [tmp_path / name for name in ("whole", "stopped")]
    whole, resumed = ([row["loss"] for row in read_metrics(folder)] for folder in runs)
    assert whole == resumed
    weights, others = (load_student(folder / "student").model.state_dict() for folder in runs)
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())
    assert not any("rounding" in name or "parametrizations" in name for name in weights)


def test_a_student_with_random_weights_is_told(dataset: Path, tmp_path: Path) -> None:
    """What the second stage is for is a student of the first."""
    said = "triplets of a student with random weights: student.model.checkpoint names one of stage 1"
    assert said in train(dataset, tmp_path / "random", steps=1)
    stage_1 = tmp_path / "random/student/open_clip_model.safetensors"
    assert said not in train(dataset, tmp_path / "trained", steps=1, model=MODEL | {"checkpoint": str(stage_1)})


def test_triplets_are_not_taken_for_those_of_other_samples(dataset: Path, tmp_path: Path) -> None:
    """A shard that was away when they were mined is back: their indices would be other samples'."""
    tar, away = dataset.parent / "in" / "a.tar", tmp_path / "a.tar"
    options: dict[str, Any] = {"steps": 9, "checkpoint_every": 2, "data": {"workers": 0, "missing": "skip"}}
    tar.rename(away)
    try:
        with stopping_at(3), pytest.raises(KeyboardInterrupt):
            train(dataset, tmp_path / "run", **options)
    finally:
        away.rename(tar)
    with pytest.raises(ReadError, match="other samples than those that the triplets of epoch"):
        train(dataset, tmp_path / "run", resume=True, **options)


def test_an_epoch_without_triplets_has_those_of_the_one_before(dataset: Path, tmp_path: Path) -> None:
    original = mine

    def none_but_at_first(*samples: Any, **settings: Any) -> Triplets:
        mined = original(*samples, **settings)
        empty = np.empty(0, np.int64)
        none = Triplets(empty, empty, empty.reshape(0, 2), Counter(no_semi_hard_negative=33))
        return mined if settings["epoch"] == 0 else none

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triplet_reader, "mine", none_but_at_first)
        train(dataset, tmp_path / "run", steps=9)
    first = load_triplets(tmp_path / "run" / CHECKPOINT_FILE)
    assert first is not None
    assert 0 < len(first) <= 33
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["step"] == 9
    assert rows[-1]["left_out"]["no_semi_hard_negative"] >= 33


def test_evaluation_while_training_sees_the_rounded_network_and_the_best_is_saved_in_full(
    dataset: Path, tmp_path: Path
) -> None:
    members = [part for n in range(12) for part in ((f"{n}.png", image_bytes(n)), (f"{n}.cls", str(n % 3).encode()))]
    write_tar(tmp_path / "test" / "t.tar", members)
    (tmp_path / "test" / "classnames.txt").write_text("cat\nsky\ndog\n")
    seen: list[bool] = []
    original = torch.fake_quantize_per_tensor_affine

    def noting(*arguments: Any) -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        return original(*arguments)

    evaluation = {"shards": [str(tmp_path / "test")], "every_steps": 2, "choose": "best"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "fake_quantize_per_tensor_affine", noting)
        train(dataset, tmp_path / "run", steps=2, quantization="int8", evaluation=evaluation)
    rows = read_metrics(tmp_path / "run")
    assert [row["kind"] for row in rows] == ["train", "train", "evaluation"]
    assert not seen[-1]
    assert any(seen)
    assert not any("rounding" in name for name in load_student(tmp_path / "run/student").model.state_dict())
