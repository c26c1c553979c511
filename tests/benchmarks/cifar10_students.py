"""What reinforcement buys on real images: CIFAR-10 students, plain and distilled, equal steps, three seeds.

    python -m tests.benchmarks.cifar10_students [--folder DIR]    (about 100 minutes on two cores)

Needs ../shared: 8,000 training images, 2,000 test images, two teachers that were trained on CIFAR-10's 50,000 training
images. Every run has the same student, steps, batch and views of the same images; nothing is chosen on the test set
but the learning rate of the plain baseline, in its favour.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from reinforce.shards.dataset import open_dataset
from reinforce.shards.reader import ShardFile, to_numpy
from reinforce.shards.schema import fingerprint, round_mantissa
from reinforce.shards.writer import ShardFileWriter, embeddings_batch
from reinforce.storage import Store, open_store
from tests.benchmarks.studies import SEEDS, SHARED, Job, Study, cifar10_study, reinforce, show

TEMPLATES = ["a photo of a {}", "an image of a {}", "a blurry photo of a {}", "{}"]
EPOCHS = 15
LEARNING_RATES = (3e-3, 1e-2, 3e-2)
BASELINES: dict[str, dict[str, Any]] = {
    "masked-clip": {"loss.kind": "clip", "loss.mask_same_captions": True},
    "clip": {"loss.kind": "clip"},
}
DISTILLED: dict[str, tuple[int, dict[str, Any]]] = {
    "two-teachers": (7, {}),
    "one-teacher": (7, {"data.teachers": ["cifar10_a"]}),
    "1-view": (7, {"data.views": 1}),
    "10-views": (7, {"data.views": 10}),
    "10-bits": (10, {}),
    "4-bits": (4, {}),
}
"""Name -> mantissa bits and departures from two teachers and 5 views."""
SHORT_EPOCHS = (2, 3, 4, 6)
LONG_EPOCHS = 30


def distilled(folder: Path, name: str, epochs: int = EPOCHS) -> Job:
    bits, departures = DISTILLED[name]
    full_name = name if epochs == EPOCHS else f"{name}-{epochs}-epochs"
    settings = {"epochs": epochs, "data.views": 5, "optimizer.learning_rate": 1e-2} | departures
    return Job(full_name, folder / f"bits{bits}", settings)


def plain(folder: Path, name: str, rate: float, epochs: int = EPOCHS) -> Job:
    full_name = f"{name}-{rate:g}" if epochs == EPOCHS else f"{name}-{rate:g}-{epochs}-epochs"
    settings = {"epochs": epochs, "data.views": 5, "optimizer.learning_rate": rate} | BASELINES[name]
    return Job(full_name, folder / "bits7", settings)


def build(folder: Path) -> None:
    """The dataset with 10 views as exact float16, and the same values rounded further."""
    exact = folder / "bits10"
    sets = ["build.views.count=10", *(f"build.teachers.cifar10_{name}.mantissa_bits=10" for name in "ab")]
    shards = str(SHARED / "data/cifar10/train")
    command = ["build", "--shards", shards, "--recipe", "pipelines/cifar10.yaml", "--output", str(exact)]
    reinforce(command + [part for field in sets for part in ("--set", field)])
    for bits in (7, 4):
        if not (folder / f"bits{bits}").exists():
            partial = folder / f"bits{bits}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            round_dataset(exact, partial, bits)
            partial.rename(folder / f"bits{bits}")


def round_dataset(source: Path, target: Path, bits: int) -> None:
    """A copy of a dataset with embeddings of fewer bits.

    Rounding what was rounded to 10 bits already differs from rounding once in ties only.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("runs", "embeddings"))
    dataset, store = open_dataset(str(source)), open_store(str(target))
    for signal, document in dataset.signals.items():
        if signal.kind != "captions":
            document["content"]["mantissa_bits"] = bits
            document["fingerprint"] = fingerprint(document["content"])
            store.put(f"{signal.folder}/signal.json", json.dumps(document).encode())
            for stem in dataset.stems:
                _round_file(dataset.open(signal, stem), store, signal.file(stem), document["fingerprint"], bits)


