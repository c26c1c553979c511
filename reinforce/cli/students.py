"""`reinforce train-student` and `evaluate`."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from reinforce.cli.errors import one_line_errors
from reinforce.cli.options import Overrides
from reinforce.config.base import ConfigError


def train_student(
    dataset: Annotated[str, typer.Option(help="A reinforced dataset: a folder or a URI.")],
    recipe: Annotated[str, typer.Option(help="A recipe's NAME (demo, cifar10, mobileclip, ...) or FILE.")],
    output: Annotated[Path, typer.Option(help="Folder for the student, its checkpoint, metrics and curves.")],
    shards: Annotated[
        list[str], typer.Option(help="Only these source shards; or where they are now. Default: all, as recorded.")
    ] = [],  # noqa: B006
    more_shards: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    root: Annotated[str | None, typer.Option(help="The folder that shard names are relative to, if it moved.")] = None,
    overrides: Overrides = [],  # noqa: B006
    select: Annotated[str | None, typer.Option(help="A Parquet of (stem, key): only these samples.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in OUTPUT, if there is one.")] = False,
    ray: Annotated[str | None, typer.Option(metavar="[ADDRESS]", help="Train on a Ray cluster, as build does.")] = None,
    num_workers: Annotated[int | None, typer.Option(min=1, help="With --ray: processes; default: its GPUs.")] = None,
) -> None:
    """Train a student from stored signals, with no teacher. Under torchrun, or with --ray: one process a GPU."""
    with one_line_errors("run it again with --resume: it goes on from the last checkpoint, if there is one"):
        from reinforce.config import load_recipe

        parsed = load_recipe(recipe, overrides)
        if num_workers is not None and ray is None:
            raise ConfigError("--num-workers: goes with --ray; student.data.workers is the number of readers")
        from reinforce import ray_train
        from reinforce.student import train

        options: dict[str, Any] = {"shards": [*shards, *(more_shards or [])], "root": root, "select": select}
        if ray is None:
            summary = train.train_student(dataset, output, parsed, resume=resume, **options)
        else:
            options |= {"address": ray, "num_workers": num_workers}
            summary = ray_train.train_on_ray(dataset, output, parsed, resume=resume, **options)
        if os.environ.get("RANK", "0") == "0":
            print(train.describe(summary))


def evaluate(
    models: Annotated[list[str], typer.Argument(help="Student folders, or what open_clip opens: NAME:TAG, hf-hub:...")],
    dataset: Annotated[list[str], typer.Option(help="Labelled or captioned shards, as --shards of build takes them.")],
    task: Annotated[str, typer.Option(help="zeroshot, retrieval, or linear: a linear probe.")] = "zeroshot",
    train: Annotated[
        list[str],
        typer.Option(help="linear: labelled shards that the probe learns from, other than those of --dataset."),
    ] = [],  # noqa: B006
    select: Annotated[str | None, typer.Option(help="A Parquet of (stem, key): only these samples.")] = None,
    classnames: Annotated[str | None, typer.Option(help="A file of class names; default: beside the shards.")] = None,
    templates: Annotated[str | None, typer.Option(help="A file of prompts with {}, or openai, or simple.")] = None,
    captions: Annotated[str | None, typer.Option(help="retrieval: txt, or json.FIELD.")] = None,
    texts: Annotated[
        str | None,
        typer.Option(
            help="retrieval: a reinforced dataset of these shards, whose stored captions replace a text tower."
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="zeroshot: json.FIELD, where samples have several labels: AUROC alone.")
    ] = None,
    bank: Annotated[
        str | None, typer.Option(help="zeroshot: a bank's folder instead of texts; default: that of an image tower.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Whose bank or texts, where there are several of the student's teachers.")
    ] = None,
    modality: Annotated[
        str | None, typer.Option(help="Images of this modality: a student's NAME for it, or a suffix such as ir.jpg.")
    ] = None,
    modality_range: Annotated[
        str | None, typer.Option(help="With a suffix, what is black and white: type (the default), image or LOW:HIGH.")
    ] = None,
    per_class: Annotated[bool, typer.Option(help="zeroshot, linear: a row for each class as well.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Every figure, as JSON.")] = False,
) -> None:
    """Evaluate students and teachers alike, in one table."""
    with one_line_errors():
        from rich.console import Console

        from reinforce.evaluation import evaluate_models, render_class_table, render_table

        if task not in ("zeroshot", "retrieval", "linear"):
            raise ConfigError(f"--task {task}: must be zeroshot, retrieval or linear")
        if per_class and task == "retrieval":
            raise ConfigError("--per-class: goes with --task zeroshot or linear; retrieval has no classes")
        results = evaluate_models(
            models,
            dataset,
            task=task,  # type: ignore[arg-type]
            select=select,
            classnames=classnames,
            templates=templates,
            captions=captions,
            labels=labels,
            bank=bank,
            texts=texts,
            teacher=teacher,
            train=train,
            modality=modality,
            modality_range=modality_range,
        )
        if as_json:
            print(json.dumps([result.to_json() for result in results], indent=2, ensure_ascii=False))
            return
        Console().print(render_table(results))
        if per_class:
            Console().print(render_class_table(results))  # type: ignore[arg-type]
