"""How near `reinforce build --plan` comes to the build it is a forecast of: CIFAR-10's test shards, two real teachers.

    python -m tests.benchmarks.forecast [NUM_ROUNDS]        (about 6 minutes on two cores; needs ../shared)

Forecast and build take turns, each in a process of its own, so that neither is warmed up by the other. A ratio is of
one round; other work on the machine between the two halves of a round shows in the times, never in the counts. Hence
a second table: wall time where models and rendering sleep instead of computing, which other work hardly changes.
"""

import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from rich.console import Console

from reinforce import prefetch, runners
from reinforce.config import BuildConfig
from reinforce.plan import BuildPlan
from reinforce.runners.forecast import forecast as forecast_job
from reinforce.runners.worker import Job
from reinforce.sample import Embeddings
from reinforce.storage import find_shards, open_store
from reinforce.teachers import FakeTeacher
from reinforce.views.render import render
from tests.conftest import REPOSITORY
from tests.fakes import fake_plan, run
from tests.tars import pairs, write_tar

SOURCE = REPOSITORY.parent / "shared" / "data" / "cifar10" / "test"
UNITS = {"samples": "", "bytes": "MB", "objects": "", "device": "s", "wall": "s"}

PACED = {"batch_size": 8, "workers": 2, "views": {"count": 1}, "teachers": {"t": {"model": "fake"}}}
PACES = {"models": (0.1, 0.005), "decode and render": (0.01, 0.05), "both alike": (0.1, 0.025)}
"""Seconds of a teacher's pass over a batch, and of one rendered view, by what sets the pace."""

Figures = dict[str, float]


def forecast(output: Path) -> Figures:
    planned = runners.plan_build(str(SOURCE), str(output), "cifar10", console=Console(file=io.StringIO()))
    assert not output.exists()
    return {
        "samples": planned.num_samples,
        "bytes": planned.bytes_written / 1e6,
        "objects": planned.num_objects,
        "device": planned.stage_s["captioner"] + planned.stage_s["teachers"],
        "wall": planned.wall_s[1],
    }


def build(output: Path) -> Figures:
    start = time.perf_counter()
    summary = runners.build(str(SOURCE), str(output), "cifar10", console=Console(file=io.StringIO()))
    wall_s = time.perf_counter() - start
    assert not summary.failed
    files = [path for path in output.rglob("*") if path.is_file() and "runs" not in path.relative_to(output).parts]
    lines = [line for path in sorted(output.glob("runs/*/*.jsonl")) for line in path.read_text().splitlines()]
    seconds = json.loads(lines[-2])["stage_seconds"]
    return {
        "samples": summary.done.num_samples,
        "bytes": sum(path.stat().st_size for path in files) / 1e6,
        "objects": len(files),
        "device": seconds.get("captioner", 0.0) + seconds["teachers"],
        "wall": wall_s,
    }


def in_a_process(side: str, output: Path) -> Figures:
    command = [sys.executable, "-m", "tests.benchmarks.forecast", side, str(output)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures: Figures = json.loads(answer.splitlines()[-1])
    return figures


class SleepingTeacher(FakeTeacher):
    """Takes its time over each batch."""

    pause_s = 0.0

    def embed_images(self, views: np.ndarray) -> Embeddings:
        time.sleep(self.pause_s)
        return super().embed_images(views)


def load_sleeping(config: BuildConfig, **narrowing: Any) -> BuildPlan:
    return fake_plan(PACED, teachers=[SleepingTeacher("t", image_size=16)], captioners=[], **narrowing)


def at_pace(model_s: float, render_s: float) -> tuple[float, float]:
    """Wall seconds of four shards of 100 samples: forecast from four batches or more of one, and measured."""

    def render_slowly(*arguments: Any) -> np.ndarray:
        time.sleep(render_s)
        return render(*arguments)

    SleepingTeacher.pause_s = model_s
    with tempfile.TemporaryDirectory() as name, mock.patch.object(prefetch, "render", render_slowly):
        for number in range(4):
            write_tar(Path(name) / "in" / f"{number}.tar", pairs(100, start=1000 * number))
        root, refs = find_shards([f"{name}/in"])
        job = Job(BuildConfig.model_validate(PACED), root, open_store(f"{name}/out").uri, load=load_sleeping)
        planned = forecast_job(job, refs, set(), trial_s=1, console=Console(file=io.StringIO()))
        start = time.perf_counter()
        run(load_sleeping(job.config), Path(name) / "in", Path(name) / "out")
        return planned.wall_s[1], time.perf_counter() - start


def print_paces(num_rounds: int) -> None:
    print("\n| sets the pace | forecast | build | ratio |\n|---|---|---|---|")
    at_pace(0.0, 0.0)  # both sides share this process: what is imported late is no part of either
    for name, (model_s, render_s) in PACES.items():
        rounds = [at_pace(model_s, render_s) for _ in range(num_rounds)]
        planned, built = (statistics.median(side) for side in zip(*rounds, strict=True))
        ratios = sorted(ours / theirs for ours, theirs in rounds)
        shown = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        print(f"| {name} | {planned:.1f} s | {built:.1f} s | {shown} |", flush=True)


def main(num_rounds: int) -> None:
    rounds: list[tuple[Figures, Figures]] = []
    for number in range(num_rounds):
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "dataset"
            # The forecast cannot come second: then nothing would be missing. So it has an output of its own.
            sides = {"forecast": output, "build": output.with_name("other")}
            order = list(sides) if number % 2 == 0 else list(sides)[::-1]
            found = {side: in_a_process(side, sides[side]) for side in order}
            rounds.append((found["forecast"], found["build"]))
    print(f"{len(rounds)} rounds, medians; ratio of forecast to build by round, median (range)\n")
    print("|  | forecast | build | ratio |\n|---|---|---|---|")
    for name, unit in UNITS.items():
        ours, theirs = (statistics.median(side[name] for side in of_side) for of_side in zip(*rounds, strict=True))
        ratios = sorted(planned[name] / built[name] for planned, built in rounds)
        shown = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        print(f"| {name} | {ours:,.1f} {unit} | {theirs:,.1f} {unit} | {shown} |".replace("  |", " |"))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps({"forecast": forecast, "build": build}[sys.argv[1]](Path(sys.argv[2]))))
    elif not SOURCE.is_dir():
        print("real images are not here: ../shared/data/cifar10")
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
        print_paces(3)
