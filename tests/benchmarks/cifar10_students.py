"""What reinforcement buys on real images: CIFAR-10 students, plain and distilled, equal steps, three seeds.

    python -m tests.benchmarks.cifar10_students [--folder DIR]    (about 100 minutes on two cores)

Needs ../shared: 8,000 training images, 2,000 test images, two teachers that were trained on CIFAR-10's 50,000 training
images. Every run has the same student, steps, batch and views of the same images; nothing is chosen on the test set
but the learning rate of the plain baseline, in its favour.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reinforce.shards.dataset import open_dataset
from reinforce.shards.reader import ShardFile, to_numpy
from reinforce.shards.schema import fingerprint, round_mantissa
from reinforce.shards.writer import ShardFileWriter, embeddings_batch
from reinforce.storage import Store, open_store
from reinforce.student.journal import read_metrics

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared"
TEMPLATES = ["a photo of a {}", "an image of a {}", "a blurry photo of a {}", "{}"]
SEEDS = (0, 1, 2)
EPOCHS = 15
LEARNING_RATES = (3e-3, 1e-2, 3e-2)
CLIP = {"loss.kind": "clip"}
MASKED = {"loss.kind": "clip", "loss.mask_same_captions": "true"}


@dataclass(frozen=True)
class Job:
    """One training: its name, how exactly its embeddings are stored, and what it sets beside the recipe."""

    name: str
    mantissa_bits: int
    settings: dict[str, str]
    epochs: int = EPOCHS

    def output(self, folder: Path, seed: int) -> Path:
        return folder / "runs" / f"{self.name}-{seed}"


def distilled(name: str, *, bits: int = 7, views: int = 5, teachers: str = "", epochs: int = EPOCHS) -> Job:
    settings = {"data.views": str(views), "optimizer.learning_rate": "1.0e-2"}
    return Job(name, bits, settings | ({"data.teachers": f"[{teachers}]"} if teachers else {}), epochs)


def plain(name: str, loss: dict[str, str], rate: float, epochs: int = EPOCHS) -> Job:
    return Job(name, 7, loss | {"data.views": "5", "optimizer.learning_rate": f"{rate:.1e}"}, epochs)


DISTILLED = [
    distilled("two-teachers"),
    distilled("one-teacher", teachers="cifar10_a"),
    distilled("1-view", views=1),
    distilled("10-views", views=10),
    distilled("10-bits", bits=10),
    distilled("4-bits", bits=4),
]
SHORT = [distilled(f"two-teachers-{epochs}-epochs", epochs=epochs) for epochs in (2, 3, 4, 6)]


def build(folder: Path) -> None:
    """The dataset with 10 views as exact float16, and the same values rounded further."""
    exact = folder / "bits10"
    sets = ["build.views.count=10", *(f"build.teachers.cifar10_{name}.mantissa_bits=10" for name in "ab")]
    shards = str(SHARED / "data/cifar10/train")
    command = ["build", "--shards", shards, "--recipe", "pipelines/cifar10.yaml", "--output", str(exact)]
    run(command + [part for field in sets for part in ("--set", field)])
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


def run(command: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "reinforce", *command]
    result = subprocess.run(arguments, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}\n{result.stderr}")


def train(job: Job, folder: Path, seed: int) -> None:
    output = job.output(folder, seed)
    evaluation = {
        "shards": [str(SHARED / "data/cifar10/test")],
        "every_steps": 31,
        "templates": str(folder / "templates.txt"),
    }
    fields = {"seed": str(seed), "epochs": str(job.epochs), "data.workers": "0", "evaluation": json.dumps(evaluation)}
    command = ["train-student", "--dataset", str(folder / f"bits{job.mantissa_bits}"), "--recipe"]
    command += ["pipelines/cifar10.yaml", "--output", str(output), "--resume"]
    for field, value in (fields | job.settings).items():
        command += ["--set", f"student.{field}={value}"]
    run(command)


def train_all(jobs: Iterable[Job], folder: Path, seeds: Iterable[int]) -> None:
    """Every job with every seed, one process a core."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for future in [pool.submit(train, job, folder, seed) for job in jobs for seed in seeds]:
            future.result()


def curve(job: Job, folder: Path, seed: int) -> list[tuple[int, float]]:
    """(samples seen, accuracy) of every evaluation."""
    rows = read_metrics(job.output(folder, seed))
    return [(row["samples"], row["top1"]) for row in rows if row["kind"] == "evaluation"]


def final(job: Job, folder: Path, seeds: Iterable[int] = SEEDS) -> list[float]:
    return [curve(job, folder, seed)[-1][1] for seed in seeds]


def show(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def best_plain(loss: dict[str, str], name: str, folder: Path) -> Job:
    """The learning rate that is best on seed 0; prints what all of them gave."""
    jobs = [plain(f"{name}-{rate:g}", loss, rate) for rate in LEARNING_RATES]
    train_all(jobs, folder, SEEDS[:1])
    accuracies = [final(job, folder, SEEDS[:1])[0] for job in jobs]
    tried = ", ".join(f"{rate:g}: {100 * top1:.1f}" for rate, top1 in zip(LEARNING_RATES, accuracies, strict=True))
    print(f"| {name}, seed 0 by learning rate | {tried} |", flush=True)
    best = jobs[int(np.argmax(accuracies))]
    train_all([best], folder, SEEDS[1:])
    print(f"| {name}, {EPOCHS} epochs | {show(final(best, folder))} |", flush=True)
    return best


def headline(baseline: Job, folder: Path) -> None:
    """Samples the plain baseline needs over samples distillation needs for the accuracy that the baseline ends with."""
    target = statistics.mean(final(baseline, folder))
    baseline_samples = curve(baseline, folder, 0)[-1][0]
    print(f"\nThe best plain baseline ends at {100 * target:.1f} % after {baseline_samples:,} samples.\n")
    print("| distilled, two teachers, trained for | accuracy | samples of plain over these |\n|---|---|---|")
    for job in [*SHORT, DISTILLED[0]]:
        samples = curve(job, folder, 0)[-1][0]
        ratio = baseline_samples / samples
        print(f"| {job.epochs} epochs, {samples:,} samples | {show(final(job, folder))} | {ratio:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep datasets and runs here; go on with what is here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "templates.txt").write_text("\n".join(TEMPLATES) + "\n")
        build(folder)
        print("| student | zero-shot top-1 on 2,000 test images, mean ± sample deviation of three seeds |\n|---|---|")
        baselines = [best_plain(MASKED, "masked-clip", folder), best_plain(CLIP, "clip", folder)]
        for job in DISTILLED:
            train_all([job], folder, SEEDS)
            print(f"| mobileclip, {job.name}, {EPOCHS} epochs | {show(final(job, folder))} |", flush=True)
        train_all(SHORT, folder, SEEDS)
        headline(max(baselines, key=lambda job: statistics.mean(final(job, folder))), folder)


if __name__ == "__main__":
    main()
