"""What studies of students share: trainings by name and seed, one process a core, resumed from what is there."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reinforce.student.journal import read_metrics

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Job:
    """One training: its name, its data, and the fields of `student` that it sets beside the recipe's."""

    name: str
    dataset: Path
    settings: dict[str, Any]
    select: Path | None = None
    shards: str | None = None
    """Only these of its shards."""


@dataclass(frozen=True)
class Study:
    """Where the runs of a study are, and what they have in common."""

    folder: Path
    recipe: str
    evaluation: dict[str, Any] | None
    """The `evaluation` section of every run."""
    num_at_once: int | None = None
    """Trainings side by side; default: one a core."""

    def train(self, jobs: Iterable[Job], seeds: Iterable[int] = SEEDS) -> None:
        """Every job with every seed; those that are finished are left as they are."""
        with ThreadPoolExecutor(self.num_at_once or len(os.sched_getaffinity(0))) as pool:
            for future in [pool.submit(self._train, job, seed) for job in jobs for seed in seeds]:
                future.result()

    def curve(self, job: Job, seed: int) -> list[tuple[int, float]]:
        """(samples seen, accuracy) of every evaluation."""
        rows = read_metrics(self.output(job, seed))
        return [(row["samples"], row["top1"]) for row in rows if row["kind"] == "evaluation"]

    def final(self, job: Job, seeds: Iterable[int] = SEEDS) -> list[float]:
        """The accuracy at the end, by seed."""
        return [self.curve(job, seed)[-1][1] for seed in seeds]

    def output(self, job: Job, seed: int) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / f"{job.name}-{seed}"

    def _train(self, job: Job, seed: int) -> None:
        fields = {"seed": seed, "data.workers": 0, "evaluation": self.evaluation} | job.settings
        command = ["train-student", "--dataset", str(job.dataset), "--recipe", self.recipe, "--resume"]
        command += ["--output", str(self.output(job, seed))]
        command += [] if job.select is None else ["--select", str(job.select)]
        command += [] if job.shards is None else ["--shards", job.shards]
        for field, value in fields.items():
            command += ["--set", f"student.{field}={json.dumps(value)}"]
        reinforce(command)


@contextmanager
def cifar10_study(folder: Path | None, *, templates: Iterable[str], every_steps: int) -> Iterator[Study]:
    """A study of the CIFAR-10 recipe, evaluated on the test images; in `folder`, or one that is gone at the end."""
    with tempfile.TemporaryDirectory() as temporary:
        place = (folder or Path(temporary)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        prompts = place / "templates.txt"
        prompts.write_text("\n".join(templates) + "\n")
        test = {"shards": [str(SHARED / "data/cifar10/test")], "every_steps": every_steps, "templates": str(prompts)}
        yield Study(place, "pipelines/cifar10.yaml", test)


def reinforce(command: list[str]) -> str:
    """Runs a command of ours from the repository's folder; what it printed. Ends the study if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "reinforce", *command]
    result = subprocess.run(arguments, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"reinforce {' '.join(command)}\n{result.stderr}")
    return result.stdout


def show(accuracies: list[float]) -> str:
    """Mean and sample deviation in per cent."""
    spread = f" ± {100 * statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
    return f"{100 * statistics.mean(accuracies):.1f}{spread}"
