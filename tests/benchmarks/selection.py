"""How well `reinforce select` finds what it should: planted near-duplicates, wrong captions; and what `--dedup` costs.

    python -m tests.benchmarks.selection [duplicates|scores|cost]    (about 15 minutes on one core)

`duplicates` needs ../shared: CIFAR-10 test images and COCO photographs with planted copies, and two teachers that were
trained on CIFAR-10. `scores`: 3,000 demo scenes, whose wrong captions are known, and the demo's teachers, which were
trained on such scenes. `cost`: 50,000 made-up clean views of 512 dims, in a process of its own.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from reinforce.demo.shards import write_scenes
from reinforce.selection import Criteria, read_selection, select_samples
from reinforce.selection.outcome import describe
from reinforce.shards.dataset import open_dataset
from tests.benchmarks.memory import status_kb
from tests.benchmarks.studies import SHARED, reinforce
from tests.clean_views import write_clean_views
from tests.tars import encode, write_tar

THRESHOLDS = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
SCORES = (0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4)
NUM_ROWS, DIM, ROWS_PER_SHARD = 50_000, 512, 2_000


def _resized(image: Image.Image, share: float) -> Image.Image:
    return image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, share: float) -> Image.Image:
    """Without that share of each side at each edge; at least a pixel."""
    x, y = (max(1, round(side * share)) for side in image.size)
    return image.crop((x, y, image.width - x, image.height - y))


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "recompressed, quality 75": lambda image: encode(image, "JPEG", quality=75),
    "recompressed, quality 40": lambda image: encode(image, "JPEG", quality=40),
    "resized to 3/4": lambda image: encode(_resized(image, 0.75), "JPEG", quality=90),
    "resized to 1/2": lambda image: encode(_resized(image, 0.5), "JPEG", quality=90),
    "cropped by 3 % an edge": lambda image: encode(_cropped(image, 0.03), "JPEG", quality=90),
    "cropped by 6 % an edge": lambda image: encode(_cropped(image, 0.06), "JPEG", quality=90),
    "3/4, 3 % an edge, quality 60": lambda image: encode(_resized(_cropped(image, 0.03), 0.75), "JPEG", quality=60),
}


def images_of(tars: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if member.name.endswith(".jpg") and file is not None:
                    yield Path(member.name).stem, file.read()


def duplicates(name: str, tars: Sequence[Path], num_copied: int, folder: Path) -> None:
    """A dataset of these images, and copies of the first of them in shards that come after."""
    images = list(images_of(tars))
    every = max(1, len(images) // num_copied)
    write_tar(folder / "in" / "00000.tar", [(f"{key}.jpg", data) for key, data in images])
    for number, change in enumerate(CHANGES.values(), start=1):
        copies = [(key, Image.open(io.BytesIO(data)).convert("RGB")) for key, data in images[::every]]
        write_tar(folder / "in" / f"{number:05d}.tar", [(f"{key}.jpg", change(image)) for key, image in copies])
    command = ["build", "--shards", str(folder / "in"), "--recipe", "pipelines/cifar10.yaml"]
    narrow = ["--set", "build.views.count=0", "--set", "build.source.captions=[]"]
    reinforce([*command, *narrow, "--output", str(folder / "out")])
    num_copies = len(images[::every])
    print(f"\n{name}: {len(images):,} images, {num_copies} copies of each kind", flush=True)
    for teacher in ("cifar10_a", "cifar10_b"):
        print(f"\n{teacher}: share of the copies that is left out, by `--dedup`\n")
        print(f"| | {' | '.join(f'{t:g}' for t in THRESHOLDS)} |\n|---|{'---|' * len(THRESHOLDS)}")
        for number, row in enumerate(CHANGES, start=1):
            # Beside the originals alone: a copy of another kind might be nearer.
            found = [_left_out(folder, teacher, threshold, ("00000", f"{number:05d}")) for threshold in THRESHOLDS]
            print(f"| {row} | {' | '.join(f'{len(copies) / num_copies:.3f}' for _, copies in found)} |")
        found = [_left_out(folder, teacher, threshold) for threshold in THRESHOLDS]
        recalls = [len(copies) / (num_copies * len(CHANGES)) for _, copies in found]
        precisions = [len(copies) / max(1, len(originals) + len(copies)) for originals, copies in found]
        print(f"| all at once: recall | {' | '.join(f'{recall:.3f}' for recall in recalls)} |")
        print(f"| originals left out | {' | '.join(str(len(originals)) for originals, _ in found)} |")
        print(f"| precision | {' | '.join(f'{precision:.3f}' for precision in precisions)} |", flush=True)


def _left_out(
    folder: Path, teacher: str, threshold: float, stems: Sequence[str] = ()
) -> tuple[list[str], list[tuple[str, str]]]:
    """The originals and the copies that a selection leaves out, of these shards or of all."""
    dataset, output = open_dataset(str(folder / "out")), str(folder / "selected.parquet")
    keys = {stem: dataset.spine(stem).column("key").to_pylist() for stem in stems or dataset.stems}
    pairs = {"stem": [stem for stem in keys for _ in keys[stem]], "key": [key for stem in keys for key in keys[stem]]}
    pq.write_table(pa.table(pairs), folder / "within.parquet")
    within = (str(folder / "within.parquet"),)
    select_samples(dataset, output, Criteria(dedup=threshold, teachers=(teacher,), within=within))
    selection = read_selection(output)
    kept_keys = {stem: selection.keys(stem) for stem in keys}
    gone = {stem: [key for key in keys[stem] if key not in kept_keys[stem]] for stem in keys}
    return gone.pop("00000"), [(stem, key) for stem in gone for key in gone[stem]]


def scores(folder: Path) -> None:
    """Wrong captions among the demo's, found by `--min-score`."""
    write_scenes(folder / "in", num_images=3000)
    narrow = ["--set", "build.views.count=0", "--set", "build.captioners={}"]
    reinforce(["build", "--shards", str(folder / "in"), "--recipe", "demo", "--output", str(folder / "out"), *narrow])
    dataset, noise = open_dataset(str(folder / "out")), dict(_noise(folder / "in"))
    for teachers in (("demo_a",), ("demo_b",), ("demo_a", "demo_b")):
        print(f"\n{' and '.join(teachers)}: captions of another scene (`wrong`) and file names (`junk`) left out\n")
        print(
            "| `--min-score` | left out | precision | recall | of wrong | of junk | right ones lost | terse ones lost |"
        )
        print("|---|---|---|---|---|---|---|---|")
        everything = Criteria(min_score=-1, teachers=teachers)
        for bound in SCORES:
            output = str(folder / "selected.parquet")
            select_samples(dataset, output, everything)
            scored = _pairs(output)
            select_samples(dataset, output, Criteria(min_score=bound, teachers=teachers))
            gone = scored - _pairs(output)
            shares = {kind: _share(gone, scored, noise, {kind}) for kind in ("wrong", "junk", "right", "terse")}
            false = {"wrong", "junk"}
            precision = sum(noise[key] in false for key in gone) / len(gone) if gone else float("nan")
            figures = [precision, _share(gone, scored, noise, false), *shares.values()]
            print(f"| {bound:g} | {len(gone):,} | {' | '.join(f'{figure:.3f}' for figure in figures)} |", flush=True)


