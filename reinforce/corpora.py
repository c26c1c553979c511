"""How one file of sentences is reinforced, on one page: like `builder.py`, of sentences without images.

Batches of sentences arrive from the thread that reads the file; every teacher embeds them in full passes of like
length. Everything is written row group by row group to the spool and committed whole at the end, the sentences first.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reinforce.corpus_plan import SentenceSignal
from reinforce.corpus_source import PreparedSentences
from reinforce.overlap import Behind
from reinforce.plan import BuildPlan
from reinforce.prefetch import StageTimes
from reinforce.sample import NullReason, Sentence
from reinforce.shard_report import ShardReport
from reinforce.shards.schema import (
    FORMAT_VERSION,
    SENTENCE_COLUMN,
    SENTENCES_SCHEMA,
    corpus_embeddings_file,
    embeddings_schema,
    sentences_file,
)
from reinforce.shards.source import ShardError
from reinforce.shards.writer import ShardFileWriter, embeddings_batch, sentences_batch
from reinforce.spooled import SpooledFiles
from reinforce.storage import Store
from reinforce.texts import ShardTexts, TextRow

_SOURCE = "sentences"
"""What `ShardTexts` knows the texts by."""
_KEPT_AT_ONCE = 256
"""Sentences that go to the teachers together. Drops do not count: those the dataset holds come without them."""


def reinforce_texts(
    sentences: PreparedSentences,
    plan: BuildPlan,
    output: Store,
    *,
    spool: Path,
    times: StageTimes,
    on_batch: Callable[[ShardReport], None] = lambda report: None,
) -> ShardReport:
    """Computes what is missing of one file of sentences and commits it; nothing is visible before, all of it after.

    Raises `ShardError` if the file cannot be used. A bad record becomes a drop row and changes nothing for the others.
    `on_batch` sees the report grow.
    """
    work = SentencesWork(sentences, plan, output, spool, times)
    work.compute(on_batch)
    return work.commit()


@dataclass(slots=True)
class _EmbeddingFile:
    """A teacher's file in the making, with what its footer will count. One thread at a time writes to it."""

    signal: SentenceSignal
    writer: ShardFileWriter
    nulls: Counter[str] = field(default_factory=Counter)
    num_truncated_texts: int = 0

    def append(self, rows: list[TextRow]) -> None:
        texts = [text for row in rows for text in row.texts[_SOURCE]]
        values = np.stack([text.embedding for text in texts if text.embedding is not None])
        assert len(values) == len(rows)
        self.num_truncated_texts += sum(text.tokens.is_cut for text in texts)
        self.nulls[NullReason.NON_FINITE] += int(np.isnan(values).any(axis=1).sum())
        self.writer.append(embeddings_batch([row.key for row in rows], {SENTENCE_COLUMN: values}))


