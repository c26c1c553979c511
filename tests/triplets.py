"""A dataset that triplets are mined of, and the settings of a student that mines them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from reinforce.shards.banks import Bank, bank_content, record_bank, write_bank
from reinforce.shards.dataset import open_dataset
from reinforce.shards.schema import fingerprint
from reinforce.student.batch import Batch
from reinforce.teachers import FakeTeacher
from tests.fakes import fake_plan, run
from tests.tars import image_bytes, write_tar

MODEL: dict[str, Any] = {"backbone": "test_efficientnet", "image_size": 24, "embed_dim": 12, "text": None}
SIZES = {"a": 17, "b": 16}
NUM_NEGATIVES = 2


def random_batch(num_rows: int) -> Batch:
    images = torch.randint(0, 256, (num_rows, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(
        keys=[str(row) for row in range(num_rows)],
        stems=["a"] * num_rows,
        images=images,
        texts={},
        teacher_images={},
        teacher_texts={},
    )


def build_pairs(folder: Path) -> Path:
    """33 images in two shards, each with a thermal one, a teacher, a bank."""
    index = 0
    for stem, size in SIZES.items():
        images = [(f"{n}.png", image_bytes(n, 30, 30)) for n in range(index, index + size)]
        thermal = [(f"{n}.ir.png", image_bytes(100 + n, 30, 30)) for n in range(index, index + size)]
        write_tar(folder / "in" / f"{stem}.tar", [part for pair in zip(images, thermal, strict=True) for part in pair])
        index += size
    teacher = FakeTeacher("large", dim=12, image_size=24)
    config = {
        "views": {"count": 3},
        "source": {"captions": [], "max_captions": 0},
        "modalities": {"thermal": "ir.png"},
    }
    assert not run(fake_plan(config, teachers=[teacher], captioners=[]), folder / "in", folder / "data").failed
    save_bank(folder / "data", teacher)
    return folder / "data"


def save_bank(dataset: Path, teacher: FakeTeacher) -> None:
    """Three labels, by which the teacher's clean views differ: each near to some of them."""
    opened = open_dataset(str(dataset))
    rows = opened.numpy("embeddings/large/image", "a", "view_000").astype(np.float32)
    labels = rows[[0, 5, 9]] - rows.mean(axis=0)
    content = bank_content(("cat", "sky", "dog"), ("{}",))
    record_bank(opened.store, "things", content, num_duplicates=0)
    bank = Bank(
        name="things",
        teacher="large",
        labels=("cat", "sky", "dog"),
        templates=("{}",),
        embeddings=labels / np.linalg.norm(labels, axis=1, keepdims=True),
        logit_scale=10.0,
        logit_bias=None,
        weights_sha256=teacher.text_content()["weights_sha256"],
        fingerprint=fingerprint(content),
    )
    write_bank(opened.store, bank, content=content, num_truncated_texts=0)


def settings(**student: Any) -> dict[str, Any]:
    defaults = {"model": MODEL, "loss": {"kind": "triplet", "bank": "things", "num_negatives": NUM_NEGATIVES}}
    return defaults | {"batch_size": 5, "data": {"workers": 0}} | student
