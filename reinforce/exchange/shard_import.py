"""One published tar as the files of one shard of a dataset, committed like those of a build.

Rows are written a few hundred at a time, so memory does not grow with the shard.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16

from reinforce.exchange.layout import Rows
from reinforce.exchange.notes import read_notes
from reinforce.exchange.outline import SEED, ImportedTeacher, ImportOutline
from reinforce.exchange.peek import norms_of
from reinforce.exchange.samples import SHA_FIELD, PublishedSample, parse_sample, recorded_sha256
from reinforce.plan import ORIGINAL
from reinforce.sample import Drop, DropReason, NullReason, Sample
from reinforce.shard_report import ShardReport
from reinforce.shards.explicit import MAX_NORM_ERROR, views_batch, views_file, views_schema
from reinforce.shards.reader import ShardFile
from reinforce.shards.schema import (
    CAPTIONS_SCHEMA,
    FORMAT_VERSION,
    SPINE_SCHEMA,
    Signal,
    canonical_json,
    embeddings_schema,
    fingerprint,
    round_mantissa,
    spine_file,
)
from reinforce.shards.source import ShardError, SourceShard
from reinforce.shards.writer import ShardFileWriter, captions_batch, embeddings_batch, spine_batch
from reinforce.storage import Store
from reinforce.views.draw import view_seed

_ROWS_AT_ONCE = 256


def import_shard(tar: Path, stem: str, outline: ImportOutline, output: Store, spool: Path) -> ShardReport:
    """Imports a local tar and commits its files, the spine first.

    Raises `ShardError` if the tar cannot be read, is not of the packing that the outline is of, or is another than the
    one whose import began. A sample that cannot be used becomes a drop of the spine.
    """
    notes = read_notes(tar)
    if outline.packing is None and notes is not None:
        raise ShardError("is a tar of `reinforce pack`, the first one is not: import it to another --output")
    if outline.packing is not None and not (notes is not None and notes.is_of(outline.packing)):
        raise ShardError("is not of the same `reinforce pack` as the first one: import it to another --output")
    work = _ShardImport(stem, outline, spool)
    try:
        with tar.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        source = SourceShard(tar, outline.source)
        for sample in source.samples(extra_fields=(SHA_FIELD,)):
            work.add(sample)
        work.flush()
        work.counts.update(source.counts)
        work.commit(output, {"source_sha256": sha256, "source_bytes": tar.stat().st_size})
    finally:
        work.abandon()
    return work.report


@dataclass(slots=True)
class _SignalFile:
    signal: Signal
    writer: ShardFileWriter
    nulls: Counter[str] = field(default_factory=Counter)


class _ShardImport:
    """The files of one shard while they are written."""

    def __init__(self, stem: str, outline: ImportOutline, spool: Path) -> None:
        self.outline = outline
        self.report = ShardReport(stem)
        self.counts: Counter[str] = Counter()
        self._spine = ShardFileWriter(spool / "spine.parquet", SPINE_SCHEMA)
        self._views = ShardFileWriter(spool / "views.parquet", views_schema(outline.num_views))
        self._no_views: Counter[str] = Counter()
        self._files = [self._open(signal, spool) for signal in outline.contents]
        self._rows: list[dict[str, Any]] = []
        self._kept: list[PublishedSample] = []
        self._digests = {name: hashlib.sha256() for name in outline.captioners}

    def add(self, sample: Sample) -> None:
        """Takes the next sample of the tar."""
        parsed = parse_sample(sample, self.outline.source.max_pixels, self.counts, width=self.outline.width)
        drop = parsed if isinstance(parsed, Drop) else None
        self.report.num_samples += 1
        if drop is not None:
            self.report.drops[drop.reason] += 1
        has_image = bool(sample.image) and sample.drop is None
        sha256 = hashlib.sha256(sample.image).digest() if has_image else None
        recorded = recorded_sha256(sample)
        self.counts["images_changed"] += sha256 is not None and recorded is not None and sha256 != recorded
        width, height = (None, None) if isinstance(parsed, Drop) or not parsed.image_size else parsed.image_size
        is_duplicate = sample.drop is not None and sample.drop.reason == DropReason.DUPLICATE_KEY
        self._rows.append(
            {
                "key": sample.key,
                "captions": list(sample.captions),
                "modalities": sorted(sample.modalities),
                "image_width": width,
                "image_height": height,
                # Of an image that is not here, what the set says of it: who joins it later is told if it is another.
                "image_sha256": None if is_duplicate else sha256 or recorded,
                "view_seed": view_seed(SEED, sample.key),
                "drop_reason": drop.reason if drop else None,
                "drop_detail": drop.detail if drop else None,
            }
        )
        if not isinstance(parsed, Drop):
            self._kept.append(parsed)
        if len(self._rows) >= _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that are waiting."""
        if self._rows:
            self._spine.append(spine_batch(self._rows))
        kept = self._kept
        keys = [sample.sample.key for sample in kept]
        self._rows, self._kept = [], []
        if not kept:
            return
        self.report.num_kept += len(kept)
        num_views = self.outline.num_views
        sizes, views = [sample.views_size for sample in kept], [sample.views for sample in kept]
        self._views.append(views_batch(keys, sizes, views, num_views))
        self._no_views[NullReason.NO_VIEW] += sum(max(0, num_views - len(of_sample)) for of_sample in views)
        self.counts["views_over_bound"] += sum(max(0, len(of_sample) - num_views) for of_sample in views)
        captions = {
            name: [[sample.synthetic[i] for i in self._share(sample, name)] for sample in kept]
            for name in self.outline.captioners
        }
        num_stored = sum(len(texts) for of_samples in captions.values() for texts in of_samples)
        self.counts["synthetic_over_bound"] += sum(len(sample.synthetic) for sample in kept) - num_stored
        for file in self._files:
            if file.signal.kind == "captions":
                self._append_captions(file, keys, captions[file.signal.model])
            else:
                self._append_embeddings(file, keys, kept)

    def _share(self, sample: PublishedSample, captioner: str) -> list[int]:
        """Which of a sample's synthetic captions are this captioner's, up to its bound."""
        places = sample.synthetic_of(captioner, list(self.outline.captioners))
        return list(places[: self.outline.captioners[captioner]])

    def _append_captions(self, file: _SignalFile, keys: list[str], captions: list[list[str]]) -> None:
        file.nulls[NullReason.CAPTIONER_FAILED] += sum(not texts for texts in captions)
        self.report.num_captions += sum(map(len, captions))
        for key, texts in zip(keys, captions, strict=True):
            self._digests[file.signal.model].update(canonical_json([key, texts]).encode() + b"\n")
        file.writer.append(captions_batch(keys, [texts or None for texts in captions]))

    def _append_embeddings(self, file: _SignalFile, keys: list[str], kept: list[PublishedSample]) -> None:
        teacher = self._teacher(file.signal)
        columns = self.outline.columns(file.signal)
        values = np.full((len(columns), len(kept), teacher.dim), np.nan, np.float16)
        absent = NullReason.NO_VIEW if file.signal.kind == "image" else NullReason.NO_CAPTION
        for index, sample in enumerate(kept):
            # Where the clean view is missing, the others stay in their columns.
            start = int(file.signal.kind == "image" and self.outline.has_clean and sample.clean_row is None)
            rows = self._rows_of(sample, file.signal, len(columns) - start)[:, teacher.slice()]
            values[start : start + len(rows), index] = _stored(rows, teacher.mantissa_bits, file.nulls)
            file.nulls[absent] += len(columns) - len(rows)
        file.writer.append(embeddings_batch(keys, dict(zip(columns, values, strict=True))))

    def _rows_of(self, sample: PublishedSample, signal: Signal, most: int) -> Rows:
        """The rows of a signal in the order of its columns, all teachers side by side."""
        if signal.kind == "image":
            has_clean = self.outline.has_clean and sample.clean_row is not None
            rows = np.concatenate([sample.clean_row, sample.image_rows]) if has_clean else sample.image_rows
            self.report.num_views += min(len(rows), most)
            return rows[:most]
        if signal.source == ORIGINAL:
            places = [sample.original_row(caption) for caption in range(len(sample.sample.captions))]
            return sample.text_rows[places[:most]]
        return sample.text_rows[[1 + place for place in self._share(sample, signal.source)]]

    def _teacher(self, signal: Signal) -> ImportedTeacher:
        return next(teacher for teacher in self.outline.teachers if teacher.name == signal.model)

    def commit(self, output: Store, source: dict[str, Any]) -> None:
        """Publishes the files: the spine, then what belongs to its rows."""
        report, outline = self.report, self.outline
        report.counts = +self.counts
        common = {"format_version": FORMAT_VERSION, "stem": report.stem, **source}
        footer = {
            "kind": "samples",
            "fingerprint": outline.spine_fingerprint,
            "num_rows": self._spine.num_rows,
            "num_kept": report.num_kept,
            "drops": dict(report.drops),
            "counts": dict(report.counts),
        }
        if not self._publish(output, self._spine, spine_file(report.stem), common | footer):
            _check_same_source(output, report.stem, source["source_sha256"])
        footer = {
            "kind": "views",
            "fingerprint": outline.spine_fingerprint,
            "num_rows": report.num_kept,
            "nulls": dict(+self._no_views),
        }
        self._publish(output, self._views, views_file(report.stem), common | footer)
        for file in self._files:
            report.nulls.update(+file.nulls)
            footer = {
                "kind": file.signal.kind,
                "signal": file.signal.folder,
                "fingerprint": fingerprint(outline.contents[file.signal]),
                "weights_sha256": None,
                "num_rows": file.writer.num_rows,
                "nulls": dict(+file.nulls),
            }
            if file.signal.kind == "text":
                footer["num_truncated_texts"] = 0
                if file.signal.source != ORIGINAL:
                    footer["captions_sha256"] = self._digests[file.signal.source].hexdigest()
            self._publish(output, file.writer, file.signal.file(report.stem), common | footer)

    def _publish(self, output: Store, writer: ShardFileWriter, path: str, footer: dict[str, Any]) -> bool:
        """False if the file was there already, from a run before."""
        is_new = writer.commit(output, path, footer)
        if is_new:
            self.report.num_files += 1
            self.report.num_bytes += writer.spool.stat().st_size
        writer.spool.unlink()
        return is_new

    def abandon(self) -> None:
        """Removes what was not published."""
        for writer in (self._spine, self._views, *(file.writer for file in self._files)):
            writer.abandon()
            writer.spool.unlink(missing_ok=True)

    def _open(self, signal: Signal, spool: Path) -> _SignalFile:
        path = spool / (signal.folder.replace("/", "-") + ".parquet")
        if signal.kind == "captions":
            return _SignalFile(signal, ShardFileWriter(path, CAPTIONS_SCHEMA))
        schema = embeddings_schema(self.outline.columns(signal), self._teacher(signal).dim)
        return _SignalFile(signal, ShardFileWriter(path, schema))


def _check_same_source(output: Store, stem: str, sha256: str) -> None:
    """The spine of a run before decides which tar the other files of its shard are made from."""
    with ShardFile(output, spine_file(stem)) as spine:
        if spine.footer["source_sha256"] != sha256:
            raise ShardError("is another tar than the one whose import began: put that back, or use another --output")


def _stored(rows: Rows, mantissa_bits: int, nulls: Counter[str]) -> Float16[np.ndarray, "rows dim"]:
    """Unit rows as they are stored; those that are none become NaN, counted.

    They are not normalised again: values that were rounded already stay as they are.
    """
    norms = norms_of(rows)
    is_finite = np.isfinite(norms) & (norms > 0)
    is_unit = is_finite & (np.abs(norms - 1) <= max(MAX_NORM_ERROR, 2.0**-mantissa_bits))
    nulls[NullReason.NON_FINITE] += int((~is_finite).sum())
    nulls[NullReason.NOT_UNIT] += int((is_finite & ~is_unit).sum())
    return round_mantissa(np.where(is_unit[:, None], rows, np.float32(np.nan)), mantissa_bits)
