"""The cluster manifests: what they run is what the command line takes, and their fields are KubeRay's."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from reinforce.cli import app
from reinforce.config import builtin_recipes, load_recipe
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "pipelines" / "cluster"

# Of ray.io/v1 in KubeRay 1.2, the oldest that has spec.backoffLimit; pods have the fields of Kubernetes.
FIELDS = {
    "spec": {
        "submissionMode",
        "entrypoint",
        "backoffLimit",
        "submitterConfig",
        "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished",
        "activeDeadlineSeconds",
        "runtimeEnvYAML",
        "submitterPodTemplate",
        "rayClusterSpec",
    },
    "spec.submitterConfig": {"backoffLimit"},
    "spec.rayClusterSpec": {
        "rayVersion",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    },
    "spec.rayClusterSpec.autoscalerOptions": {"upscalingMode", "idleTimeoutSeconds", "resources"},
    "spec.rayClusterSpec.headGroupSpec": {"serviceType", "rayStartParams", "template"},
    "spec.rayClusterSpec.workerGroupSpecs.0": {
        "groupName",
        "replicas",
        "minReplicas",
        "maxReplicas",
        "rayStartParams",
        "template",
    },
}


@pytest.fixture(scope="module")
def rayjob() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())
    return document


def at(document: Any, path: str) -> Any:
    for part in path.split("."):
        document = document[int(part) if part.isdigit() else part]
    return document


def check_command(command: list[str]) -> None:
    """Parses a `reinforce` command as the command line does, and its recipe with what it overrides."""
    assert command[0] == "reinforce"
    group = typer.main.get_command(app)
    context = group.make_context("reinforce", list(command[1:]), resilient_parsing=True)
    name, subcommand, arguments = group.resolve_command(context, list(command[1:]))  # type: ignore[attr-defined]
    parsed = subcommand.make_context(name, arguments, parent=context)
    load_recipe(parsed.params["recipe"], parsed.params["overrides"])


def test_the_job_runs_what_the_command_line_takes(rayjob: dict[str, Any]) -> None:
    command = shlex.split(rayjob["spec"]["entrypoint"])
    check_command(command)
    with pytest.raises(Exception, match="No such option"):
        check_command([*command, "--workers", "3"])


def test_the_fields_are_those_of_kuberay(rayjob: dict[str, Any]) -> None:
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    for path, known in FIELDS.items():
        assert at(rayjob, path).keys() - known == set(), path
    cluster = rayjob["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        # Ray's start command takes them as text.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_what_workers_reserve_is_what_their_pods_have(rayjob: dict[str, Any]) -> None:
    command = rayjob["spec"]["entrypoint"]
    (group,) = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = at(group, "template.spec.containers.0.resources.limits")
    assert f"build.ray.num_cpus={limits['cpu']}" in command
    assert f"build.ray.num_gpus={limits['nvidia.com/gpu']}" in command
    assert f"--max-workers {group['maxReplicas']}" in command


def test_secrets_are_the_heads_alone(rayjob: dict[str, Any]) -> None:
    cluster = rayjob["spec"]["rayClusterSpec"]
    assert "secretRef" in str(cluster["headGroupSpec"])
    assert "secret" not in str(cluster["workerGroupSpecs"]).lower()
    assert "runtimeEnvYAML" not in rayjob["spec"]


def test_versions_are_those_of_the_lock(rayjob: dict[str, Any]) -> None:
    locked = re.search(r"^ray\S*==([\d.]+)", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == locked[1]


def test_the_image_installs_by_hash_and_runs_without_privileges() -> None:
    lines = (FOLDER / "Dockerfile").read_text()
    assert lines.count("--require-hashes") == 2
    assert re.findall(r"^USER (.*)$", lines, re.MULTILINE) == ["1000"]
    for source in re.findall(r"^COPY (.*) \S+$", lines, re.MULTILINE):
        assert all((REPOSITORY / name).exists() for name in source.split()), source


def test_the_script_submits_a_command_that_parses(tmp_path: Path) -> None:
    script = FOLDER / "submit.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    (tmp_path / "ray").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "ray").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HEAD": "10.0.0.1"}
    arguments = ["s3://bucket/{0..1}.tar", "s3://bucket/out", "mobileclip", "--max-workers", "3"]
    done = subprocess.run([str(script), *arguments], env=environment, capture_output=True, text=True, check=True)
    submitted = done.stdout.splitlines()
    assert submitted[:4] == ["job", "submit", "--address", "http://10.0.0.1:8265"]
    check_command(submitted[submitted.index("--") + 1 :])


def test_the_manifests_are_no_recipes() -> None:
    assert "rayjob" not in builtin_recipes()
