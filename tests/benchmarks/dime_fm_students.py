"""What students learn from images without captions and sentences without images, and what stored views give them.

    python -m tests.benchmarks.dime_fm_students [--folder DIR] [--seeds N] [--jobs N] [--steps N] [--only demo|cifar10]

Demo scenes: plain CLIP on the same images with their captions (as the web has them, and right ones), DIME-FM without
any pairing; then what it learns if the clean view's embedding is the target of every crop, as in the published
trainer, or of one view. CIFAR-10 (in ../shared): the terms of the loss, one after another, and a linear probe. Within
a part all students have the same image tower, steps, batch and images. Each arm has the learning rate of some that is
best on validation data with seed 0, and it is said where that is the first or the last of them; the tables are of test
data. CIFAR-10's teacher was trained on all training images, those of the validation shard and of the probe too, and the
ten names in the corpus are the classes of the test. All steps are processes of their own; what is in the folder is not
done again.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from reinforce.config import load_recipe
from reinforce.demo import MODELS
from reinforce.demo.shards import write_scenes
from tests.benchmarks.cifar10_labels import write_labelled
from tests.benchmarks.cifar10_sentences import write_prompts
from tests.benchmarks.clean_targets import write_with_clean_targets
from tests.benchmarks.edgevl_students import Figures, Table, measure_all, print_figures
from tests.benchmarks.studies import SHARED, Job, Study, reinforce

NUM_SCENES = 2000
NUM_FRESH_CROPS = 30
"""More than any image is seen here: with the published mismatch a crop is never seen twice."""


@dataclass(frozen=True)
class Arm:
    """A row of a table: a student of a recipe on one of the part's datasets, and how it departs from the recipe."""

    dataset: str
    settings: dict[str, Any] = field(default_factory=dict)
    recipe: str = ""
    """default: the part's."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    """Learning rates to choose from."""


def as_dime_fm(recipe: str) -> dict[str, Any]:
    """Steps, batch and optimizer of a recipe, for plain CLIP by another one, and its loss."""
    student = load_recipe(recipe).student
    assert student is not None
    same = {"steps": student.steps, "batch_size": student.batch_size, "optimizer": student.optimizer.model_dump()}
    return same | {"loss.kind": "clip", "data.captioners": [], "data.views": 10}


PLAIN_CLIP: dict[str, Any] = {
    "settings": as_dime_fm("demo_dime_fm"),
    "recipe": "demo",
    "rates": (3e-4, 1e-3, 3e-3, 1e-2),
}
BY_BANK = {"bank": "scenes"}
DEMO_ARMS = {
    "clip-web-captions": Arm("web-captions", **PLAIN_CLIP),
    "clip-right-captions": Arm("right-captions", **PLAIN_CLIP),
    "10-views": Arm("unpaired", evaluation=BY_BANK),
    "1-view": Arm("unpaired", {"data.views": 1}, evaluation=BY_BANK),
    "clean-view": Arm("unpaired", {"data.views": 0}, evaluation=BY_BANK),
    "clean-target": Arm("clean-targets", evaluation=BY_BANK),
}
BY_BANK_OF_CIFAR10 = {"bank": "cifar10"}
ONLY_VL = {"loss.vl_weight": 1.0, "loss.pvl_weight": 0.0}
WITH_UDIST = {"loss.vl_weight": 0.68, "loss.pvl_weight": 0.22, "loss.udist_weight": 0.10}
CIFAR10_ARMS = {
    "vl": Arm("unpaired", ONLY_VL, evaluation=BY_BANK_OF_CIFAR10),
    "vl-pvl": Arm("unpaired", evaluation=BY_BANK_OF_CIFAR10),
    "vl-pvl-udist": Arm("unpaired", WITH_UDIST, evaluation=BY_BANK_OF_CIFAR10),
    "vl-pvl-cosine": Arm("unpaired", {"loss.cosine_weight": 1.0}, evaluation=BY_BANK_OF_CIFAR10),
    # The published scale, which suits large CLIPs; the recipe's is the teacher's own.
    "vl-pvl-scale-100": Arm("unpaired", {"loss.similarity_scale": 100}, evaluation=BY_BANK_OF_CIFAR10),
}


@dataclass(frozen=True)
class Part:
    """Data, datasets and students of one half of the study, below one folder."""

    folder: Path
    recipe: str
    arms: dict[str, Arm]
    validation: Path
    jobs: int
    steps: int | None
    """None: the recipe's."""
    shards: str | None = None
    """Only these of the datasets' shards are trained on."""

    def build(self, name: str, shards: Path, *fields: str) -> Path:
        output = self.folder / name
        command = ["build", "--shards", str(shards), "--recipe", self.recipe, "--output", str(output)]
        reinforce(command + [part for given in fields for part in ("--set", given)])
        return output

    def train(self, seeds: list[int]) -> dict[tuple[str, int], Path]:
        """Every arm with every seed, at its own learning rate; the students by arm and seed."""
        with ThreadPoolExecutor(self.jobs) as pool:
            first = [(name, rate) for name, arm in self.arms.items() for rate in arm.rates]
            scores = dict(
                zip(first, pool.map(lambda each: self._train(each[0], each[1], seeds[0])[1], first), strict=True)
            )
        best = {name: max(arm.rates, key=lambda rate: scores[name, rate]) for name, arm in self.arms.items()}
        print("| student, seed 0 | validation top-1 by learning rate, % |\n|---|---|")
        for name, arm in self.arms.items():
            at_end = {best[name]} & {arm.rates[0], arm.rates[-1]}
            remarks = dict.fromkeys(at_end, " (at the end of the grid)")
            tried = [f"{rate:g}: {100 * scores[name, rate]:.1f}{remarks.get(rate, '')}" for rate in arm.rates]
            print(f"| {name} | {', '.join(tried)} |", flush=True)
        wanted = [(name, seed) for seed in seeds for name in self.arms]
        with ThreadPoolExecutor(self.jobs) as pool:
            students = pool.map(lambda each: self._train(each[0], best[each[0]], each[1])[0], wanted)
            return dict(zip(wanted, students, strict=True))

    def _train(self, name: str, rate: float, seed: int) -> tuple[Path, float]:
        """The student's folder and its accuracy on validation data at the end."""
        arm = self.arms[name]
        # One evaluation, at the end: the weights are the last, whatever it says.
        evaluation = arm.evaluation | {"shards": [str(self.validation)], "every_steps": 1_000_000}
        study = Study(self.folder, arm.recipe or self.recipe, evaluation)
        settings = arm.settings | {"optimizer.learning_rate": rate}
        settings |= {"steps": self.steps, "epochs": None} if self.steps else {}
        job = Job(f"{name}-{rate:g}", self.folder / arm.dataset, settings, shards=self.shards)
        study.train([job], [seed])
        return study.output(job, seed) / "student", study.final(job, [seed])[0]

    def measure(self, teacher: str, seeds: list[int], figures_of: Callable[[str, str], Figures]) -> Table:
        """The figures of test data, of the teacher and of the students by arm and seed."""
        students = self.train(seeds)
        tasks: dict[str, Callable[[], Figures]] = {"teacher": partial(figures_of, "teacher", teacher)}
        for (name, seed), student in students.items():
            tasks[f"{name}-{seed}"] = partial(figures_of, name, str(student))
        found = measure_all(self.folder, tasks, self.jobs)
        by_arm = {name: [found[f"{name}-{seed}"] for seed in seeds] for name in self.arms}
        return {"teacher": [found["teacher"]]} | by_arm


