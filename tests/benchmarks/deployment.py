"""What exported students cost and keep on this machine: fp32 and int8, one thread and two, JPEG in, label out.

    python -m tests.benchmarks.deployment [--students DIR...] [--folder DIR] [--rounds N]    (40 minutes on two cores)

Everything is what a user would run: `reinforce export`, `reinforce label`, each in a process of its own that is held to
as many cores as it has threads. Speed and memory: `label --benchmark` on photographs of 640 pixels; fp32 and int8 take
turns. Accuracy: `label --json` on labelled test images, of the given students at their own size; without `--students`
there is none, as the backbones have random weights. In `--folder` files stay, and a run goes on from those; its figures
are in `deployment.json` there. Needs ../shared.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks.deployment_figures import Model, Run, files_table, speed_table

# Nothing large here: the kernel counts the memory of the process that starts another as that one's peak.

REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY.parent / "shared" / "data"
PHOTOGRAPHS, TRAIN, TEST = DATA / "coco_mini", DATA / "cifar10/train", DATA / "cifar10/test"
BACKBONES = (
    "efficientnet_b3",
    "efficientnet_b0",
    "tf_efficientnet_lite3",
    "mobilenetv4_conv_medium",
    "mobilenetv4_conv_small",
)
TARGETS = {"fp32": None, "int8": "x86"}
SMALL_SIZE, CAMERA_SIZE = 64, 224
NUM_THREADS = (1, 2)
TORCH_PART = "tests.benchmarks.deployed"
SECONDS = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", type=Path, default=[], metavar="DIR")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        extract(PHOTOGRAPHS, folder / "photographs")
        students = [student.resolve() for student in options.students] or random_students(folder, options.backbones)
        models = list(export_all(folder, students, is_trained=bool(options.students)))
        print(files_table(models), flush=True)
        runs = list(measure_all(models, folder / "photographs", options.rounds))
        print(speed_table(models, runs), flush=True)
        document = {"models": [asdict(model) for model in models], "runs": [asdict(run) for run in runs]}
        (folder / "deployment.json").write_text(json.dumps(document, indent=1) + "\n")


def random_students(folder: Path, backbones: Sequence[str]) -> list[Path]:
    """One of every size: batch normalisation has to have seen images of the size that is measured."""
    students = []
    for name in backbones:
        for size in (SMALL_SIZE, CAMERA_SIZE):
            students.append(folder / "students" / f"{name}-{size}")
            if not students[-1].exists():
                output_of("-m", TORCH_PART, "random", name, str(size), str(students[-1]))
    return students


def export_all(folder: Path, students: list[Path], *, is_trained: bool) -> Iterator[Model]:
    """Every student at its own size, a trained one at the camera's too, in every precision but those refused."""
    truth = extract(TEST, folder / "test")
    (folder / "models").mkdir(exist_ok=True)
    seen: Counter[tuple[str, int]] = Counter()
    for student in students:
        about = torch_part("describe", str(student))
        backbone, own_size = about["backbone"], about["image_size"]
        seen[backbone, own_size] += 1
        number = seen[backbone, own_size]
        name = backbone if number == 1 else f"{backbone}, {number}"
        for size in dict.fromkeys((own_size, CAMERA_SIZE) if is_trained else (own_size,)):
            resized = student if size == own_size else with_image_size(student, size, folder / "resized")
            about = torch_part("describe", str(resized))
            for precision in TARGETS:
                path = folder / "models" / f"{name.replace(', ', '-')}-{size}-{precision}.onnx"
                shards = TRAIN if size == own_size else PHOTOGRAPHS
                is_real = is_trained and size == own_size
                if not export(resized, path, precision, shards, is_real=is_real):
                    continue
                scores: dict[str, Any] = accuracy(path, folder / "test", truth) if is_real else {}
                yield Model(
                    name=name,
                    precision=precision,
                    path=str(path),
                    num_bytes=path.stat().st_size,
                    agreement=torch_part("card", str(path))["agreement"],
                    **about,
                    **scores,
                )


