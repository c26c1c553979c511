"""Reads the values of the sampled shards: spine, captions, embeddings, a column at a time, the first rows of each.

Memory grows with the rows sampled, which are bounded, never with the dataset or its shards.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool

from reinforce.inspection.captions import CaptionCounts, Captions
from reinforce.inspection.figures import CaptionFigures, DropExample, Problem, SampleName
from reinforce.inspection.footers import noted
from reinforce.inspection.listing import Listing
from reinforce.inspection.sampling import ValueSample
from reinforce.inspection.teachers import TeacherValues
from reinforce.inspection.values import ORIGINAL, open_head, read_matrix
from reinforce.sample import NullReason
from reinforce.shards.dataset import Dataset
from reinforce.shards.reader import FormatError, ShardFile
from reinforce.shards.schema import Signal, spine_file, view_column

NUM_EXAMPLES = 3

Rows = Bool[np.ndarray, " rows"]

NullExamples = defaultdict[tuple[str, str], list[SampleName]]
"""Signal folder and reason -> a few samples with such a null; the reason is empty where the file does not say it."""


@dataclass(slots=True)
class SampledValues:
    """What was read so far, shard by shard; `keys` are those of the sampled rows, in order."""

    stems: list[str] = field(default_factory=list)
    keys: list[list[str]] = field(default_factory=list)
    captions: dict[str, CaptionCounts] = field(default_factory=dict)
    teachers: defaultdict[str, TeacherValues] = field(default_factory=lambda: defaultdict(TeacherValues))
    drops: defaultdict[str, list[DropExample]] = field(default_factory=lambda: defaultdict(list))
    nulls: NullExamples = field(default_factory=lambda: defaultdict(list))
    norm_errors: dict[Signal, float] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def num_samples(self) -> int:
        return sum(map(len, self.keys))

    def name(self, row: int) -> SampleName:
        """Which sample a sampled row is."""
        for stem, keys in zip(self.stems, self.keys, strict=True):
            if row < len(keys):
                return SampleName(stem, keys[row])
            row -= len(keys)
        raise IndexError(row)

    def caption_figures(self) -> tuple[CaptionFigures, ...]:
        return tuple(counts.figures(source) for source, counts in self.captions.items())

    def null_examples(self, counted: Mapping[str, Collection[str]]) -> dict[str, dict[str, tuple[SampleName, ...]]]:
        """By folder and reason. `counted` are the reasons of each folder by its footers: a null whose file does not say
        its reason has the one that is left beside missing captions, and is not shown if several are."""
        examples: defaultdict[str, dict[str, tuple[SampleName, ...]]] = defaultdict(dict)
        for (folder, reason), names in sorted(self.nulls.items()):
            others = [other for other in counted[folder] if other != NullReason.NO_CAPTION]
            known = reason or (others[0] if len(others) == 1 else "")
            if known and names:
                examples[folder][known] = tuple(names)
        return dict(examples)


def read_values(dataset: Dataset, listing: Listing, sample: ValueSample, unreadable: Collection[str]) -> SampledValues:
    """Reads the sampled rows, leaving out the files named in `unreadable` and those that turn out to be so."""
    values = SampledValues()
    teachers = sorted({signal.model for signal in listing.signals if signal.kind == "image"})
    for number in sample.numbers:
        stem = listing.stems[number]
        if spine_file(stem) not in unreadable:
            with noted(values.problems, dataset, spine_file(stem)):
                shard = _read_spine(dataset, values, stem, sample.rows_per_shard)
                for teacher in teachers:
                    values.teachers[teacher].start(len(shard.keys))
                for signal in listing.signals:
                    path = signal.file(stem)
                    if listing.has(signal, number) and path not in unreadable:
                        with (
                            noted(values.problems, dataset, path),
                            open_head(dataset, signal, stem, shard.keys) as file,
                        ):
                            _add_signal(values, signal, file, shard)
    return values


@dataclass(slots=True)
class _Shard:
    """The sampled rows of a shard: `captions` by source, originals first and captioners as their files are read."""

    stem: str
    keys: list[str]
    captions: dict[str, Captions]


def _read_spine(dataset: Dataset, values: SampledValues, stem: str, most_rows: int) -> _Shard:
    """Counts the original captions, notes examples of drops and opens the shard for each teacher."""
    with dataset.open_spine(stem) as file:
        rows = file.head(["key", "captions", "drop_reason", "drop_detail"], most_rows).to_pylist()
    kept = [row for row in rows if row["drop_reason"] is None]
    shard = _Shard(stem, [row["key"] for row in kept], {ORIGINAL: [row["captions"] for row in kept]})
    values.stems.append(stem)
    values.keys.append(shard.keys)
    values.captions.setdefault(ORIGINAL, CaptionCounts()).add(shard.captions[ORIGINAL], ())
    note_drops(values.drops, stem, rows)
    return shard


def note_drops(drops: defaultdict[str, list[DropExample]], stem: str, rows: list[dict[str, str | None]]) -> None:
    """Keeps a few of the dropped rows of a spine, by reason."""
    for row in rows:
        reason, key = row["drop_reason"], row["key"]
        if reason is not None and key is not None and len(drops[reason]) < NUM_EXAMPLES:
            example = DropExample(stem, key, row["drop_detail"] or "")
            if example not in drops[reason]:
                drops[reason].append(example)


def _add_signal(values: SampledValues, signal: Signal, file: ShardFile, shard: _Shard) -> None:
    """Adds one file: captions come before image embeddings and those before texts."""
    if signal.kind == "captions":
        captions = file.head(["captions"], len(shard.keys)).column("captions").to_pylist()
        shard.captions[signal.model] = captions
        values.captions.setdefault(signal.model, CaptionCounts()).add(captions, shard.captions[ORIGINAL])
        is_null = np.array([texts is None for texts in captions], bool)
        _note(values.nulls, signal, shard, is_null, "")
        _check_nulls(file, len(captions), int(is_null.sum()))
        return
    if signal.kind == "modality":
        rows = file.head(["width", "null_reason"], len(shard.keys))
        _note_by_reason(values.nulls, signal, shard, rows.column("null_reason").to_pylist())
        _check_nulls(file, rows.num_rows, rows.column("width").null_count)
        return
    teacher = values.teachers[signal.model]
    num_nulls = 0
    for index, column in enumerate(file.columns[1:]):
        matrix = read_matrix(file, column, len(shard.keys))
        norms = np.sqrt((matrix * matrix).sum(axis=1))
        is_null = np.isnan(norms)
        num_nulls += int(is_null.sum())
        if not is_null.all():
            error = float(np.abs(norms[~is_null] - 1).max())
            values.norm_errors[signal] = max(error, values.norm_errors.get(signal, 0.0))
        has_caption = np.array([len(texts or ()) > index for texts in shard.captions.get(signal.source, ())], bool)
        explained = is_null & ~has_caption if signal.kind == "text" and has_caption.size else is_null & False
        _note(values.nulls, signal, shard, explained, NullReason.NO_CAPTION)
        if signal.kind == "image" or has_caption.size:
            _note(values.nulls, signal, shard, is_null & ~explained, "")
        if signal.kind == "text":
            teacher.add_text(signal.source, matrix)
        elif column == view_column(0):
            teacher.add_clean(matrix)
        else:
            teacher.add_view(int(column.removeprefix("view_")), matrix)
    _check_nulls(file, len(shard.keys), num_nulls)


def _note(nulls: NullExamples, signal: Signal, shard: _Shard, chosen: Rows, reason: str) -> None:
    """Keeps a few of the chosen rows, each once."""
    for row in np.flatnonzero(chosen).tolist():
        name, examples = SampleName(shard.stem, shard.keys[row]), nulls[signal.folder, reason]
        if len(examples) >= NUM_EXAMPLES:
            return
        if name not in examples:
            examples.append(name)


def _note_by_reason(nulls: NullExamples, signal: Signal, shard: _Shard, reasons: list[str | None]) -> None:
    """Of a modality, whose file says the reason of each row, or none."""
    for reason in sorted({reason for reason in reasons if reason}):
        _note(nulls, signal, shard, np.array([found == reason for found in reasons], bool), reason)


def note_nulls(nulls: NullExamples, signal: Signal, stem: str, file: ShardFile, reasons: Collection[str]) -> None:
    """Keeps a few rows with a null of a file that was not sampled, reading no more columns than that takes.

    `reasons` are those that the footers of the signal count: where the file does not say which, there must be one.
    """
    shard = _Shard(stem, file.read(["key"]).column("key").to_pylist(), {})
    if signal.kind == "modality":
        _note_by_reason(nulls, signal, shard, file.read(["null_reason"]).column("null_reason").to_pylist())
    elif len(reasons) == 1:
        (reason,) = reasons
        for column in file.columns[1:]:
            if len(nulls[signal.folder, reason]) < NUM_EXAMPLES:
                _note(nulls, signal, shard, file.read([column]).column(column).is_null().to_numpy(), reason)


def _check_nulls(file: ShardFile, num_rows: int, num_nulls: int) -> None:
    """The footer counts the nulls of the whole file: it can be held to that if the whole file was read."""
    counted = sum(file.footer["nulls"].values())
    if num_rows == file.num_rows and counted != num_nulls:
        raise FormatError(f"{file.path}: {num_nulls} nulls, its footer counts {counted}")
