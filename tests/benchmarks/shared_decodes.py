"""What several views of one decoded image cost in accuracy: CIFAR-10 students, equal samples seen, three seeds.

    python -m tests.benchmarks.shared_decodes [--folder DIR] [--dataset DIR]     (about 20 minutes on one core)

Needs ../shared, and a build of `pipelines/cifar10.yaml`, which is made first unless it is given (10 minutes on two
cores). Every run is the recipe's: `mobileclip`, two teachers, 4 of the stored views; nothing is chosen on the test set.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from tests.benchmarks.cifar10_students import TEMPLATES
from tests.benchmarks.studies import SEEDS, SHARED, Job, Study, cifar10_study, reinforce

EPOCHS = 12.0
VIEWS = 4
"""So many of the stored views are used: every image shows each of them three times."""
SIDES: dict[str, dict[str, Any]] = {
    "a view a decode": {},
    "4 views apart": {"data.views_per_decode": 4},
    "4 views together": {"data.views_per_decode": 4, "data.views_placement": "together"},
}


def print_accuracies(study: Study, dataset: Path, epochs: float, seeds: tuple[int, ...]) -> None:
    print(f"\n| {epochs:g} epochs | zero-shot top-1 on 2,000 test images, mean of {len(seeds)} seeds | range |")
    print("|---|---|---|")
    for name, settings in SIDES.items():
        fields = {"epochs": epochs, "data.views": VIEWS} | settings
        job = Job(f"{name.replace(' ', '-')}-{epochs:g}", dataset, fields)
        study.train([job], seeds)
        found = [100 * accuracy for accuracy in study.final(job, seeds)]
        print(f"| {name} | {statistics.mean(found):.1f} % | {min(found):.1f} to {max(found):.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep dataset and runs here; go on with what is here")
    parser.add_argument("--dataset", type=Path, help="a finished build of the recipe")
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="samples seen, over those there are")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many")
    arguments = parser.parse_args()
    # Evaluated at the end alone: every evaluation takes as long as some steps.
    with cifar10_study(arguments.folder, templates=TEMPLATES, every_steps=1_000_000) as study:
        dataset = arguments.dataset or study.folder / "dataset"
        if arguments.dataset is None:
            shards = str(SHARED / "data/cifar10/train")
            reinforce(["build", "--shards", shards, "--recipe", study.recipe, "--output", str(dataset)])
        print_accuracies(study, dataset.resolve(), arguments.epochs, tuple(range(arguments.seeds)))


if __name__ == "__main__":
    main()
