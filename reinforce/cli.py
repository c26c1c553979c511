"""The command line: arguments in, one call, an exit status out.

0: all done. 1: finished with failed shards, which are listed. 2: a usage or configuration error, in one line.
130: interrupted, 143: terminated. `--help` imports neither torch nor ray nor Arrow.
"""

import errno
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from reinforce.config.base import ConfigError

app = typer.Typer(
    help="Build and inspect reinforced distillation datasets for CLIP-style models, and train students from them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_is_terminated = False

ShardUris = Annotated[
    list[str],
    typer.Option(
        help="Source tars: a folder or prefix, a quoted brace pattern or glob, @list.txt; s3://, gs://, az://."
    ),
]
Overrides = Annotated[list[str], typer.Option("--set", help="Override a recipe field: build.views.count=3.")]


@app.command()
def build(
    shards: ShardUris,
    output: Annotated[str, typer.Option(help="Where the dataset goes, or is already: a folder or a URI.")],
    recipe: Annotated[str, typer.Option(help="A recipe's NAME (demo, cifar10, mobileclip, ...) or FILE.")],
    more_shards: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    root: Annotated[str | None, typer.Option(help="The folder that shard names are relative to.")] = None,
    overrides: Overrides = [],  # noqa: B006
    select: Annotated[str | None, typer.Option(help="A Parquet of (stem, key): only these samples.")] = None,
    limit_shards: Annotated[int | None, typer.Option(min=1, help="Only the first N shards.")] = None,
    limit_samples: Annotated[int | None, typer.Option(min=1, help="Only the first N keys of each shard.")] = None,
    retry_failed: Annotated[bool, typer.Option(help="Only the shards that failed before.")] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Build on a Ray cluster: auto (the one this runs on), HOST:PORT, or local (start one here). "
            "Without ADDRESS: auto if there is one, else local.",
        ),
    ] = None,
    max_workers: Annotated[int | None, typer.Option(min=1, help="With --ray: at most N workers.")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Try a few samples, say what it would take, write nothing.")
    ] = False,
    price_per_hour: Annotated[float | None, typer.Option(min=0, help="With --plan: what one worker costs.")] = None,
) -> None:
    """Run teachers and captioner over source shards once and store what they say. Run again to resume."""
    with _one_line_errors():
        from reinforce.config import load_recipe

        # Before anything heavy is imported: a mistake in the recipe is told at once.
        parsed = load_recipe(recipe, overrides)
        if price_per_hour is not None and not plan:
            raise ConfigError("--price-per-hour: goes with --plan")
        if max_workers is not None and ray is None and not plan:
            raise ConfigError("--max-workers: goes with --ray or --plan")
        from rich.console import Console

        from reinforce import runners

        # A brace pattern that the shell expanded arrives as one option value and many arguments.
        all_shards = [*shards, *(more_shards or [])]
        options: dict[str, Any] = {
            "root": root,
            "select": select,
            "limit_shards": limit_shards,
            "limit_samples": limit_samples,
            "retry_failed": retry_failed,
            "ray": ray,
            "max_workers": max_workers,
            "console": Console(stderr=True),
        }
        if plan:
            forecast = runners.plan_build(all_shards, output, parsed, price_per_hour=price_per_hour, **options)
            print(runners.describe_forecast(forecast))
            return
        summary = runners.build(all_shards, output, parsed, **options)
        print(runners.describe(summary))
        if summary.failed or summary.stopped:
            raise typer.Exit(1)


@app.command("train-student")
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
    with _one_line_errors("run it again with --resume to go on from the last checkpoint"):
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


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Student folders, or what open_clip opens: NAME:TAG, hf-hub:...")],
    dataset: Annotated[list[str], typer.Option(help="Labelled or captioned shards, as --shards of build takes them.")],
    task: Annotated[str, typer.Option(help="zeroshot or retrieval.")] = "zeroshot",
    select: Annotated[str | None, typer.Option(help="A Parquet of (stem, key): only these samples.")] = None,
    classnames: Annotated[str | None, typer.Option(help="A file of class names; default: beside the shards.")] = None,
    templates: Annotated[str | None, typer.Option(help="A file of prompts with {}, or openai, or simple.")] = None,
    captions: Annotated[str | None, typer.Option(help="retrieval: txt, or json.FIELD.")] = None,
    per_class: Annotated[bool, typer.Option(help="zeroshot: a row for each class as well.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Every figure, as JSON.")] = False,
) -> None:
    """Evaluate students and teachers alike, in one table."""
    with _one_line_errors():
        from rich.console import Console

        from reinforce.evaluation import evaluate_models, render_class_table, render_table

        if task not in ("zeroshot", "retrieval"):
            raise ConfigError(f"--task {task}: must be zeroshot or retrieval")
        results = evaluate_models(
            models,
            dataset,
            task=task,  # type: ignore[arg-type]
            select=select,
            classnames=classnames,
            templates=templates,
            captions=captions,
        )
        if as_json:
            print(json.dumps([result.to_json() for result in results], indent=2, ensure_ascii=False))
            return
        Console().print(render_table(results))
        if per_class:
            Console().print(render_class_table(results))  # type: ignore[arg-type]


