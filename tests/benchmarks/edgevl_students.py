"""What each part of EdgeVL gives: two modalities, rounding, triplets by pseudo-labels, and of how many samples.

    python -m tests.benchmarks.edgevl_students [--folder DIR] [--seeds N] [--jobs N] [--only demo|curation|roadscene]
        [--start STUDENT...]

Demo scenes with depth: single modalities, both (stage 1), that exported in int8, distilled on with rounding, stage 2
without and with it; then stage 2 of a smaller or larger share of the surest samples. Weights are chosen on validation
scenes, the tables are of test scenes. RoadScene (in ../shared): partners of held-out pairs found, before and after;
`--start` names for each seed the student that it begins with, one of RGB in the same teacher's space.
Accuracy in int8 is that of `reinforce label`, in fp32 of `reinforce evaluate`. All steps are processes of their own;
what is in the folder is not done again. About two minutes a training on one core, seven for each seed and four shares.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from reinforce.config import load_recipe
from reinforce.demo import MODELS
from tests.benchmarks.deployment import reinforce
from tests.benchmarks.edgevl_deployment import IMAGE_SUFFIXES, accuracy, extract
from tests.benchmarks.studies import SHARED, Job, Study, show

NUM_SCENES = 2000
DEPTH = ["--modality", "depth.png", "--modality-range", "500:5000"]
KEPT = (0.10, 0.25, 0.50, 1.0)
STAGE2_KEEP = 0.50
CALIBRATION = 256
Figures = dict[str, float]
"""Shares of 1, by what they are of."""
Table = dict[str, list[Figures]]
"""By row, by seed."""


@dataclass(frozen=True)
class Row:
    """A row of the table: a student of a recipe, and how it departs from that."""

    recipe: str
    settings: dict[str, Any] = field(default_factory=dict)
    from_stage1: bool = False
    keep: float = 1.0
    """Share of the samples with the surest labels that it is trained on."""


STAGE1, STAGE2 = "pipelines/demo_edgevl.yaml", "pipelines/demo_edgevl_stage2.yaml"


def rows_of_demo() -> dict[str, Row]:
    """The students of the first table. Distilling on takes as many steps as stage 2, at its learning rates."""
    stage2 = load_recipe(STAGE2).student
    assert stage2 is not None
    onward: dict[str, Any] = {"steps": stage2.steps}
    for name in ("learning_rate", "min_learning_rate", "warmup_steps"):
        onward[f"optimizer.{name}"] = getattr(stage2.optimizer, name)
    return {
        "rgb": Row(STAGE1, {"data.modalities": ["rgb"]}),
        "depth": Row(STAGE1, {"data.modalities": ["depth"]}),
        "stage1": Row(STAGE1),
        "stage1-qat": Row(STAGE1, onward | {"quantization": "int8"}, from_stage1=True),
        "stage2-fp32": Row(STAGE2, {"quantization": None}, from_stage1=True, keep=STAGE2_KEEP),
        name_of(STAGE2_KEEP): Row(STAGE2, from_stage1=True, keep=STAGE2_KEEP),
    }


def name_of(keep: float) -> str:
    return f"stage2-{keep:.2f}"


class Demo:
    """Scenes, dataset and students below one folder."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self.folder = folder
        self.jobs = jobs
        self.depth = folder / "scenes" / "depth"
        self.dataset = self.depth / "reinforced"
        self.bank = self.dataset / "banks" / "scenes"

    def build(self) -> None:
        reinforce("demo", "--depth", "--num-images", str(NUM_SCENES), "--output", str(self.folder / "scenes"))
        command = ["--shards", str(self.depth / "scenes"), "--recipe", STAGE1, "--output", str(self.dataset)]
        reinforce("build", *command)

    def train(self, rows: dict[str, Row], seeds: Iterable[int]) -> None:
        """Those that start from random weights, then those that start from stage 1."""
        for from_stage1 in (False, True):
            with ThreadPoolExecutor(self.jobs) as pool:
                chosen = [(name, row) for name, row in rows.items() if row.from_stage1 == from_stage1]
                for future in [pool.submit(self._train, *each, seed) for seed in seeds for each in chosen]:
                    future.result()

    def _train(self, name: str, row: Row, seed: int) -> None:
        settings = dict(row.settings)
        if row.from_stage1:
            settings["model.checkpoint"] = str(self.student("stage1", seed))
        validation = str(self.depth / "validation")
        evaluation = {"shards": [validation], "bank": "scenes", "every_steps": 40, "choose": "best"}
        study = Study(self.folder, row.recipe, evaluation)
        study.train([Job(name, self.dataset, settings, select=self._selection(row.keep))], [seed])

    def _selection(self, keep: float) -> Path | None:
        return None if keep == 1 else self.folder / f"surest-{keep:.2f}.parquet"

    def select(self, keep: float) -> str:
        """Writes the selection of a share; what the command says of it."""
        selection = self._selection(keep)
        if selection is None:
            return ""
        return reinforce(
            "select", str(self.dataset), "--bank", "scenes", "--keep-top", str(keep), "--output", str(selection)
        )

    def student(self, name: str, seed: int) -> Path:
        return self.folder / "runs" / f"{name}-{seed}" / "student"

    def measure(self, name: str, seed: int, *, int8: bool) -> Figures:
        """Accuracy on test scenes, by modality and precision."""
        student = self.student(name, seed)
        figures = self.evaluate(str(student))
        return figures | (self._measure_int8(student) if int8 else {})

    def evaluate(self, model: str) -> Figures:
        command = ["evaluate", model, "--dataset", str(self.depth / "test"), "--bank", str(self.bank), "--json"]
        return {
            name: json.loads(reinforce(*command, *options))[0]["top1"]
            for name, options in (("rgb", []), ("depth", DEPTH))
        }

    def _measure_int8(self, student: Path) -> Figures:
        """Of the file that is exported with images of the training scenes to calibrate with."""
        model = student.parent / "int8.onnx"
        calibration = ["--shards", str(self.depth / "scenes"), "--num-calibration-images", str(CALIBRATION)]
        reinforce("export", str(student), "--int8", *calibration, "--bank", str(self.bank), "--output", str(model))
        figures = {}
        for name, own in (("rgb", IMAGE_SUFFIXES), ("depth", ("depth.png",))):
            with tempfile.TemporaryDirectory() as temporary:
                images = extract(self.depth / "test", Path(temporary) / name, own, ["depth.png"])
                figures[f"{name}_int8"] = accuracy(model, images, name)
        return figures


