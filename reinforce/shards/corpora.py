"""Corpora: sentences without images, with what teachers say of them, in `corpora/<corpus>/`.

A source file of sentences is a shard of its own: a spine that lists every record, and for each teacher a file with a
row for every kept one. A corpus says in `corpus.json` how its files were read.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from reinforce.shards.dataset import SIGNAL_FILE, Dataset, create_or_compare, read_document
from reinforce.shards.reader import FormatError, ShardFile
from reinforce.shards.schema import (
    CORPUS_FILE,
    FORMAT_VERSION,
    corpus_embeddings_file,
    corpus_embeddings_folder,
    corpus_stem,
    fingerprint,
    sentences_file,
)
from reinforce.storage import Store


def corpora_of(dataset: Dataset) -> list[str]:
    """The names of a dataset's corpora, sorted."""
    folders = [path.split("/") for path in dataset.sizes if path.startswith("corpora/")]
    return sorted(parts[1] for parts in folders if parts[2:] == [CORPUS_FILE])


@dataclass(frozen=True)
class Corpus:
    """One corpus of an opened dataset. `document` is its `corpus.json`."""

    dataset: Dataset
    name: str
    document: dict[str, Any]

    @cached_property
    def stems(self) -> list[str]:
        """Those of its files whose sentences are there, sorted; each begins with `corpora/<name>/`."""
        prefix = f"corpora/{self.name}/sentences/"
        names = (path.removeprefix(prefix) for path in self.dataset.sizes if path.startswith(prefix))
        return sorted(corpus_stem(self.name, name[:-8]) for name in names if name.endswith(".parquet"))

    @cached_property
    def teachers(self) -> dict[str, dict[str, Any]]:
        """Teacher -> its `signal.json`, by name."""
        found = {}
        for path in self.dataset.sizes:
            match path.split("/"):
                case ["corpora", self.name, "embeddings", teacher, file] if file == SIGNAL_FILE:
                    found[teacher] = read_document(self.dataset.store, path)
        return {name: document for name, document in sorted(found.items()) if document is not None}

    def open_sentences(self, stem: str) -> ShardFile:
        """The spine of one of its files."""
        return ShardFile(self.dataset.store, sentences_file(stem))

    def open_embeddings(self, stem: str, teacher: str) -> ShardFile:
        """What a teacher says of one of its files, checked to be of this corpus's `signal.json`."""
        expected = {
            "stem": stem,
            "signal": corpus_embeddings_folder(self.name, teacher),
            "fingerprint": self.teachers[teacher]["fingerprint"],
        }
        return ShardFile(self.dataset.store, corpus_embeddings_file(stem, teacher)).of(expected)


def open_corpus(dataset: Dataset, name: str) -> Corpus:
    """A corpus by name; raises `FormatError` if the dataset has none of it."""
    document = read_document(dataset.store, f"corpora/{name}/{CORPUS_FILE}")
    if document is None:
        found = ", ".join(corpora_of(dataset)) or "none"
        raise FormatError(f"{dataset.store.uri}: has no corpus {name!r}; it has {found}")
    return Corpus(dataset, name, document)


def record_corpus(store: Store, name: str, content: dict[str, Any], source_root: str) -> None:
    """Creates `corpus.json`, or compares its `content`; raises `DatasetMismatchError`."""
    document = {
        "format_version": FORMAT_VERSION,
        "corpus": name,
        "fingerprint": fingerprint(content),
        "content": content,
        "source_root": source_root,
    }
    create_or_compare(store, f"corpora/{name}/{CORPUS_FILE}", document, ["format_version", "content"])
