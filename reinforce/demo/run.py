"""`reinforce demo`: scenes generated, reinforced and inspected on this machine, and two students trained from them.

Offline, and through the ordinary paths: the command that a person would type is printed before each piece of work. The
students see the same views of the same images for the same number of steps: `clip` with the captions that the web
gives, `mobileclip` with what the dataset stores besides. What they are measured on, nothing is chosen by.
"""

import json
import shlex
import shutil
import tarfile
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from reinforce.config import ConfigError, load_recipe
from reinforce.demo import MODELS
from reinforce.evaluation import RetrievalResult, ZeroShotResult, evaluate_models
from reinforce.evaluation.results import Result
from reinforce.evaluation.run import TaskName
from reinforce.formatting import format_count
from reinforce.inspection.stats import inspect_dataset
from reinforce.inspection.table import render_table
from reinforce.runners import build, describe
from reinforce.student import train
from reinforce.student.curves import draw_accuracy
from reinforce.student.journal import read_metrics

IMAGES_PER_SHARD = 500
NUM_TEST_IMAGES = 1000
RECIPE, DEPTH_RECIPE, UNPAIRED_RECIPE = "demo", "demo_edgevl", "demo_dime_fm"
TEACHERS = ("demo-a", "demo-b")
STUDENTS: dict[str, tuple[str, ...]] = {
    "clip": ("student.loss.kind=clip", "student.data.captioners=[]"),
    "mobileclip": (),
}
"""The student's name -> how it departs from the recipe."""

_TEST_SEED, _VALIDATION_SEED, _SENTENCES_SEED = 1, 2, 3
_NUM_EVALUATIONS = 10


def run_demo(
    output: Path,
    num_images: int,
    console: Console | None = None,
    *,
    num_steps: int | None = None,
    num_test_images: int = NUM_TEST_IMAGES,
) -> int:
    """Goes from nothing to `OUTPUT/accuracy.svg`; what is there already is kept, and what is half done gone on with.

    `num_steps` of the students' training are those of the recipe unless given. Returns the exit status of the build.
    Raises `ConfigError` if the scenes that are there are not `num_images`, or the students were trained otherwise.
    """
    console = console or Console()
    scenes, reinforced, test = output / "scenes", output / "reinforced", output / "test"
    _write_scenes(scenes, num_images, console)
    _write_scenes(test, num_test_images, console, seed=_TEST_SEED)
    _show_command(console, "build", "--shards", scenes, "--recipe", RECIPE, "--output", reinforced)
    summary = build(str(scenes), str(reinforced), RECIPE, console=console)
    _say(console, describe(summary))
    _show_command(console, "inspect", reinforced)
    console.print(render_table(inspect_dataset(str(reinforced), shards=[str(scenes)])))
    if summary.failed:
        return 1
    students = output / "students"
    _train_students(reinforced, students, test, num_steps, console)
    _compare(students, test, output / "accuracy.svg", console)
    _say(console, f"The report: reinforce inspect {reinforced} --html {output / 'report.html'}")
    return 0


