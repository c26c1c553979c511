"""Rows of several shards brought together: a `Batch`."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from reinforce.sample import Pixels
from reinforce.student.batch import Batch
from reinforce.student.plan import ReadPlan
from reinforce.student.readings import Reading, Rows
from reinforce.student.shard import VisitedShard


class Tokenizer(Protocol):
    """What the reader asks of a tokenizer. It is pickled into the workers."""

    def tokenize(self, texts: list[str]) -> tuple[Int64[Tensor, "texts context"], Bool[np.ndarray, " texts"]]:
        """Token ids, cut and padded to the context length, and which texts were cut."""


@dataclass(frozen=True, slots=True)
class Row:
    """One sample of a batch: row `index` of a shard, as `reading` has it, with the pixels of its view."""

    shard: VisitedShard
    index: int
    reading: Reading
    pixels: tuple[Pixels, ...]
    """By modality in use."""


def assemble(rows: Sequence[Row], plan: ReadPlan, tokenizer: Tokenizer, *, has_repeats: bool) -> Batch:
    """The batch, of which `counts` are the captions that were cut. `has_repeats`: an image may have several rows."""
    places: dict[int, tuple[Reading, list[int], list[int]]] = {}
    for place, row in enumerate(rows):
        _, in_batch, in_shard = places.setdefault(id(row.reading), (row.reading, [], []))
        in_batch.append(place)
        in_shard.append(row.index)

    def gather(of: Callable[[Reading], Rows]) -> Tensor:
        """The rows' embeddings, copied reading by reading: one row at a time takes ten times as long."""
        embeddings = np.empty((len(rows), of(rows[0].reading).shape[1]), np.float16)
        for reading, in_batch, in_shard in places.values():
            embeddings[in_batch] = of(reading)[in_shard]
        return torch.from_numpy(embeddings)

    counts = Counter[str]()
    tokens = {}
    for role in plan.roles:
        texts = [row.reading.captions[role][row.index] or "" for row in rows]
        tokens[role], is_cut = tokenizer.tokenize(texts)
        counts["truncated_captions"] += int(is_cut.sum())
    keys = [row.shard.keys[row.index] for row in rows]
    stems = [row.shard.visit.stem for row in rows]
    return Batch(
        keys=keys,
        stems=stems,
        images=_stack(rows, 0),
        texts=tokens,
        teacher_images={name: gather(partial(_image_rows, name=name)) for name in plan.teachers},
        teacher_texts={
            role: {name: gather(partial(_text_rows, role=role, name=name)) for name in plan.teachers}
            for role in plan.roles
        },
        counts=counts,
        modalities={name: _stack(rows, place) for place, name in enumerate(plan.data.modalities) if place},
        images_of=_numbers(stems, keys) if has_repeats else None,
    )


def _stack(rows: Sequence[Row], place: int) -> UInt8[Tensor, "batch 3 size size"]:
    return torch.from_numpy(np.stack([row.pixels[place] for row in rows])).permute(0, 3, 1, 2)


def _image_rows(reading: Reading, *, name: str) -> Rows:
    return reading.teacher_images[name]


def _text_rows(reading: Reading, *, role: str, name: str) -> Rows:
    return reading.teacher_texts[role][name]


def _numbers(stems: Sequence[str], keys: Sequence[str]) -> Int64[Tensor, " batch"]:
    """A number by sample that is the same in every process."""
    pairs = zip(stems, keys, strict=True)
    digests = [hashlib.blake2b(f"{stem}\0{key}".encode(), digest_size=8).digest() for stem, key in pairs]
    return torch.from_numpy(np.frombuffer(b"".join(digests), "<i8").copy())
