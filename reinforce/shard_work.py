"""The files of one shard while they are made, in a spool of their own, and how they are published."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from reinforce.plan import ORIGINAL, BuildPlan, SignalPlan
from reinforce.prefetch import PreparedSample, PreparedShard, StageTimes
from reinforce.sample import Embeddings, NullReason
from reinforce.shard_report import ShardReport, null_name
from reinforce.shards.schema import (
    CAPTIONS_SCHEMA,
    FORMAT_VERSION,
    MODALITY_SCHEMA,
    SPINE_SCHEMA,
    Signal,
    canonical_json,
    caption_column,
    embeddings_schema,
    round_mantissa,
    spine_file,
)
from reinforce.shards.source import ShardError
from reinforce.shards.writer import ShardFileWriter, captions_batch, embeddings_batch, modality_batch
from reinforce.spooled import SpooledFiles
from reinforce.storage import Store
from reinforce.texts import TextRow

Captions = list[list[str]]


@dataclass(slots=True)
class SignalFile:
    """A signal's file in the making, with what its footer will count. One thread at a time writes to it."""

    plan: SignalPlan
    writer: ShardFileWriter
    nulls: Counter[str] = field(default_factory=Counter)
    num_truncated_texts: int = 0

    def append_modality(self, samples: list[PreparedSample]) -> None:
        images = [prepared.modalities[self.plan.signal.model] for prepared in samples]
        self.nulls.update(image.null_reason for image in images if image.null_reason)
        self.writer.append(modality_batch([prepared.sample.key for prepared in samples], images))

    def append_captions(self, keys: list[str], captions: Captions) -> None:
        self.nulls[NullReason.CAPTIONER_FAILED] += sum(not texts for texts in captions)
        self.writer.append(captions_batch(keys, [texts or None for texts in captions]))

    def append_views(self, keys: list[str], embeddings: Embeddings) -> None:
        """Those of all keys in view 0, then in view 1, and so on."""
        stored = round_mantissa(embeddings, self.plan.teacher.mantissa_bits)
        self.nulls[NullReason.NON_FINITE] += int(np.isnan(stored).any(axis=1).sum())
        by_view = stored.reshape(len(self.plan.columns), len(keys), -1)
        self.writer.append(embeddings_batch(keys, dict(zip(self.plan.columns, by_view, strict=True))))

    def append_texts(self, rows: list[TextRow]) -> None:
        """Each text goes to its row and column; the cells of rows with fewer texts stay NaN, which is null."""
        values = np.full((len(self.plan.columns), len(rows), self.plan.teacher.dim), np.nan, np.float16)
        for index, row in enumerate(rows):
            for column, text in enumerate(row.texts[self.plan.signal.source]):
                assert text.embedding is not None
                values[column, index] = text.embedding
                self.num_truncated_texts += text.tokens.is_cut
                self.nulls[NullReason.NON_FINITE] += bool(np.isnan(text.embedding).any())
            self.nulls[NullReason.NO_CAPTION] += len(values) - len(row.texts[self.plan.signal.source])
        columns = {caption_column(column): rows_of for column, rows_of in enumerate(values)}
        self.writer.append(embeddings_batch([row.key for row in rows], columns))


class ShardWork:
    """A shard whose files are whole, or being made, in the spool; nothing of it is visible before `commit`."""

    def __init__(self, shard: PreparedShard, plan: BuildPlan, output: Store, spool: Path, times: StageTimes) -> None:
        self.shard, self.plan, self.times = shard, plan, times
        self.report = ShardReport(shard.stem)
        self.digests = {captioner.name: hashlib.sha256() for captioner in plan.captioners}
        self.is_computed = False
        """Whether all of it is in the spool; the commit is what is left."""
        self._spooled = SpooledFiles(spool, output, self.report)
        self.spine: ShardFileWriter | None = None
        self.files: dict[Signal, SignalFile] = {}
        if shard.task.needs_spine:
            self.spine = self._spooled.open("spine", SPINE_SCHEMA)
        for missing in shard.task.missing:
            self.files[missing.signal] = SignalFile(missing, _open_writer(missing, self._spooled))

    def note_captions(self, captioner: str, keys: list[str], captions: Captions) -> None:
        """Adds captions to the digest that the embeddings made from them carry."""
        for key, texts in zip(keys, captions, strict=True):
            self.digests[captioner].update(canonical_json([key, texts]).encode() + b"\n")

    def write(self, call: Callable[..., None], *args: object) -> None:
        """A call whose time counts as writing."""
        with self.times.measure("write"):
            call(*args)

    def commit(self) -> ShardReport:
        """Publishes the spine, then the signals: none is ever there without the spine that explains its rows."""
        try:
            with self.times.measure("write"):
                self._commit()
        finally:
            self.abandon()
        return self.report

    def abandon(self) -> None:
        """Removes what is in the spool."""
        self._spooled.abandon()

    def _commit(self) -> None:
        shard, report = self.shard, self.report
        report.counts = +shard.counts
        source = {
            "format_version": FORMAT_VERSION,
            "stem": shard.stem,
            "source_sha256": shard.source_sha256,
            "source_bytes": shard.task.shard.size,
        }
        if self.spine is not None:
            footer = {
                "kind": "samples",
                "fingerprint": self.plan.spine_fingerprint,
                "num_rows": self.spine.num_rows,
                "num_kept": report.num_kept,
                "drops": dict(report.drops),
                "counts": dict(+shard.counts),
            }
            self._spooled.publish(self.spine, spine_file(shard.stem), source | footer)
        for signal, file in self.files.items():
            if file.writer.num_rows != report.num_kept:
                found = f"{file.writer.num_rows} rows of {signal.folder} for {report.num_kept} kept samples"
                raise ShardError(f"gave {found}")
            report.nulls.update({null_name(signal, reason): number for reason, number in (+file.nulls).items()})
            footer = {
                "kind": signal.kind,
                "signal": signal.folder,
                "fingerprint": file.plan.fingerprint,
                "weights_sha256": file.plan.content.get("weights_sha256"),
                "num_rows": file.writer.num_rows,
                "nulls": dict(+file.nulls),
            }
            if signal.kind == "text":
                footer["num_truncated_texts"] = file.num_truncated_texts
                if signal.source != ORIGINAL:
                    footer["captions_sha256"] = self.digests[signal.source].hexdigest()
            self._spooled.publish(file.writer, signal.file(shard.stem), source | footer)


def _open_writer(plan: SignalPlan, spooled: SpooledFiles) -> ShardFileWriter:
    name = plan.signal.folder.replace("/", "-")
    if plan.signal.kind == "captions":
        return spooled.open(name, CAPTIONS_SCHEMA)
    if plan.signal.kind == "modality":
        return spooled.open(name, MODALITY_SCHEMA)
    return spooled.open(name, embeddings_schema(list(plan.columns), plan.teacher.dim))
