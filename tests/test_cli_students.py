"""train-student, evaluate, select and export as a person runs them: exit status, one line for every error of theirs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from reinforce.cli import app
from reinforce.demo.shards import write_scenes
from tests.students import build_dataset
from tests.test_cli import assert_one_line, reinforce_command, small_disk

__all__ = ["small_disk"]

STUDENT = {
    "model": {
        "backbone": "test_vit",
        "image_size": 32,
        "embed_dim": 16,
        "text": {"context_length": 10, "width": 16, "heads": 2, "layers": 1},
    },
    "data": {"workers": 0},
    "optimizer": {"warmup_steps": 1},
    "steps": 3,
    "batch_size": 4,
    "log_every": 1,
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reinforced dataset, a recipe, labelled shards, and a student in `run/`."""
    folder = tmp_path_factory.mktemp("students")
    build_dataset(folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"student": STUDENT}))
    (folder / "no_student.yaml").write_text("build: {}\n")
    write_scenes(folder / "labelled", num_images=24, images_per_shard=24)
    result = train(folder, "--output", "run")
    assert result.exit_code == 0, result.stderr
    return folder


def train(folder: Path, *arguments: str) -> Result:
    options = [] if "--dataset" in arguments else ["--dataset", "reinforced"]
    options += [] if "--recipe" in arguments else ["--recipe", "recipe.yaml"]
    return reinforce_command(folder, "train-student", *options, *arguments)


def test_train_evaluate_select_and_export(workspace: Path, tmp_path: Path) -> None:
    evaluated = reinforce_command(workspace, "evaluate", "run/student", "--dataset", "labelled", "--json")
    assert evaluated.exit_code == 0, evaluated.stderr
    (figures,) = json.loads(evaluated.stdout)
    assert figures["num_samples"] > 15
    assert 0 <= figures["top1"] <= 1
    table = reinforce_command(workspace, "evaluate", "run/student", "--dataset", "labelled", "--per-class")
    assert "top-1" in table.stdout
    assert "sailboat" not in table.stdout
    assert "boat" in table.stdout
    retrieval = reinforce_command(workspace, "evaluate", "run/student", "--dataset", "labelled", "--task", "retrieval")
    assert "R@1" in retrieval.stdout, retrieval.stderr
    probe = ["evaluate", "run/student", "--dataset", "labelled", "--task", "linear", "--train", "more", "--per-class"]
    write_scenes(workspace / "more", num_images=48, images_per_shard=48, seed=1)
    linear = reinforce_command(workspace, *probe)
    assert "classes, a probe of " in linear.stdout, linear.stderr
    assert "sailboat" not in linear.stdout
    assert "boat" in linear.stdout
    exported = reinforce_command(workspace, "export", "run/student", "--output", str(tmp_path / "s.onnx"))
    assert "cosine to PyTorch: 1.0000" in exported.stdout, exported.stderr
    assert "8 noise images" in exported.stdout
    selected = reinforce_command(workspace, "select", "reinforced", "--output", str(tmp_path / "s"), "--split", "0:0.5")
    assert int(selected.stdout.split()[2]) in range(4, 20)
    narrowed = train(workspace, "--select", str(tmp_path / "s"), "--output", str(tmp_path / "run"))
    assert narrowed.exit_code == 0, narrowed.stderr


