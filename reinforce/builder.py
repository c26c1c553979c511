"""How one shard is reinforced, on one page. No Ray and no URI schemes here.

Batches of prepared samples arrive from the pool; captioners see the clean views, teachers all views and all captions;
every signal is written row group by row group to the spool and committed whole at the end.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reinforce.captioners import Captioner, CaptionRequest
from reinforce.plan import ORIGINAL, BuildPlan, SignalPlan
from reinforce.prefetch import PreparedSample, PreparedShard, StageTimes
from reinforce.sample import Embeddings, NullReason
from reinforce.shard_report import ShardReport
from reinforce.shards.reader import ShardFile
from reinforce.shards.schema import (
    CAPTIONS_SCHEMA,
    FORMAT_VERSION,
    SPINE_SCHEMA,
    Signal,
    canonical_json,
    caption_column,
    embeddings_schema,
    round_mantissa,
    spine_file,
)
from reinforce.shards.source import ShardError
from reinforce.shards.writer import ShardFileWriter, captions_batch, embeddings_batch, spine_batch
from reinforce.storage import Store

Captions = list[list[str]]


@dataclass(slots=True)
class _SignalFile:
    """A signal's file in the making, with what its footer will count."""

    plan: SignalPlan
    writer: ShardFileWriter
    nulls: Counter[str] = field(default_factory=Counter)
    num_truncated_texts: int = 0


def reinforce_images(
    shard: PreparedShard,
    plan: BuildPlan,
    output: Store,
    *,
    spool: Path,
    times: StageTimes,
    on_batch: Callable[[ShardReport], None] = lambda report: None,
) -> ShardReport:
    """Computes what is missing of one shard and commits it; nothing is visible before, all of it after.

    Raises `ShardError` if the source cannot be used. A bad sample becomes a drop row of the spine and changes nothing
    for its neighbours. `on_batch` sees the report grow.
    """
    report = ShardReport(shard.stem)
    files: dict[Signal, _SignalFile] = {}
    spine = None
    digests = {captioner.name: hashlib.sha256() for captioner in plan.captioners}
    try:
        files |= {p.signal: _SignalFile(p, _open_writer(p, spool)) for p in shard.task.missing}
        spine = ShardFileWriter(spool / "spine.parquet", SPINE_SCHEMA) if shard.task.needs_spine else None
        stored = _stored_captions(shard, plan, output)
        for batch in _batches(shard, spine, report, plan.config.batch_size):
            # Captions first: the text towers read them.
            captions = {ORIGINAL: [list(prepared.sample.captions) for prepared in batch]}
            for captioner in plan.captioners:
                with times.measure("captioner"):
                    written = _write_captions(captioner, batch, files, stored, shard.stem, report)
                captions[captioner.name] = written
                for prepared, texts in zip(batch, written, strict=True):
                    digests[captioner.name].update(canonical_json([prepared.sample.key, texts]).encode() + b"\n")
            # Then every teacher, on the views and on the texts of each source.
            keys = [prepared.sample.key for prepared in batch]
            for file in files.values():
                if file.plan.signal.kind == "image":
                    with times.measure("teachers"):
                        columns = _embed_views(file, batch, report)
                elif file.plan.signal.kind == "text":
                    with times.measure("teachers"):
                        columns = _embed_captions(file, captions[file.plan.signal.source])
                else:
                    continue
                with times.measure("write"):
                    file.writer.append(embeddings_batch(keys, columns))
            on_batch(report)
        with times.measure("write"):
            _commit(shard, plan, output, spine, files, digests, report)
    except Exception:
        shard.close()
        raise
    finally:
        for file in files.values():
            file.writer.abandon()
        if spine is not None:
            spine.abandon()
    return report


def _batches(
    shard: PreparedShard, spine: ShardFileWriter | None, report: ShardReport, batch_size: int
) -> Iterator[list[PreparedSample]]:
    """Batches of kept samples in order; every sample, kept or not, goes to the spine as it passes."""
    batch: list[PreparedSample] = []
    rows: list[dict[str, Any]] = []
    for prepared in shard.samples():
        report.num_samples += 1
        if spine is not None:
            rows.append(_spine_row(prepared))
        if prepared.drop is not None:
            report.drops[prepared.drop.reason] += 1
        else:
            report.num_kept += 1
            batch.append(prepared)
        if spine is not None and len(rows) == batch_size:
            spine.append(spine_batch(rows))
            rows = []
        if len(batch) == batch_size:
            yield batch
            batch = []
    if spine is not None and rows:
        spine.append(spine_batch(rows))
    if batch:
        yield batch


def _spine_row(prepared: PreparedSample) -> dict[str, Any]:
    return {
        "key": prepared.sample.key,
        "captions": list(prepared.sample.captions),
        "modalities": sorted(prepared.sample.modalities),
        "image_width": prepared.width,
        "image_height": prepared.height,
        "image_sha256": prepared.sha256,
        "view_seed": prepared.view_seed,
        "drop_reason": prepared.drop.reason.value if prepared.drop else None,
        "drop_detail": prepared.drop.detail if prepared.drop else None,
    }


