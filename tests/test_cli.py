"""The command as a person runs it: exit status, one line for every error of theirs, no traceback."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

import reinforce
from reinforce.cli import app, complete_ray
from tests import models
from tests.fakes import files_of
from tests.tars import pairs, write_tar


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, a checkpoint and a recipe."""
    folder = tmp_path_factory.mktemp("cli")
    models.save_open_clip(folder / "teacher")
    recipe = {"build": {"batch_size": 4, "views": {"count": 1}, "teachers": {"t": {"model": "local-dir:teacher"}}}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for stem in "ab":
        write_tar(folder / "in" / f"{stem}.tar", pairs(5))
    return folder


def reinforce_command(folder: Path, *arguments: str, **environment: str) -> Result:
    """Runs the command line in this process: a fresh interpreter would spend its time on importing torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(app, arguments, env=environment, catch_exceptions=False)


def build(folder: Path, *arguments: str, shards: str = "in", **environment: str) -> Result:
    return reinforce_command(folder, "build", "--shards", shards, "--recipe", "recipe.yaml", *arguments, **environment)


def assert_one_line(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("reinforce: ")
    for part in parts:
        assert part in lines[0]


def test_build_resume_and_a_bad_shard(workspace: Path, tmp_path: Path) -> None:
    shutil.copytree(workspace / "in", tmp_path / "in")
    result = build(workspace, "--output", str(tmp_path / "out"), shards=str(tmp_path / "in"))
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "2 of 2 shards complete (0 were before this run)")
    assert reinforce.open_dataset(str(tmp_path / "out")).stems == ["a", "b"]
    (tmp_path / "in" / "c.tar").write_bytes(b"<html>")
    result = build(workspace, "--output", str(tmp_path / "out"), shards=str(tmp_path / "in"))
    assert result.exit_code == 1
    assert "2 of 3 shards complete (2 were before this run)" in result.stdout
    assert "failed: c: is not a tar" in result.stdout


def test_braces_the_shell_expanded(workspace: Path, tmp_path: Path) -> None:
    result = build(workspace, "in/b.tar", "--output", str(tmp_path / "out"), shards="in/a.tar")
    assert result.exit_code == 0, result.stderr
    assert reinforce.open_dataset(str(tmp_path / "out")).stems == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--shards", "no/such/folder"], ["no/such/folder"]),
        (["--shards", "ftp://host/x.tar"], ["ftp"]),
        (["--shards", "in/{a..c}.tar"], ["in/"]),
        (["--recipe", "nonsense"], ["--recipe nonsense: no such file, nor one of the recipes", "mobileclip"]),
        (["--set", "build.teachers.t.precison=bf16"], ["build.teachers.t.precison: no such field"]),
        (["--set", "build.views.count=-1"], ["build.views.count", "greater than or equal to 0"]),
        (["--set", "build.views.scale=[0.5,0.1]"], ["build.views", "scale [0.5, 0.1]"]),
        (["--set", "nonsense"], ["--set nonsense: must be FIELD=VALUE"]),
        (["--set", "build.teachers.t.model=local-dir:nowhere"], ["build.teachers.t", "no open_clip_config.json"]),
        (["--set", "build.teachers.A-1={model: x}"], ["build.teachers.A-1", "must be of a-z, 0-9 and _ only"]),
        (["--select", "none.parquet"], ["--select none.parquet: no such file"]),
        (["--output", "recipe.yaml/out"], ["recipe.yaml"]),
        (["--ray", "127.0.0.1:1"], ["--ray 127.0.0.1:1: no cluster answers"]),
        (["--ray", "ray://host:10001"], ["ray job submit"]),
        (["--max-workers", "2"], ["--max-workers: goes with --ray or --plan"]),
    ],
)
def test_what_a_user_can_get_wrong(workspace: Path, tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    shards = [] if "--shards" in arguments else ["--shards", "in"]
    recipe = [] if "--recipe" in arguments else ["--recipe", "recipe.yaml"]
    output = [] if "--output" in arguments else ["--output", str(tmp_path / "out")]
    assert_one_line(reinforce_command(workspace, "build", *shards, *recipe, *output, *arguments), *parts)


def test_another_recipe_on_the_same_output(workspace: Path, tmp_path: Path) -> None:
    assert build(workspace, "--output", str(tmp_path / "out"), "--limit-shards", "1").exit_code == 0
    result = build(workspace, "--output", str(tmp_path / "out"), "--set", "build.seed=1")
    assert_one_line(result, "dataset.json was made differently", "spine.seed is 0 there and 1 in this recipe")


def test_an_unreachable_endpoint(workspace: Path, tmp_path: Path) -> None:
    result = build(
        workspace,
        "--output",
        str(tmp_path / "out"),
        shards="s3://bucket/prefix",
        AWS_ENDPOINT_URL="http://127.0.0.1:9",
        AWS_ACCESS_KEY_ID="a",
        AWS_SECRET_ACCESS_KEY="b",
        AWS_REGION="us-east-1",
    )
    assert_one_line(result, "s3://bucket/prefix")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(workspace: Path, small_disk: Path) -> None:
    result = build(workspace, "--output", str(small_disk / "out"))
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    assert "no space left on device" in result.stderr.splitlines()[-1]
    assert "free some space" in result.stderr.splitlines()[-1]
    for path in (small_disk / "out").rglob("*.parquet"):
        pq.read_table(path)


@pytest.mark.parametrize(
    ("cluster", "asked", "status"),
    [
        pytest.param([], signal.SIGINT, 130, id="here"),
        pytest.param([], signal.SIGTERM, 143, id="here-terminated"),
        pytest.param(["--ray", "local"], signal.SIGTERM, 143, id="ray-terminated", marks=pytest.mark.serial),
    ],
)
def test_ctrl_c_then_the_same_command(
    workspace: Path, tmp_path: Path, cluster: list[str], asked: signal.Signals, status: int
) -> None:
    for stem in "abcdefgh":
        write_tar(tmp_path / "in" / f"{stem}.tar", pairs(40))
    options = ["--shards", str(tmp_path / "in"), "--recipe", "recipe.yaml", "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "reinforce", "build", *options, *cluster]
    with subprocess.Popen(command, cwd=workspace, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 100
        while not list((tmp_path / "out").glob("samples/*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(asked)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert errors.strip().splitlines()[-1] == "reinforce: interrupted; run the same command again to resume"
    assert "Traceback" not in errors
    result = reinforce_command(workspace, "build", *options)
    assert "8 of 8 shards complete" in result.stdout, result.stderr


@pytest.mark.serial
def test_a_cluster_of_ones_own(workspace: Path, tmp_path: Path) -> None:
    options = ["--shards", "in", "--recipe", "recipe.yaml", "--output"]
    command = [sys.executable, "-m", "reinforce", "build", *options, str(tmp_path / "ray"), "--ray", "local"]
    # As a user has it: without what the tests need for clusters of several nodes.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, env=environment, timeout=200)
    assert done.stdout.splitlines()[0] == "2 of 2 shards complete (0 were before this run)", done.stderr
    assert "Traceback" not in done.stderr
    reinforce_command(workspace, "build", *options, str(tmp_path / "local"))
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "local")


def test_ray_alone_and_with_an_address() -> None:
    assert complete_ray(["build", "--ray", "--output", "x"]) == ["build", "--ray", "any", "--output", "x"]
    assert complete_ray(["build", "--ray"]) == ["build", "--ray", "any"]
    assert complete_ray(["build", "--ray", "auto", "--output", "x"]) == ["build", "--ray", "auto", "--output", "x"]


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in ("build", "inspect", "demo"):
        assert command in result.stdout


def test_a_shard_name_that_cannot_be_a_path(workspace: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a\\b.tar", pairs(1))
    result = build(workspace, "--output", str(tmp_path / "out"), shards=str(tmp_path / "in"))
    assert_one_line(result, "cannot be a path below the dataset; rename the shard")
