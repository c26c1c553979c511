"""What a teacher saw for a cell: the view, replayed from the source image, or the caption."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Float16

from reinforce.config import ViewPolicy
from reinforce.decode import decode
from reinforce.inspection.cells import AnySignal, Cell, CorpusSignal, document_of
from reinforce.inspection.checked_files import local_copy
from reinforce.inspection.documents import Documents
from reinforce.inspection.faults import Fault
from reinforce.inspection.source_tars import SourceTars, path_of
from reinforce.sample import Drop, Pixels
from reinforce.shards.dataset import Dataset
from reinforce.shards.reader import ShardFile, to_numpy
from reinforce.shards.schema import Signal, sentences_file
from reinforce.shards.source import SourceShard
from reinforce.views.draw import draw
from reinforce.views.render import render


@dataclass(frozen=True, eq=False, slots=True)
class Input:
    """A cell, the embedding stored in it, and what it was made from."""

    cell: Cell
    key: str
    stored: Float16[np.ndarray, " dim"]
    content: Pixels | str


def inputs_of_shard(
    dataset: Dataset,
    documents: Documents,
    sources: SourceTars | None,
    cells: Sequence[Cell],
    image_sizes: Mapping[str, int],
    spool: Path,
    faults: list[Fault],
) -> Iterator[Input]:
    """The inputs of cells of one shard, nulls left out. `image_sizes` are those of teachers, by name.

    An image that is not the recorded one is a fault. Raises `FormatError` and `StorageError`.
    """
    stem = cells[0].stem
    if isinstance(cells[0].signal, CorpusSignal):
        yield from _sentences(dataset, documents, cells)
        return
    spine = dataset.spine(stem)
    rows = spine.filter(pc.is_null(spine.column("drop_reason"))).to_pylist()
    found = [(cell, stored) for cell, stored in _stored(dataset, documents, cells) if not np.isnan(stored).any()]
    captions: dict[str, list[Any]] = {}
    for source in {cell.signal.source for cell, _ in found if cell.signal.kind == "text"}:
        if source == "original":
            captions[source] = [row["captions"] for row in rows]
        else:
            captions[source] = dataset.table(Signal("captions", source), stem, ["captions"]).column(0).to_pylist()
    for cell, stored in found:
        if cell.signal.kind == "text":
            yield Input(cell, rows[cell.row]["key"], stored, captions[cell.signal.source][cell.row][cell.column])
    images = [item for item in found if item[0].signal.kind == "image"]
    if not images or sources is None:
        return
    by_row: defaultdict[int, list[tuple[Cell, Float16[np.ndarray, " dim"]]]] = defaultdict(list)
    for cell, stored in images:
        by_row[cell.row].append((cell, stored))
    path = path_of(stem)
    policy = ViewPolicy.model_validate(documents.dataset["view_policy"])
    with local_copy(sources.store, path, spool, size=sources.sizes.get(stem)) as tar, tar.open("rb") as data:
        members = SourceShard(tar, documents.source).images()
        for number, of_row in sorted(by_row.items()):
            row = rows[number]
            member = members[row["key"]]
            data.seek(member.offset)
            image_bytes = data.read(member.num_bytes)
            image = decode(image_bytes, documents.source.max_pixels)
            if hashlib.sha256(image_bytes).digest() != row["image_sha256"] or isinstance(image, Drop):
                what = "is not the image that was embedded: not computed again"
                faults.append(Fault(sources.store.uri_of(path), what, key=row["key"]))
                continue
            for cell, stored in of_row:
                index = int(document_of(documents, cell.signal)["columns"][cell.column].removeprefix("view_"))
                view = draw(policy, row["view_seed"], index, image.shape[1], image.shape[0])
                yield Input(cell, row["key"], stored, render(image, view, image_sizes[cell.signal.model]))


def _sentences(dataset: Dataset, documents: Documents, cells: Sequence[Cell]) -> Iterator[Input]:
    """The inputs of cells of one file of sentences."""
    with ShardFile(dataset.store, sentences_file(cells[0].stem)) as file:
        table = file.read(["key", "text", "drop_reason"])
    kept = table.filter(pc.is_null(table.column("drop_reason")))
    for cell, stored in _stored(dataset, documents, cells):
        if not np.isnan(stored).any():
            key, text = (kept.column(name)[cell.row].as_py() for name in ("key", "text"))
            yield Input(cell, key, stored, text)


def _stored(
    dataset: Dataset, documents: Documents, cells: Sequence[Cell]
) -> Iterator[tuple[Cell, Float16[np.ndarray, " dim"]]]:
    by_column: defaultdict[tuple[AnySignal, int], list[Cell]] = defaultdict(list)
    for cell in cells:
        by_column[cell.signal, cell.column].append(cell)
    for (signal, column), of_column in sorted(by_column.items()):
        name = document_of(documents, signal)["columns"][column]
        with ShardFile(dataset.store, signal.file(cells[0].stem)) as file:
            values = to_numpy(file.read([name]).column(name))
        for cell in of_column:
            yield cell, values[cell.row]
