"""Training with several modalities: the loss by hand, a run end to end, and the choice of the best evaluation."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file

from reinforce.banks import resolve_banks, write_banks
from reinforce.config import BuildConfig, ConfigError, LossConfig, ModalityConfig, StudentModelConfig
from reinforce.evaluation.zeroshot import ZeroShotTask
from reinforce.shards.banks import read_bank
from reinforce.storage import open_store
from reinforce.student.batch import Batch
from reinforce.student.best import Best, BestWeights
from reinforce.student.checkpoint import CHECKPOINT_FILE, read_progress
from reinforce.student.examine import embedding_model
from reinforce.student.journal import read_metrics
from reinforce.student.learner import Learner, backward
from reinforce.student.losses import StudentOutputs
from reinforce.student.modality_loss import ModalityLoss
from reinforce.student.models import build_student, load_student
from reinforce.student.tensors import save_tensors
from reinforce.student.train import train_student
from reinforce.teachers import FakeTeacher
from tests.fakes import fake_plan, run
from tests.students import MODEL, recipe, stopping_at
from tests.tars import image_bytes, write_tar

DIM = 16
TOWER = {"backbone": "test_efficientnet", "projection": "mlp", "image_size": 32, "embed_dim": 12, "text": None}
NUM_PAIRS = 12


# The loss.


def batch_of(teacher: torch.Tensor, *modalities: str) -> Batch:
    generator = torch.Generator().manual_seed(0)
    views = [torch.randint(0, 256, (len(teacher), 3, 32, 32), dtype=torch.uint8, generator=generator) for _ in range(3)]
    names = [str(row) for row in range(len(teacher))]
    others = dict(zip(modalities, views[1:], strict=False))
    return Batch(names, names, views[0], {}, {"a": teacher.half()}, {}, modalities=others)


def test_the_loss_by_hand() -> None:
    loss = ModalityLoss({"a": 2}, 2, ["rgb", "thermal"])
    outputs = StudentOutputs(
        torch.tensor([[0.6, 0.8], [0, 1.0]]), {}, torch.tensor(1.0), modalities={"thermal": torch.eye(2).flip(0)}
    )
    # The teacher's rows come to unit norm: (1, 0) and (0, 1).
    terms = loss(outputs, batch_of(torch.tensor([[2.0, 0], [0, 0.5]])))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"loss": 0.3 + 1.0, "rgb": (0.4 + 0.8 + 0 + 0) / 4, "thermal": 1.0}
    )


def gradient_of(batches: list[Batch], *, num_parts: int = 1) -> dict[str, torch.Tensor]:
    model = StudentModelConfig.model_validate(MODEL | {"text": None})
    learner = Learner(build_student(model, 0), LossConfig(kind="edgevl"), {"a": DIM})
    for batch in batches:
        backward(learner, ModalityLoss({"a": DIM}, DIM, ["rgb", "depth"]), batch, num_parts=num_parts)
    grads = {name: parameter.grad for name, parameter in learner.named_parameters() if parameter.requires_grad}
    return {name: grad / len(batches) for name, grad in grads.items() if grad is not None or pytest.fail(name)}


def test_parts_and_processes_have_the_gradient_of_the_whole() -> None:
    batch = batch_of(F.normalize(torch.randn(8, DIM, generator=torch.Generator().manual_seed(3)), dim=1), "depth")
    whole = gradient_of([batch])
    for other in (gradient_of([batch], num_parts=4), gradient_of(batch.split(2))):
        for name, gradient in whole.items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=2e-6)


def test_a_teacher_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"loss.kind edgevl needs one teacher, not a, b; name it"):
        ModalityLoss({"a": 4, "b": 4}, 4, ["rgb"])
    with pytest.raises(ConfigError, match=r"embed_dim: must be 6, that of teacher a, for loss.kind edgevl"):
        ModalityLoss({"a": 6}, 4, ["rgb"])


# Runs.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of labelled pairs, one without its thermal image, by one fake teacher, with a bank of the labels."""
    folder = tmp_path_factory.mktemp("pairs")
    members = []
    for number in range(NUM_PAIRS):
        members += [(f"{number}.png", image_bytes(number)), (f"{number}.cls", str(number % 3).encode())]
        members += [(f"{number}.ir.png", image_bytes(number + 1, 80, 60))] if number else []
    write_tar(folder / "in" / "a.tar", members)
    (folder / "in" / "classnames.txt").write_text("cat\ndog\nsky\n")
    teacher = FakeTeacher("large", dim=12, image_size=24)
    config = {"views": {"count": 3}, "source": {"captions": [], "max_captions": 0}, "modalities": {"thermal": "ir.png"}}
    assert not run(fake_plan(config, teachers=[teacher], captioners=[]), folder / "in", folder / "data").failed
    banks = {"things": {"labels": ("cat", "dog", "sky")}}
    built = BuildConfig.model_validate({"banks": banks, "teachers": {"large": {"model": "fake"}}})
    write_banks(open_store(str(folder / "data")), resolve_banks(built), [teacher])
    return folder


