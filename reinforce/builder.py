"""How one shard is reinforced, on one page. No Ray and no URI schemes here.

Batches of prepared samples arrive from the pool; captioners see the clean views, teachers all views and all captions.
Every signal is written row group by row group to the spool, in a thread beside the models, and all are committed whole
at the end, if the caller likes while the next shard is computed.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from reinforce.captioners import Captioner, CaptionRequest, RemoteCaptioner
from reinforce.collate import Batch, Collator
from reinforce.corpora import SentencesWork
from reinforce.corpus_source import PreparedSentences
from reinforce.overlap import Ahead, Behind, Turn
from reinforce.plan import ORIGINAL, BuildPlan
from reinforce.prefetch import Prefetcher, Prepared, PreparedShard, StageTimes, Task
from reinforce.shard_report import ShardReport
from reinforce.shard_work import Captions, ShardWork, SignalFile
from reinforce.shards.reader import ShardFile
from reinforce.shards.schema import Signal
from reinforce.storage import Store
from reinforce.texts import ShardTexts, TextRow

CaptionedBatches = Ahead[tuple[Batch, dict[str, Captions]]] | Generator[tuple[Batch, dict[str, Captions]]]
"""Batches with the captions of each source, a list for each sample."""


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
    opened = open_shard(shard, plan, output, spool=spool, times=times)
    try:
        compute(opened, on_batch)
    except BaseException:
        opened.close()
        raise
    return opened.work.commit()


@dataclass(frozen=True)
class OpenShard:
    """A shard whose batches are being made. `compute` it, or `close` it."""

    work: ShardWork
    collator: Collator
    collated: Ahead[Batch]
    captioned: CaptionedBatches

    def close(self) -> None:
        """Stops its threads and removes what is in the spool, unless all of that is computed and may be published."""
        if self.work.is_computed:
            return
        self.captioned.close()
        self.collated.close()  # a generator that never began closes nothing
        # A thread that is still in a captioner would write to files that are gone; they go with the spool.
        if not isinstance(self.captioned, Ahead) or self.captioned.has_ended:
            self.work.abandon()


Opened = OpenShard | SentencesWork
"""Of images, or of sentences: `compute` it, then `commit` its `work`."""


def open_shard(
    shard: PreparedShard, plan: BuildPlan, output: Store, *, spool: Path, times: StageTimes, turn: Turn | None = None
) -> OpenShard:
    """Opens the files of a shard and begins to put its batches together; the one before may still be computed."""
    work = None
    try:
        work = ShardWork(shard, plan, output, spool, times)
        stored = _stored_captions(work, output)
        collator = Collator(plan.config.batch_size, pin_memory=plan.device.type == "cuda")
        collated = Ahead(collator.batches(shard, work.spine), name="collate")
        return OpenShard(work, collator, collated, _captioned(collated, work, stored, turn or Turn()))
    except Exception:
        if work is not None:
            work.abandon()
        shard.close()
        raise


@contextmanager
def open_shards(
    prefetcher: Prefetcher, tasks: Iterable[Task], *, spool: Path
) -> Iterator[Iterator[tuple[Prepared, Opened | Exception]]]:
    """The shards of some tasks, each opened while the one before it is computed, or why it cannot be: two at a time.

    At the end, whatever ends it, the prefetcher is stopped and what was opened in vain is closed.
    """
    room = threading.Semaphore(2)

    def open_all() -> Iterator[tuple[Prepared, Opened | Exception]]:
        plan, output, times = prefetcher.plan, prefetcher.output, prefetcher.times
        turn = Turn()
        turn.done.set()
        for shard in prefetcher.shards(tasks):
            room.acquire()
            has_turn = isinstance(shard, PreparedShard)  # no captioner writes for sentences
            turn = Turn(before=turn.done) if has_turn else turn
            try:
                opening: Opened | Exception = (
                    SentencesWork(shard, plan, output, spool, times)
                    if isinstance(shard, PreparedSentences)
                    else open_shard(shard, plan, output, spool=spool, times=times, turn=turn)
                )
            except Exception as error:  # of this shard alone
                opening = error
                shard.close()
                if has_turn:
                    turn.done.set()
            yield shard, opening

    current: list[Opened | Exception] = []

    def each_until_done() -> Iterator[tuple[Prepared, Opened | Exception]]:
        for shard, opening in ahead:
            current[:] = [opening]
            yield shard, opening
            current.clear()
            room.release()

    ahead = Ahead(open_all(), name="open")
    try:
        yield each_until_done()
    finally:
        prefetcher.stop()
        for captioner in prefetcher.plan.captioners:
            if isinstance(captioner, RemoteCaptioner):
                captioner.cancel()
        room.release()
        for opened in (*current, *(unread for _, unread in ahead.close())):
            if not isinstance(opened, Exception):
                opened.close()


def compute(opened: Opened, on_batch: Callable[[ShardReport], None] = lambda report: None) -> None:
    """Runs the models over a shard. What is left is `opened.work.commit()`, also while the next one is computed."""
    if isinstance(opened, SentencesWork):
        opened.compute(on_batch)
        return
    try:
        with Behind("write") as writing:
            _compute(opened, writing, on_batch)
            writing.finish()
    except Exception:
        opened.close()
        opened.work.shard.close()
        raise
    opened.work.report.micro_batches = opened.work.plan.micro_batches()
    opened.work.is_computed = True


def _compute(opened: OpenShard, writing: Behind, on_batch: Callable[[ShardReport], None]) -> None:
    work, report = opened.work, opened.work.report
    image_files = [file for signal, file in work.files.items() if signal.kind == "image"]
    modality_files = [file for signal, file in work.files.items() if signal.kind == "modality"]
    towers = _text_towers(work)
    for batch, captions in opened.captioned:
        report.num_samples += batch.num_samples
        report.num_kept += len(batch.samples)
        report.drops.update(batch.drops)
        report.num_captions += batch.num_captions
        for file in modality_files if batch.samples else ():
            writing.submit(work.write, file.append_modality, batch.samples)
        # Every teacher on the views of the batch, then on those texts that fill a pass.
        for file in image_files if batch.samples else ():
            views = batch.views[file.plan.teacher.image_size]
            # All views in one call: the next pass is on its way to the device while this one is there.
            with work.times.measure("teachers"):
                embeddings = file.plan.teacher.embed_images(views.reshape(-1, *views.shape[2:]))
            report.num_views += len(embeddings)
            writing.submit(work.write, file.append_views, batch.keys, embeddings)
        for tower, files in towers:
            sources = [file.plan.signal.source for file in files]
            _write_texts(tower.add(batch.keys, {source: captions[source] for source in sources}), files, writing, work)
        opened.collator.release(batch)
        on_batch(report)
    for tower, files in towers:
        _write_texts(tower.finish(), files, writing, work)


def _text_towers(work: ShardWork) -> list[tuple[ShardTexts, list[SignalFile]]]:
    """Every teacher whose embeddings of texts are missing, with the files they go to."""
    towers: dict[str, tuple[ShardTexts, list[SignalFile]]] = {}
    for signal, file in work.files.items():
        if signal.kind == "text":
            if signal.model not in towers:
                tower = ShardTexts(file.plan.teacher, work.times)
                towers[signal.model] = (tower, [])
            towers[signal.model][1].append(file)
    return list(towers.values())


def _write_texts(rows: list[TextRow], files: list[SignalFile], writing: Behind, work: ShardWork) -> None:
    if rows:
        for file in files:
            writing.submit(work.write, file.append_texts, rows)


def _captioned(
    collated: Ahead[Batch], work: ShardWork, stored: dict[str, dict[str, list[str]]], turn: Turn
) -> CaptionedBatches:
    """The batches with the captions of every source.

    They are written beside the teachers where captions come from a server, or wait for a device more than they use it;
    on a CPU both would only share its cores.
    """
    captioned = _caption_all(collated, work, stored)
    is_beside = work.plan.device.type == "cuda" or any(captioner.is_remote for captioner in work.plan.captioners)
    return Ahead(_in_turn(captioned, turn), name="caption") if work.plan.captioners and is_beside else captioned


def _in_turn(
    captioned: Generator[tuple[Batch, dict[str, Captions]]], turn: Turn
) -> Generator[tuple[Batch, dict[str, Captions]]]:
    try:
        if turn.before is not None:
            turn.before.wait()
        yield from captioned
    finally:
        turn.done.set()


def _caption_all(
    batches: Ahead[Batch], work: ShardWork, stored: dict[str, dict[str, list[str]]]
) -> Generator[tuple[Batch, dict[str, Captions]]]:
    torch.set_num_threads(work.plan.config.threads)
    torch.get_num_threads()  # a thread takes its number when it first needs one, and others may have set theirs by then
    stream = work.plan.caption_stream
    for batch in batches:
        captions = {ORIGINAL: [list(prepared.sample.captions) for prepared in batch.samples]}
        with torch.cuda.stream(stream) if stream else nullcontext():
            for captioner in work.plan.captioners:
                with work.times.measure("captioner"):
                    written = _captions_of(captioner, batch, work, stored.get(captioner.name, {}))
                captions[captioner.name] = written
                work.note_captions(captioner.name, batch.keys, written)
        yield batch, captions


def _captions_of(captioner: Captioner, batch: Batch, work: ShardWork, stored: dict[str, list[str]]) -> Captions:
    """The captions of a batch: written now and appended to their file, or those stored by an earlier build."""
    file = work.files.get(Signal("captions", captioner.name))
    if file is None:
        return [stored[key] if stored else [] for key in batch.keys]
    if not batch.samples:
        return []
    views = batch.views[captioner.image_size][0] if captioner.image_size else None
    requests = [
        CaptionRequest(
            work.shard.stem,
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


def _stored_captions(work: ShardWork, output: Store) -> dict[str, dict[str, list[str]]]:
    """Captions of earlier builds that a missing text signal needs, by captioner and key."""
    missing = work.files.keys()
    needed = {signal.source for signal in missing if signal.kind == "text" and signal.source != ORIGINAL}
    stored = {}
    for name in sorted(needed):
        signal = Signal("captions", name)
        if signal not in missing:
            with ShardFile(output, signal.file(work.shard.stem)) as file:
                table = file.read()
            rows = zip(table.column("key").to_pylist(), table.column("captions").to_pylist(), strict=True)
            stored[name] = {key: texts or [] for key, texts in rows}
    return stored