def test_a_run_says_what_it_reads_and_where_the_student_is(workspace: Path, tmp_path: Path) -> None:
    result = train(workspace, "--output", str(tmp_path / "run"))
    lines = result.stderr.splitlines()
    assert lines[0].startswith("student: 1.1 M parameters, 32 px; 3 steps of 4 on ")
    assert lines[1] == (
        "data: 23 samples, 3 views, captions original, fake; stored signals of large at scale 10, small at scale 10"
    )
    assert lines[2].startswith("step 3/3, loss ")
    assert "samples/s, waiting for data" in lines[2]
    assert re.match(r"waiting for data \d+%: the (readers are|model is) the limit.* ms: open .*, decode ", lines[3])
    assert result.stdout.splitlines()[-1].endswith(f"student: {tmp_path / 'run/student'}")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--dataset", "nowhere"], ["nowhere: not a reinforced dataset"]),
        (["--dataset", "source"], ["source: not a reinforced dataset (it has no dataset.json)"]),
        (["--recipe", "no_student.yaml"], ["student: the recipe has no such section"]),
        (["--set", "student.optimizer.learning_rat=1"], ["student.optimizer.learning_rat: no such field"]),
        (["--set", "student.steps=null"], ["student: give either steps or epochs"]),
        (["--set", "student.data.teachers=[gigantic]"], ["has no 'gigantic'; it has large, small"]),
        (
            ["--set", "student.model.backbone=test_vitt"],
            ["student.model.backbone: timm has no 'test_vitt'", "test_vit"],
        ),
        (["--set", "student.model.checkpoint=./none.pt"], ["student.model.checkpoint", "none.pt"]),
        (["--set", "student.batch_size=5", "--set", "student.accumulate=2"], ["student.batch_size: 5 does not divide"]),
        (["--set", "student.loss.teacher_scales={huge: 50}"], ["no teacher 'huge' is read", "large, small"]),
        (["--root", "elsewhere"], ["elsewhere", "no such file", "student.data.missing=skip"]),
        (["--shards", "labelled"], ["--shards: none is a shard of the dataset"]),
        (["--select", "none.parquet"], ["--select none.parquet: no such file"]),
        (["--output", "run"], ["--output run: holds a run already; pass --resume or another --output"]),
        (["--set", "student.evaluation={shards: [none]}"], ["none"]),
        (["--set", "student.device=cuda:7"], ["cuda:7 is not on this machine"]),
    ],
)
def test_what_a_user_can_get_wrong(workspace: Path, tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    output = [] if "--output" in arguments else ["--output", str(tmp_path / "out")]
    result = train(workspace, *output, *arguments)
    assert result.exit_code == 2, result.stderr
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("reinforce: ")
    for part in parts:
        assert part in last


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["evaluate", "nowhere", "--dataset", "labelled"], "nowhere"),
        (["evaluate", "run/student", "--dataset", "nowhere"], "nowhere"),
        (
            ["evaluate", "run/student", "--dataset", "labelled", "--task", "knn"],
            "must be zeroshot, retrieval or linear",
        ),
        (["evaluate", "run/student", "--dataset", "labelled", "--task", "linear"], "linear: pass --train SHARDS"),
        (
            ["evaluate", "nowhere", "--dataset", "labelled", "--task", "retrieval", "--per-class"],
            "--per-class: goes with --task zeroshot or linear; retrieval has no classes",
        ),
        (["export", "run", "--output", "x.onnx"], "no open_clip_config.json"),
        (["export", "run/student", "--output", "x.onnx", "--int8"], "--int8: pass --shards with images like those"),
        (["export", "run/student", "--output", "x.onnx", "--target", "arm"], "--target: goes with --int8"),
        (["export", "run/student", "--output", "x.onnx", "--int8", "--target", "mips"], "must be x86, arm or tensorrt"),
        (["select", "reinforced", "--output", "x", "--split", "0.9"], "--split 0.9"),
    ],
)
def test_mistakes_of_the_other_commands(workspace: Path, arguments: list[str], part: str) -> None:
    assert_one_line(reinforce_command(workspace, *arguments), part)


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_and_resume(workspace: Path, tmp_path: Path, workers: int) -> None:
    command = [sys.executable, "-m", "reinforce", "train-student", "--dataset", "reinforced", "--recipe", "recipe.yaml"]
    command += ["--output", str(tmp_path / "run"), "--set", "student.steps=100000"]
    command += ["--set", "student.checkpoint_every=1", "--set", f"student.data.workers={workers}"]
    with subprocess.Popen(command, cwd=workspace, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline_s = time.monotonic() + 100
        while not (tmp_path / "run/checkpoint.safetensors").exists() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the reader's processes too
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors, errors
    advice = "run it again with --resume: it goes on from the last checkpoint, if there is one"
    assert errors.strip().endswith(f"interrupted; {advice}")


def test_a_full_disk(workspace: Path, small_disk: Path) -> None:
    result = train(workspace, "--output", str(small_disk / "run"))
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("reinforce: cannot write ")
    assert "free some space" in last
    assert not list((small_disk / "run").glob("*.safetensors*"))


def test_a_reader_process_that_is_killed(workspace: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reinforce", "train-student", "--dataset", "reinforced", "--recipe", "recipe.yaml"]
    command += ["--output", str(tmp_path / "run"), "--set", "student.steps=100000", "--set", "student.data.workers=1"]
    with subprocess.Popen(command, cwd=workspace, stderr=subprocess.PIPE, text=True) as process:
        metrics, deadline_s = tmp_path / "run/metrics.jsonl", time.monotonic() + 100
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        for reader in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(reader), signal.SIGKILL)
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 2, errors
    assert "Traceback" not in errors, errors
    assert errors.strip().splitlines()[-1].startswith("reinforce: a reader process died (")


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    for command in ("build", "train-student", "evaluate", "select", "export", "inspect", "demo"):
        assert command in result.stdout
