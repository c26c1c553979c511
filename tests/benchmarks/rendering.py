"""How fast views are rendered, against torchvision on Pillow images, and whether a second worker is worth its core.

    python -m tests.benchmarks.rendering                    (about two minutes on two cores)

The photographs of ../shared/data/coco_mini, 5 augmented views of 224 px each, decoded once on both sides. The reference
is what training code does: Pillow's decoder, RandomResizedCrop (bicubic, antialiased), RandAugment, ToTensor,
Normalize. Ours ends with bytes, which a device normalises in passing. CPU time; sides in turns, medians of rounds.
"""

import io
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from reinforce.config import ViewPolicy
from reinforce.decode import decode
from reinforce.sample import Drop, View, ViewOp
from reinforce.views.draw import OP_NAMES, draw, view_seed
from reinforce.views.ops import apply_op
from reinforce.views.render import render
from tests.benchmarks.sizing import SHARDS, SIZE, read_images
from tests.benchmarks.timing import RATIO, alternate, with_range

NUM_VIEWS = 5
NUM_IMAGES = 60
NUM_ROUNDS = 5
OP_REPEATS = 200
PARALLEL_ROUNDS, PARALLEL_S = 5, 4.0

Images = list[tuple[str, bytes]]


def ours(images: Images) -> None:
    policy = ViewPolicy()
    for key, data in images:
        image = decode(data, 10**9)
        assert not isinstance(image, Drop)
        height, width, _ = image.shape
        seed = view_seed(0, key)
        for index in range(1, NUM_VIEWS + 1):
            render(image, draw(policy, seed, index, width, height), SIZE)


def reference(images: Images) -> None:
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                SIZE, scale=(0.08, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True
            ),
            transforms.RandAugment(num_ops=2, magnitude=9),
            transforms.ToTensor(),
            transforms.Normalize((0.481, 0.458, 0.408), (0.269, 0.261, 0.276)),
        ]
    )
    for _, data in images:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        for _ in range(NUM_VIEWS):
            transform(image)


def print_against_torchvision(images: Images) -> None:
    sides: dict[str, Callable[[], object]] = {"torchvision": partial(reference, images), "ours": partial(ours, images)}
    costs = alternate(sides, NUM_ROUNDS)
    print("| side | CPU an image | images/s of a core | views/s of a core |\n|---|---|---|---|")
    for name, cost in costs.items():
        per_image_s = cost.cpu_s / len(images)
        print(f"| {name} | {1000 * per_image_s:.2f} ms | {1 / per_image_s:,.0f} | {NUM_VIEWS / per_image_s:,.0f} |")
    print(f"\nThe reference's time is ours times {costs['torchvision'].against(costs['ours'])} ({RATIO})\n", flush=True)


def print_stages(images: Images) -> None:
    """Where our time goes: each stage alone."""
    policy = ViewPolicy()
    decoded = [(view_seed(0, key), decode(data, 10**9)) for key, data in images]
    drawn: list[tuple[np.ndarray, View]] = []
    for seed, image in decoded:
        assert not isinstance(image, Drop)
        for index in range(1, NUM_VIEWS + 1):
            drawn.append((image, draw(policy, seed, index, image.shape[1], image.shape[0])))
    rendered = [(render(image, View(view.box), SIZE), view.ops) for image, view in drawn]

    def decode_all() -> None:
        for _, data in images:
            decode(data, 10**9)

    def draw_all() -> None:
        for image, _ in drawn:
            draw(policy, 7, 3, image.shape[1], image.shape[0])

    def resize_all() -> None:
        for image, view in drawn:
            render(image, View(view.box), SIZE)

    def augment_all() -> None:
        for pixels, ops in rendered:
            for op in ops:
                pixels = apply_op(pixels, op)

    stages = {"decode": decode_all, "draw": draw_all, "crop and resize": resize_all, "operations": augment_all}
    costs = alternate(dict(stages), NUM_ROUNDS)
    print("| stage | CPU an image |\n|---|---|")
    for name, cost in costs.items():
        print(f"| {name} | {1000 * cost.cpu_s / len(images):.2f} ms |")
    print(flush=True)