def evaluate(model: str, dataset: Path, *options: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(reinforce(["evaluate", model, "--dataset", str(dataset), *options, "--json"]))[
        0
    ]
    return answer


def run_demo(folder: Path, seeds: list[int], jobs: int, steps: int | None) -> Table:
    reinforce(["demo", "--unpaired", "--num-images", str(NUM_SCENES), "--output", str(folder / "demo")])
    data = folder / "demo" / "unpaired"
    part = Part(folder, "demo_dime_fm", DEMO_ARMS, data / "validation", jobs, steps)
    unpaired = part.build("unpaired", data / "scenes", f"build.corpora.captions.files={data / 'sentences'}")
    write_with_clean_targets(unpaired, folder / "clean-targets", NUM_FRESH_CROPS)
    with_captions = ["build.corpora={}", "build.source={captions: [txt], max_captions: 1}", "build.views.count=0"]
    part.build("web-captions", data / "scenes", *with_captions)
    if not (folder / "right").exists():
        write_scenes(folder / "right.partial", num_images=NUM_SCENES, clean=True)
        (folder / "right.partial").rename(folder / "right")
    part.build("right-captions", folder / "right", *with_captions)
    texts = part.build("test-texts", data / "test", *with_captions)

    def figures_of(name: str, model: str) -> Figures:
        is_tower = name in DEMO_ARMS and not DEMO_ARMS[name].recipe
        found = evaluate(model, data / "test", *(["--bank", str(unpaired / "banks/scenes")] if is_tower else []))
        stored = ["--texts", str(texts)] if is_tower else []
        recalls = evaluate(model, data / "test", "--task", "retrieval", *stored)
        sides = {"image": recalls["text_to_image"], "text": recalls["image_to_text"]}
        return {"zero-shot": found["top1"]} | {f"{side} R@{k}": of[k] for side, of in sides.items() for k in ("1", "5")}

    return part.measure(f"local-dir:{MODELS / 'demo-a'}", seeds, figures_of)


def run_cifar10(folder: Path, shared: Path, seeds: list[int], jobs: int, steps: int | None) -> Table:
    train, test = shared / "data/cifar10/train", shared / "data/cifar10/test"
    prompts = write_prompts(folder / "sentences" / "prompts.txt")
    stems = [f"{number:05d}" for number in range(8)]
    validation, probe = folder / "validation", folder / "probe"
    write_labelled(validation, shared, stems[-1:])
    write_labelled(probe, shared, stems[:-1])
    trained_on = str(train / "{00000..00006}.tar")
    part = Part(folder, "dime_fm_cifar10", CIFAR10_ARMS, validation, jobs, steps, trained_on)
    teacher = f"local-dir:{shared / 'teachers/cifar10-a'}"
    corpus = f"build.corpora.prompts.files={prompts.parent}"
    unpaired = part.build("unpaired", train, f"build.teachers.cifar10_a.model={teacher}", corpus)

    def figures_of(name: str, model: str) -> Figures:
        found = evaluate(model, test, "--bank", str(unpaired / "banks/cifar10"))
        probed = evaluate(model, test, "--task", "linear", "--train", str(probe))
        return {"zero-shot": found["top1"], "linear probe": probed["top1"]}

    return part.measure(teacher, seeds, figures_of)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep everything here, and go on with what is here")
    parser.add_argument("--shared", type=Path, default=SHARED, help="where CIFAR-10 and its teacher are")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side, one thread each")
    parser.add_argument("--steps", type=int, help="of every training, to try it all; default: the recipe's")
    parser.add_argument("--only", choices=["demo", "cifar10"])
    arguments = parser.parse_args()
    seeds = list(range(arguments.seeds))
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        for name in [arguments.only] if arguments.only else ["demo", "cifar10"]:
            place = folder / name
            place.mkdir(parents=True, exist_ok=True)
            print(f"\n{name}\n", flush=True)
            if name == "demo":
                figures = run_demo(place, seeds, arguments.jobs, arguments.steps)
            else:
                figures = run_cifar10(place, arguments.shared.resolve(), seeds, arguments.jobs, arguments.steps)
            print()
            print_figures(figures, list(figures["teacher"][0]))
            (folder / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
