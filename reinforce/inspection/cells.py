"""Which cells of a dataset are computed again: random ones, evenly over signals, the same ones for the same seed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from reinforce.inspection.documents import Documents
from reinforce.shards.schema import Signal, canonical_json, corpus_embeddings_file, corpus_embeddings_folder


@dataclass(frozen=True, order=True, slots=True)
class CorpusSignal:
    """What a teacher says of a corpus, as `Signal` says it of images and captions."""

    kind: ClassVar = "sentences"
    source: ClassVar = ""
    corpus: str
    model: str

    @property
    def folder(self) -> str:
        return corpus_embeddings_folder(self.corpus, self.model)

    def file(self, stem: str) -> str:
        return corpus_embeddings_file(stem, self.model)


AnySignal = Signal | CorpusSignal


def document_of(documents: Documents, signal: AnySignal) -> dict[str, Any]:
    """The `signal.json` of a signal."""
    if isinstance(signal, CorpusSignal):
        return documents.sentence_signals[signal.corpus, signal.model]
    return documents.signals[signal]


@dataclass(frozen=True)
class Recomputation:
    """How many cells are computed again, chosen by which seed, and where teachers are that have moved."""

    num_cells: int
    seed: int | None = None
    """None: one that follows from the dataset's fingerprints."""
    teachers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, order=True, slots=True)
class Cell:
    """One embedding: the row counts the kept samples of the shard from 0, the column those after `key`."""

    stem: str
    signal: AnySignal
    row: int
    column: int


@dataclass(frozen=True, slots=True)
class ShardCells:
    """What there is to choose from in one shard: its kept rows, and by signal its nulls."""

    stem: str
    num_kept: int
    num_nulls: Mapping[AnySignal, int]


def seed_of(documents: Documents) -> int:
    """A seed that follows from the fingerprints of a dataset."""
    prints = [documents.dataset["spine_fingerprint"]]
    prints += [doc["fingerprint"] for doc in (*documents.signals.values(), *documents.sentence_signals.values())]
    return int(hashlib.sha256(canonical_json(sorted(prints)).encode()).hexdigest()[:8], 16)


def draw_cells(
    num_columns: Mapping[AnySignal, int], shards: Sequence[ShardCells], num_cells: int, seed: int
) -> dict[str, list[Cell]]:
    """By stem, so many cells of each signal that about `num_cells` with a value are expected; at most all."""
    drawn: dict[str, list[Cell]] = {}
    shares = {signal: num_cells // len(num_columns) for signal in num_columns}
    for signal in list(shares)[: num_cells % max(1, len(shares))]:
        shares[signal] += 1
    for signal, width in num_columns.items():
        there = [shard for shard in shards if signal in shard.num_nulls]
        ends = np.cumsum([shard.num_kept * width for shard in there])
        total = int(ends[-1]) if there else 0
        num_values = total - sum(shard.num_nulls[signal] for shard in there)
        if not num_values or not shares[signal]:
            continue
        count = min(total, -(-shares[signal] * total // num_values))
        key = hashlib.blake2b(f"{seed} {signal.folder}".encode(), digest_size=16).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        for number in sorted(generator.choice(total, count, replace=False, shuffle=False).tolist()):
            index = int(np.searchsorted(ends, number, side="right"))
            shard = there[index]
            row, column = divmod(number - int(ends[index]) + shard.num_kept * width, width)
            drawn.setdefault(shard.stem, []).append(Cell(shard.stem, signal, row, column))
    return dict(sorted(drawn.items()))
