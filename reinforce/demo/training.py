"""What training a teacher and training the captioner share: painted scenes in memory, and the loop that fits."""

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image
from safetensors.torch import save_file

from reinforce.demo.painting import render_scene
from reinforce.demo.scenes import TRAINING_SEEDS, Scene, draw_scene
from reinforce.demo.shards import encode_jpeg

Batch = TypeVar("Batch")
TrainingData = list[tuple[Scene, Image.Image]]


def paint_training_data(num_images: int) -> TrainingData:
    """Scenes with their images in the sizes and with the compression of the demo's shards, decoded once."""
    rng = np.random.default_rng(TRAINING_SEEDS)
    scenes = [draw_scene(TRAINING_SEEDS + index) for index in range(num_images)]
    sizes = rng.integers(80, 161, size=(num_images, 2))
    return [
        (scene, _through_jpeg(render_scene(scene, (int(width), int(height)))))
        for scene, (width, height) in zip(scenes, sizes, strict=True)
    ]


def _through_jpeg(image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(encode_jpeg(image, quality=87))).convert("RGB")


def shuffled(data: TrainingData, batch_size: int, seed: int = 1) -> Iterator[TrainingData]:
    """Endless batches that pass over the data in ever new orders."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(data))
        for start in range(0, len(data) - batch_size + 1, batch_size):
            yield [data[index] for index in order[start : start + batch_size]]


def class_labels(scenes: list[Scene]) -> Int64[torch.Tensor, " batch"]:
    return torch.tensor([scene.class_index for scene in scenes])


def fit(
    name: str,
    model: torch.nn.Module,
    loss_of: Callable[[Batch], torch.Tensor],
    data: Iterator[Batch],
    num_steps: int,
    learning_rate: float,
) -> None:
    """AdamW with a warm-up and a cosine, the usual recipe."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, num_steps, pct_start=0.1)
    model.train()
    started_s = time.monotonic()
    for step in range(1, num_steps + 1):
        loss = loss_of(next(data))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"{name} step {step} loss {loss.item():.3f} elapsed_s {time.monotonic() - started_s:.0f}", flush=True)
    model.eval()


def save_half(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Half precision halves the repository's share; both libraries load it into single-precision models."""
    halves = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    save_file(halves, path, metadata={"format": "pt"})
    path.chmod(0o644)
