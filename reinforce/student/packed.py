"""One visit to one packed tar, which holds a shard's signals beside its images.

The tar is read from end to end and every sample's embeddings unpacked, 1.3 ms for 36 rows of 1,536 values; what
the visit's views and captions need is kept. That is the price of a layout that a plain stream can be read from.
"""

from collections import Counter
from pathlib import Path

import numpy as np
from jaxtyping import Float16

from reinforce.exchange.notes import Notes, read_notes
from reinforce.exchange.samples import SHA_FIELD, UID_FIELD, PublishedSample, parse_sample, recorded_sha256
from reinforce.replay import ExplicitViews
from reinforce.sample import Drop
from reinforce.shards.explicit import ExplicitView, Size
from reinforce.shards.reader import FormatError
from reinforce.shards.source import Member, SourceShard
from reinforce.student.batch import ORIGINAL
from reinforce.student.choices import Visit
from reinforce.student.plan import ReadPlan
from reinforce.student.readings import Caption, Choice, Reading, choices_of
from reinforce.student.shard import VisitedShard, usable_rows

_Row = Float16[np.ndarray, " width"]
"""One embedding of every teacher, side by side."""


def open_packed_shard(plan: ReadPlan, packed: Notes, visit: Visit, tar: Path) -> VisitedShard:
    """Opens a packed tar for one visit; raises `FormatError` or `ShardError` if it is not of this packing."""
    found = read_notes(tar)
    if found is None or not found.is_of(packed):
        raise FormatError(f"{tar.name}: its first member is not that of this packing")
    source = SourceShard(tar, plan.source)
    rows = _PackedRows(packed, choices_of(plan, visit))
    images = source.images()
    members: list[Member] = []
    drops: Counter[str] = Counter()
    width = sum(packed.widths.values())
    for sample in source.samples(extra_fields=(UID_FIELD, SHA_FIELD)):
        parsed = parse_sample(sample, plan.source.max_pixels, Counter(), width=width)
        if isinstance(parsed, Drop) or sample.key not in images:
            drops[parsed.reason if isinstance(parsed, Drop) else "missing_image"] += plan.data.views_per_decode
        else:
            # `uid` is the key before it was escaped for the tar.
            members.append(images[sample.key])
            rows.add(next(iter(sample.fields[UID_FIELD]), sample.key), parsed)
    readings = rows.readings(plan)
    views = ExplicitViews(rows.sizes, rows.views)
    usable, counts = usable_rows(plan, visit.stem, rows.keys, readings, views, {})
    return VisitedShard(visit, rows.keys, readings, usable, drops + counts, rows.sha256s, views, plan, tar, members)


class _PackedRows:
    """What the readings of a visit take of each sample."""

    def __init__(self, packed: Notes, choices: list[Choice]) -> None:
        self.packed = packed
        self.choices = choices
        self.keys: list[str] = []
        self.sizes: list[Size | None] = []
        self.sha256s: list[bytes | None] = []
        self.views: dict[int, list[ExplicitView | None]] = {choice.view: [] for choice in choices}
        self._images: list[list[_Row]] = [[] for _ in choices]
        self._captions: list[dict[str, list[str | None]]] = [{role: [] for role in c.captions} for c in choices]
        self._texts: list[dict[str, list[_Row]]] = [{role: [] for role in c.captions} for c in choices]
        self._none = np.full(sum(packed.widths.values()), np.nan, np.float16)

    def add(self, key: str, sample: PublishedSample) -> None:
        self.keys.append(key)
        self.sizes.append(sample.views_size)
        self.sha256s.append(recorded_sha256(sample.sample))
        for view, column in self.views.items():
            column.append(sample.views[view - 1] if 0 < view <= len(sample.views) else None)
        for number, choice in enumerate(self.choices):
            self._images[number].append(self._image(sample, choice.view))
            for role, caption in choice.captions.items():
                text, row = self._text(sample, caption)
                self._captions[number][role].append(text)
                self._texts[number][role].append(row)

    def _image(self, sample: PublishedSample, view: int) -> _Row:
        rows = sample.image_rows[view - 1 : view] if view else sample.clean_row
        return self._none if rows is None or not len(rows) else rows[0].astype(np.float16)

    def _text(self, sample: PublishedSample, caption: Caption) -> tuple[str | None, _Row]:
        """A caption and its embeddings; a sample that has fewer takes the index modulo what it has."""
        source, index = caption
        if source == ORIGINAL:
            texts = list(sample.sample.captions)
            places = [sample.original_row(place) for place in range(len(texts))]
        else:
            share = sample.synthetic_of(source, list(self.packed.captioners))
            texts = [sample.synthetic[place] for place in share]
            places = [1 + place for place in share]
        if not texts:
            return None, self._none
        place = index % len(texts)
        return texts[place], sample.text_rows[places[place]].astype(np.float16)

    def readings(self, plan: ReadPlan) -> list[Reading]:
        """The readings of all rows, for the teachers in use."""
        start = 0
        slices = {}
        for name, dim in self.packed.widths.items():
            slices[name] = slice(start, start + dim)
            start += dim

        def split(rows: list[_Row]) -> dict[str, Float16[np.ndarray, "rows dim"]]:
            joined = np.stack(rows) if rows else np.empty((0, start), np.float16)
            return {name: np.ascontiguousarray(joined[:, slices[name]]) for name in plan.teachers}

        return [
            Reading(
                choice.view,
                self._captions[number],
                split(self._images[number]),
                {role: split(rows) for role, rows in self._texts[number].items()},
            )
            for number, choice in enumerate(self.choices)
        ]