class SentencesWork:
    """A file of sentences whose files are made in the spool. `compute` it, then `commit`; or `close` it."""

    def __init__(
        self, sentences: PreparedSentences, plan: BuildPlan, output: Store, spool: Path, times: StageTimes
    ) -> None:
        self.sentences, self.plan, self.times = sentences, plan, times
        self.report = ShardReport(sentences.stem)
        self.is_computed = False
        """Whether all of it is in the spool; the commit is what is left."""
        self._spooled = SpooledFiles(spool, output, self.report)
        needs_spine = sentences.task.needs_spine
        self._spine = self._spooled.open("sentences", SENTENCES_SCHEMA) if needs_spine else None
        self._files = [
            _EmbeddingFile(signal, self._spooled.open(str(number), _schema(signal)))
            for number, signal in enumerate(sentences.task.missing)
        ]

    @property
    def work(self) -> "SentencesWork":
        """Itself: what is to be committed, as of an `OpenShard`."""
        return self

    def compute(self, on_batch: Callable[[ShardReport], None]) -> None:
        """Runs the teachers over the sentences. What is left is `commit`, also while the next one is computed."""
        try:
            with Behind("write") as writing:
                self._compute(writing, on_batch)
                writing.finish()
        except BaseException:
            self.close()
            raise
        self.report.micro_batches = self.plan.micro_batches()
        self.is_computed = True

    def commit(self) -> ShardReport:
        """Publishes the sentences, then the embeddings: none is ever there without the sentences it is of."""
        try:
            with self.times.measure("write"):
                self._commit()
        finally:
            self._spooled.abandon()
        return self.report

    def close(self) -> None:
        """Gives back what was read and removes what is in the spool, unless all is computed and may be published."""
        if not self.is_computed:
            self.sentences.close()
            self._spooled.abandon()

    def _compute(self, writing: Behind, on_batch: Callable[[ShardReport], None]) -> None:
        towers = [(ShardTexts(file.signal.teacher, self.times), file) for file in self._files]
        waiting: list[Sentence] = []
        for batch in self.sentences.batches():
            kept = [sentence for sentence in batch if sentence.drop is None]
            self.report.num_sentences += len(batch)
            self.report.num_kept_sentences += len(kept)
            self.report.num_truncated_sentences += sum(sentence.is_cut for sentence in kept)
            self.report.drops.update(sentence.drop.reason for sentence in batch if sentence.drop)
            writing.submit(self._write_sentences, batch)
            waiting += kept
            while len(waiting) >= _KEPT_AT_ONCE:
                self._embed(waiting[:_KEPT_AT_ONCE], towers, writing)
                del waiting[:_KEPT_AT_ONCE]
            on_batch(self.report)
        self._embed(waiting, towers, writing)
        for tower, file in towers:
            writing.submit(self._write_rows, file, tower.finish())

    def _embed(self, kept: list[Sentence], towers: list[tuple[ShardTexts, _EmbeddingFile]], writing: Behind) -> None:
        """Gives sentences to every teacher, and what is complete to the files."""
        keys, texts = [sentence.key for sentence in kept], [[sentence.text] for sentence in kept]
        for tower, file in towers:
            writing.submit(self._write_rows, file, tower.add(keys, {_SOURCE: texts}))

    def _write_sentences(self, batch: list[Sentence]) -> None:
        if self._spine is not None:
            with self.times.measure("write"):
                self._spine.append(sentences_batch(batch))

    def _write_rows(self, file: _EmbeddingFile, rows: list[TextRow]) -> None:
        if rows:
            with self.times.measure("write"):
                file.append(rows)

    def _commit(self) -> None:
        stem, report, corpus = self.sentences.stem, self.report, self.sentences.task.corpus
        common = {
            "format_version": FORMAT_VERSION,
            "stem": stem,
            "source_sha256": self.sentences.source_sha256,
            "source_bytes": self.sentences.source_bytes,
        }
        if self._spine is not None:
            footer = {
                "kind": "sentences",
                "corpus": corpus.name,
                "fingerprint": corpus.fingerprint,
                "num_rows": self._spine.num_rows,
                "num_kept": report.num_kept_sentences,
                "drops": dict(report.drops),
                "counts": {"truncated_sentences": report.num_truncated_sentences},
            }
            self._spooled.publish(self._spine, sentences_file(stem), common | footer)
        for file in self._files:
            if file.writer.num_rows != report.num_kept_sentences:
                found = f"{file.writer.num_rows} rows of {file.signal.folder}"
                raise ShardError(f"gave {found} for {report.num_kept_sentences} kept sentences")
            report.nulls.update(+file.nulls)
            footer = {
                "kind": "sentence_embeddings",
                "signal": file.signal.folder,
                "fingerprint": file.signal.fingerprint,
                "weights_sha256": file.signal.content.get("weights_sha256"),
                "num_rows": file.writer.num_rows,
                "nulls": dict(+file.nulls),
                "num_truncated_texts": file.num_truncated_texts,
            }
            self._spooled.publish(file.writer, corpus_embeddings_file(stem, file.signal.teacher.name), common | footer)


def _schema(signal: SentenceSignal) -> Any:
    return embeddings_schema([SENTENCE_COLUMN], signal.teacher.dim)