def measure_all(folder: Path, tasks: dict[str, Callable[[], Figures]], jobs: int) -> dict[str, Figures]:
    """Figures by name, each kept in a file of its own once it is there."""

    def measured(name: str) -> Figures:
        kept = folder / "figures" / f"{name}.json"
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(json.dumps(tasks[name](), indent=2) + "\n")
        found: Figures = json.loads(kept.read_text())
        return found

    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip(tasks, pool.map(measured, tasks), strict=True))


def run_demo(demo: Demo, rows: dict[str, Row], seeds: list[int]) -> Table:
    """Trains and measures; figures by row, by seed."""
    for keep in {row.keep for row in rows.values()}:
        print(demo.select(keep), flush=True)
    demo.train(rows, seeds)
    of_two = [name for name, row in rows.items() if name == "stage1" or row.from_stage1]
    tasks: dict[str, Callable[[], Figures]] = {
        f"{name}-{seed}": partial(demo.measure, name, seed, int8=name in of_two) for name in rows for seed in seeds
    }
    found = measure_all(demo.folder, tasks, demo.jobs)
    return {name: [found[f"{name}-{seed}"] for seed in seeds] for name in rows}


def print_table(figures: Table) -> None:
    """A line for each student in fp32, and one for the file that was exported of it in int8."""
    print("| student | precision | RGB, % | depth, % | mean, % |\n|---|---|---|---|---|")
    for name, of_seeds in figures.items():
        for precision, suffix in (("fp32", ""), ("int8", "_int8")):
            if f"rgb{suffix}" in of_seeds[0]:
                rgb, depth = ([figures[f"{modality}{suffix}"] for figures in of_seeds] for modality in ("rgb", "depth"))
                mean = [statistics.mean(both) for both in zip(rgb, depth, strict=True)]
                print(f"| {name} | {precision} | {show(rgb)} | {show(depth)} | {show(mean)} |", flush=True)


ROADSCENE = "pipelines/roadscene.yaml"
ROADSCENE_ROWS: dict[str, dict[str, Any]] = {
    "visible": {"data.modalities": ["rgb"]},
    "thermal": {"data.modalities": ["thermal"]},
    "both": {},
}


