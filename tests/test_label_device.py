"""`reinforce label` in processes of its own: what it loads, where it runs without torch, how it ends."""

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reinforce.deploy.model_file import ModelModality
from tests.conftest import REPOSITORY
from tests.labelling import colour_card, save_colour_model
from tests.tars import encode

NOT_ON_A_DEVICE = [
    "torch",
    "torchvision",
    "typer",
    "pydantic",
    "pyarrow",
    "jaxtyping",
    "yaml",
    "rich",
    "obstore",
    "ray",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("device")
    depth = ModelModality(suffix="depth.png", range=(0.0, 1000.0), agreement={})
    save_colour_model(path / "model.onnx", replace(colour_card(), modalities={"depth": depth}))
    (path / "image.depth.png").write_bytes(encode(Image.fromarray(np.full((30, 40), 700, np.uint16))))
    (path / "image.jpg").write_bytes(encode(Image.new("RGB", (40, 30), (255, 0, 0)), "JPEG"))
    return path


def run_python(folder: Path, *arguments: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([sys.executable, *arguments], cwd=folder, input=data, capture_output=True, env=environment)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [("image.jpg", "image.jpg: red 1.00"), ("image.depth.png --modality depth", "image.depth.png: red 0.33")],
)
def test_what_a_device_lacks_is_not_loaded(folder: Path, arguments: str, says: str) -> None:
    code = f"""
        import sys
        from reinforce.__main__ import main
        sys.argv = ["reinforce", "label", "model.onnx", *{arguments.split()}, "--top-k", "1"]
        try:
            main()
        except SystemExit as exit:
            print("status", exit.code)
        print(*sys.modules)
    """
    done = run_python(folder, "-c", textwrap.dedent(code))
    label, status, modules = done.stdout.decode().splitlines()
    assert (label, status) == (says, "status 0"), done.stderr
    assert {"onnxruntime", "reinforce.deploy.label.session"} <= {*modules.split()}
    assert {*modules.split()} & {*NOT_ON_A_DEVICE} == set()


def test_it_runs_where_there_is_nothing_else(folder: Path, tmp_path: Path) -> None:
    """Three packages and ours, linked into a folder: an interpreter without site-packages finds those alone."""
    for package in ("numpy", "PIL", "onnxruntime"):
        origin = Path(str(importlib.util.find_spec(package).origin)).parent  # type: ignore[union-attr]
        (tmp_path / package).symlink_to(origin)
    for libraries in origin.parent.glob("*.libs"):
        (tmp_path / libraries.name).symlink_to(libraries)
    (tmp_path / "reinforce").symlink_to(REPOSITORY / "reinforce")
    code = f"""
        import importlib.util, runpy, sys
        sys.path.append({str(tmp_path)!r})
        found = [name for name in {NOT_ON_A_DEVICE} if importlib.util.find_spec(name)]
        assert found == [], found
        sys.argv = ["reinforce", "label", "model.onnx", "image.jpg", "--json"]
        runpy.run_module("reinforce", run_name="__main__")
    """
    done = run_python(folder, "-I", "-S", "-c", textwrap.dedent(code))
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["labels"] == ["red", "green", "blue"]
    # And nothing else does.
    other = code.replace('"reinforce", "label", "model.onnx"', '"reinforce", "inspect"')
    done = run_python(folder, "-I", "-S", "-c", textwrap.dedent(other))
    assert (done.returncode, done.stderr) == (
        2,
        b"reinforce: installed for `reinforce label` alone: typer is not there\n",
    )


def test_the_rest_of_the_command_line_lists_and_forwards_it(folder: Path) -> None:
    done = run_python(folder, "-m", "reinforce", "--help")
    assert b" label " in done.stdout
    through_typer = ["-c", "from reinforce.cli import main; main()"]
    for way in (["-m", "reinforce"], through_typer):
        helped = run_python(folder, *way, "label", "--help")
        assert (helped.returncode, helped.stdout[:22]) == (0, b"usage: reinforce label")
    done = run_python(folder, *through_typer, "label", "model.onnx", "image.jpg", "gone.jpg", "--top-k", "1")
    assert (done.returncode, done.stdout) == (1, b"image.jpg: red 1.00\n")
    done = run_python(folder, *through_typer, "label", "model.onnx", "--top-k=x", "image.jpg")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)


@pytest.mark.parametrize("end", ["interrupt", "close"])
def test_a_stream_is_labelled_as_it_comes_and_ends_quietly(folder: Path, end: str) -> None:
    """A line an image at once, through a pipe; then Ctrl-C, or a reader that has enough."""
    command = [sys.executable, "-m", "reinforce", "label", "model.onnx", "-", "--json"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    pipe = subprocess.PIPE
    image = (folder / "image.jpg").read_bytes()
    with subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe, env=environment) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        for index in range(2):
            process.stdin.write(image)
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["index"] == index
        if end == "interrupt":
            process.send_signal(signal.SIGINT)
        else:
            process.stdout.close()
            process.stdin.write(image)
            process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == (130 if end == "interrupt" else 141)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("image.jpg > /dev/full", "label: standard output: no space left on device"),
        ("image.jpg --benchmark --seconds 0.01 > /dev/full", "label: standard output: no space left on device"),
        ("image.jpg >&-", "label: standard output is closed; send it to a file or a pipe"),
        ("- <&-", "label: - is standard input, and that is closed"),
        ("- 0> /dev/null", "label: standard input: bad file descriptor"),
    ],
)
def test_streams_that_cannot_be_used_are_a_line(folder: Path, command: str, says: str) -> None:
    script = f"exec {shlex.quote(sys.executable)} -m reinforce label model.onnx {command}"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", f"reinforce: {says}\n")


@pytest.mark.parametrize(("module", "package"), [("numpy", "numpy"), ("PIL", "Pillow")])
def test_without_a_package_it_needs(folder: Path, module: str, package: str) -> None:
    code = f"""
        import sys
        sys.modules[{module!r}] = None
        from reinforce.__main__ import main
        sys.argv = ["reinforce", "label", "model.onnx", "image.jpg"]
        main()
    """
    done = run_python(folder, "-c", textwrap.dedent(code))
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == f"reinforce: label needs {package}: pip install {package}\n"