def _write_captions(
    captioner: Captioner,
    batch: Sequence[PreparedSample],
    files: dict[Signal, _SignalFile],
    stored: dict[str, dict[str, list[str]]],
    stem: str,
    report: ShardReport,
) -> Captions:
    """The captions of a batch: written now and appended to their file, or those stored by an earlier build."""
    file = files.get(Signal("captions", captioner.name))
    if file is None:
        earlier = stored.get(captioner.name, {})
        return [earlier[prepared.sample.key] if earlier else [] for prepared in batch]
    requests = [
        CaptionRequest(
            stem,
            prepared.sample.key,
            prepared.view_seed,
            prepared.views[captioner.image_size][0] if captioner.image_size else None,
            prepared.sample.fields.get(captioner.field, ()) if captioner.field else (),
        )
        for prepared in batch
    ]
    captions = captioner.caption(requests)
    file.nulls[NullReason.CAPTIONER_FAILED] += sum(not texts for texts in captions)
    file.writer.append(captions_batch([p.sample.key for p in batch], [texts or None for texts in captions]))
    report.num_captions += sum(map(len, captions))
    return captions


def _embed_views(file: _SignalFile, batch: Sequence[PreparedSample], report: ShardReport) -> dict[str, np.ndarray]:
    teacher = file.plan.teacher
    columns = {}
    for index, name in enumerate(file.plan.columns):
        views = np.stack([prepared.views[teacher.image_size][index] for prepared in batch])
        columns[name] = _stored_form(teacher.embed_images(views), file)
        report.num_views += len(batch)
    return columns


def _embed_captions(file: _SignalFile, captions: Captions) -> dict[str, np.ndarray]:
    """Embeds the texts of a batch together, then puts each into its row and column; the rest stay NaN."""
    teacher = file.plan.teacher
    num_columns = len(file.plan.columns)
    cells = [(row, column) for row, texts in enumerate(captions) for column in range(len(texts))]
    values = np.full((len(captions), num_columns, teacher.dim), np.nan, np.float16)
    if cells:
        embeddings, truncated = teacher.embed_texts([captions[row][column] for row, column in cells])
        rows, column_indices = np.array(cells).T
        values[rows, column_indices] = _stored_form(embeddings, file)
        file.num_truncated_texts += int(truncated.sum())
    file.nulls[NullReason.NO_CAPTION] += len(captions) * num_columns - len(cells)
    return {caption_column(column): values[:, column] for column in range(num_columns)}


def _stored_form(embeddings: Embeddings, file: _SignalFile) -> np.ndarray:
    file.nulls[NullReason.NON_FINITE] += int(np.isnan(embeddings).any(axis=1).sum())
    return round_mantissa(embeddings, file.plan.teacher.mantissa_bits)


def _commit(
    shard: PreparedShard,
    plan: BuildPlan,
    output: Store,
    spine: ShardFileWriter | None,
    files: dict[Signal, _SignalFile],
    digests: dict[str, Any],
    report: ShardReport,
) -> None:
    """Publishes the spine, then the signals: none is ever there without the spine that explains its rows."""
    report.counts, report.micro_batches = +shard.counts, plan.micro_batches()
    source = {
        "format_version": FORMAT_VERSION,
        "stem": shard.stem,
        "source_sha256": shard.source_sha256,
        "source_bytes": shard.task.shard.size,
    }
    if spine is not None:
        footer = {
            "kind": "samples",
            "fingerprint": plan.spine_fingerprint,
            "num_rows": spine.num_rows,
            "num_kept": report.num_kept,
            "drops": dict(report.drops),
            "counts": dict(+shard.counts),
        }
        _publish(spine, output, spine_file(shard.stem), source | footer, report)
    for signal, file in files.items():
        if file.writer.num_rows != report.num_kept:
            raise ShardError(f"gave {file.writer.num_rows} rows of {signal.folder} for {report.num_kept} kept samples")
        report.nulls.update(+file.nulls)
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
                footer["captions_sha256"] = digests[signal.source].hexdigest()
        _publish(file.writer, output, signal.file(shard.stem), source | footer, report)


def _publish(writer: ShardFileWriter, output: Store, path: str, footer: dict[str, Any], report: ShardReport) -> None:
    if writer.commit(output, path, footer):
        report.num_files += 1
        report.num_bytes += writer.spool.stat().st_size
    writer.spool.unlink()


def _stored_captions(shard: PreparedShard, plan: BuildPlan, output: Store) -> dict[str, dict[str, list[str]]]:
    """Captions of earlier builds that a missing text signal needs, by captioner and key."""
    missing = {p.signal for p in shard.task.missing}
    needed = {signal.source for signal in missing if signal.kind == "text" and signal.source != ORIGINAL}
    stored = {}
    for name in sorted(needed):
        signal = Signal("captions", name)
        if signal not in missing:
            with ShardFile(output, signal.file(shard.stem)) as file:
                table = file.read()
            rows = zip(table.column("key").to_pylist(), table.column("captions").to_pylist(), strict=True)
            stored[name] = {key: texts or [] for key, texts in rows}
    return stored


def _open_writer(plan: SignalPlan, spool: Path) -> ShardFileWriter:
    path = spool / (plan.signal.folder.replace("/", "-") + ".parquet")
    if plan.signal.kind == "captions":
        return ShardFileWriter(path, CAPTIONS_SCHEMA)
    return ShardFileWriter(path, embeddings_schema(list(plan.columns), plan.teacher.dim))
