"""Tars in the published layout of DataCompDR, written by its rules alone: nothing of `reinforce.exchange` helps."""

import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from tests.tars import Members, image_bytes, write_tar

NUM_VIEWS, NUM_SYNTHETIC = 3, 2
WIDTHS = {"first": 12, "second": 8}
SIZE = (60, 40)

Rows = Float32[np.ndarray, "rows dim"]


def unit_rows(generator: np.random.Generator, num_rows: int) -> Rows:
    """The unit vectors of both teachers, side by side."""
    parts = [generator.standard_normal((num_rows, dim)) for dim in WIDTHS.values()]
    rows = np.concatenate([part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts], axis=1)
    return np.asarray(rows, np.float32)


def param_aug(generator: np.random.Generator, num_views: int = NUM_VIEWS) -> list[Any]:
    """Boxes within an image of `SIZE` and two operations each."""
    views = []
    for _ in range(num_views):
        width, height = int(generator.integers(10, SIZE[0])), int(generator.integers(10, SIZE[1]))
        top, left = int(generator.integers(SIZE[1] - height + 1)), int(generator.integers(SIZE[0] - width + 1))
        views.append([[top, left, height, width], [[4, -30.453], [9, 0.27]]])
    return views


def with_arrays(generator: np.random.Generator, num_text_rows: int) -> tuple[Rows, Rows]:
    """The embeddings of views and texts that come from this generator, which has drawn nothing yet."""
    param_aug(generator)
    return unit_rows(generator, NUM_VIEWS), unit_rows(generator, num_text_rows)


def with_json(
    sample: dict[str, bytes], suffix: str, field: str, change: Callable[[list[Any]], list[Any]]
) -> dict[str, bytes]:
    """The sample with a list of one of its documents changed."""
    document = json.loads(sample[suffix])
    return sample | {suffix: json.dumps({**document, field: change(document[field])}).encode()}


def published_sample(
    index: int,
    *,
    is_joined: bool = True,
    is_bf16: bool = False,
    is_string: bool = False,
    num_text_rows: int = 1 + NUM_SYNTHETIC,
) -> dict[str, bytes]:
    """Members of one sample, by suffix."""
    generator = np.random.default_rng(index)
    views = param_aug(generator)
    arrays = {"image_emb": unit_rows(generator, NUM_VIEWS), "text_emb": unit_rows(generator, num_text_rows)}
    members = {
        "url.txt": f"https://example.org/{index}.jpg".encode(),
        "syn.json": json.dumps({"syn_text": [f"synthetic {i} of {index}" for i in range(NUM_SYNTHETIC)]}).encode(),
        "paug.json": json.dumps({"param_aug": json.dumps(views) if is_string else views}).encode(),
        "json": json.dumps({"uid": f"{index:032x}", "sha256": "0" * 64}).encode(),
    }
    file = io.BytesIO()
    if is_bf16:
        torch.save({name: torch.from_numpy(rows).bfloat16() for name, rows in arrays.items()}, file)
        members["pth.gz"] = gzip.compress(file.getvalue())
    else:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        members["npz"] = file.getvalue()
    if is_joined:
        members |= {"jpg": image_bytes(index, *SIZE, "JPEG"), "txt": f"original caption of {index}".encode()}
    return members


def write_published(path: Path, samples: Sequence[dict[str, bytes]]) -> Path:
    """A tar of these samples under keys of 32 hexadecimal digits."""
    members: Members = [
        (f"{index:032x}.{suffix}", data) for index, sample in enumerate(samples) for suffix, data in sample.items()
    ]
    return write_tar(path, members)
