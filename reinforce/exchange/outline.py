"""What an import will write: teachers with their columns, captioners, views; the documents and fingerprints of them.

It comes from the first samples and from the user, or, for tars of `reinforce pack`, from the tar itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from reinforce.config import SourceConfig
from reinforce.exchange.layout import PUBLISHED_CROP
from reinforce.exchange.notes import Notes
from reinforce.plan import ORIGINAL, software
from reinforce.shards.dataset import DATASET_FILE, SIGNAL_FILE, create_or_compare
from reinforce.shards.explicit import EXPLICIT, IMPORTED, views_file
from reinforce.shards.schema import FORMAT_VERSION, Signal, caption_column, fingerprint, spine_file, view_column
from reinforce.storage import Store

SEED = 0
MANTISSA_BITS = 7
"""The precision of bfloat16, in which the smaller published sets come."""


@dataclass(frozen=True)
class ImportedTeacher:
    """A teacher's share of the columns, from `start` on, and what is known of it."""

    name: str
    start: int
    dim: int
    logit_scale: float
    image_size: int = PUBLISHED_CROP
    mantissa_bits: int = MANTISSA_BITS
    originals: Mapping[str, str] = field(default_factory=dict)
    """Kind of signal and caption source -> the fingerprint of what was packed."""

    def slice(self) -> slice:
        return slice(self.start, self.start + self.dim)


@dataclass(frozen=True)
class ImportOutline:
    """The files of an import and what decides their content."""

    teachers: tuple[ImportedTeacher, ...]
    captioners: Mapping[str, int]
    """Name -> bound on captions a sample."""
    num_views: int
    has_clean: bool
    source: SourceConfig
    packing: Notes | None = None
    """Of tars of `reinforce pack`: the notes that all of them have."""

    @property
    def width(self) -> int:
        """Of the embeddings: all teachers side by side."""
        return sum(teacher.dim for teacher in self.teachers)

    @property
    def first_view(self) -> int:
        return 0 if self.has_clean else 1

    @cached_property
    def spine_content(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "seed": SEED,
            "source": self.source.model_dump(mode="json"),
            "selection_sha256": None,
            "limit_samples": None,
            "imported_from": "datacompdr",
        }

    @cached_property
    def spine_fingerprint(self) -> str:
        return fingerprint(self.spine_content)

    @cached_property
    def contents(self) -> dict[Signal, dict[str, Any]]:
        """What decides each signal, captions before what was made from them."""
        common = {"spine": self.spine_fingerprint, "kind": IMPORTED}
        found: dict[Signal, dict[str, Any]] = {
            Signal("captions", name): {**common, "num_captions": bound} for name, bound in self.captioners.items()
        }
        sources = {ORIGINAL: (self.spine_fingerprint, self.source.max_captions)} if self.source.max_captions else {}
        sources |= {
            name: (fingerprint(found[Signal("captions", name)]), bound) for name, bound in self.captioners.items()
        }
        for teacher in self.teachers:
            of_teacher = {
                "kind": IMPORTED,
                "first_column": teacher.start,
                "dim": teacher.dim,
                "mantissa_bits": teacher.mantissa_bits,
                "packed": teacher.originals.get("image"),
            }
            image = {"view_policy": None, "num_views": self.num_views + self.has_clean, **common, **of_teacher}
            found[Signal("image", teacher.name)] = image
            for source, (of_captions, bound) in sources.items():
                text = {"captions": of_captions, "num_captions": bound, **of_teacher}
                found[Signal("text", teacher.name, source)] = text | {"packed": teacher.originals.get(source)}
        return found

    def columns(self, signal: Signal) -> list[str]:
        """The columns of a signal's files after `key`."""
        if signal.kind == "captions":
            return ["captions"]
        if signal.kind == "image":
            return [view_column(view) for view in range(self.first_view, self.num_views + 1)]
        return [caption_column(caption) for caption in range(self.contents[signal]["num_captions"])]

    def files(self, stem: str) -> list[str]:
        """Every file of a shard."""
        return [spine_file(stem), views_file(stem), *(signal.file(stem) for signal in self.contents)]

    def record(self, output: Store, source_root: str) -> None:
        """Creates `dataset.json` and each `signal.json`, or compares; raises `DatasetMismatchError`."""
        document = {
            "format_version": FORMAT_VERSION,
            "spine_fingerprint": self.spine_fingerprint,
            "spine": self.spine_content,
            "view_policy": None,
            "views": EXPLICIT,
            "source_root": source_root,
            "created_with": software(),
        }
        create_or_compare(output, DATASET_FILE, document, ["format_version", "spine", "view_policy", "views"])
        for signal, content in self.contents.items():
            document = {
                "format_version": FORMAT_VERSION,
                "signal": signal.folder,
                "fingerprint": fingerprint(content),
                "content": content,
                "columns": self.columns(signal),
                "model": self._model(signal),
            }
            path = f"{signal.folder}/{SIGNAL_FILE}"
            create_or_compare(output, path, document, ["format_version", "content", "columns"])

    def _model(self, signal: Signal) -> dict[str, Any]:
        if signal.kind == "captions":
            return {"kind": IMPORTED}
        teacher = next(teacher for teacher in self.teachers if teacher.name == signal.model)
        return {
            "kind": IMPORTED,
            "dim": teacher.dim,
            "image_size": teacher.image_size,
            "logit_scale": teacher.logit_scale,
        }


def outline_of_notes(notes: Notes) -> ImportOutline:
    """The outline of tars that `reinforce pack` wrote: they say themselves what they hold."""
    teachers: list[ImportedTeacher] = []
    signals = notes.signals
    for name, dim in notes.widths.items():
        document = signals[Signal("image", name)]
        originals = {
            signal.source or signal.kind: str(found["fingerprint"])
            for signal, found in signals.items()
            if signal.model == name and signal.kind != "captions"
        }
        teachers.append(
            ImportedTeacher(
                name,
                sum(teacher.dim for teacher in teachers),
                dim,
                float(document["model"]["logit_scale"]),
                int(document["model"].get("image_size") or PUBLISHED_CROP),
                int(document["content"].get("mantissa_bits", MANTISSA_BITS)),
                originals,
            )
        )
    return ImportOutline(tuple(teachers), notes.captioners, notes.num_views, notes.has_clean, notes.source, notes)
