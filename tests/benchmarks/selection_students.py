"""The road of `docs/recipes.md`: a cheap teacher on everything, a selection, captioner and teachers on the rest.

    python -m tests.benchmarks.selection_students [--folder DIR]    (about 25 minutes on one core)

3,000 demo scenes. First what each build costs. Then students that take equal steps on all samples, on the selected ones
and on as many at random, three seeds, with weak views: distilled as the recipe says, and by the contrastive loss from
the web's captions, which believes them. The test scenes choose nothing; the bound is in the gap between the two humps
of the scores.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from reinforce.selection import read_selection
from tests.benchmarks.demo_ablation import WEAK_VIEWS, write_demo_scenes
from tests.benchmarks.studies import Job, Study, reinforce, show

STEPS = 300
CHEAP = [
    'build.teachers={demo_a: {model: "local-dir:{reinforce}/demo/models/demo-a"}}',
    "build.captioners={}",
    "build.views.count=0",
]
LOSSES: dict[str, dict[str, Any]] = {
    "distilled": {"steps": STEPS},
    "contrastive, the web's captions": {"steps": STEPS, "loss.kind": "clip", "data.captioners": []},
}


def timed(name: str, command: list[str]) -> None:
    """Runs a command and prints how long it took, if it has something to do."""
    start = time.perf_counter()
    reinforce(command)
    print(f"| {name} | {time.perf_counter() - start:.0f} s |", flush=True)


def build(folder: Path) -> None:
    """The cheap dataset, the selection, and what the recipe makes of all samples and of the selected ones."""
    scenes, cheap, selected = str(folder / "scenes"), str(folder / "cheap"), str(folder / "selected.parquet")
    cheaply = [part for field in CHEAP for part in ("--set", field)]
    print("| step | wall time on one core |\n|---|---|")
    timed(
        "one teacher, the clean view, all",
        ["build", "--shards", scenes, "--recipe", "demo", "--output", cheap, *cheaply],
    )
    timed("select --min-score 0.3", ["select", cheap, "--output", selected, "--min-score", "0.3"])
    weak = [part for field in WEAK_VIEWS for part in ("--set", field)]
    whole = ["build", "--shards", scenes, "--recipe", "demo", *weak, "--output"]
    timed("captioner, two teachers, six views, the selected", [*whole, str(folder / "chosen"), "--select", selected])
    timed("captioner, two teachers, six views, all", [*whole, str(folder / "all")])


def draw_as_many(folder: Path) -> None:
    """A random part of the cheap dataset as large as the selection: by the hash of the keys, as near as it comes."""
    num_wanted = len(read_selection(str(folder / "selected.parquet")))
    low, high = 0.0, 1.0
    for _ in range(20):
        share = (low + high) / 2
        part = [
            "select",
            str(folder / "cheap"),
            "--output",
            str(folder / "random.parquet"),
            "--split",
            f"0:{share:.6f}",
        ]
        reinforce(part)
        num_found = len(read_selection(str(folder / "random.parquet")))
        if num_found == num_wanted:
            break
        low, high = (share, high) if num_found < num_wanted else (low, share)
    print(f"\nselected {num_wanted:,}, at random {num_found:,}\n", flush=True)


def jobs(folder: Path, loss: str) -> dict[str, Job]:
    """Row of the table -> training, all from the one dataset that has everything."""
    whole, fields = folder / "all", LOSSES[loss]
    return {
        "all samples": Job(f"{loss.split(',')[0]}-all", whole, fields),
        "the selected": Job(f"{loss.split(',')[0]}-selected", whole, fields, folder / "selected.parquet"),
        "as many at random": Job(f"{loss.split(',')[0]}-random", whole, fields, folder / "random.parquet"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep datasets and runs here; go on with what is here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        write_demo_scenes(folder)
        build(folder)
        draw_as_many(folder)
        study = Study(folder, "demo", {"shards": [str(folder / "test")], "every_steps": STEPS})
        print("| trained on | loss | zero-shot top-1 on 1,000 test scenes, three seeds |\n|---|---|---|")
        for loss in LOSSES:
            rows = jobs(folder, loss)
            study.train(rows.values())
            for row, job in rows.items():
                print(f"| {row} | {loss} | {show(study.final(job))} |", flush=True)


if __name__ == "__main__":
    main()