def _round_file(file: ShardFile, store: Store, path: str, new_fingerprint: str, bits: int) -> None:
    with file, tempfile.NamedTemporaryFile() as spool:
        table, footer = file.read(), file.footer
        embeddings = {name: to_numpy(table.column(name)).astype(np.float32) for name in table.column_names[1:]}
        rounded = {name: round_mantissa(values, bits) for name, values in embeddings.items()}
        batch = embeddings_batch(table.column("key").to_pylist(), rounded)
        writer = ShardFileWriter(Path(spool.name), batch.schema)
        writer.append(batch)
        writer.commit(store, path, footer | {"fingerprint": new_fingerprint})


def best_plain(study: Study, name: str) -> Job:
    """The learning rate that is best on seed 0, then with every seed; prints what all of them gave."""
    jobs = [plain(study.folder, name, rate) for rate in LEARNING_RATES]
    study.train(jobs, SEEDS[:1])
    accuracies = [study.final(job, SEEDS[:1])[0] for job in jobs]
    tried = ", ".join(f"{rate:g}: {100 * top1:.1f}" for rate, top1 in zip(LEARNING_RATES, accuracies, strict=True))
    print(f"| {name}, seed 0 by learning rate | {tried} |", flush=True)
    best = jobs[int(np.argmax(accuracies))]
    study.train([best])
    print(f"| {name}, {EPOCHS} epochs | {show(study.final(best))} |", flush=True)
    return best


def headline(study: Study, baselines: list[Job]) -> None:
    """Samples a plain baseline needs over samples distillation needs for the accuracy that the baseline ends with."""
    print("\n| plain, trained for | accuracy | two teachers reach it after | ratio |\n|---|---|---|---|")
    distilled_job = distilled(study.folder, "two-teachers")
    for job in baselines:
        target = statistics.mean(study.final(job))
        needed = [first_reaching(study.curve(distilled_job, seed), target) for seed in SEEDS]
        samples = study.curve(job, 0)[-1][0]
        reached = [n for n in needed if n is not None]
        row = f"| {samples:,} samples | {show(study.final(job))} |"
        if len(reached) < len(SEEDS):
            print(f"{row} reached with {len(reached)} of {len(SEEDS)} seeds | |")
        else:
            print(f"{row} {statistics.mean(reached):,.0f} samples | {samples / statistics.mean(reached):.1f} |")


def first_reaching(curve: list[tuple[int, float]], target: float) -> int | None:
    """Samples seen at the first evaluation, 31 steps apart, of at least that accuracy."""
    return next((samples for samples, accuracy in curve if accuracy >= target), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep datasets and runs here; go on with what is here")
    arguments = parser.parse_args()
    with cifar10_study(arguments.folder, templates=TEMPLATES, every_steps=31) as study:
        folder = study.folder
        build(folder)
        print("| student | zero-shot top-1 on 2,000 test images, mean ± sample deviation of three seeds |\n|---|---|")
        baselines = [best_plain(study, name) for name in BASELINES]
        jobs = [distilled(folder, name) for name in DISTILLED]
        study.train([*jobs, *(distilled(folder, "two-teachers", epochs) for epochs in SHORT_EPOCHS)])
        for job in jobs:
            print(f"| mobileclip, {job.name}, {EPOCHS} epochs | {show(study.final(job))} |", flush=True)
        for epochs in SHORT_EPOCHS:
            job = distilled(folder, "two-teachers", epochs)
            print(f"| mobileclip, two-teachers, {epochs} epochs | {show(study.final(job))} |", flush=True)
        best = max(baselines, key=lambda job: statistics.mean(study.final(job)))
        name, rate = best.name.rsplit("-", 1)
        longer = plain(folder, name, float(rate), LONG_EPOCHS)
        study.train([longer])
        headline(study, [best, longer])


if __name__ == "__main__":
    main()
