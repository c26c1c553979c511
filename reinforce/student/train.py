"""Trains a student from a reinforced dataset: the command `reinforce train-student` as a function.

No teacher, no captioner and no ray is imported here, and none of their weights is read: what a teacher said is in the
dataset. A step costs what plain CLIP training costs, plus one more product of similarities for each teacher.
"""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from reinforce.config import LOSSES_OF_IMAGE_TOWERS, ConfigError, Recipe, StudentConfig, load_recipe
from reinforce.formatting import format_seconds
from reinforce.student.curves import CURVES_FILE, draw_curves
from reinforce.student.distributed import join_processes
from reinforce.student.journal import Journal, read_metrics
from reinforce.student.models import save_student
from reinforce.student.plan import plan_reading
from reinforce.student.run import Run, TrainingError

STUDENT_FOLDER = "student"


@dataclass(frozen=True)
class TrainingSummary:
    """What a run did: `num_steps` of its steps were taken now, the others before."""

    student: Path
    num_steps: int
    num_steps_before: int
    samples_seen: int
    elapsed_s: float


def train_student(
    dataset: str,
    output: str | Path,
    recipe: str | Recipe,
    *,
    shards: Sequence[str] = (),
    root: str | None = None,
    overrides: Sequence[str] = (),
    select: str | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> TrainingSummary:
    """Trains the student of a recipe and saves it to `OUTPUT/student`; `OUTPUT` also gets metrics, curves, checkpoint.

    `root` is where the source shards are, if not where the dataset was built from. Under torchrun every process calls
    this and the first one writes. Raises `ConfigError`, `ModelError`, `FormatError`, `StorageError`, `ReadError`, or
    `TrainingError` when the loss is no longer finite.
    """
    config = student_config(load_recipe(recipe, list(overrides)) if isinstance(recipe, str) else recipe)
    folder = Path(output)
    # Twice: torch's signal handler may raise of the reader's death while a broken connection is being explained.
    with join_processes(config.device) as processes, _explained(config), _explained(config):
        torch.set_num_threads(config.threads)
        plan = plan_reading(
            dataset,
            config.data,
            seed=config.seed,
            uses_teachers=config.loss.kind != "clip",
            reads_captions=config.loss.kind not in LOSSES_OF_IMAGE_TOWERS,
            reads_sentences=config.loss.kind == "dime_fm" and config.loss.vl_weight > 0,
            shards=shards,
            root=root,
            select=select,
        )
        run = Run(config, plan, folder, processes)
        run.begin(resume=resume)
        started_s = time.monotonic()
        # The steps, recorded by the first process.
        if run.is_finished:
            pass
        elif processes.is_first:
            console = console or Console(stderr=True)
            with Journal(folder, config, run.num_steps, run.first_step, console) as journal:
                for line in run.description():
                    journal.line(line)
                run.take_steps(journal)
        else:
            run.take_steps(None)
        elapsed_s = time.monotonic() - started_s
        # What they gave.
        if processes.is_first:
            save_student(run.chosen(), folder / STUDENT_FOLDER, extra=run.provenance(), files=run.files())
            draw_curves(read_metrics(folder), folder / CURVES_FILE)
        processes.wait()
        num_taken = run.num_steps - run.first_step
        return TrainingSummary(
            folder / STUDENT_FOLDER, num_taken, run.first_step, run.num_steps * config.batch_size, elapsed_s
        )


def describe(summary: TrainingSummary) -> str:
    """The last line a training prints."""
    if not summary.num_steps:
        return f"all {summary.num_steps_before:,} steps were taken before; student: {summary.student}"
    return (
        f"{summary.num_steps:,} steps in {format_seconds(summary.elapsed_s)}, {summary.samples_seen:,} samples seen; "
        f"student: {summary.student}"
    )


@contextmanager
def _explained(config: StudentConfig) -> Iterator[None]:
    """Turns what torch raises where memory runs out, here or in a reader, into one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise TrainingError(
            f"out of memory on the device: raise student.accumulate (now {config.accumulate}), or set "
            "student.gradient_checkpointing=true"
        ) from None
    except (RuntimeError, ConnectionError, EOFError) as error:
        # A batch on its way when its process dies breaks the connection; otherwise the loader notices.
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        if threading.current_thread() is threading.main_thread():
            # torch's handler would raise once more, in the loader's own destructor: a traceback on the screen.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise TrainingError(
            f"a reader process died ({' '.join(str(error).split())[:120]}); if memory ran out: fewer "
            f"student.data.workers (now {config.data.workers}) or open_shards (now {config.data.open_shards})"
        ) from None


def student_config(recipe: Recipe) -> StudentConfig:
    """The `student:` section; raises `ConfigError` if there is none."""
    if recipe.student is None:
        raise ConfigError("student: the recipe has no such section, and training needs one")
    return recipe.student
