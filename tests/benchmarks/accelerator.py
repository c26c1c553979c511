"""How near a build comes to what the device can do, for two ViT-L/14 teachers. Its figures need an accelerator.

    python -m tests.benchmarks.accelerator [--images N] [--batch-size N] [--workers N] [--compile] [--captioner]
    python -m tests.benchmarks.accelerator --tiny          (a tiny architecture, on any machine: proves that this runs)

Random weights, generated photographs in local tars, 5 views and the clean one, one original and two synthetic captions,
which are read, or written by a CoCa of random weights (`--captioner`). Three sides take turns, medians of rounds:

- the build, as `reinforce build` does it, in bf16;
- the same image towers alone, all in bf16, eager and compiled, on a batch that is on the device already: the most that
  any build could reach. The build embeds texts too, which this leaves out;
- one batch in the order of RayGen's published code: decode, augment and embed in turn, fp32, a batch of images for one
  view at a time, texts in the whole context. With our decoder and renderer, so that only order and precision differ.

Needs neither a network, nor Ray, nor a bucket; a C compiler for the towers alone; 3.5 GB of disk, 6 with the captioner.
"""

import argparse
import json
import re
import shutil
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch.utils.flop_counter import FlopCounterMode

from reinforce.config import BuildConfig, ViewPolicy
from reinforce.decode import decode
from reinforce.plan import BuildPlan, load_plan
from reinforce.views.draw import draw, view_seed
from reinforce.views.render import render
from tests.benchmarks.photographs import WORDS, photographs, write_shards
from tests.benchmarks.timing import alternate, measure
from tests.fakes import run
from tests.models import TEXT, VISION, save_open_clip

NUM_VIEWS = 6
GOAL = 0.9
# Dense bf16, from the makers' data sheets.
PEAK_TFLOPS = ((r"H100.*HBM3", 989), (r"H200", 989), (r"A100", 312), (r"\bL4\b", 121))


@dataclass
class Job:
    """What is measured. `device_use` are samples taken while builds run, in %."""

    arguments: argparse.Namespace
    folder: Path
    models: list[str]
    photographs: list[bytes]
    plan: BuildPlan
    device: torch.device
    device_use: list[float] = field(default_factory=list)
    stage_seconds: list[dict[str, float]] = field(default_factory=list)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, help="of a build; default 4096, or 48 if tiny")
    parser.add_argument("--batch-size", type=int, help="default 256, or 8 if tiny")
    parser.add_argument("--workers", type=int, help="decode and render threads, default as a build's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="build.compile")
    parser.add_argument("--captioner", action="store_true", help="write the captions with a CoCa of random weights")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    arguments.images = arguments.images or (48 if arguments.tiny else 4096)
    arguments.batch_size = arguments.batch_size or (8 if arguments.tiny else 256)
    return arguments


def model_config(name: str, *, tiny: bool) -> dict[str, Any]:
    """open_clip's configuration of an architecture, or a tiny one of the kind."""
    config: dict[str, Any] = dict(open_clip.get_model_config(name) or {})
    if not tiny:
        return config
    context = {"context_length": 77}
    small: dict[str, Any] = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT | context}
    if "multimodal_cfg" in config:
        pooled = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
        small["vision_cfg"] = VISION | pooled
        small["text_cfg"] = TEXT | context | {"embed_cls": True, "output_tokens": True}
        small |= {"multimodal_cfg": TEXT | context, "custom_text": True}
    return small


def load(arguments: argparse.Namespace, folder: Path, images: Sequence[bytes]) -> Job:
    tiny, on_cuda = arguments.tiny, torch.cuda.is_available()
    precision = "bf16" if on_cuda else "fp32"
    models = [
        save_open_clip(folder / f"teacher{seed}", seed, **model_config("ViT-L-14", tiny=tiny)) for seed in range(2)
    ]
    captioner: dict[str, Any] = {"kind": "files", "field": "json.synthetic"}
    if arguments.captioner:
        coca = save_open_clip(folder / "coca", **model_config("coca_ViT-L-14", tiny=tiny))
        captioner = {"kind": "open_clip", "model": coca, "precision": precision, "top_p": 0.9}
    config = {
        "batch_size": arguments.batch_size,
        "workers": arguments.workers,
        "compile": arguments.compile,
        "views": {"count": NUM_VIEWS - 1},
        "source": {"captions": ["txt"], "max_captions": 1},
        "teachers": {f"t{i}": {"model": model, "precision": precision} for i, model in enumerate(models)},
        "captioners": {"synthetic": captioner | {"num_captions": 2}},
    }
    plan = load_plan(BuildConfig.model_validate(config))
    return Job(arguments, folder, models, list(images), plan, torch.device("cuda" if on_cuda else "cpu"))


