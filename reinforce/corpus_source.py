"""Where a build's sentences come from: their source file once, then what the dataset holds of them.

So a teacher that is added later needs no source. Sentences are handed on some at a time, whatever the size of a file.
"""

import hashlib
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from reinforce.arrivals import Arrivals
from reinforce.corpus_plan import CorpusOutline, SentenceSignal
from reinforce.sample import Sentence
from reinforce.shards.reader import ShardFile
from reinforce.shards.schema import corpus_embeddings_file, sentences_file
from reinforce.shards.sentences import read_sentences
from reinforce.shards.source import ShardError
from reinforce.storage import SENTENCES, ShardRef, Store

_SENTENCES_AT_ONCE = 256


@dataclass(frozen=True)
class SentencesTask:
    """One source file of sentences and what is missing of it in the dataset."""

    shard: ShardRef
    corpus: CorpusOutline
    missing: tuple[SentenceSignal, ...]
    needs_spine: bool
    stored: tuple[SentenceSignal, ...] = ()
    """Those that are there, also where the sentences are gone."""

    @property
    def needs_source(self) -> bool:
        """Whether the file is needed: sentences that are in the dataset are read from there."""
        return self.needs_spine


def missing_sentences(
    ref: ShardRef, corpus: CorpusOutline, signals: tuple[SentenceSignal, ...], existing: Collection[str]
) -> SentencesTask | None:
    """What of one file is not among the `existing` files of the dataset yet, None if nothing."""
    missing = tuple(s for s in signals if corpus_embeddings_file(ref.stem, s.teacher.name) not in existing)
    stored = tuple(signal for signal in signals if signal not in missing)
    needs_spine = sentences_file(ref.stem) not in existing
    return SentencesTask(ref, corpus, missing, needs_spine, stored) if missing or needs_spine else None


class PreparedSentences(Arrivals[list[Sentence]]):
    """A file whose sentences arrive in order, the dropped ones too unless they come from the dataset."""

    def __init__(self, task: SentencesTask, slots: threading.Semaphore) -> None:
        super().__init__(slots)
        self.task = task
        self.source_sha256 = ""
        self.source_bytes = 0

    @property
    def stem(self) -> str:
        return self.task.shard.stem

    def batches(self) -> Iterator[list[Sentence]]:
        """Every sentence, some at a time. Raises what went wrong while the file was fetched or read."""
        return self._read()

    def read(self, path: Path | None, output: Store) -> Iterator[list[Sentence]]:
        """The batches as they are read, from the local copy of the file or, without one, from the dataset."""
        batch: list[Sentence] = []
        for sentence in self._from_dataset(output) if path is None else self._from_source(path, output):
            batch.append(sentence)
            if len(batch) == _SENTENCES_AT_ONCE:
                yield batch
                batch = []
        if batch:
            yield batch

    def _from_source(self, path: Path, output: Store) -> Iterator[Sentence]:
        with path.open("rb") as file:
            self.source_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        for signal in self.task.stored:
            with ShardFile(output, corpus_embeddings_file(self.stem, signal.teacher.name)) as embeddings:
                if embeddings.footer["source_sha256"] != self.source_sha256:
                    raise ShardError("has changed since its embeddings were written; restore it, or delete them")
        self.source_bytes = path.stat().st_size
        corpus = self.task.corpus
        suffix = SENTENCES.suffix(self.task.shard.path)
        yield from read_sentences(path, suffix, corpus.config, limit=corpus.limit_samples)

    def _from_dataset(self, output: Store) -> Iterator[Sentence]:
        with ShardFile(output, sentences_file(self.stem)) as file:
            self.source_sha256 = file.footer["source_sha256"]
            self.source_bytes = file.footer["source_bytes"]
            for table in file.read_groups(["key", "text", "drop_reason"]):
                for row in table.to_pylist():
                    if row["drop_reason"] is None:
                        yield Sentence(row["key"], row["text"])
