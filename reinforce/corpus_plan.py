"""What a build will write of its corpora, and what decides that: like `plan.py`, of sentences without images."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from reinforce.config import CorpusConfig
from reinforce.shards.corpora import record_corpus
from reinforce.shards.dataset import SIGNAL_FILE, create_or_compare
from reinforce.shards.schema import (
    FORMAT_VERSION,
    SENTENCE_COLUMN,
    corpus_embeddings_file,
    corpus_embeddings_folder,
    fingerprint,
    sentences_file,
)
from reinforce.storage import Store
from reinforce.teachers import Teacher


@dataclass(frozen=True)
class CorpusOutline:
    """One corpus of a recipe before any model is loaded: which files there will be, and what its spines hold."""

    name: str
    config: CorpusConfig
    teacher_names: tuple[str, ...]
    limit_samples: int | None = None

    @property
    def content(self) -> dict[str, Any]:
        """What decides its sentences."""
        return {
            "format_version": FORMAT_VERSION,
            "column": self.config.column,
            "max_characters": self.config.max_characters,
            "too_long": self.config.too_long,
            "limit_samples": self.limit_samples,
        }

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.content)

    @property
    def folders(self) -> list[str]:
        """Where its files are, by their stems' names."""
        embeddings = [corpus_embeddings_folder(self.name, teacher) for teacher in self.teacher_names]
        return [f"corpora/{self.name}/sentences", *embeddings]

    def files_of(self, stem: str) -> list[str]:
        """What the dataset has of a source file of sentences, the sentences first."""
        return [sentences_file(stem), *(corpus_embeddings_file(stem, teacher) for teacher in self.teacher_names)]

    def record(self, output: Store, source_root: str) -> None:
        """Creates `corpus.json`, or compares; raises `DatasetMismatchError`."""
        record_corpus(output, self.name, self.content, source_root)


@dataclass(frozen=True)
class SentenceSignal:
    """What one teacher says of one corpus."""

    corpus: CorpusOutline
    teacher: Teacher

    @property
    def folder(self) -> str:
        return corpus_embeddings_folder(self.corpus.name, self.teacher.name)

    @property
    def content(self) -> dict[str, Any]:
        """What decides its embeddings."""
        return {"sentences": self.corpus.fingerprint, **self.teacher.text_content()}

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.content)

    def record(self, output: Store) -> None:
        """Creates its `signal.json`, or compares; raises `DatasetMismatchError`."""
        document = {
            "format_version": FORMAT_VERSION,
            "signal": self.folder,
            "fingerprint": self.fingerprint,
            "content": self.content,
            "columns": [SENTENCE_COLUMN],
            "model": self.teacher.describe(),
        }
        create_or_compare(output, f"{self.folder}/{SIGNAL_FILE}", document, ["format_version", "content", "columns"])
