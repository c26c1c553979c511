"""What `reinforce select --corpus` costs, that it finds what brute force finds, and what it would cost at full scale.

    python -m tests.benchmarks.sentence_selection [real|cost]        (about 10 minutes on two cores)
        [--sentences FILE] [--teacher FOLDER] [--images SHARDS] [--dataset URI]

`real`: 30,000 captions and 8,000 CIFAR-10 images by a teacher that knows CIFAR-10's ten classes, so that what is
measured is the machinery and not the choice. `cost`: made-up embeddings of 768 dims, each size in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq

from reinforce.selection import SentenceCriteria, select_sentences
from reinforce.selection.sentence_outcome import describe_sentences
from reinforce.shards.dataset import open_dataset
from tests.benchmarks.memory import status_kb
from tests.benchmarks.studies import SHARED, reinforce
from tests.clean_views import write_clean_views
from tests.corpora import random_corpus

NEAREST, DIM = 10, 768
PROBES = (1, 2, 4, 8, 16, 32)
SIZES = ((16_384, 50_000), (32_768, 50_000), (16_384, 100_000), (32_768, 100_000))
FULL_IMAGES, FULL_SENTENCES = 40_000_000, 28_400_000
H100_FLOPS = 400e12
"""Half precision, dense, as large products reach it."""


@dataclass
class Cost:
    """One selection in a process of its own. `private_mb`: without pages of files, which the system may take back."""

    wall_s: float = 0
    cpu_s: float = 0
    private_mb: float = 0
    peak_mb: float = 0


@contextmanager
def measured() -> Iterator[Cost]:
    """Time, and peak memory above what there is at the start; private memory is looked at every 5 ms."""
    cost, done = Cost(), threading.Event()
    Path("/proc/self/clear_refs").write_text("5")
    start, cpu, private_kb, all_kb = time.perf_counter(), time.process_time(), status_kb("RssAnon"), status_kb("VmRSS")
    peaks = [private_kb]

    def watch() -> None:
        while not done.wait(0.005):
            peaks[0] = max(peaks[0], status_kb("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield cost
    done.set()
    watcher.join()
    cost.wall_s, cost.cpu_s = time.perf_counter() - start, time.process_time() - cpu
    cost.private_mb, cost.peak_mb = (peaks[0] - private_kb) / 1024, (status_kb("VmHWM") - all_kb) / 1024


def build(folder: Path, sentences: str, teacher: str, images: str) -> str:
    """A dataset of clean views and sentences, as `reinforce build` makes it."""
    sections = {
        "batch_size": 256,
        "views": {"count": 0},
        "source": {"captions": []},
        "teachers": {"teacher": {"model": f"local-dir:{Path(teacher).resolve()}"}},
        "corpora": {"captions": {"files": str(Path(sentences).resolve())}},
    }
    recipe, output = folder / "recipe.yaml", folder / "out"
    recipe.write_text(json.dumps({"build": sections}))
    reinforce(["build", "--shards", images, "--recipe", str(recipe), "--output", str(output)])
    return str(output)


def real(uri: str, folder: Path) -> None:
    """Every figure of one selection, and whether it is that of brute force."""
    criteria = SentenceCriteria(corpora=("captions",), nearest=NEAREST)
    with measured() as cost:
        outcome = select_sentences(open_dataset(uri), str(folder / "s.parquet"), criteria)
    print(describe_sentences(outcome))
    print(f"{outcome.num_images_met:,} images, {outcome.num_sentences:,} sentences: {shown(cost)}")
    capped = SentenceCriteria(corpora=("captions",), nearest=NEAREST, dedup=0.97, max_per_image=3, keep=1000)
    print(describe_sentences(select_sentences(open_dataset(uri), str(folder / "capped.parquet"), capped)))
    start = time.perf_counter()
    expected = brute_force(uri, outcome.teacher)
    found = pq.read_table(folder / "s.parquet").to_pylist()
    print(f"brute force in float64: {len(expected):,} sentences in {time.perf_counter() - start:.0f} s;", end=" ")
    print("equal" if found == expected else "DIFFERENT", "in every row: score, nearest image, rank", flush=True)
    exact = {(row["stem"], row["key"]) for row in expected}
    print("\n| `--probe` | kept | of the exact ones | of the others | CPU |\n|---|---|---|---|---|")
    for probe in PROBES:
        asked = SentenceCriteria(corpora=("captions",), nearest=NEAREST, probe=probe)
        with measured() as cost:
            select_sentences(open_dataset(uri), str(folder / "probed.parquet"), asked)
        kept = {(row["stem"], row["key"]) for row in pq.read_table(folder / "probed.parquet").to_pylist()}
        share = len(kept & exact) / len(exact)
        print(f"| {probe} | {len(kept):,} | {share:.3f} | {len(kept - exact):,} | {cost.cpu_s:.1f} s |", flush=True)


def brute_force(uri: str, teacher: str) -> list[dict[str, object]]:
    """The rows of a selection without caps, by a full product in float64 and stable sorts."""
    dataset = open_dataset(uri)
    names: list[list[tuple[str, str]]] = [[], []]
    rows: list[list[np.ndarray]] = [[], []]
    for stem in dataset.stems:
        table = dataset.table(f"embeddings/{teacher}/image", stem, ["key"])
        names[0] += [(stem, key) for key in table.column("key").to_pylist()]
        rows[0].append(dataset.numpy(f"embeddings/{teacher}/image", stem, "view_000"))
    folder = Path(uri) / "corpora/captions/embeddings" / teacher
    for path in sorted(folder.rglob("*.parquet")):
        stem, table = f"corpora/captions/{path.relative_to(folder).with_suffix('')}", pq.read_table(path)
        names[1] += [(stem, key) for key in table.column("key").to_pylist()]
        rows[1].append(np.array(table.column("embedding").to_pylist(), np.float16))
    images, sentences = (np.concatenate(side).astype(np.float64) for side in rows)
    squares = [(side * side).sum(axis=1) for side in (images, sentences)]
    ranks = np.full(len(sentences), NEAREST)
    best, image_of = np.full(len(sentences), -2.0), np.zeros(len(sentences), int)
    for image, row in enumerate(images):
        cosines = (sentences @ row) / np.sqrt(squares[0][image] * squares[1])
        ranked = np.argsort(-cosines, kind="stable")[:NEAREST]
        ranks[ranked] = np.minimum(ranks[ranked], np.arange(NEAREST))
        nearer = cosines > best
        best[nearer], image_of[nearer] = cosines[nearer], image
    found = []
    for place in np.flatnonzero(ranks < NEAREST).tolist():
        pairs = (("stem", "key"), names[1][place]), (("image_stem", "image_key"), names[0][image_of[place]])
        (name, named), (image_name, image_named) = (zip(*pair, strict=True) for pair in pairs)
        score = {"score": float(np.float32(best[place]))}
        found.append({**dict([name, named]), **score, **dict([image_name, image_named]), "rank": int(ranks[place])})
    return found


def cost(folder: Path) -> None:
    """Time and memory by size, the same products by faiss, and what the published scale would take."""
    num_cores = len(os.sched_getaffinity(0))
    print(f"\nmade-up embeddings of {DIM} dims, {NEAREST} nearest, {num_cores} cores, of each selection:\n")
    print("| images | sentences | wall | CPU | peak, private | peak, with pages of files | Gflop/s |")
    print("|---|---|---|---|---|---|---|")
    costs = {}
    for num_images, num_sentences in SIZES:
        dataset = folder / f"{num_images}-{num_sentences}"
        shards = {f"{start:06d}": unit(2048, start) for start in range(0, num_images, 2048)}
        write_clean_views(dataset, shards, "made_up")
        files = {f"{start:06d}": 10_000 for start in range(0, num_sentences, 10_000)}
        random_corpus(dataset, "made_up", files, {"made_up": DIM})
        one = costs[num_images, num_sentences] = in_a_process(dataset)
        flop = 2 * num_images * num_sentences * DIM
        memory = f"{one.private_mb:.0f} MB | {one.peak_mb:.0f} MB | {flop / one.wall_s / 1e9:.0f}"
        print(f"| {num_images:,} | {num_sentences:,} | {one.wall_s:.1f} s | {one.cpu_s:.1f} s | {memory} |", flush=True)
    print(f"the last one with --probe 16: {shown(in_a_process(dataset, '--probe', '16'))}")
    print(f"the first one, {SIZES[0][0]:,} x {SIZES[0][1]:,}, by faiss:")
    by_faiss(*SIZES[0])
    (fewer, count), (more, _) = SIZES[2:]
    # What more images cost, beside those that are there: without what is done once.
    more_s, fewer_s = costs[more, count], costs[fewer, count]
    forecast(2 * (more - fewer) * count * DIM, more_s.wall_s - fewer_s.wall_s, more_s.cpu_s - fewer_s.cpu_s, num_cores)


def in_a_process(dataset: Path, *options: str) -> Cost:
    command = [sys.executable, "-m", "tests.benchmarks.sentence_selection", "one", "--dataset", str(dataset), *options]
    return Cost(**json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def by_faiss(num_images: int, num_sentences: int) -> None:
    """The two searches that faiss needs for the same: the nearest sentences, and the nearest image."""
    images, sentences = unit(num_images, 0), unit(num_sentences, 1)
    for ones, twos, count, what in ((images, sentences, NEAREST, "sentences"), (sentences, images, 1, "image")):
        start = time.process_time()
        faiss.knn(ones, twos, count, metric=faiss.METRIC_INNER_PRODUCT)
        print(f"faiss.knn, all in memory, nearest {what}: {time.process_time() - start:.1f} s of CPU", flush=True)


def forecast(flop: float, wall_s: float, cpu_s: float, num_cores: int) -> None:
    """For DIME-FM's images and sentences."""
    full = 2 * FULL_IMAGES * FULL_SENTENCES * DIM
    core_h = full / flop * cpu_s / 3600
    print(f"\n{FULL_IMAGES:,} images against {FULL_SENTENCES:,} sentences of {DIM} dims: {full:.2e} flop")
    print(
        f"more images at {flop / wall_s / 1e9:.0f} Gflop/s on {num_cores} cores, {flop / cpu_s / 1e9:.0f} a core of CPU"
    )
    print(f"{core_h:,.0f} core-hours: {core_h / 64 / 24:.1f} days on 64 such cores, if all of them keep that rate")
    print(f"{full / H100_FLOPS / 3600:.1f} h of products alone on a GPU of {H100_FLOPS / 1e12:.0f} Tflop/s (not done)")
    rows, tops = FULL_SENTENCES * DIM * 2, FULL_IMAGES * NEAREST * 4
    print(f"temporary files: {rows / 1e9:.1f} GB of sentences, {tops / 1e9:.1f} GB of nearest ones")


