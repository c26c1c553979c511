"""Whether an exported file gives the embeddings of the PyTorch student: cosines, and the nearest label of each image.

The file runs in onnxruntime on the CPU, as a device would run it, in batches and in part one image at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from reinforce.deploy.images import NormalisedImages
from reinforce.deploy.model_file import ModelLabels

BATCH_SIZE = 16
_NUM_ALONE = 8

Embeddings = Float32[np.ndarray, "images dim"]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Over `num_images`, the first of them also in a batch of one.

    `top1` is the part of the images that have the same nearest label; without labels, the part whose nearest embedding
    of PyTorch is that of the same image. `cosine_between_images` is the mean of two different images in PyTorch, which
    the other cosines have to be seen against; 1 of one image.
    """

    num_images: int
    min_cosine: float
    mean_cosine: float
    top1: float
    cosine_between_images: float


def compare(tower: torch.nn.Module, model: bytes, pixels: NormalisedImages, labels: ModelLabels | None) -> Agreement:
    """`model` is the file's content. NaN, where it gave any, is the least cosine."""
    expected, found = in_pytorch(tower, pixels), in_onnxruntime(model, pixels)
    alone = in_onnxruntime(model, pixels, batch_size=1, num_batches=_NUM_ALONE)
    cosines = _cosines(expected, found)
    targets = expected if labels is None else labels.embeddings
    nearest = np.arange(len(expected)) if labels is None else (expected @ targets.T).argmax(axis=1)
    return Agreement(
        num_images=len(pixels),
        min_cosine=float(np.min([cosines.min(), _cosines(expected[: len(alone)], alone).min()])),
        mean_cosine=float(cosines.mean()),
        top1=float(((found @ targets.T).argmax(axis=1) == nearest).mean()),
        cosine_between_images=_between_images(expected),
    )


def in_pytorch(tower: torch.nn.Module, pixels: NormalisedImages) -> Embeddings:
    with torch.inference_mode():
        return np.concatenate([tower(batch).numpy() for batch in batches(pixels, BATCH_SIZE)])


def in_onnxruntime(
    model: bytes, pixels: NormalisedImages, *, batch_size: int = BATCH_SIZE, num_batches: int | None = None
) -> Embeddings:
    """Of the first `num_batches`, by default of all."""
    session = open_session(model)
    return np.concatenate(
        [
            session.run(["embedding"], {"pixels": batch.numpy()})[0]
            for batch in islice(batches(pixels, batch_size), num_batches)
        ]
    )


def open_session(model: bytes) -> Any:
    """onnxruntime on the CPU with as many threads as torch, exact sums in int8 whatever the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # CPUs without VNNI add pairs of products in 16 bits, which overflow with weights of 8 bits; this avoids it.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def batches(pixels: NormalisedImages, size: int) -> Iterator[Float32[Tensor, "batch 3 size size"]]:
    return (pixels[start : start + size] for start in range(0, len(pixels), size))


def _cosines(expected: Embeddings, found: Embeddings) -> Float32[np.ndarray, " images"]:
    cosines: Float32[np.ndarray, " images"] = (expected.astype(np.float64) * found).sum(axis=1)
    return cosines


def _between_images(embeddings: Embeddings) -> float:
    num_images, mean = len(embeddings), embeddings.mean(axis=0, dtype=np.float64)
    return float((mean @ mean * num_images - 1) / (num_images - 1)) if num_images > 1 else 1.0
