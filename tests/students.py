"""What tests of student training share: a small dataset by fake models, and a tokenizer that can be read back."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from reinforce.config import DataConfig, Recipe
from reinforce.student.batch import Batch
from reinforce.student.journal import Journal
from reinforce.student.plan import ReadPlan, plan_reading
from reinforce.student.reader import ReinforcedDataset
from tests.fakes import fake_plan, run
from tests.tars import image_bytes, write_tar

SHARD_SIZES = {"a": 7, "folder/b": 12, "c": 5}
CORRUPT_KEYS = {"a-002"}
UNCAPTIONED_KEYS = {"folder/b-003", "c-000"}
NUM_USABLE = sum(SHARD_SIZES.values()) - len(CORRUPT_KEYS) - len(UNCAPTIONED_KEYS)

# A student without batch statistics: with them a part of a batch is not the batch.
MODEL = {
    "backbone": "test_vit",
    "image_size": 32,
    "embed_dim": 16,
    "text": {"context_length": 10, "width": 16, "heads": 2, "layers": 1},
}
TORCHRUN: dict[str, Any] = {"steps": 60, "checkpoint_every": 10}
"""How the run of the fixture `of_torchrun` differs from `recipe()`."""


_ARGUMENTS = ("shards", "root", "select", "uses_teachers", "reads_captions", "reads_sentences")
"""Of `plan_reading`."""


@contextmanager
def stopping_at(last_step: int) -> Iterator[None]:
    """Interrupts a training, as Ctrl-C does, when it has told of a step."""
    original = Journal.train

    def stop(self: Journal, step: int, *figures: Any) -> None:
        original(self, step, *figures)
        if step == last_step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "train", stop)
        yield


@dataclass(frozen=True)
class ByteTokenizer:
    """Texts as bytes plus 1, padded with 0, so that a test can read a batch's captions back."""

    length: int = 80

    def tokenize(self, texts: list[str]) -> tuple[Int64[Tensor, "texts context"], Bool[np.ndarray, " texts"]]:
        tokens = torch.zeros(len(texts), self.length, dtype=torch.int64)
        for row, text in zip(tokens, texts, strict=True):
            ids = torch.tensor([byte + 1 for byte in text.encode()[: self.length]], dtype=torch.int64)
            row[: len(ids)] = ids
        return tokens, np.array([len(text.encode()) > self.length for text in texts])


def text_of(tokens: Int64[Tensor, " context"]) -> str:
    return bytes(int(token) - 1 for token in tokens if token > 0).decode()


def write_source(folder: Path, *, offset: int = 0) -> Path:
    """Three shards of unequal size; one image is corrupt, two samples have no caption, some have two."""
    index = offset
    for stem, size in SHARD_SIZES.items():
        members = []
        for number in range(size):
            key, data = f"{stem}-{number:03d}", image_bytes(index, 40 + index % 3, 30)
            members.append((f"{key}.png", data[:-80] if key in CORRUPT_KEYS else data))
            if key not in UNCAPTIONED_KEYS:
                more = f', "another caption of {key}"' if number % 2 else ""
                members.append((f"{key}.json", f'{{"captions": ["caption of {key}"{more}]}}'.encode()))
            index += 1
        write_tar(folder / f"{stem}.tar", members)
    return folder


def build_dataset(folder: Path, source: Path | None = None, **config: Any) -> Path:
    """A finished dataset in `folder/reinforced`, of the source in `folder/source`."""
    source = source or write_source(folder / "source")
    settings = {"views": {"count": 3}, "source": {"captions": ["json.captions"], "max_captions": 2}} | config
    summary = run(fake_plan(settings), source, folder / "reinforced")
    assert not summary.failed
    return folder / "reinforced"


def plan_of(dataset: Path, *, seed: int = 0, **options: Any) -> ReadPlan:
    """A plan without worker processes, of which `options` are fields of the recipe or arguments of `plan_reading`."""
    arguments = {name: options.pop(name) for name in _ARGUMENTS if name in options}
    data = DataConfig.model_validate({"workers": 0, "open_shards": 2} | options)
    return plan_reading(str(dataset), data, seed=seed, **arguments)


def read(plan: ReadPlan, *, batch_size: int = 4, image_size: int = 24, **options: Any) -> ReinforcedDataset:
    return ReinforcedDataset(plan, ByteTokenizer(), batch_size=batch_size, image_size=image_size, **options)


def facts(batch: Batch) -> list[tuple[Any, ...]]:
    """Everything a batch says, row by row, in a form that compares."""
    texts = {role: [text_of(row) for row in rows] for role, rows in batch.texts.items()}
    return [
        (
            batch.stems[row],
            batch.keys[row],
            batch.images[row].numpy().tobytes(),
            *(of_role[row] for of_role in texts.values()),
            *(rows[row].numpy().tobytes() for rows in batch.teacher_images.values()),
            *(rows[row].numpy().tobytes() for of_role in batch.teacher_texts.values() for rows in of_role.values()),
        )
        for row in range(len(batch))
    ]


def recipe(**student: Any) -> Recipe:
    settings: dict[str, Any] = {
        "model": MODEL,
        "data": {"workers": 0, "open_shards": 2},
        "optimizer": {"warmup_steps": 2, "learning_rate": 1e-3},
        "steps": 8,
        "batch_size": 4,
        "log_every": 1,
    }
    return Recipe.model_validate({"student": settings | student})


def torchrun(dataset: Path, output: Path, recipe: Recipe) -> None:
    """Trains in two processes."""
    recipe_file = output.with_suffix(".yaml")
    recipe_file.write_text(json.dumps(recipe.model_dump(mode="json", exclude_unset=True)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command += ["--master-port", str(29500 + os.getpid() % 1000), "-m", "reinforce", "train-student"]
    command += ["--dataset", str(dataset), "--recipe", str(recipe_file), "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=200)
