"""What each part of reinforcement adds, on the demo's scenes, in the order of MobileCLIP's table 3.

    python -m tests.benchmarks.demo_ablation [--folder DIR]    (about 15 minutes on two cores)

Five students on the same 3,000 images for the same number of steps, three seeds: plain CLIP on the web's captions with
weak views, then with synthetic captions, with distillation from one teacher, with strong views, with both teachers.
Two datasets are built, which differ in their view policy only.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from reinforce.demo.shards import write_scenes
from tests.benchmarks.studies import Job, Study, reinforce, show

WEAK_VIEWS = ["build.views.scale=[0.9, 1.0]", "build.views.num_ops=0"]
STEPS = 300


def write_demo_scenes(folder: Path) -> None:
    """3,000 scenes as the web has them and 1,000 to test with, if they are not there."""
    for name, num_images, seed in (("scenes", 3000, 0), ("test", 1000, 1)):
        if not (folder / name).exists():
            partial = folder / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            write_scenes(partial, num_images=num_images, seed=seed, clean=name == "test")
            partial.rename(folder / name)


def build(folder: Path) -> None:
    write_demo_scenes(folder)
    for name, fields in (("weak", WEAK_VIEWS), ("strong", [])):
        command = ["build", "--shards", str(folder / "scenes"), "--recipe", "demo", "--output", str(folder / name)]
        reinforce(command + [part for field in fields for part in ("--set", field)])


def jobs(folder: Path) -> dict[str, Job]:
    """Row of the table -> training."""
    weak, strong = folder / "weak", folder / "strong"
    plain = {"loss.kind": "clip", "steps": STEPS}
    one_teacher = {"data.teachers": ["demo_a"], "steps": STEPS}
    return {
        "plain CLIP, original captions, weak views": Job("plain", weak, plain | {"data.captioners": []}),
        "+ synthetic captions": Job("captions", weak, plain),
        "+ distillation, one teacher": Job("distillation", weak, one_teacher),
        "+ strong views": Job("views", strong, one_teacher),
        "+ second teacher": Job("ensemble", strong, {"steps": STEPS}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep datasets and runs here; go on with what is here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        build(folder)
        study = Study(folder, "demo", {"shards": [str(folder / "test")], "every_steps": 100})
        print("| student | zero-shot top-1 on 1,000 test scenes, mean ± sample deviation of three seeds |\n|---|---|")
        rows = jobs(folder)
        study.train(rows.values())
        for row, job in rows.items():
            print(f"| {row} | {show(study.final(job))} |", flush=True)


if __name__ == "__main__":
    main()