def export(student: Path, path: Path, precision: str, shards: Path, *, is_real: bool) -> bool:
    """Whether the file is there; one that is newer than the student's weights is left as it is. Where only speed and
    size count, int8 need not agree with PyTorch."""
    target = TARGETS[precision]
    [weights] = student.glob("*.safetensors")
    if path.exists() and path.stat().st_mtime > weights.stat().st_mtime:
        return True
    try:
        if is_real:
            options = [] if target is None else ["--int8", "--target", target]
            reinforce("export", str(student), "--output", str(path), "--shards", str(shards), *options)
        else:
            output_of("-m", TORCH_PART, "export", str(student), str(path), str(shards), target or "-")
    except CommandError as error:
        if precision == "fp32":
            raise
        print(f"no {path.name}: {error}", flush=True)
    return path.exists()


def with_image_size(student: Path, size: int, folder: Path) -> Path:
    """A copy of a convolutional student that takes images of another size; its weights do not depend on it."""
    copy = folder / hashlib.sha256(f"{student}-{size}".encode()).hexdigest()[:16]
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(student, copy)
    [path] = [path for path in copy.glob("*.json") if "model_cfg" in path.read_text()]
    config = json.loads(path.read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = size
    config["preprocess_cfg"].pop("size", None)
    path.write_text(json.dumps(config))
    return copy


def accuracy(model: Path, images: Path, truth: Path) -> dict[str, Any]:
    lines = model.with_suffix(".jsonl")
    options = ["--json", "--scores", "independent", "--top-k", "1000000", "--threads", "2"]
    lines.write_text(reinforce("label", str(model), str(images), *options))
    scores = torch_part("score", str(lines), str(truth))
    return {"accuracy": scores["accuracy"], "macro_auroc": scores["macro_auroc"]}


def measure_all(models: list[Model], photographs: Path, num_rounds: int) -> Iterator[Run]:
    """The precisions of one network take turns, so that what is slow for a while is slow for both."""
    for network in dict.fromkeys((model.name, model.image_size) for model in models):
        paths = [model.path for model in models if (model.name, model.image_size) == network]
        for threads in NUM_THREADS:
            for number in range(num_rounds):
                for path in paths if number % 2 else reversed(paths):
                    yield measure(path, photographs, threads)


def measure(path: str, photographs: Path, threads: int, modality: str | None = None) -> Run:
    command = ["taskset", "--cpu-list", f"0-{threads - 1}", sys.executable, "-m", "reinforce", "label"]
    command += [path, str(photographs), "--benchmark", "--seconds", str(SECONDS), "--threads", str(threads), "--json"]
    command += [] if modality is None else ["--modality", modality]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        answer = output.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    figures = json.loads(answer)
    return Run(
        path=path,
        threads=threads,
        fps=figures["fps"],
        median_ms=figures["median_ms"],
        peak_rss_mb=figures["peak_rss_bytes"] / 1e6,
        kernel_peak_rss_mb=usage.ru_maxrss * 1024 / 1e6,
    )


def extract(shards: Path, folder: Path) -> Path:
    """The JPEGs of tars as files; returns a file with the class name of each, for those that have one."""
    truth = folder.with_suffix(".json")
    if truth.exists():
        return truth
    folder.mkdir()
    names = shards.parent / "classnames.txt"
    classes: dict[str, str] = {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                content = b"" if file is None else file.read()
                stem, suffix = Path(member.name).stem, Path(member.name).suffix
                if suffix == ".jpg":
                    (folder / f"{stem}.jpg").write_bytes(content)
                elif suffix == ".cls":
                    classes[f"{stem}.jpg"] = names.read_text().splitlines()[int(content)]
    truth.write_text(json.dumps(classes))
    return truth


class CommandError(Exception):
    """A command that failed, with what it said."""


def torch_part(*arguments: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(output_of("-m", TORCH_PART, *arguments).splitlines()[-1])
    return answer


def reinforce(*arguments: str) -> str:
    return output_of("-m", "reinforce", *arguments)


def output_of(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise CommandError(f"{' '.join(command)}: {result.stderr.strip()}")
    return result.stdout


if __name__ == "__main__":
    main()
