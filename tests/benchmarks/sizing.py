"""How many cores feed a device: CPU seconds of decode and render an image, and what follows from them.

    python -m tests.benchmarks.sizing                       (about one minute, one thread)

The photographs of ../shared/data/coco_mini, decoded once and rendered at 224 px as a build does it, K augmented views
and the clean one; one torch thread. CPU time, not wall time: other work on the machine counts for nothing. In turns,
medians of rounds.
"""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from reinforce.config import SourceConfig, ViewPolicy
from reinforce.decode import decode
from reinforce.sample import Drop
from reinforce.shards.source import SourceShard
from reinforce.views.draw import draw, view_seed
from reinforce.views.render import render
from tests.benchmarks.timing import alternate
from tests.conftest import REPOSITORY

SIZE = 224
COUNTS = (5, 30)
NUM_ROUNDS = 5
NUM_IMAGES = 48
TEACHER_VIEWS_PER_S = (500, 1000, 2000, 4000)
SHARDS = REPOSITORY.parent / "shared" / "data" / "coco_mini"


def read_images(shards: Path, limit: int) -> list[tuple[str, bytes]]:
    """The first images of the shards, with their keys."""
    samples = (s for tar in sorted(shards.glob("*.tar")) for s in SourceShard(tar, SourceConfig()).samples())
    images = [(sample.key, sample.image) for sample in samples if sample.drop is None]
    return images[:limit]


def decode_all(images: list[tuple[str, bytes]]) -> None:
    for _, data in images:
        assert not isinstance(decode(data, SourceConfig().max_pixels), Drop)


def prepare_all(images: list[tuple[str, bytes]], num_views: int) -> None:
    """Decode once, render the clean view and `num_views` more."""
    for key, data in images:
        image = decode(data, SourceConfig().max_pixels)
        assert not isinstance(image, Drop)
        height, width, _ = image.shape
        for index in range(num_views + 1):
            render(image, draw(ViewPolicy(), view_seed(0, key), index, width, height), SIZE)


def main() -> None:
    torch.set_num_threads(1)
    images = read_images(SHARDS, NUM_IMAGES)
    num_kb = statistics.mean(len(data) for _, data in images) / 1e3
    print(f"{len(images)} photographs of {num_kb:.0f} kB, {SIZE} px, medians of {NUM_ROUNDS} rounds in turns\n")
    sides: dict[str, Callable[[], object]] = {"decode alone": partial(decode_all, images)}
    sides |= {f"K = {count}": partial(prepare_all, images, count) for count in COUNTS}
    costs = alternate(sides, NUM_ROUNDS)
    per_image_s = {name: cost.cpu_s / len(images) for name, cost in costs.items()}
    for name, spent_s in per_image_s.items():
        runs = sorted(1000 * run.cpu_s / len(images) for run in costs[name].runs)
        print(f"{name:<14} {1000 * spent_s:7.2f} ms of CPU an image ({runs[0]:.2f} to {runs[-1]:.2f})")
    rows = [f"| {rate:,} " for rate in TEACHER_VIEWS_PER_S]
    for count in COUNTS:
        per_view_s = per_image_s[f"K = {count}"] / (count + 1)
        print(f"K = {count}: {1000 * per_view_s:.2f} ms a view; {1 / per_view_s:,.0f} views/s a core")
        rows = [f"{row}| {rate * per_view_s:.1f} " for row, rate in zip(rows, TEACHER_VIEWS_PER_S, strict=True)]
    print("\n| views/s of the device | " + " | ".join(f"cores at K = {count}" for count in COUNTS) + " |")
    print("|" + "---|" * (1 + len(COUNTS)))
    print("\n".join(f"{row}|" for row in rows))


if __name__ == "__main__":
    main()
