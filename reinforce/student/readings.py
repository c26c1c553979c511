"""What one visit reads of a shard besides its images: for each of its views, that view's and its captions' signals.

Only the columns in use are read, each once however many views share it, and every file is checked against the spine
before it is believed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float16, Int64

from reinforce.shards.dataset import Dataset, check_keys
from reinforce.shards.reader import FormatError, ShardFile, to_numpy
from reinforce.shards.schema import Signal, caption_column, view_column
from reinforce.student.batch import ORIGINAL, SYNTHETIC
from reinforce.student.choices import Visit, caption_index, view_index
from reinforce.student.plan import ReadPlan

Rows = Float16[np.ndarray, "rows dim"]

Caption = tuple[str, int]
"""A source of captions (`original` or a captioner) and which of its captions."""


@dataclass(frozen=True)
class Reading:
    """One view of a shard's rows and one caption of each role, with what the teachers said of them."""

    view: int
    captions: dict[str, list[str | None]]
    """Role -> the caption of each row."""
    teacher_images: dict[str, Rows]
    teacher_texts: dict[str, dict[str, Rows]]
    """By role, then by teacher; rows of NaN where there is no caption."""


class SignalReader:
    """Reads columns of one shard's signal files, each checked against the spine before it is believed."""

    def __init__(self, plan: ReadPlan, dataset: Dataset, stem: str, source_sha256: str, keys: pa.StringArray) -> None:
        self._plan = plan
        self._dataset = dataset
        self._stem = stem
        self._source_sha256 = source_sha256
        self._key_column = keys
        self.keys: list[str] = keys.to_pylist()

    def read(self, signal: Signal, columns: list[str]) -> pa.Table:
        with self._dataset.open(signal, self._stem) as file:
            self._check_footer(file, signal)
            table = file.read(["key", *columns])
        found = table.column("key").combine_chunks()
        if not found.equals(self._key_column):
            check_keys(self.keys, found.to_pylist(), signal.file(self._stem))
        return table

    def embeddings(self, signal: Signal, columns: list[str]) -> dict[str, Rows]:
        table = self.read(signal, columns)
        return {column: to_numpy(table.column(column)) for column in columns}

    def modality(self, name: str) -> pa.Table:
        """What a build found of a further modality of each row: `sha256` and `null_reason`."""
        return self.read(Signal("modality", name), ["sha256", "null_reason"])

    def _check_footer(self, file: ShardFile, signal: Signal) -> None:
        expected = {
            "stem": self._stem,
            "signal": signal.folder,
            "fingerprint": self._plan.fingerprints[signal.folder],
            "source_sha256": self._source_sha256,
        }
        for name, value in expected.items():
            if file.footer.get(name) != value:
                raise FormatError(f"{file.path}: its {name} is {file.footer.get(name)}, not {value}: another file's")


@dataclass(frozen=True)
class Choice:
    """What a reading takes of every row: a view, and for each role a caption."""

    view: int
    captions: dict[str, Caption]


def choices_of(plan: ReadPlan, visit: Visit) -> list[Choice]:
    """The choices of a visit, as many as it takes views."""
    num_readings = plan.data.views_per_decode
    places = range(visit.number * num_readings, (visit.number + 1) * num_readings)
    return [
        Choice(view_index(plan.seed, visit.stem, place, plan.num_views), _captions_at(plan, visit.stem, place))
        for place in places
    ]


def take_readings(plan: ReadPlan, visit: Visit, spine: pa.Table, reader: SignalReader) -> list[Reading]:
    """The readings of a visit, as many as it takes views; the spine's rows are the kept ones."""
    choices = choices_of(plan, visit)
    columns = sorted({view_column(choice.view) for choice in choices})
    images = {teacher: reader.embeddings(Signal("image", teacher), columns) for teacher in plan.teachers}
    texts, embedded = _read_captions(
        plan, spine, reader, sorted({c for choice in choices for c in choice.captions.values()})
    )
    return [
        Reading(
            view=choice.view,
            captions={role: texts[caption] for role, caption in choice.captions.items()},
            teacher_images={teacher: rows[view_column(choice.view)] for teacher, rows in images.items()},
            teacher_texts={role: embedded[caption] for role, caption in choice.captions.items()},
        )
        for choice in choices
    ]


def _captions_at(plan: ReadPlan, stem: str, place: int) -> dict[str, Caption]:
    """Which caption each role takes."""
    chosen = {}
    if ORIGINAL in plan.num_captions:
        num_captions = max(1, plan.num_captions[ORIGINAL])
        chosen[ORIGINAL] = (ORIGINAL, caption_index(plan.seed, stem, place, ORIGINAL, num_captions))
    if plan.captioners:
        pairs = [(name, index) for name in plan.captioners for index in range(plan.num_captions[name])]
        chosen[SYNTHETIC] = pairs[caption_index(plan.seed, stem, place, SYNTHETIC, len(pairs))]
    return chosen


def _read_captions(
    plan: ReadPlan, spine: pa.Table, reader: SignalReader, wanted: Sequence[Caption]
) -> tuple[dict[Caption, list[str | None]], dict[Caption, dict[str, Rows]]]:
    """For each wanted caption its text and, by teacher, its embedding, of every row."""
    texts: dict[Caption, list[str | None]] = {}
    embedded: dict[Caption, dict[str, Rows]] = {caption: {} for caption in wanted}
    for source in dict.fromkeys(source for source, _ in wanted):
        table = spine if source == ORIGINAL else reader.read(Signal("captions", source), ["captions"])
        lists: list[list[str]] = [captions or [] for captions in table.column("captions").to_pylist()]
        chosen: dict[Caption, Int64[np.ndarray, " rows"]] = {}
        for caption in wanted:
            if caption[0] == source:
                # A sample that has fewer takes the index modulo what it has; -1 is none.
                places = [caption[1] % len(row) if row else -1 for row in lists]
                chosen[caption] = np.array(places, np.int64)
                texts[caption] = [row[place] if row else None for row, place in zip(lists, places, strict=True)]
        used = {int(index) for indices in chosen.values() for index in np.unique(indices) if index >= 0} or {0}
        for teacher in plan.teachers:
            columns = reader.embeddings(Signal("text", teacher, source), [caption_column(i) for i in sorted(used)])
            for caption, indices in chosen.items():
                embedded[caption][teacher] = _pick(columns, indices)
    return texts, embedded


def _pick(columns: dict[str, Rows], chosen: Int64[np.ndarray, " rows"]) -> Rows:
    """For each row the embedding of its chosen caption, a column itself if all chose it; NaN where that is -1."""
    indices = np.unique(chosen)
    if len(indices) == 1 and indices[0] >= 0:
        return columns[caption_column(int(indices[0]))]
    rows = np.full_like(next(iter(columns.values())), np.nan)
    for index in indices[indices >= 0]:
        is_chosen = chosen == index
        rows[is_chosen] = columns[caption_column(int(index))][is_chosen]
    return rows
