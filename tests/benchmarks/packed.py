"""Packed tars beside format 1: bytes, speed of an epoch, and what making images smaller does to the views.

    python -m tests.benchmarks.packed        (about 15 minutes on two cores)

Sizes and speed: photographs of full size, random embeddings of two teachers, the same dataset read by the same reader
from each. Views of smaller images: the photographs and teachers of ../shared; without them that part is left out.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from reinforce.captioners import FakeCaptioner
from reinforce.config import BuildConfig, DataConfig, TeacherConfig, ViewPolicy
from reinforce.decode import decode
from reinforce.exchange.pack import PackOptions, pack
from reinforce.exchange.pictures import Picture, pack_picture, scaled_edges
from reinforce.plan import BuildPlan
from reinforce.sample import RGB, Box, Pixels, View
from reinforce.shards.explicit import Size
from reinforce.student.plan import plan_reading
from reinforce.student.reader import ReinforcedDataset
from reinforce.student.tokenizer import StudentTokenizer
from reinforce.teachers import Teacher, load_teacher
from reinforce.views.draw import draw, view_seed
from reinforce.views.render import render
from tests.benchmarks.student_reader import BATCH_ROWS, RandomTeacher, photographs, write_photographs
from tests.benchmarks.timing import RATIO, alternate
from tests.benchmarks.truth import SHARED, TEACHERS
from tests.fakes import run

NUM_SHARDS, SHARD_ROWS = 2, 300
NUM_ROWS = NUM_SHARDS * SHARD_ROWS
NUM_VIEWS = 10
NUM_ROUNDS = 5
SHORTEST_SIDE = 256
NUM_COMPARED_VIEWS = 5
MAX_PIXELS = 10**8

Cosines = dict[str, list[float]]

PACKINGS = {
    "packed, npz": PackOptions(),
    "packed, pth.gz": PackOptions(embeddings="pth.gz"),
    f"packed, npz, shortest side {SHORTEST_SIDE}": PackOptions(shortest_side=SHORTEST_SIDE),
    f"packed, pth.gz, shortest side {SHORTEST_SIDE}": PackOptions(embeddings="pth.gz", shortest_side=SHORTEST_SIDE),
}


def build(folder: Path) -> dict[str, Path]:
    """The dataset of photographs in format 1 and in every packing, by name."""
    write_photographs(folder / "source", list(photographs(shorter_side=None)), NUM_SHARDS, SHARD_ROWS)
    config = {
        "views": {"count": NUM_VIEWS},
        "source": {"captions": ["txt"], "max_captions": 1},
        "batch_size": 100,
        "workers": 1,
    }
    teachers = [RandomTeacher("teacher_a", 0), RandomTeacher("teacher_b", 1)]
    captioners = [FakeCaptioner("captioner", image_size=None, num_captions=5)]
    plan = BuildPlan(BuildConfig.model_validate(config), teachers, captioners)
    assert not run(plan, folder / "source", folder / "format 1").failed
    found = {"format 1, beside its source": folder / "format 1"}
    for name, options in PACKINGS.items():
        assert not pack(str(folder / "format 1"), str(folder / name), options=options).failed
        found[name] = folder / name
    return found


def bytes_below(*folders: Path) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def epoch(dataset: Path) -> Callable[[], None]:
    """An epoch of one process that reads, decodes and renders."""

    def read_all() -> None:
        plan = plan_reading(str(dataset), DataConfig(workers=0, open_shards=1))
        reader = ReinforcedDataset(
            plan, StudentTokenizer(context_length=77), batch_size=BATCH_ROWS, image_size=224, epochs=1
        )
        assert sum(len(batch) for batch in reader) == NUM_ROWS

    return read_all


def print_sizes_and_speed(folder: Path) -> None:
    found = build(folder)
    first = next(iter(found))
    costs = alternate({name: epoch(dataset) for name, dataset in found.items()}, NUM_ROUNDS)
    print(f"{NUM_ROWS:,} photographs, {NUM_VIEWS} views and 6 captions by two teachers of 768 values; {RATIO}\n")
    print("| | kB a sample | samples/s | CPU a sample | time, of format 1's |\n|---|---|---|---|---|")
    for name, dataset in found.items():
        size = bytes_below(dataset, folder / "source") if name == first else bytes_below(dataset)
        cost = costs[name]
        print(
            f"| {name} | {size / NUM_ROWS / 1000:,.0f} | {NUM_ROWS / cost.wall_s:,.0f} "
            f"| {cost.cpu_s / NUM_ROWS * 1000:.1f} ms | {cost.against(costs[first])} |",
            flush=True,
        )
    print(f"\nOf format 1, {bytes_below(folder / 'source') / NUM_ROWS / 1000:,.0f} kB a sample are the source.\n")


def shrunk(data: bytes, shortest_side: int) -> tuple[RGB, Size]:
    """The packed image, decoded, and its size."""
    found = pack_picture(data, MAX_PIXELS, shortest_side)
    assert isinstance(found, Picture)
    pixels = decode(found.data, MAX_PIXELS)
    assert isinstance(pixels, np.ndarray)
    return pixels, found.size


def whole_pixels(view: View, size: Size) -> View:
    """The view as loaders of the published layout cut it: its box in whole pixels of the packed image."""
    box = view.box
    assert box is not None
    left, width = scaled_edges(box.left, box.width, box.image_width, size[0])
    top, height = scaled_edges(box.top, box.height, box.image_height, size[1])
    return View(Box(top, left, height, width, *size), ops=view.ops)


def psnr(one: Pixels, other: Pixels) -> float:
    error = float(((one.astype(np.float64) - other) ** 2).mean())
    return 10 * float(np.log10(255**2 / error)) if error else 99.0


def quantiles(values: list[float], digits: int) -> str:
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def print_views_of_smaller_images() -> None:
    images = [data for data, _ in photographs(shorter_side=None)]
    policy = ViewPolicy()
    device = torch.device("cpu")
    teachers = [
        load_teacher(
            name,
            TeacherConfig(model=f"local-dir:{SHARED / 'teachers' / path}"),
            device=device,
            batch_size=NUM_COMPARED_VIEWS,
        )
        for name, path in TEACHERS.items()
    ]
    print(f"{len(images)} photographs in {NUM_COMPARED_VIEWS} augmented views; median (5 % to 95 %)\n")
    print("| images | box | PSNR at 224 px | cosine | cosine of neighbouring views |\n|---|---|---|---|---|")
    for shortest_side in (SHORTEST_SIDE, 384):
        for is_exact in (True, False):
            compared = [compare(data, i, policy, shortest_side, is_exact, teachers) for i, data in enumerate(images)]
            psnrs = [value for of_image, _, _ in compared for value in of_image]
            boxes = "exact fractions" if is_exact else "whole pixels"
            for name in TEACHERS:
                same = [value for _, of_teacher, _ in compared for value in of_teacher[name]]
                other = [value for _, _, of_teacher in compared for value in of_teacher[name]]
                row = (
                    f"| shortest side {shortest_side} | {boxes} | {quantiles(psnrs, 1)} | `{name}` {quantiles(same, 4)}"
                )
                print(f"{row} | {quantiles(other, 3)} |", flush=True)


def compare(
    data: bytes, index: int, policy: ViewPolicy, shortest_side: int, is_exact: bool, teachers: list[Teacher]
) -> tuple[list[float], Cosines, Cosines]:
    """PSNR and, by teacher, cosine of each view of the packed image with that of the image, and with the next view."""
    whole = decode(data, MAX_PIXELS)
    assert isinstance(whole, np.ndarray)
    packed, size = shrunk(data, shortest_side)
    seed = view_seed(0, str(index))
    views = [draw(policy, seed, number, whole.shape[1], whole.shape[0]) for number in range(1, NUM_COMPARED_VIEWS + 1)]
    cut = views if is_exact else [whole_pixels(view, size) for view in views]
    psnrs = [psnr(render(whole, one, 224), render(packed, other, 224)) for one, other in zip(views, cut, strict=True)]
    same: Cosines = {}
    other: Cosines = {}
    for teacher in teachers:
        ours = teacher.embed_images(np.stack([render(whole, view, teacher.image_size) for view in views]))
        theirs = teacher.embed_images(np.stack([render(packed, view, teacher.image_size) for view in cut]))
        same[teacher.name] = (ours * theirs).sum(axis=1).tolist()
        other[teacher.name] = (ours * np.roll(ours, 1, axis=0)).sum(axis=1).tolist()
    return psnrs, same, other


def main() -> None:
    torch.set_num_threads(1)
    if (SHARED / "teachers").is_dir():
        print_views_of_smaller_images()
        print()
    with tempfile.TemporaryDirectory() as folder:
        print_sizes_and_speed(Path(folder))


if __name__ == "__main__":
    main()
