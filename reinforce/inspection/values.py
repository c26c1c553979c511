"""What the values of a few shards say: captions, norms, cosines. Columns are read one at a time, a shard at a time.

Memory grows with the captions and cosines of the shards given, never with the dataset.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from reinforce.inspection.figures import (
    CaptionFigures,
    CosineFigures,
    Distribution,
    DriftFigures,
    DropExample,
    Problem,
)
from reinforce.inspection.footers import noted
from reinforce.shards.dataset import Dataset, check_keys
from reinforce.shards.reader import FormatError, ShardFile, to_numpy
from reinforce.shards.schema import Signal, spine_file, view_column

ORIGINAL = "original"
_NUM_EXAMPLES = 3

Item = TypeVar("Item")
Matrix = Float32[np.ndarray, "rows dim"]
Cosines = Float32[np.ndarray, " rows"]


@dataclass(slots=True)
class SampledValues:
    """What was read so far, shard by shard."""

    stems: list[str] = field(default_factory=list)
    captions: dict[str, "_CaptionCounts"] = field(default_factory=dict)
    drops: defaultdict[str, list[DropExample]] = field(default_factory=lambda: defaultdict(list))
    norm_errors: dict[Signal, float] = field(default_factory=dict)
    matched: defaultdict[tuple[str, str], list[Cosines]] = field(default_factory=lambda: defaultdict(list))
    mismatched: defaultdict[tuple[str, str], list[Cosines]] = field(default_factory=lambda: defaultdict(list))
    drifts: defaultdict[str, list[Cosines]] = field(default_factory=lambda: defaultdict(list))
    num_views: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def caption_figures(self) -> tuple[CaptionFigures, ...]:
        return tuple(counts.figures(source) for source, counts in self.captions.items())

    def cosine_figures(self) -> tuple[CosineFigures, ...]:
        figures = []
        for (teacher, source), arrays in self.matched.items():
            matched = Distribution.of(np.concatenate(arrays))
            others = self.mismatched[teacher, source]
            mismatched = Distribution.of(np.concatenate(others)) if others else None
            if matched:
                figures.append(CosineFigures(teacher, source, matched, mismatched.mean if mismatched else None))
        return tuple(figures)

    def drift_figures(self) -> tuple[DriftFigures, ...]:
        found = {teacher: Distribution.of(np.concatenate(arrays)) for teacher, arrays in self.drifts.items()}
        return tuple(DriftFigures(teacher, self.num_views[teacher], d) for teacher, d in found.items() if d)


@dataclass(slots=True)
class _CaptionCounts:
    num_samples: int = 0
    texts: Counter[str] = field(default_factory=Counter)

    def add(self, captions: Iterable[list[str] | None]) -> None:
        for texts in captions:
            self.num_samples += 1
            self.texts.update(texts or ())

    def figures(self, source: str) -> CaptionFigures:
        count = self.texts.total()
        words = np.repeat([len(text.split()) for text in self.texts] or [0], list(self.texts.values()) or [1])
        return CaptionFigures(
            source=source,
            num_samples=self.num_samples,
            num_captions=count,
            captions_per_sample=count / self.num_samples if self.num_samples else 0.0,
            words_min=int(words.min()),
            words_median=float(np.median(words)),
            words_max=int(words.max()),
            distinct_ratio=len(self.texts) / count if count else 0.0,
            most_frequent=tuple(self.texts.most_common(_NUM_EXAMPLES)),
        )


def read_values(dataset: Dataset, stems: Sequence[str], unreadable: Collection[str]) -> SampledValues:
    """Reads the values of `stems`, leaving out the files named in `unreadable` and those that turn out to be so."""
    values = SampledValues()
    for stem in stems:
        if spine_file(stem) in unreadable:
            continue
        with noted(values.problems, dataset, spine_file(stem)):
            with dataset.open_spine(stem) as file:
                spine = file.read(["key", "captions", "drop_reason", "drop_detail"])
            values.stems.append(stem)
            keys = _add_spine(values, stem, spine)
            clean: dict[str, Matrix] = {}
            for signal in dataset.signals:
                path = signal.file(stem)
                if path in dataset.sizes and path not in unreadable:
                    with noted(values.problems, dataset, path), open_checked(dataset, signal, stem, keys) as file:
                        _add_signal(values, signal, file, clean)
    return values


@contextmanager
def open_checked(dataset: Dataset, signal: Signal, stem: str, kept_keys: list[str]) -> Iterator[ShardFile]:
    """A signal's file, once its keys are known to be the spine's. Raises `FormatError`."""
    with dataset.open(signal, stem) as file:
        check_keys(kept_keys, file.read(["key"]).column("key").to_pylist(), file.path)
        yield file


def read_matrix(file: ShardFile, column: str) -> Matrix:
    """One embedding column in float32; a value that does not exist is a row of NaN."""
    return to_numpy(file.read([column]).column(column)).astype(np.float32)


def cosines(one: Matrix, other: Matrix) -> Cosines:
    """Row by row; the rows have unit norm already."""
    return np.asarray((one * other).sum(axis=1))


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly spread and always the same ones."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _add_spine(values: SampledValues, stem: str, spine: pa.Table) -> list[str]:
    """Counts the original captions and notes examples of drops; returns the kept keys."""
    rows = spine.to_pylist()
    kept = [row for row in rows if row["drop_reason"] is None]
    values.captions.setdefault(ORIGINAL, _CaptionCounts()).add(row["captions"] for row in kept)
    for row in rows:
        examples = values.drops[row["drop_reason"]] if row["drop_reason"] is not None else None
        if examples is not None and len(examples) < _NUM_EXAMPLES:
            examples.append(DropExample(stem, row["key"], row["drop_detail"] or ""))
    return [row["key"] for row in kept]


def _add_signal(values: SampledValues, signal: Signal, file: ShardFile, clean: dict[str, Matrix]) -> None:
    """Adds one file. `clean` holds the clean view of each teacher: image signals come before texts."""
    if signal.kind == "captions":
        captions = file.read(["captions"]).column("captions")
        values.captions.setdefault(signal.model, _CaptionCounts()).add(captions.to_pylist())
        _check_nulls(file, captions.null_count)
        return
    num_nulls = 0
    for column, matrix in _matrices(file):
        norms = np.sqrt((matrix * matrix).sum(axis=1))
        is_null = np.isnan(norms)
        num_nulls += int(is_null.sum())
        if not is_null.all():
            error = float(np.abs(norms[~is_null] - 1).max())
            values.norm_errors[signal] = max(error, values.norm_errors.get(signal, 0.0))
        if signal.kind == "image":
            _add_view(values, signal, column, matrix, clean)
        elif signal.model in clean:
            image = clean[signal.model]
            values.matched[signal.model, signal.source].append(cosines(image, matrix))
            if len(matrix) > 1:
                values.mismatched[signal.model, signal.source].append(cosines(image, np.roll(matrix, 1, axis=0)))
    _check_nulls(file, num_nulls)


def _add_view(values: SampledValues, signal: Signal, column: str, matrix: Matrix, clean: dict[str, Matrix]) -> None:
    if column == view_column(0):
        clean[signal.model] = matrix
        values.num_views[signal.model] = 0
    elif signal.model in clean:
        values.drifts[signal.model].append(cosines(matrix, clean[signal.model]))
        values.num_views[signal.model] += 1


def _matrices(file: ShardFile) -> Iterator[tuple[str, Matrix]]:
    for column in file.columns[1:]:
        yield column, read_matrix(file, column)


def _check_nulls(file: ShardFile, num_nulls: int) -> None:
    nulls: dict[str, Any] = file.footer["nulls"]
    if sum(nulls.values()) != num_nulls:
        raise FormatError(f"{file.path}: {num_nulls} nulls, its footer counts {sum(nulls.values())}")
