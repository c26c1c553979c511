"""Training: the same gradient however it is computed, the same curve however it is interrupted, and what is left."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from torch.nn.parallel import DistributedDataParallel

from reinforce.config import ConfigError, DataConfig, LossConfig, OptimizerConfig, Recipe, StudentModelConfig
from reinforce.student.batch import Batch
from reinforce.student.checkpoint import CHECKPOINT_FILE, read_progress
from reinforce.student.journal import read_metrics
from reinforce.student.learner import Learner, _join, backward
from reinforce.student.losses import StudentLoss
from reinforce.student.meter import Meter
from reinforce.student.models import build_student, load_student
from reinforce.student.optimize import learning_rate, make_optimizer
from reinforce.student.run import TrainingError
from reinforce.student.train import TrainingSummary, describe, train_student
from tests.students import MODEL, TORCHRUN, build_dataset, recipe, stopping_at

TEACHERS = {"large": 12, "small": 8}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_dataset(tmp_path_factory.mktemp("training"))


def train(dataset: Path, output: Path, *, resume: bool = False, **student: Any) -> TrainingSummary:
    with open(os.devnull, "w") as nowhere:
        return train_student(str(dataset), output, recipe(**student), resume=resume, console=Console(file=nowhere))


def weights(output: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_student(output / "student").model.state_dict()
    return state


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(output) if row["kind"] == "train"]


# One gradient, whole, in parts, and by several processes.


def random_batch(num_rows: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def rows(dim: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(num_rows, dim, generator=generator), dim=1).half()

    roles = ("original", "synthetic")
    return Batch(
        keys=[str(row) for row in range(num_rows)],
        stems=["a"] * num_rows,
        images=torch.randint(0, 256, (num_rows, 3, 32, 32), dtype=torch.uint8, generator=generator),
        texts={role: torch.randint(1, 49000, (num_rows, 10), generator=generator) for role in roles},
        teacher_images={name: rows(dim) for name, dim in TEACHERS.items()},
        teacher_texts={role: {name: rows(dim) for name, dim in TEACHERS.items()} for role in roles},
    )


def new_learner(loss: LossConfig) -> Learner:
    torch.manual_seed(3)
    return Learner(build_student(StudentModelConfig.model_validate(MODEL), seed=0), loss, TEACHERS)


LOSSES = [
    LossConfig(kind="clip", mask_same_captions=True),
    LossConfig(distillation=0.7, feature_weight=20.0),
]


def gradient_of(loss_config: LossConfig, batch: Batch, *, num_parts: int) -> dict[str, torch.Tensor | None]:
    """The gradient by parameter, and the loss."""
    learner = new_learner(loss_config)
    terms = backward(learner, StudentLoss(loss_config, dict.fromkeys(TEACHERS, 20.0)), batch, num_parts=num_parts)
    return {name: parameter.grad for name, parameter in learner.named_parameters()} | {"loss": terms["loss"].detach()}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
@pytest.mark.parametrize("num_parts", [2, 4])
def test_parts_have_the_gradient_of_the_whole(loss: LossConfig, num_parts: int) -> None:
    whole, in_parts = (gradient_of(loss, random_batch(), num_parts=parts) for parts in (1, num_parts))
    assert whole.keys() == in_parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(in_parts[name], gradient, rtol=1e-3, atol=2e-6)


def test_parts_see_the_same_randomness_twice() -> None:
    learner = new_learner(LOSSES[1])
    learner.model.visual.head.add_module("drop", torch.nn.Dropout(0.5))
    loss, batch = StudentLoss(LOSSES[1], dict.fromkeys(TEACHERS, 20.0)), random_batch(8)
    torch.manual_seed(0)
    backward(learner, loss, batch, num_parts=2)
    in_parts = {
        name: parameter.grad.clone() for name, parameter in learner.named_parameters() if parameter.grad is not None
    }
    # By hand: both parts in one graph, with the random numbers in the order of the parts.
    learner.zero_grad()
    torch.manual_seed(0)
    parts = [learner(part.images, part.texts, part.modalities) for part in batch.split(2)]
    loss(_join(parts), batch)["loss"].backward()  # type: ignore[no-untyped-call]
    for name, parameter in learner.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(in_parts[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_parts_pass_the_running_statistics_once() -> None:
    model = StudentModelConfig.model_validate(MODEL | {"backbone": "test_resnet"})
    learner = Learner(build_student(model, seed=0), LOSSES[0], {})
    backward(learner, StudentLoss(LOSSES[0], {}), random_batch(8), num_parts=2)
    counts = {int(b) for name, b in learner.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts == {2}


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    for loss_config in LOSSES:
        _save_gradients(rank, f"{folder}/{loss_config.kind}", loss_config)
    dist.destroy_process_group()


def _save_gradients(rank: int, folder: str, loss_config: LossConfig) -> None:
    learner = new_learner(loss_config)
    optimizer = make_optimizer(learner, OptimizerConfig())
    wrapped = DistributedDataParallel(learner)
    own = random_batch().split(2)[rank]
    for num_parts, name in ((1, "whole"), (2, "parts")):
        optimizer.zero_grad()
        terms = backward(wrapped, StudentLoss(loss_config, dict.fromkeys(TEACHERS, 20.0)), own, num_parts=num_parts)
        loss = terms["loss"].detach()
        dist.all_reduce(loss)
        gradients = {name: parameter.grad for name, parameter in learner.named_parameters()}
        torch.save(gradients | {"loss": loss / 2}, f"{folder}/{name}{rank}.pt")
    optimizer.zero_grad()


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gradients of each loss, as both processes have them: they start once, for they import for seconds."""
    folder = tmp_path_factory.mktemp("gradients")
    for loss in LOSSES:
        (folder / loss.kind).mkdir()
    torch.multiprocessing.spawn(_one_of_two, args=(str(folder),), nprocs=2)  # type: ignore[attr-defined,no-untyped-call]
    return folder


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
def test_two_processes_have_the_gradient_of_one(of_two_processes: Path, loss: LossConfig) -> None:
    learner = new_learner(loss)
    terms = backward(learner, StudentLoss(loss, dict.fromkeys(TEACHERS, 20.0)), random_batch())
    for name in ("whole", "parts"):
        both = [torch.load(of_two_processes / loss.kind / f"{name}{rank}.pt", weights_only=True) for rank in range(2)]
        torch.testing.assert_close(both[0].pop("loss"), terms["loss"].detach())
        for parameter_name, parameter in learner.named_parameters():
            torch.testing.assert_close(both[0][parameter_name], both[1][parameter_name], rtol=0, atol=0)
            torch.testing.assert_close(both[0][parameter_name], parameter.grad, rtol=1e-3, atol=2e-6)