def train(folder: Path, output: Path, *modalities: str, resume: bool = False, **student: Any) -> None:
    evaluation = {"shards": [str(folder / "in")], "every_steps": 2, "bank": "things", "choose": "best"}
    settings: dict[str, Any] = {
        "model": TOWER,
        "loss": {"kind": "edgevl"},
        "data": {"workers": 0, "modalities": modalities},
        "evaluation": evaluation | student.pop("evaluation", {}),
        "steps": 14,
        "checkpoint_every": 6,
    }
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere)
        train_student(str(folder / "data"), output, recipe(**settings | student), resume=resume, console=console)


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "run"
    train(folder, output, "rgb", "thermal")
    return output


def evaluations(output: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(output) if row["kind"] == "evaluation"]


def top1_of(output: Path, folder: Path, modality: ModalityConfig | None = None) -> float:
    """Of the student that was saved."""
    task, bank = ZeroShotTask(str(folder / "in"), modality=modality), read_bank(str(folder / "data/banks/things"))
    return task.evaluate(embedding_model(load_student(output / "student"), torch.device("cpu")), bank).top1


def test_a_run_with_two_modalities(folder: Path, trained: Path) -> None:
    for row in read_metrics(trained):
        if row["kind"] == "train":
            assert row["loss"] == pytest.approx(row["rgb"] + row["thermal"], rel=1e-5)
        else:
            assert row["top1"] == pytest.approx((row["top1_rgb"] + row["top1_thermal"]) / 2)
            assert row["auroc"] == pytest.approx((row["auroc_rgb"] + row["auroc_thermal"]) / 2)
            assert row["left_out"] == {"no_modality": 1}
    made = json.loads((trained / "student/student.json").read_text())
    thermal = ModalityConfig(suffix="ir.png")
    assert load_student(trained / "student").modalities == {"thermal": thermal}
    # The best by the mean, the first of equal ones, and it is what was saved.
    best = max(evaluations(trained), key=lambda row: row["top1"])
    assert made["chosen"] == {"by": "top1"} | {
        name: value for name, value in best.items() if name == "step" or name.startswith(("top1", "auroc"))
    }
    assert best["step"] < 14, "another seed: the last is the best"
    assert (top1_of(trained, folder), top1_of(trained, folder, thermal)) == (best["top1_rgb"], best["top1_thermal"])


def test_one_modality_alone(folder: Path, tmp_path: Path) -> None:
    for name in ("rgb", "thermal"):
        train(folder, tmp_path / name, name, evaluation={"choose": "last"}, steps=2)
    (first, *_), (other, *_) = evaluations(tmp_path / "rgb"), evaluations(tmp_path / "thermal")
    assert "top1" in first
    assert "top1_rgb" not in first
    assert other["top1"] == other["top1_thermal"]
    assert [row["left_out"] for row in (first, other)] == [{}, {"no_modality": 1}]
    made = [json.loads((tmp_path / name / "student/student.json").read_text()) for name in ("rgb", "thermal")]
    assert [document.get("modalities", {}).keys() for document in made] == [set(), {"thermal"}]
    assert all("chosen" not in document for document in made)
    assert not list(tmp_path.rglob("best-*"))


def test_evaluation_shards_that_do_not_serve_are_refused_before_the_first_step(folder: Path, tmp_path: Path) -> None:
    members = [(f"{number}.png", image_bytes(number)) for number in range(3)]
    write_tar(tmp_path / "bare/a.tar", members)
    write_tar(tmp_path / "labelled/a.tar", [*members, *((f"{number}.cls", b"0") for number in range(3))])
    reasons = {
        "labelled": r"no sample of .*labelled has a thermal image \(\.ir\.png\); name shards that have them",
        "bare": r"no rgb image of .*bare can be used \(missing_label 3\); name others",
    }
    for name, reason in reasons.items():
        (tmp_path / name / "classnames.txt").write_text("cat\ndog\nsky\n")
        with pytest.raises(ConfigError, match=rf"student\.evaluation\.shards: {reason}"):
            train(folder, tmp_path / "run", "rgb", "thermal", evaluation={"shards": [str(tmp_path / name)]})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("last_step", [9, 13])