def unit(rows: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, DIM), np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values


def shown(cost: Cost) -> str:
    memory = f"peak {cost.private_mb:.0f} MB of its own, {cost.peak_mb:.0f} MB with pages of files"
    return f"{cost.wall_s:.1f} s, {cost.cpu_s:.1f} s of CPU, {memory}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("real", "cost", "one"))
    parser.add_argument("--sentences", default=str(SHARED / "data/sentences.txt"))
    parser.add_argument("--teacher", default=str(SHARED / "teachers/cifar10-a"))
    parser.add_argument("--images", default=str(SHARED / "data/cifar10/train"))
    parser.add_argument("--probe", type=int)
    parser.add_argument("--dataset", help="Instead of building one: a folder with a corpus `captions`.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if asked.part == "one":
            criteria = SentenceCriteria(corpora=("made_up",), nearest=NEAREST, probe=asked.probe)
            with measured() as one:
                select_sentences(open_dataset(asked.dataset), str(folder / "s.parquet"), criteria)
            print(json.dumps(asdict(one)))
            return
        if asked.part in (None, "real") and (asked.dataset or Path(asked.sentences).is_file()):
            real(asked.dataset or build(folder, asked.sentences, asked.teacher, asked.images), folder)
        if asked.part in (None, "cost"):
            cost(folder)


if __name__ == "__main__":
    main()
