"""How much of its teacher a labelling student keeps: CIFAR-10, several backbones, three seeds, no text tower.

    python -m tests.benchmarks.clip4retrofit_students [--folder DIR] [--backbones NAME ...] [--epochs N] [--holdout]

Needs ../shared: 8,000 training images, 2,000 test images, a teacher that was trained on CIFAR-10's 50,000 training
images. Teacher and students are scored by one bank. With --holdout nothing of the test set is read: the eighth
training shard is left out of training and scored instead, and settings are chosen by that. On one core an
efficientnet_b3 takes some five hours a seed, a mobilenetv4_conv_small 40 minutes.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from reinforce.evaluation import ZeroShotResult, evaluate_models
from tests.benchmarks.cifar10_labels import write_labelled
from tests.benchmarks.studies import SEEDS, SHARED, Job, Study, reinforce

RECIPE = "pipelines/clip4retrofit_cifar10.yaml"
BACKBONES = ("efficientnet_b3", "tf_efficientnet_lite3", "mobilenetv4_conv_medium")
TRAINING_SHARDS = "{00000..00006}.tar"
HELD_OUT = "00007"


def build(folder: Path, shared: Path, device: str) -> None:
    """The dataset, with the bank; what is there is left as it is."""
    command = ["build", "--shards", str(shared / "data/cifar10/train"), "--recipe", RECIPE, "--output", str(folder)]
    teacher = f"build.teachers.cifar10_a.model=local-dir:{shared / 'teachers/cifar10-a'}"
    reinforce([*command, "--set", teacher, "--set", f"build.device={device}"])


def job_of(backbone: str, dataset: Path, arguments: argparse.Namespace) -> Job:
    settings: dict[str, Any] = {
        "model.backbone": backbone,
        "device": arguments.device,
        "data.workers": arguments.workers,
    }
    if backbone.startswith("mobilenetv4"):
        settings["model.projection"] = "linear"
    if arguments.epochs:
        settings["epochs"] = arguments.epochs
    given = dict(field.split("=", 1) for field in arguments.set)
    settings |= {field: yaml.safe_load(value) for field, value in given.items()}
    name = "-".join([backbone, str(arguments.epochs or "recipe"), *arguments.set])
    name += "-holdout" if arguments.holdout else ""
    shards = str(arguments.shared / "data/cifar10/train" / TRAINING_SHARDS) if arguments.holdout else None
    return Job(name, dataset, settings, shards=shards)


def evaluate(models: list[Path], shards: Path, device: str, bank: Path | None = None) -> list[ZeroShotResult]:
    with open("/dev/null", "w") as nowhere:
        results = evaluate_models(
            [str(model) for model in models],
            str(shards),
            bank=str(bank) if bank else None,
            device=device,
            console=Console(file=nowhere),
        )
    return [result for result in results if isinstance(result, ZeroShotResult)]


def show(values: list[float | None]) -> str:
    """Mean and sample deviation."""
    known = [value for value in values if value is not None]
    spread = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.3f}{spread}"


def measure(study: Study, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains what is not trained yet, scores all, prints the table row by row; returns the figures."""
    dataset = study.folder / "data"
    build(dataset, arguments.shared, arguments.device)
    cifar10 = arguments.shared / "data/cifar10"
    shards = cifar10 / "test"
    if arguments.holdout:
        shards = write_labelled(study.folder / "holdout", arguments.shared, [HELD_OUT])
    (teacher,) = evaluate(
        [arguments.shared / "teachers/cifar10-a"], shards, arguments.device, dataset / "banks/cifar10"
    )
    jobs = {backbone: job_of(backbone, dataset, arguments) for backbone in arguments.backbones}
    study.train(jobs.values(), arguments.seeds)
    print("| model | parameters (M) | top-1 | macro AUROC | top-1 of the teacher's | AUROC of the teacher's |")
    print("|---|---|---|---|---|---|")
    print(
        f"| teacher | {teacher.num_parameters / 1e6:.1f} | {teacher.top1:.3f} | {teacher.auroc:.3f} | | |", flush=True
    )
    figures: dict[str, Any] = {"teacher": row_of(teacher), "students": {}}
    for backbone, job in jobs.items():
        students = [study.output(job, seed) / "student" for seed in arguments.seeds]
        found = evaluate(students, shards, arguments.device)
        figures["students"][backbone] = [
            row_of(result) | {"seed": seed} for seed, result in zip(arguments.seeds, found, strict=True)
        ]
        top1, auroc = [result.top1 for result in found], [result.auroc for result in found]
        kept = [value / teacher.top1 for value in top1], [(value or 0) / (teacher.auroc or 1) for value in auroc]
        cells = " | ".join(show(list(values)) for values in (top1, auroc, *kept))
        print(f"| {backbone} | {found[0].num_parameters / 1e6:.1f} | {cells} |", flush=True)
    return figures


def row_of(result: ZeroShotResult) -> dict[str, Any]:
    by_class = {row.name: row.auroc for row in result.classes}
    return {
        "top1": result.top1,
        "auroc": result.auroc,
        "auroc_by_class": by_class,
        "num_parameters": result.num_parameters,
        "num_samples": result.num_samples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep dataset, runs and results.json here; go on with what is here")
    parser.add_argument("--shared", type=Path, default=SHARED, help="where the images and the teacher are")
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of `student`, of every run")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, help="trainings side by side; default: one a core")
    parser.add_argument("--workers", type=int, default=0, help="readers of each training")
    parser.add_argument(
        "--holdout", action="store_true", help="score a training shard that is left out, not the test set"
    )
    arguments = parser.parse_args()
    arguments.shared = arguments.shared.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(Study(folder, RECIPE, None, arguments.jobs), arguments)
        (folder / "results.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
