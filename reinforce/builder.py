"""How one shard is reinforced, on one page. No Ray and no URI schemes here.

Batches of prepared samples arrive from the pool; captioners see the clean views, teachers all views and all captions.
Every signal is written row group by row group to the spool, in a thread beside the models, and all are committed whole
at the end, if the caller likes while the next shard is computed.
"""

from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from pathlib import Path

import torch

from reinforce.captioners import Captioner, CaptionRequest
from reinforce.collate import Batch, Collator
from reinforce.computed import Captions, ComputedShard, SignalFile
from reinforce.overlap import Behind, ahead
from reinforce.plan import ORIGINAL, BuildPlan
from reinforce.prefetch import PreparedShard, StageTimes
from reinforce.shard_report import ShardReport
from reinforce.shards.reader import ShardFile
from reinforce.shards.schema import Signal
from reinforce.storage import Store
from reinforce.texts import ShardTexts, TextRow


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
    return compute_images(shard, plan, output, spool=spool, times=times, on_batch=on_batch).commit()


def compute_images(
    shard: PreparedShard,
    plan: BuildPlan,
    output: Store,
    *,
    spool: Path,
    times: StageTimes,
    on_batch: Callable[[ShardReport], None] = lambda report: None,
) -> ComputedShard:
    """The first half of `reinforce_images`: all but the commit, which may go on while the next shard is computed."""
    computed = None
    try:
        computed = ComputedShard(shard, plan, output, spool, times)
        _compute(computed, output, on_batch)
    except BaseException as error:
        if isinstance(error, Exception):
            shard.close()
        if computed is not None:
            computed.abandon()
        raise
    return computed


def _compute(computed: ComputedShard, output: Store, on_batch: Callable[[ShardReport], None]) -> None:
    plan, report, times = computed.plan, computed.report, computed.times
    collator = Collator(plan.config.batch_size, pin_memory=plan.device.type == "cuda")
    image_files = [file for signal, file in computed.files.items() if signal.kind == "image"]
    towers = _text_towers(computed)
    with Behind("write") as writing, closing(_captioned(collator, computed, output)) as batches:
        for batch, captions in batches:
            report.num_samples += batch.num_samples
            report.num_kept += len(batch.samples)
            report.drops.update(batch.drops)
            # Every teacher on the views of the batch, then on those texts that fill a pass.
            for file in image_files if batch.samples else ():
                views = batch.views[file.plan.teacher.image_size]
                # All views in one call: the next pass is on its way to the device while this one is there.
                with times.measure("teachers"):
                    embeddings = file.plan.teacher.embed_images(views.reshape(-1, *views.shape[2:]))
                report.num_views += len(embeddings)
                writing.submit(computed.write, file.append_views, batch.keys, embeddings)
            for tower, files in towers:
                sources = [file.plan.signal.source for file in files]
                rows = tower.add(batch.keys, {source: captions[source] for source in sources})
                _write_texts(rows, files, writing, computed)
            report.num_captions += batch.num_captions
            collator.release(batch)
            on_batch(report)
        for tower, files in towers:
            _write_texts(tower.finish(), files, writing, computed)
        writing.finish()


def _text_towers(computed: ComputedShard) -> list[tuple[ShardTexts, list[SignalFile]]]:
    """Every teacher whose embeddings of texts are missing, with the files they go to."""
    towers: dict[str, tuple[ShardTexts, list[SignalFile]]] = {}
    for signal, file in computed.files.items():
        if signal.kind == "text":
            if signal.model not in towers:
                tower = ShardTexts(file.plan.teacher, computed.times)
                towers[signal.model] = (tower, [])
            towers[signal.model][1].append(file)
    return list(towers.values())


def _write_texts(rows: list[TextRow], files: list[SignalFile], writing: Behind, computed: ComputedShard) -> None:
    if rows:
        for file in files:
            writing.submit(computed.write, file.append_texts, rows)


def _captioned(
    collator: Collator, computed: ComputedShard, output: Store
) -> Generator[tuple[Batch, dict[str, Captions]]]:
    """The batches with the captions of every source, made ahead of the teachers as far as there is something to gain.

    Batches are put together in a thread. Captions are written beside the teachers where they come from elsewhere, or
    wait for a device more than they use it; on a CPU both would only share its cores.
    """
    batches = ahead(collator.batches(computed.shard, computed.spine), name="collate")
    captioned = _caption_all(batches, computed, _stored_captions(computed, output))
    is_beside = computed.plan.device.type == "cuda" or any(c.is_remote for c in computed.plan.captioners)
    return ahead(captioned, name="caption") if computed.plan.captioners and is_beside else captioned


def _caption_all(
    batches: Generator[Batch], computed: ComputedShard, stored: dict[str, dict[str, list[str]]]
) -> Generator[tuple[Batch, dict[str, Captions]]]:
    is_cuda = computed.plan.device.type == "cuda"
    # A stream of its own: in the teachers' one every token would wait for a whole pass of theirs.
    stream = torch.cuda.stream(torch.cuda.Stream()) if is_cuda else nullcontext()  # type: ignore[no-untyped-call]
    with closing(batches), stream:
        for batch in batches:
            captions = {ORIGINAL: [list(prepared.sample.captions) for prepared in batch.samples]}
            for captioner in computed.plan.captioners:
                with computed.times.measure("captioner"):
                    written = _captions_of(captioner, batch, computed, stored.get(captioner.name, {}))
                captions[captioner.name] = written
                computed.note_captions(captioner.name, batch.keys, written)
            yield batch, captions


def _captions_of(captioner: Captioner, batch: Batch, computed: ComputedShard, stored: dict[str, list[str]]) -> Captions:
    """The captions of a batch: written now and appended to their file, or those stored by an earlier build."""
    file = computed.files.get(Signal("captions", captioner.name))
    if file is None:
        return [stored[key] if stored else [] for key in batch.keys]
    if not batch.samples:
        return []
    views = batch.views[captioner.image_size][0] if captioner.image_size else None
    requests = [
        CaptionRequest(
            computed.shard.stem,
            prepared.sample.key,
            prepared.view_seed,
            None if views is None else views[row],
            prepared.sample.fields.get(captioner.field, ()) if captioner.field else (),
        )
        for row, prepared in enumerate(batch.samples)
    ]
    captions = captioner.caption(requests)
    file.append_captions(batch.keys, captions)
    batch.num_captions += sum(map(len, captions))
    return captions


def _stored_captions(computed: ComputedShard, output: Store) -> dict[str, dict[str, list[str]]]:
    """Captions of earlier builds that a missing text signal needs, by captioner and key."""
    missing = computed.files.keys()
    needed = {signal.source for signal in missing if signal.kind == "text" and signal.source != ORIGINAL}
    stored = {}
    for name in sorted(needed):
        signal = Signal("captions", name)
        if signal not in missing:
            with ShardFile(output, signal.file(computed.shard.stem)) as file:
                table = file.read()
            rows = zip(table.column("key").to_pylist(), table.column("captions").to_pylist(), strict=True)
            stored[name] = {key: texts or [] for key, texts in rows}
    return stored