def build(job: Job, *, limit_samples: int | None = None) -> None:
    """One build to an output of its own, with what its log and the device say of it."""
    plan = BuildPlan(job.plan.config, job.plan.teachers, job.plan.captioners, limit_samples=limit_samples)
    output = job.folder / "out"
    with sampled(job.device_use if limit_samples is None else []):
        summary = run(plan, job.folder / "in", output)
    assert summary.failed == {}, summary.failed
    if limit_samples is None:
        (log,) = output.glob("runs/*/*.jsonl")
        job.stage_seconds.append(json.loads(log.read_text().splitlines()[-2])["stage_seconds"])
    shutil.rmtree(output)


@contextmanager
def sampled(samples: list[float]) -> Iterator[None]:
    """Adds the device's utilisation five times a second, where it can be asked."""
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(0.2):
            try:
                samples.append(torch.cuda.utilization())
            except Exception:  # no CUDA, or no library that asks it
                return

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def image_tower(job: Job, model: str) -> Any:
    """A tower of the same weights, all of it in bf16 on an accelerator."""
    tower = open_clip.create_model(model).visual.eval().to(job.device)
    return tower.bfloat16() if job.device.type == "cuda" else tower


def gflop_per_view(job: Job, towers: Sequence[Any]) -> float:
    """Multiplications and additions of one view through all towers."""
    size = job.plan.teachers[0].image_size
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for tower in towers:
            tower(torch.zeros(1, 3, size, size, device=job.device, dtype=next(tower.parameters()).dtype))
    return float(counter.get_total_flops()) / 1e9


@torch.inference_mode()
def forward(job: Job, towers: Sequence[Any], num_passes: int) -> None:
    """`num_passes` of a batch through every tower, then waits for the device."""
    size, dtype = job.plan.teachers[0].image_size, torch.bfloat16 if job.device.type == "cuda" else torch.float32
    batch = torch.randn(job.arguments.batch_size, 3, size, size, device=job.device).to(dtype)
    for _ in range(num_passes):
        for tower in towers:
            tower(batch)
    synchronize(job.device)


def prepare(job: Job, index: int) -> np.ndarray:
    """Decodes a photograph and renders all its views."""
    image = decode(job.photographs[index % len(job.photographs)], 10**9)
    assert isinstance(image, np.ndarray)
    seed, size = view_seed(0, str(index)), job.plan.teachers[0].image_size
    views = (draw(ViewPolicy(), seed, view, image.shape[1], image.shape[0]) for view in range(NUM_VIEWS))
    return np.stack([render(image, view, size) for view in views])


@torch.inference_mode()
def in_turn(job: Job, models: Sequence[Any]) -> None:
    """One batch of images in RayGen's order, in fp32."""
    batch_size = job.arguments.batch_size
    views = np.stack([prepare(job, index) for index in range(batch_size)])
    texts = [" ".join(np.roll(WORDS, index)[:12]) for index in range(batch_size)]
    tokens = open_clip.get_tokenizer(job.models[0])(texts).to(job.device)
    for model in models:
        for view in range(NUM_VIEWS):
            pixels = torch.from_numpy(views[:, view]).permute(0, 3, 1, 2).float().div_(255)
            model.encode_image((pixels.to(job.device) - 0.45) / 0.27, normalize=True).cpu()
        for _ in range(3):
            model.encode_text(tokens, normalize=True).cpu()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def fastest_towers(job: Job, num_passes: int) -> tuple[list[Any], str]:
    """The towers, eager or compiled, whichever has the shorter passes."""
    towers = [image_tower(job, model) for model in job.models]
    compiled = [torch.compile(tower, dynamic=False) for tower in towers]
    sides: dict[str, Callable[[], object]] = {
        "eager": partial(forward, job, towers, num_passes),
        "compiled": partial(forward, job, compiled, num_passes),
    }
    if job.device.type != "cuda" and not job.arguments.compile:
        return towers, "eager"
    costs = alternate(sides, 2)
    return (compiled, "compiled") if costs["compiled"].wall_s < costs["eager"].wall_s else (towers, "eager")