def run_roadscene(folder: Path, shared: Path, starts: list[Path], seeds: list[int], jobs: int) -> Table:
    """Recall of held-out partners by the teacher, by students as they start, and by students once they are trained."""
    pairs, dataset = shared / "data/roadscene", folder / "reinforced"
    teacher = f"local-dir:{shared / 'teachers/cifar10-a'}"
    command = ["build", "--shards", str(pairs / "00000.tar"), "--recipe", ROADSCENE, "--output", str(dataset)]
    reinforce(*command, "--set", f"build.teachers.cifar10_a.model={teacher}")
    study = Study(folder, ROADSCENE, None)
    trainings: dict[tuple[str, int], Job] = {}
    for seed in seeds:
        begun = {"model.checkpoint": str(starts[seed].resolve())} if starts else {}
        for name, settings in ROADSCENE_ROWS.items():
            trainings[name, seed] = Job(name, dataset, settings | begun)
    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(study.train, [job], [seed]) for (_, seed), job in trainings.items()]:
            future.result()
    held_out = ["--dataset", str(pairs / "00001.tar"), "--task", "retrieval", "--modality", "ir.jpg", "--json"]

    def retrieve(model: str) -> Figures:
        found = json.loads(reinforce("evaluate", model, *held_out))[0]
        sides = {"thermal_to_visible": "modality_to_rgb", "visible_to_thermal": "rgb_to_modality"}
        return {f"{side}_{k}": found[key][str(k)] for side, key in sides.items() for k in (1, 5)}

    tasks: dict[str, Callable[[], Figures]] = {"teacher": partial(retrieve, teacher)}
    for seed, start in enumerate(starts[: len(seeds)]):
        tasks[f"before-{seed}"] = partial(retrieve, str(start.resolve()))
    for (name, seed), job in trainings.items():
        tasks[f"{name}-{seed}"] = partial(retrieve, str(study.output(job, seed) / "student"))
    found = measure_all(folder, tasks, jobs)
    names = (["before"] if starts else []) + list(ROADSCENE_ROWS)
    return {"teacher": [found["teacher"]]} | {name: [found[f"{name}-{seed}"] for seed in seeds] for name in names}


def print_recalls(figures: Table) -> None:
    columns = list(figures["teacher"][0])
    print_figures(figures, [f"{column.rpartition('_')[0].replace('_', ' ')} R@{column[-1]}" for column in columns])


def print_figures(figures: Table, titles: list[str]) -> None:
    """A row for each model, a column for each figure, in per cent over the seeds."""
    columns = list(figures["teacher"][0])
    print(f"| model | {' | '.join(f'{title}, %' for title in titles)} |\n|---|{'---|' * len(columns)}")
    for name, of_seeds in figures.items():
        cells = [show([of_seed[column] for of_seed in of_seeds]) for column in columns]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep everything here, and go on with what is here")
    parser.add_argument("--shared", type=Path, default=SHARED, help="where RoadScene and its teacher are")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side, one thread each")
    parser.add_argument("--start", type=Path, nargs="+", default=[], help="RoadScene: a student for each seed")
    parser.add_argument("--only", choices=["demo", "curation", "roadscene"])
    arguments = parser.parse_args()
    seeds = list(range(arguments.seeds))
    if 0 < len(arguments.start) < len(seeds):
        parser.error(f"--start: {len(arguments.start)} students for {len(seeds)} seeds")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        results: dict[str, Any] = {}
        for part in [arguments.only] if arguments.only else ["demo", "curation", "roadscene"]:
            place = folder / ("roadscene" if part == "roadscene" else "demo")
            place.mkdir(parents=True, exist_ok=True)
            print(f"\n{part}", flush=True)
            if part == "roadscene":
                results[part] = run_roadscene(place, arguments.shared.resolve(), arguments.start, seeds, arguments.jobs)
                print_recalls(results[part])
            else:
                results[part] = run_scenes(part, place, seeds, arguments.jobs)
            (folder / f"{part}.json").write_text(json.dumps(results[part], indent=2) + "\n")


def run_scenes(part: str, folder: Path, seeds: list[int], jobs: int) -> Table:
    demo = Demo(folder, jobs)
    demo.build()
    if part == "demo":
        teacher = {"teacher": [demo.evaluate(f"local-dir:{MODELS / 'demo-a'}")]}
        figures = teacher | run_demo(demo, rows_of_demo(), seeds)
    else:
        shares = {name_of(keep): Row(STAGE2, from_stage1=True, keep=keep) for keep in KEPT}
        figures = run_demo(demo, {"stage1": Row(STAGE1)} | shares, seeds)
    print_table(figures)
    return figures


if __name__ == "__main__":
    main()