# A run, interrupted or not.


@pytest.mark.parametrize(
    "student",
    [
        {},
        {"optimizer": {"warmup_steps": 2, "ema": 0.9}, "data": {"workers": 2, "open_shards": 2}},
        {"accumulate": 2, "loss": {"feature_weight": 20.0}},
        {"data": {"workers": 0, "views_per_decode": 2}},
    ],
    ids=["plain", "average and two workers", "parts and maps", "between two views"],
)
def test_a_resumed_run_is_an_undisturbed_one(dataset: Path, tmp_path: Path, student: dict[str, Any]) -> None:
    train(dataset, tmp_path / "whole", **student)
    with stopping_at(5), pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "stopped", checkpoint_every=3, **student)
    assert read_progress(tmp_path / "stopped" / CHECKPOINT_FILE).step == 3
    assert len(losses(tmp_path / "stopped")) == 5
    summary = train(dataset, tmp_path / "stopped", resume=True, **student)
    assert (summary.num_steps_before, summary.num_steps) == (3, 5)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_the_same_recipe_gives_the_same_student(dataset: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(dataset, tmp_path / name, steps=3, seed=seed)
    files = {name: (tmp_path / name / "student/open_clip_model.safetensors").read_bytes() for name in "abc"}
    assert files["a"] == files["b"] != files["c"]
    assert (tmp_path / "a/curves.svg").read_text().startswith("<?xml")


def test_what_is_there_is_not_overwritten(dataset: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path / "run", steps=2)
    with pytest.raises(ConfigError, match="holds a run already; pass --resume or another --output"):
        train(dataset, tmp_path / "run", steps=2)
    with pytest.raises(ConfigError, match=r"student.optimizer.learning_rate is 0.001 there and 0.002 in this recipe"):
        train(dataset, tmp_path / "run", steps=2, resume=True, optimizer={"learning_rate": 2e-3, "warmup_steps": 2})
    pq.write_table(pa.table({"stem": ["c"] * 4, "key": [f"c-00{n}" for n in range(1, 5)]}), tmp_path / "c.parquet")
    with pytest.raises(ConfigError, match=r"was another: it read other shards; it read other samples \(--select\)$"):
        train_student(str(dataset), tmp_path / "run", recipe(steps=2), resume=True, select=str(tmp_path / "c.parquet"))
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    summary = train(dataset, tmp_path / "run", steps=2, resume=True)
    assert "all 2 steps were taken before" in describe(summary)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


def test_resume_without_a_checkpoint_begins(dataset: Path, tmp_path: Path) -> None:
    def begin_or_go_on() -> tuple[int, bool]:
        screen, output = StringIO(), tmp_path / "run"
        summary = train_student(str(dataset), output, recipe(steps=2), resume=True, console=Console(file=screen))
        return summary.num_steps_before, f"no checkpoint in {output} yet: begins anew" in screen.getvalue()

    assert begin_or_go_on() == (0, False)
    (tmp_path / "run" / CHECKPOINT_FILE).unlink()
    assert begin_or_go_on() == (0, True)
    assert begin_or_go_on() == (2, False)


def test_a_killed_run_goes_on(dataset: Path, tmp_path: Path) -> None:
    """SIGKILL at a random moment leaves a checkpoint that is whole, and the rest is as if nothing had happened."""
    content = recipe(steps=40, checkpoint_every=1).model_dump(mode="json", exclude_unset=True)
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    command = [sys.executable, "-m", "reinforce", "train-student", "--dataset", str(dataset), "--recipe"]
    command += [str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 120
    while not (tmp_path / "killed" / CHECKPOINT_FILE).exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    time.sleep(np.random.default_rng().uniform(0, 1.0))
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = read_progress(tmp_path / "killed" / CHECKPOINT_FILE).step
    train(dataset, tmp_path / "killed", resume=True, steps=40, checkpoint_every=1)
    train(dataset, tmp_path / "whole", steps=40)
    assert 1 <= step <= 40
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_two_processes_train_one_student(of_torchrun: Path) -> None:
    assert len(losses(of_torchrun / "run")) == TORCHRUN["steps"]
    progress = read_progress(of_torchrun / "run" / CHECKPOINT_FILE)
    assert progress.step == TORCHRUN["steps"]
    assert len(progress.positions) == 2
    with pytest.raises(ConfigError, match="world_size is 2 there and 1 in this recipe"):
        train(of_torchrun / "reinforced", of_torchrun / "run", resume=True, **TORCHRUN)


# What a run leaves, and how it fails.


def test_a_run_leaves_a_student_that_open_clip_opens(dataset: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path / "run", steps=3, loggers=["tensorboard"])
    folder = tmp_path / "run/student"
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a caption"])
    own = load_student(folder)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().encode_text(tokens), own.model.encode_text(tokens))
    document = json.loads((folder / "student.json").read_text())
    assert document["samples_seen"] == 12
    assert set(document["teachers"]) == {"large", "small"}
    rows = read_metrics(tmp_path / "run")
    assert {"loss", "distillation", "samples_per_s", "wait_share", "reader_ms", "learning_rate"} <= rows[0].keys()
    assert rows[-1]["left_out"]["no_original_caption"] >= 1
    assert list((tmp_path / "run/tensorboard").glob("events.*"))


@pytest.mark.parametrize(
    "student",
    [{"precision": "bf16"}, {"loss": {"kind": "clip"}}, {"gradient_checkpointing": True}, {"epochs": 1, "steps": None}],
)
def test_options_of_a_run(dataset: Path, tmp_path: Path, student: dict[str, Any]) -> None:
    train(dataset, tmp_path / "run", **({"steps": 2} | student))
    assert all(np.isfinite(losses(tmp_path / "run")))
    if "epochs" in student:
        assert len(losses(tmp_path / "run")) == round(23 / 4)


def test_views_together_train_with_either_loss(dataset: Path, tmp_path: Path) -> None:
    data = {"workers": 0, "views_per_decode": 2, "views_placement": "together"}
    for kind in ("mobileclip", "clip"):
        train(dataset, tmp_path / kind, steps=2, data=data, loss={"kind": kind})
        assert all(np.isfinite(losses(tmp_path / kind)))
    with pytest.raises(ConfigError, match=r"student.batch_size: 5 in a process does not divide by .*_decode 2"):
        train(dataset, tmp_path / "odd", batch_size=5, data=data)
    assert not (tmp_path / "odd").exists()


@pytest.mark.parametrize(
    ("is_waiting", "reader_s", "expected"),
    [
        (False, {"open": 0.1, "decode": 0.2}, r"waiting for data \d%: the model is the limit. A sample"),
        (True, {"mine": 0.4, "decode": 0.2}, r"mining is the limit, .*; select fewer. A sample takes"),
        (True, {"open": 0.4, "decode": 0.2}, r"are the limit; raise student.data.workers \(now 3, of \d+ cores\). A"),
        (
            True,
            {"read": 0.1, "decode": 0.3, "render": 0.2},
            r"waiting for data 9\d%: .* or views_per_decode \(now 2\), or use smaller images. "
            r"A sample takes a reader 75.00 ms: read 12.50, decode 37.50, render 25.00$",
        ),
    ],
)
def test_a_meter_says_what_the_limit_is(
    is_waiting: bool, reader_s: dict[str, float], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock of our own: a busy machine's would say that something else was waited for.
    now_s = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    meter = Meter(8)
    batch = replace(random_batch(8), reader_s=reader_s)
    for step in range(3):
        with meter.waiting():
            if step == 0:
                now_s += 0.05  # opening the first shards is nobody's limit
            elif is_waiting:
                now_s += 0.1
        now_s += 0.001 if is_waiting else 0.02
        meter.add({"loss": torch.tensor(1.0)}, batch)
        figures = meter.figures()
    assert figures["reader_ms"].keys() == reader_s.keys()
    data = DataConfig(workers=3, views_per_decode=2)
    assert re.search(expected, meter.limit(data))
    assert "views_per_decode" not in meter.limit(data, may_share_decoding=False)


def test_an_image_tower_alone_learns_its_teacher_s_space(dataset: Path, tmp_path: Path) -> None:
    model = MODEL | {"text": None, "embed_dim": 12}
    train(dataset, tmp_path / "run", model=model, data={"workers": 0, "teachers": ["large"]}, steps=12)
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    assert not load_student(tmp_path / "run/student").has_text
    with pytest.raises(ConfigError, match=r"student.model.text: null; loss.kind clip needs a text tower"):
        train(dataset, tmp_path / "other", model=model, loss={"kind": "clip"})


def test_a_loss_that_is_no_longer_finite_stops_the_run(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step \d+: the loss is (nan|inf); lower student.optimizer.learning_rate"):
        train(dataset, tmp_path / "run", optimizer={"learning_rate": 1e30, "warmup_steps": 0, "clip_norm": None})


def test_a_batch_that_does_not_divide_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"student.batch_size: 4 does not divide by 1 processes x student.accumulate 3"
    ):
        train(dataset, tmp_path / "run", accumulate=3)


def test_a_recipe_without_a_student_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="student: the recipe has no such section"):
        train_student(str(dataset), tmp_path / "run", Recipe())


def test_the_learning_rate_warms_up_and_falls() -> None:
    config = OptimizerConfig(learning_rate=1.0, min_learning_rate=0.1, warmup_steps=10)
    rates = [learning_rate(step, 110, config) for step in range(1, 111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[59] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[9:]))


def test_the_logit_scale_comes_down_again_from_its_bound(dataset: Path, tmp_path: Path) -> None:
    loss = LossConfig(kind="clip", max_logit_scale=20.0)
    learner = new_learner(loss)
    learner.model.logit_scale.data.fill_(9.0)
    learner.bound_logit_scale()
    assert float(learner.model.logit_scale.exp().detach()) == pytest.approx(20.0)
    backward(learner, StudentLoss(loss, {}), random_batch(8))
    assert learner.model.logit_scale.grad.abs() > 0
    train(dataset, tmp_path / "run", steps=2, loss={"initial_logit_scale": 30.0, "max_logit_scale": 20.0})
    assert read_metrics(tmp_path / "run")[0]["logit_scale"] == pytest.approx(20.0)


def test_gains_biases_and_the_scale_do_not_decay() -> None:
    learner = new_learner(LOSSES[0])
    decayed, others = make_optimizer(learner, OptimizerConfig(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert any(parameter is learner.model.logit_scale for parameter in others["params"])
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(learner.parameters()))