def write_depth_scenes(
    output: Path, num_images: int, console: Console | None = None, *, num_test_images: int = NUM_TEST_IMAGES
) -> None:
    """Writes scenes with a depth image each, to train on, to validate with and to test with, below `OUTPUT/depth`.

    What is there already is kept. Raises `ConfigError` if the scenes that are there are not as many.
    """
    console = console or Console()
    folder = output / "depth"
    _write_scenes(folder / "scenes", num_images, console, modality="depth")
    _write_scenes(folder / "validation", num_test_images // 2, console, seed=_VALIDATION_SEED, modality="depth")
    _write_scenes(folder / "test", num_test_images, console, seed=_TEST_SEED, modality="depth")
    words = ("--shards", folder / "scenes", "--recipe", DEPTH_RECIPE, "--output", folder / "reinforced")
    _say(console, "To build a dataset of them:")
    _show_command(console, "build", *words)
    _say(console, "\nTraining and what follows: docs/recipes.md, EdgeVL as published, beside ours")


def write_unpaired_scenes(
    output: Path, num_images: int, console: Console | None = None, *, num_test_images: int = NUM_TEST_IMAGES
) -> None:
    """Writes scenes to train on, to validate with and to test with, and as many sentences as the first about others.

    They go below `OUTPUT/unpaired`; what is there already is kept. Raises `ConfigError` if there are not as many.
    """
    console = console or Console()
    folder = output / "unpaired"
    _write_scenes(folder / "scenes", num_images, console)
    _write_sentences(folder / "sentences", num_images, console)
    _write_scenes(folder / "validation", num_test_images // 2, console, seed=_VALIDATION_SEED)
    _write_scenes(folder / "test", num_test_images, console, seed=_TEST_SEED)
    sentences = ("--set", f"build.corpora.captions.files={folder / 'sentences'}")
    words = ("--shards", folder / "scenes", "--recipe", UNPAIRED_RECIPE, *sentences)
    _say(console, "To build a dataset of them:")
    _show_command(console, "build", *words, "--output", folder / "reinforced")
    _say(console, "\nTraining and what follows: docs/recipes.md, DIME-FM as published, beside ours")


def _write_sentences(folder: Path, num_sentences: int, console: Console) -> None:
    from reinforce.demo.sentences import write_sentences

    if folder.exists():
        found = sum(file.read_bytes().count(b"\n") for file in folder.glob("*.txt"))
        if found != num_sentences:
            there = format_count(found, "sentence")
            raise ConfigError(f"{folder} holds {there}, not the {num_sentences:,} of this demo; remove it")
        _say(console, f"{folder}: {format_count(found, 'sentence')} found, written before")
        return
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    files = write_sentences(partial, num_sentences=num_sentences, seed=_SENTENCES_SEED)
    partial.rename(folder)
    _say(
        console,
        f"{folder}: wrote {num_sentences:,} sentences about other scenes into {format_count(len(files), 'file')}",
    )


def _write_scenes(
    folder: Path, num_images: int, console: Console, *, seed: int = 0, modality: Literal["depth"] | None = None
) -> None:
    """Scenes of seed 0 are to train on, and noisy; those of other seeds to measure with, and clean."""
    from reinforce.demo.shards import write_scenes

    num_shards = -(-num_images // IMAGES_PER_SHARD)
    if folder.exists():
        found = _num_scenes(folder)
        if found != num_images:
            there = format_count(found, "scene")
            raise ConfigError(f"{folder} holds {there}, not the {num_images:,} of this demo; remove it")
        _say(console, f"{folder}: {format_count(found, 'scene')} found, written before")
        return
    # Under another name until all are there, so that a demo cut short does not leave half of them behind.
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_scenes(
        partial,
        num_images=num_images,
        images_per_shard=IMAGES_PER_SHARD,
        seed=seed,
        clean=seed > 0,
        modality=modality,
    )
    partial.rename(folder)
    purpose = {0: "captioned scenes", _TEST_SEED: "scenes with right captions, to test with,"}
    kind = purpose.get(seed, "scenes with right captions, to choose by,")
    _say(console, f"{folder}: wrote {num_images:,} {kind} into {format_count(num_shards, 'shard')}")


def _num_scenes(folder: Path) -> int:
    """Those of the shards, which are full but for the last."""
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        return 0
    with tarfile.open(shards[-1]) as tar:
        return IMAGES_PER_SHARD * (len(shards) - 1) + sum(name.endswith(".cls") for name in tar.getnames())


def _train_students(reinforced: Path, students: Path, test: Path, num_steps: int | None, console: Console) -> None:
    """Trains each student to its end, or says that it was."""
    config = load_recipe(RECIPE).student
    assert config is not None
    assert config.steps is not None
    shared = [
        f"student.evaluation.shards={json.dumps([str(test)])}",
        f"student.evaluation.every_steps={max(1, (num_steps or config.steps) // _NUM_EVALUATIONS)}",
        *([] if num_steps is None else [f"student.steps={num_steps}"]),
    ]
    for name, changes in STUDENTS.items():
        overrides = [*changes, *shared]
        options = [word for override in overrides for word in ("--set", override)]
        folder = students / name
        _show_command(
            console,
            "train-student",
            "--dataset",
            reinforced,
            "--recipe",
            RECIPE,
            "--output",
            folder,
            "--resume",
            *options,
        )
        summary = train.train_student(
            str(reinforced), folder, RECIPE, overrides=overrides, resume=True, console=console
        )
        _say(console, train.describe(summary))


def _compare(students: Path, test: Path, figure: Path, console: Console) -> None:
    """One table of teachers and students, and accuracy over samples seen as a figure."""
    models = {name: _from_here(MODELS / name) for name in TEACHERS}
    models |= {name: str(students / name / train.STUDENT_FOLDER) for name in STUDENTS}
    found: dict[TaskName, list[Result]] = {}
    tasks: tuple[TaskName, ...] = ("zeroshot", "retrieval")
    for task in tasks:
        _show_command(console, "evaluate", *models.values(), "--dataset", test, "--task", task)
        found[task] = evaluate_models(list(models.values()), str(test), task=task, console=console)
    zero_shot = [result for result in found["zeroshot"] if isinstance(result, ZeroShotResult)]
    retrieval = [result for result in found["retrieval"] if isinstance(result, RetrievalResult)]
    console.print(_table(list(models), zero_shot, retrieval))
    runs = {name: read_metrics(students / name) for name in STUDENTS}
    levels = {name: result.top1 for name, result in zip(models, zero_shot, strict=True) if name in TEACHERS}
    draw_accuracy(runs, levels, figure)
    _say(console, f"Accuracy over samples seen: {figure}")


def _table(names: list[str], zero_shot: list[ZeroShotResult], retrieval: list[RetrievalResult]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("model")
    for header in ("params\n(M)", "zero-shot\ntop-1", "image\nR@1", "image\nR@5", "text\nR@1", "text\nR@5"):
        table.add_column(header, justify="right")
    for name, classified, retrieved in zip(names, zero_shot, retrieval, strict=True):
        shares = [classified.top1]
        shares += [recalls[k] for recalls in (retrieved.text_to_image, retrieved.image_to_text) for k in (1, 5)]
        table.add_row(name, f"{classified.num_parameters / 1e6:.2f}", *(f"{share:.3f}" for share in shares))
    return table


def _show_command(console: Console, *words: str | Path) -> None:
    command = shlex.join(["reinforce", *map(str, words)])
    console.print(f"\n{command}", style="bold", markup=False, highlight=False, soft_wrap=True)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _from_here(path: Path) -> str:
    """The path as a person would type it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