def _noise(folder: Path) -> Iterator[tuple[str, str]]:
    """What is wrong with the caption of each key."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if member.name.endswith(".json") and file is not None:
                    yield Path(member.name).stem, json.load(file)["noise"]


def _pairs(path: str) -> set[str]:
    """The keys of a selection; those of the demo are unique across shards."""
    selection = read_selection(path)
    return {key for stem in selection.stems for key in selection.keys(stem)}


def _share(gone: set[str], scored: set[str], noise: dict[str, str], kinds: set[str]) -> float:
    return sum(noise[key] in kinds for key in gone) / sum(noise[key] in kinds for key in scored)


def cost(folder: Path) -> None:
    """`--dedup` on made-up views, every twentieth of which is nearly another: time, and memory above the imports."""
    write_views(folder)
    Path("/proc/self/clear_refs").write_text("5")
    before_kb, start, cpu_s = status_kb("VmRSS"), time.perf_counter(), time.process_time()
    outcome = select_samples(open_dataset(str(folder)), str(folder / "selected.parquet"), Criteria(dedup=0.95))
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_s
    print(describe(outcome))
    peak_mb = (status_kb("VmHWM") - before_kb) / 1024
    print(f"{NUM_ROWS:,} x {DIM}: {wall_s:.0f} s, {cpu_s:.0f} s of CPU, peak {peak_mb:.0f} MB")
    mapped = 2 * NUM_ROWS * DIM * 4 / 2**20
    print(f"of that, pages of the temporary files that the system may take back: at most {mapped:.0f} MB")


def write_views(folder: Path) -> None:
    """A dataset of spines and one image signal, written without images."""
    generator = np.random.default_rng(0)
    views = generator.standard_normal((NUM_ROWS, DIM), np.float32)
    views[::20] = views[1::20] + 0.2 * views[::20]
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    starts = range(0, NUM_ROWS, ROWS_PER_SHARD)
    shards = {f"{start // ROWS_PER_SHARD:05d}": views[start : start + ROWS_PER_SHARD] for start in starts}
    write_clean_views(folder, shards, "made_up")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("duplicates", "scores", "cost"))
    part = parser.parse_args().part
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if part in (None, "duplicates") and (SHARED / "data").is_dir():
            data = SHARED / "data"
            duplicates("CIFAR-10 test", sorted((data / "cifar10/test").glob("*.tar")), 200, folder / "cifar10")
            duplicates("COCO photographs", sorted((data / "coco_mini").glob("*.tar")), 60, folder / "coco")
        if part in (None, "scores"):
            scores(folder / "scores")
        if part == "cost":
            cost(folder / "cost")
    if part is None:
        subprocess.run([sys.executable, "-m", "tests.benchmarks.selection", "cost"], check=True)


if __name__ == "__main__":
    main()