@app.command()
def inspect(
    dataset: Annotated[str, typer.Argument(metavar="URI", help="A reinforced dataset.")],
    shards: Annotated[
        list[str], typer.Option(help="Where the source is now, to show images and find missing shards.")
    ] = [],  # noqa: B006
    root: Annotated[str | None, typer.Option(help="The folder that shard names are relative to, if it moved.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every figure, as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained contact sheet.")] = None,
) -> None:
    """Show what a dataset holds, what is missing, and whether it looks right."""
    with _one_line_errors():
        from rich.console import Console

        from reinforce.inspection.stats import inspect_dataset
        from reinforce.inspection.table import render_table

        figures = inspect_dataset(dataset, shards=shards, root=root)
        if as_json:
            print(json.dumps(figures.to_json(), indent=2, ensure_ascii=False))
        else:
            Console().print(render_table(figures))
        if html is not None:
            from reinforce.inspection.report import write_contact_sheet

            write_contact_sheet(dataset, html, figures, root=root)
            print(f"contact sheet: {html}", file=sys.stderr)


@app.command()
def select(
    dataset: Annotated[str, typer.Argument(metavar="URI", help="A reinforced dataset.")],
    output: Annotated[str, typer.Option(help="The Parquet of (stem, key) to write; --select of other commands.")],
    split: Annotated[str, typer.Option(help="LOW:HIGH, parts of 1: 0:0.9 to train on, 0.9:1 to validate with.")],
) -> None:
    """Pick samples of a dataset: a part of them by a hash of their keys, the same part every time."""
    with _one_line_errors():
        from reinforce.selection import parse_split, select_split

        print(f"{output}: {select_split(dataset, output, *parse_split(split)):,} samples")


@app.command()
def export(
    student: Annotated[Path, typer.Argument(help="A student's folder.")],
    output: Annotated[Path, typer.Option(help="The ONNX file to write.")],
) -> None:
    """Export a student's image tower to ONNX, in fp32, checked against PyTorch before it is written."""
    with _one_line_errors():
        from reinforce.deploy.export import export_onnx

        report = export_onnx(student, output)
        print(
            f"{report.output}: {report.num_parameters / 1e6:.1f} M parameters, {report.image_size} px to "
            f"{report.embed_dim} values, {report.num_bytes / 1e6:.1f} MB "
            f"({report.num_folded_parameters:,} parameters folded)\n"
            f"cosine to PyTorch: {report.min_cosine:.6f} at worst over {report.num_images} images"
        )


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the scenes, the dataset and the students.")] = Path("demo"),
    num_images: Annotated[int, typer.Option(min=8, help="Scenes to generate.")] = 3000,
) -> None:
    """Generate captioned scenes, reinforce them, train two students from that and compare them. Offline."""
    with _one_line_errors():
        from reinforce.demo.run import run_demo

        raise typer.Exit(run_demo(output, num_images))


@contextmanager
def _one_line_errors(resume: str = "run the same command again to resume") -> Iterator[None]:
    """Turns every error a user can cause into one line on stderr and an exit status."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nreinforce: interrupted; {resume}", file=sys.stderr, flush=True)
        # A download under way would keep the interpreter alive; nothing it does is wanted any more.
        os._exit(143 if _is_terminated else 130)
    except OSError as error:
        print(f"reinforce: {_describe_os_error(error)}", file=sys.stderr)
        raise typer.Exit(2) from None
    except ValueError as error:
        if not type(error).__module__.startswith("reinforce."):
            raise
        print(f"reinforce: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _describe_os_error(error: OSError) -> str:
    text = " ".join(str(error).split())
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and "free some space" not in text:
        return f"{text}: free some space (temporary files go to TMPDIR) and start again; what is finished is kept"
    return text


def main() -> None:
    """The entry point of the `reinforce` command."""
    terminate_as_interrupt()
    app(args=complete_ray(sys.argv[1:]))


def complete_ray(arguments: list[str]) -> list[str]:
    """The arguments with `--ray` given its ADDRESS where it stands alone, which typer's options cannot."""
    following = [*arguments[1:], "-"]
    pairs = zip(arguments, following, strict=True)
    alone = {"--ray": ["--ray", "any"]}
    return [part for given, after in pairs for part in (after.startswith("-") and alone.get(given)) or [given]]


def terminate_as_interrupt() -> None:
    """From now on SIGTERM, as schedulers send it before they kill, leaves everything as Ctrl-C does."""

    def terminate(*_: object) -> None:
        # A flag, not an exception of its own: Ray's calls turn every exception of a signal into KeyboardInterrupt.
        global _is_terminated
        _is_terminated = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