def print_operations(images: Images) -> None:
    """Every operation on photographs, ours and torchvision's on Pillow images."""
    decoded = [decode(data, 10**9) for _, data in images[:20]]
    pixels = [render(image, View(box=None), SIZE) for image in decoded if not isinstance(image, Drop)]
    pillow = [Image.fromarray(image) for image in pixels]
    views = (draw(ViewPolicy(), seed, 1, 9, 9) for seed in range(300))
    values: dict[str, ViewOp] = {op.name: op for view in views for op in view.ops}

    def ours_on_all(op: ViewOp) -> None:
        for index in range(OP_REPEATS):
            apply_op(pixels[index % len(pixels)], op)

    def torchvision_on_all(op: ViewOp) -> None:
        value = op.value * SIZE if op.name.startswith("Translate") else op.value
        for index in range(OP_REPEATS):
            _apply_op(pillow[index % len(pillow)], op.name, value, InterpolationMode.NEAREST, None)

    print("| operation | ours | torchvision | ratio |\n|---|---|---|---|")
    totals = [0.0, 0.0]
    for name in OP_NAMES:
        sides: dict[str, Callable[[], object]] = {
            "ours": partial(ours_on_all, values[name]),
            "torchvision": partial(torchvision_on_all, values[name]),
        }
        costs = alternate(sides, 5)
        micros = [1e6 * costs[side].cpu_s / OP_REPEATS for side in ("ours", "torchvision")]
        totals = [total + spent / len(OP_NAMES) for total, spent in zip(totals, micros, strict=True)]
        print(f"| {name} | {micros[0]:.0f} us | {micros[1]:.0f} us | {micros[1] / micros[0]:.1f} |", flush=True)
    print(f"| mean of all | {totals[0]:.0f} us | {totals[1]:.0f} us | {totals[1] / totals[0]:.1f} |\n", flush=True)


def _count(images: Images, until: float) -> int:
    torch.set_num_threads(1)
    num_images = 0
    while time.monotonic() < until:
        ours([images[num_images % len(images)]])
        num_images += 1
    return num_images


def _count_in_process(images: Images, start: threading.Barrier, counted: "multiprocessing.Queue[int]") -> None:
    start.wait()
    counted.put(_count(images, time.monotonic() + PARALLEL_S))


def _processes(images: Images) -> float:
    """Images a second of two processes that share nothing."""
    context = multiprocessing.get_context("spawn")
    start, counted = context.Barrier(2), context.Queue()
    running = [context.Process(target=_count_in_process, args=(images, start, counted)) for _ in range(2)]
    for process in running:
        process.start()
    total: int = sum(counted.get() for _ in running)
    for process in running:
        process.join()
    return total / PARALLEL_S


def _threads(images: Images, num_threads: int) -> float:
    with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        until = time.monotonic() + PARALLEL_S
        counts: list[int] = list(pool.map(partial(_count, until=until), [images] * num_threads))
    return sum(counts) / PARALLEL_S


def print_parallel(images: Images) -> None:
    """Two threads against two processes; wall time, so the machine must be idle otherwise."""
    sides = {"one thread": partial(_threads, images, 1), "two threads": partial(_threads, images, 2)}
    sides["two processes"] = partial(_processes, images)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(PARALLEL_ROUNDS):
        for name, run in sides.items():
            rates[name].append(run())
    print("| workers | images/s of wall time | of two processes, median of rounds (range) |\n|---|---|---|")
    for name, found in rates.items():
        share = with_range(rate / both for rate, both in zip(found, rates["two processes"], strict=True))
        print(f"| {name} | {statistics.median(found):,.0f} | {share} |")


def main() -> None:
    torch.set_num_threads(1)
    images = read_images(SHARDS, NUM_IMAGES)
    print(f"{len(images)} photographs, {NUM_VIEWS} views of {SIZE} px, {NUM_ROUNDS} rounds\n")
    print_against_torchvision(images)
    print_stages(images)
    print_operations(images)
    print_parallel(images)


if __name__ == "__main__":
    main()
