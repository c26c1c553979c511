"""Where the time of a build on a CPU goes, now and in the first version that built anything, side by side.

    python -m tests.benchmarks.cpu_build                    (about six minutes on two idle cores)

1,000 scenes of the demo's recipe and 2,000 images of ../shared with the CIFAR-10 recipe, one thread for the models and
one to prepare, as the recipes have it. Both versions run with today's libraries, each with its own recipe and code; the
first one is taken from the history of this repository. Time inside forward passes is that of outermost calls of torch
modules, in any thread; the stages are those that builds record in `runs/`. In turns, medians of rounds.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from reinforce.demo.shards import write_scenes
from tests.benchmarks.studies import REPOSITORY, SHARED
from tests.benchmarks.timing import with_range

FIRST_VERSION = "87593a0"
NUM_SCENES, NUM_CIFAR_SHARDS = 1000, 2
NUM_ROUNDS = 3
STAGES = ("captioner", "tokenize", "teachers", "write", "decode", "render")
IN_MODELS_THREAD = {"first": ("captioner", "teachers", "write"), "now": ("captioner", "tokenize", "teachers")}

_LAUNCHER = """
import json, sys, threading, time
import torch

seconds, here, lock = [0.0], threading.local(), threading.Lock()
call = torch.nn.Module.__call__

def timed(self, *args, **kwargs):
    if getattr(here, "is_inside", False):
        return call(self, *args, **kwargs)
    here.is_inside, start = True, time.perf_counter()
    try:
        return call(self, *args, **kwargs)
    finally:
        here.is_inside = False
        with lock:
            seconds[0] += time.perf_counter() - start

torch.nn.Module.__call__ = timed
report = sys.argv.pop(1)
from reinforce.cli import main
try:
    main()
finally:
    json.dump(seconds[0], open(report, "w"))
"""


@dataclass(frozen=True)
class Build:
    """Seconds of one build: wall time without loading, inside forward passes, and by stage."""

    wall_s: float
    forward_s: float
    stage_s: dict[str, float]

    def waiting_s(self, version: str) -> float:
        """Of the thread of the models, for batches and for room to write."""
        return self.wall_s - sum(self.stage_s.get(stage, 0.0) for stage in IN_MODELS_THREAD[version])


def build(code: Path, arguments: list[str], folder: Path) -> Build:
    """Builds with the code in a folder, in a process of its own."""
    output, report = folder / "output", folder / "forward.json"
    subprocess.run(["rm", "-rf", str(output)], check=True)
    launch = [sys.executable, "-c", _LAUNCHER, str(report), "build", *arguments, "--output", str(output)]
    environment = {"PYTHONPATH": str(code), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(launch, cwd=code, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = (output / "runs").iterdir()
    files = sorted(run.iterdir()) if run.is_dir() else [run]
    events = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    end = next(event for event in events if event["event"] == "end")
    return Build(end["elapsed_s"], json.loads(report.read_text()), end["stage_seconds"])


def print_recipe(name: str, arguments: list[str], first: Path, folder: Path) -> None:
    runs: dict[str, list[Build]] = {"first": [], "now": []}
    for number in range(NUM_ROUNDS):
        for version in ("first", "now") if number % 2 else ("now", "first"):
            code = first if version == "first" else REPOSITORY
            recipe = ["--recipe", str(code / "pipelines" / f"{name}.yaml")]
            runs[version].append(build(code, [*arguments, *recipe], folder))
    print(f"\n{name}: medians of {NUM_ROUNDS} rounds; shares of wall time, of all threads together\n")
    print(f"| version | wall | inside forward | {' | '.join(STAGES)} | models waiting |")
    print("|---" * (len(STAGES) + 4) + "|")
    for version, builds in runs.items():
        shares = [statistics.median(run.stage_s.get(stage, 0.0) / run.wall_s for run in builds) for stage in STAGES]
        forward = statistics.median(run.forward_s / run.wall_s for run in builds)
        waiting = statistics.median(run.waiting_s(version) / run.wall_s for run in builds)
        wall = with_range((run.wall_s for run in builds), digits=1)
        print(f"| {version} | {wall} s | {' | '.join(f'{share:.2f}' for share in (forward, *shares, waiting))} |")
    ratios = [now.wall_s / then.wall_s for now, then in zip(runs["now"], runs["first"], strict=True)]
    print(f"\nnow / first: {with_range(ratios)}", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first = folder / "first"
        first.mkdir()
        archive = subprocess.run(["git", "archive", FIRST_VERSION], cwd=REPOSITORY, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", str(first)], input=archive.stdout, check=True)
        write_scenes(folder / "scenes", num_images=NUM_SCENES)
        print_recipe("demo", ["--shards", str(folder / "scenes")], first, folder)
        shards = f"{SHARED}/data/cifar10/train/{{00000..{NUM_CIFAR_SHARDS - 1:05d}}}.tar"
        teachers = []
        for letter in "ab":
            teachers += ["--set", f"build.teachers.cifar10_{letter}.model=local-dir:{SHARED}/teachers/cifar10-{letter}"]
        print_recipe("cifar10", ["--shards", shards, *teachers], first, folder)


if __name__ == "__main__":
    main()