def main() -> None:
    arguments = parse()
    # Attention as autocast on cuda has it, on every side: through scaled_dot_product_attention.
    torch.backends.mha.set_fastpath_enabled(False)
    with tempfile.TemporaryDirectory() as temporary:
        folder, images = Path(temporary), photographs()
        write_shards(folder / "in", images, arguments.images)
        job = load(arguments, folder, images)
        num_passes = max(1, arguments.images * NUM_VIEWS // arguments.batch_size // 4)
        towers, kind = fastest_towers(job, num_passes)
        gflop = gflop_per_view(job, [image_tower(job, model) for model in job.models])
        serial = [open_clip.create_model(model).eval().to(job.device) for model in job.models]
        build(job, limit_samples=2 * arguments.batch_size)
        prepare_s = measure(lambda: [prepare(job, index) for index in range(len(images))]).cpu_s / len(images)
        sides: dict[str, Callable[[], object]] = {
            "build": partial(build, job),
            "alone": partial(forward, job, towers, num_passes),
            "in turn": partial(in_turn, job, serial),
        }
        for side in ("alone", "in turn"):
            sides[side]()
        costs = alternate(sides, arguments.rounds, with_warm_up=False)
        report_device(job, num_passes * arguments.batch_size / costs["alone"].wall_s, gflop, kind)
        report_build(job, {name: cost.wall_s for name, cost in costs.items()}, num_passes, prepare_s)


def report_device(job: Job, views_s: float, gflop: float, kind: str) -> None:
    """What the towers alone reach. A view counts once, and goes through both."""
    name = torch.cuda.get_device_name() if job.device.type == "cuda" else "no accelerator: these figures say nothing"
    peak = next((tflops for pattern, tflops in PEAK_TFLOPS if re.search(pattern, name)), None)
    reached = views_s * gflop / 1e3
    share = f"{100 * reached / peak:.0f} % of its {peak} dense bf16" if peak else "its peak is not known here"
    print(f"device               {name}; loading took {job.plan.load_s:.1f} s")
    print(
        f"towers alone         {views_s:,.1f} views/s, {kind}; {gflop:.3g} GFLOP a view, {reached:.3g} TFLOP/s, {share}"
    )


def report_build(job: Job, wall_s: dict[str, float], num_passes: int, prepare_s: float) -> None:
    """What a build reaches of it, and what it needs."""
    batch_size, num_images = job.arguments.batch_size, job.arguments.images
    alone_images_s = num_passes * batch_size / wall_s["alone"] / NUM_VIEWS
    build_images_s, serial_images_s = num_images / wall_s["build"], batch_size / wall_s["in turn"]
    stages = {
        stage: statistics.median(seconds.get(stage, 0.0) for seconds in job.stage_seconds)
        for stage in ("decode", "render", "captioner", "teachers", "write")
    }
    in_models = (stages["captioner"] + stages["teachers"]) / wall_s["build"]
    use = f"{statistics.mean(job.device_use):.0f} % by its own count" if job.device_use else "its own count is not here"
    cores = f"{prepare_s * build_images_s:.1f} cores feed the build, {prepare_s * alone_images_s:.1f} the towers alone"
    print(f"build                {build_images_s:,.1f} images/s, {NUM_VIEWS * build_images_s:,.1f} views/s")
    print(f"build / towers alone {build_images_s / alone_images_s:.3f} (goal {GOAL})")
    print(f"device busy          {use}; {100 * in_models:.0f} % of the build's wall time is inside models")
    print("stages of a build    " + ", ".join(f"{stage} {spent:.1f} s" for stage, spent in stages.items()))
    print(f"decode and render    {1e3 * prepare_s:.1f} ms of CPU an image; {cores}")
    print(
        f"in turn, fp32        {serial_images_s:,.1f} images/s, build / in turn {build_images_s / serial_images_s:.2f}"
    )


if __name__ == "__main__":
    main()
