"""What one teacher said of a dataset's images and of the sentences of its corpora: the space in which they meet."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from reinforce.config import ConfigError
from reinforce.selection.candidates import Candidates
from reinforce.selection.criteria import SentenceCriteria
from reinforce.selection.signals import SignalRows, StoredRows, leave_out_lacking, read_checked_groups
from reinforce.shards.corpora import Corpus, open_corpus
from reinforce.shards.dataset import Dataset
from reinforce.shards.reader import FormatError
from reinforce.shards.schema import (
    SENTENCE_COLUMN,
    Signal,
    corpus_embeddings_file,
    corpus_embeddings_folder,
    split_corpus_stem,
    view_column,
)


@dataclass(frozen=True)
class Space:
    """A teacher's embeddings of clean views and of sentences; of one dim, by the same weights."""

    dataset: Dataset
    teacher: str
    corpora: dict[str, Corpus]
    """By name, sorted."""

    @property
    def signal(self) -> Signal:
        return Signal("image", self.teacher)

    @property
    def dim(self) -> int:
        return int(self.dataset.signals[self.signal]["model"]["dim"])

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of every signal that is read, by folder."""
        found = {self.signal.folder: self.dataset.signals[self.signal]["fingerprint"]}
        for name, corpus in self.corpora.items():
            found[corpus_embeddings_folder(name, self.teacher)] = corpus.teachers[self.teacher]["fingerprint"]
        return found

    def sentences(self) -> Candidates:
        """The kept sentences of all files, by stem."""
        stems = sorted(stem for corpus in self.corpora.values() for stem in corpus.stems)
        return Candidates.of_spines(stems, lambda stem: self._corpus_of(stem).open_sentences(stem))

    def leave_out_unfinished(self, sentences: Candidates, missing: str) -> None:
        """Leaves out the files that the teacher has not embedded yet, or refuses them."""
        lacking = {
            shard: corpus_embeddings_folder(self._corpus_of(sentences.stems[shard]).name, self.teacher)
            for shard in sentences.shards_in()
            if corpus_embeddings_file(sentences.stems[shard], self.teacher) not in self.dataset.sizes
        }
        leave_out_lacking(self.dataset, sentences, lacking, missing)

    def read_sentences(self, sentences: Candidates, shard: int) -> Iterator[StoredRows]:
        """The embeddings of a file's kept sentences, a row group at a time."""
        stem = sentences.stems[shard]
        with self._corpus_of(stem).open_embeddings(stem, self.teacher) as file:
            for rows in read_checked_groups(file, sentences.keys[shard], SENTENCE_COLUMN):
                yield self._checked(rows, file.path)

    def read_images(self, images: Candidates, shard: int) -> Iterator[StoredRows]:
        """The clean views of a shard's kept samples, a row group at a time."""
        for rows in SignalRows(self.dataset, images).read_groups(shard, self.signal, view_column(0)):
            yield self._checked(rows, self.signal.file(images.stems[shard]))

    def _checked(self, rows: StoredRows, path: str) -> StoredRows:
        if rows.shape[1] != self.dim:
            raise FormatError(f"{path}: embeddings of {rows.shape[1]} values; {self.teacher}'s have {self.dim}")
        return rows

    def _corpus_of(self, stem: str) -> Corpus:
        return self.corpora[split_corpus_stem(stem)[0]]


def choose_space(dataset: Dataset, criteria: SentenceCriteria) -> Space:
    """The space of the teacher asked for, or of the first that has embedded clean views and all corpora.

    Raises `ConfigError` if there is none, or if its images and its sentences were embedded by different weights.
    """
    corpora = {name: open_corpus(dataset, name) for name in sorted(criteria.corpora)}
    signals = {signal.model: document for signal, document in dataset.signals.items() if signal.kind == "image"}
    seeing = {name for name, document in signals.items() if view_column(0) in document["columns"]}
    found = sorted(seeing.intersection(*(corpus.teachers for corpus in corpora.values())))
    if not found or (criteria.teacher is not None and criteria.teacher not in found):
        option = "--corpus" if criteria.teacher is None else f"--teacher {criteria.teacher}"
        of_corpora = "; ".join(f"corpus {name}: {_listed(corpus.teachers)}" for name, corpus in corpora.items())
        raise ConfigError(
            f"{option}: needs a teacher that has embedded clean views and the sentences; in {dataset.store.uri} "
            f"clean views: {_listed(seeing)}; {of_corpora}"
        )
    teacher = criteria.teacher or found[0]
    for name, corpus in corpora.items():
        if _weights(corpus.teachers[teacher]) != _weights(signals[teacher]):
            raise ConfigError(f"--corpus {name}: {teacher} is of other weights there than for images: not one space")
    return Space(dataset, teacher, corpora)


def _weights(signal: dict[str, Any]) -> Any:
    return signal.get("content", {}).get("weights_sha256")


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"