def test_a_resumed_run_chooses_as_an_undisturbed_one(
    folder: Path, trained: Path, tmp_path: Path, last_step: int
) -> None:
    with stopping_at(last_step), pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "run", "rgb", "thermal")
    train(folder, tmp_path / "run", "rgb", "thermal", resume=True)
    documents = [json.loads((output / "student/student.json").read_text()) for output in (trained, tmp_path / "run")]
    assert documents[0]["chosen"] == documents[1]["chosen"]
    wanted, found = (load_student(output / "student").model.state_dict() for output in (trained, tmp_path / "run"))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    kept = [path.name for path in (tmp_path / "run").glob("best-*")]
    assert kept == [f"best-{documents[0]['chosen']['step']}.safetensors"]
    (tmp_path / "run" / kept[0]).unlink()
    with pytest.raises(ConfigError, match=r"--resume: .*best-\d+.safetensors is gone"):
        train(folder, tmp_path / "run", "rgb", "thermal", resume=True)


def test_the_range_of_a_modality_alone_that_is_in_use_must_stay(folder: Path, tmp_path: Path) -> None:
    def train_with(modality: str, value_range: Any, *, resume: bool) -> None:
        data = {"workers": 0, "modalities": [modality], "modality_ranges": {"thermal": value_range}}
        settings = {"data": data, "evaluation": {"choose": "last"}, "steps": 1}
        train(folder, tmp_path / modality, resume=resume, **settings)

    for modality in ("rgb", "thermal"):
        train_with(modality, "image", resume=False)
    train_with("rgb", [0, 100], resume=True)
    with pytest.raises(ConfigError, match=r"--resume: .*modality_ranges"):
        train_with("thermal", [0, 100], resume=True)


def test_a_checkpoint_of_before_there_was_a_choice_goes_on(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    last: dict[str, Any] = {"evaluation": {"choose": "last"}, "steps": 2}
    train(folder, output, "rgb", **last)
    path = output / CHECKPOINT_FILE
    progress = json.loads(_metadata(path)["progress"])
    assert progress.pop("best") is None
    save_tensors(load_file(path), path, metadata={"progress": json.dumps(progress)})
    assert read_progress(path).best is None
    train(folder, output, "rgb", **last, resume=True)
    with pytest.raises(ConfigError, match="the steps were taken without best, and no weights were kept"):
        train(folder, output, "rgb", steps=2, resume=True)


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        metadata: dict[str, str] = file.metadata()
    return metadata


def test_the_better_is_kept_and_of_equal_ones_the_earlier(tmp_path: Path) -> None:
    student = build_student(StudentModelConfig.model_validate(TOWER), 0)
    best = BestWeights(tmp_path)
    for step, top1, shards in ((1, 0.5, "a"), (2, 0.4, "a"), (3, 0.5, "a"), (4, 0.6, "a"), (5, 0.2, "b")):
        with torch.no_grad():
            student.model.logit_scale.fill_(step)
        best.offer(Best(step, {"top1": top1}, {"shards": shards}), student)
        kept = best.kept
        assert kept is not None
        # By other shards nothing before can be compared with.
        assert kept.step == {1: 1, 2: 1, 3: 1, 4: 4, 5: 5}[step]
        if step == 2:
            best.sweep()  # a checkpoint names the first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-1.safetensors", "best-5.safetensors"]
    best.sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["best-5.safetensors"]
    best.put_into(student)
    assert student.model.logit_scale.item() == 5


def test_the_best_is_told_with_each_modality_if_there_are_several() -> None:
    figures = {"top1": 0.088, "top1_rgb": 0.1, "top1_depth": 0.076, "auroc": 0.5, "auroc_rgb": 0.4, "auroc_depth": 0.6}
    assert Best(1000, figures, {}).headline() == "step 1,000, top1 0.088 (rgb 0.100, depth 0.076)"
    assert Best(10, {"top1": 0.1, "top1_depth": 0.1}, {}).headline() == "step 10, top1 0.100"
