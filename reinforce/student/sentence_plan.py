"""Which sentences a run with loss dime_fm reads, checked before anything is read."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from reinforce.config import ConfigError, DataConfig, SentencesConfig
from reinforce.selection import Selection, read_selection
from reinforce.shards.corpora import Corpus, corpora_of, open_corpus
from reinforce.shards.dataset import Dataset
from reinforce.shards.reader import ShardFile
from reinforce.shards.schema import (
    corpus_embeddings_file,
    corpus_embeddings_folder,
    sentences_file,
    split_corpus_stem,
)
from reinforce.storage import open_store

_FOOTERS_AT_ONCE = 16
_BUILD_THEM = "build.corpora makes one"


@dataclass(frozen=True)
class SentencePlan:
    """The files of sentences that a run reads, and of which teachers. Small; files are opened by whoever reads."""

    dataset_uri: str
    seed: int
    config: SentencesConfig
    stems: tuple[str, ...]
    """Those with the embeddings of every teacher, as `corpus_stem` has them."""
    num_skipped_files: int
    """Those without, if the recipe skips them."""
    teachers: dict[str, int]
    """Name -> dim."""
    fingerprints: dict[str, str]
    """Corpus or folder of embeddings -> the fingerprint that each of its files must have."""
    data: DataConfig
    selection: Selection | None = None

    @property
    def corpora(self) -> list[str]:
        return sorted({split_corpus_stem(stem)[0] for stem in self.stems})

    @property
    def signals(self) -> dict[str, str]:
        """Folder of embeddings -> its fingerprint."""
        return {folder: value for folder, value in self.fingerprints.items() if "/" in folder}

    def sha256(self) -> str:
        """Of the names of the files, and of what is selected of them."""
        selected = [self.selection.sha256] if self.selection else []
        return hashlib.sha256("\n".join([*self.stems, *selected]).encode()).hexdigest()

    def is_selected(self, stem: str, kept: pa.StringArray) -> Bool[np.ndarray, " sentences"]:
        """Which of a file's kept sentences the run is to use."""
        if self.selection is None:
            return np.ones(len(kept), bool)
        chosen = pa.array(sorted(self.selection.keys(stem)), pa.string())
        return np.asarray(pc.is_in(kept, value_set=chosen).to_numpy(zero_copy_only=False), bool)

    def count(self) -> int:
        """The sentences that are kept and selected. Reads the footer, or the keys, of every file."""
        store = open_store(self.dataset_uri)

        def of(stem: str) -> int:
            with ShardFile(store, sentences_file(stem)) as file:
                if self.selection is None:
                    return int(file.footer["num_kept"])
                kept = kept_keys(file)
                return int(np.count_nonzero(self.is_selected(stem, kept)))

        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            return sum(pool.map(of, self.stems))

    def description(self) -> str:
        """A line on what is read."""
        skipped = f"; {self.num_skipped_files:,} unfinished files are left out" if self.num_skipped_files else ""
        num_sentences, a_step = self.count(), f"{self.config.batch_size:,} a step"
        if 0 < num_sentences < self.config.batch_size:
            a_step += f", each {self.config.batch_size / num_sentences:,.1f} times on average"
        return f"sentences: {num_sentences:,} of {', '.join(self.corpora)}, without images, {a_step}{skipped}"


def kept_keys(file: ShardFile) -> pa.StringArray:
    """The keys of the sentences that a file of them keeps, in their order."""
    spine = file.read(["key", "drop_reason"])
    return spine.filter(pc.is_null(spine.column("drop_reason"))).column("key").combine_chunks()


def plan_sentences(
    dataset: Dataset, data: DataConfig, teachers: dict[str, dict[str, Any]], *, seed: int
) -> SentencePlan:
    """Plans what is read of a dataset's corpora; `teachers` are the `signal.json` of their embeddings of images.

    Raises `ConfigError` or `FormatError` with what is missing and what there is.
    """
    config = data.sentences or SentencesConfig()
    corpora = [open_corpus(dataset, name) for name in _chosen(dataset, config)]
    selection = read_selection(config.select, option="student.data.sentences.select") if config.select else None
    for corpus in corpora:
        _check_teachers(corpus, teachers)
    stems = [stem for corpus in corpora for stem in corpus.stems]
    if selection is not None:
        selected = set(selection.stems)
        stems = [stem for stem in stems if stem in selected]
        if not stems:
            example = f" (its first is of {selection.stems[0]!r})" if len(selection) else " (it is empty)"
            raise ConfigError(
                f"student.data.sentences.select: {config.select} names no sentence of these corpora{example}"
            )
    if not stems:
        names = ", ".join(corpus.name for corpus in corpora)
        raise ConfigError(f"{dataset.store.uri}: no file of sentences of {names} is finished; build it first")
    complete = [stem for stem in stems if all(corpus_embeddings_file(stem, name) in dataset.sizes for name in teachers)]
    if len(complete) < len(stems) and not (complete and data.missing == "skip"):
        or_skip = ", or --set student.data.missing=skip" if complete else ""
        raise ConfigError(
            f"{dataset.store.uri}: {len(stems) - len(complete)} of {len(stems)} files of sentences are not finished; "
            f"run the build again{or_skip}"
        )
    fingerprints = {corpus.name: str(corpus.document["fingerprint"]) for corpus in corpora}
    for corpus in corpora:
        for name in teachers:
            fingerprints[corpus_embeddings_folder(corpus.name, name)] = str(corpus.teachers[name]["fingerprint"])
    return SentencePlan(
        dataset_uri=dataset.store.uri,
        seed=seed,
        config=config,
        stems=tuple(complete),
        num_skipped_files=len(stems) - len(complete),
        teachers={name: int(document["model"]["dim"]) for name, document in teachers.items()},
        fingerprints=fingerprints,
        data=data,
        selection=selection,
    )


def _chosen(dataset: Dataset, config: SentencesConfig) -> list[str]:
    found = corpora_of(dataset)
    if not found:
        raise ConfigError(f"{dataset.store.uri}: has no corpus, and loss.kind dime_fm reads sentences; {_BUILD_THEM}")
    unknown = sorted(set(config.corpora or ()) - set(found))
    if unknown:
        raise ConfigError(
            f"student.data.sentences.corpora: the dataset has no {unknown[0]!r}; it has {', '.join(found)} "
            f"({_BUILD_THEM})"
        )
    return sorted(config.corpora or found)


def _check_teachers(corpus: Corpus, teachers: dict[str, dict[str, Any]]) -> None:
    """Every teacher must have embedded the corpus, with the weights it embedded the images with."""
    for name, document in teachers.items():
        of_sentences = corpus.teachers.get(name)
        if of_sentences is None:
            raise ConfigError(
                f"student.data.sentences: teacher {name} has not embedded corpus {corpus.name}; build it with that "
                "teacher, or name others in data.sentences.corpora or data.teachers"
            )
        if of_sentences["content"].get("weights_sha256") != document["content"].get("weights_sha256"):
            raise ConfigError(
                f"student.data.sentences: corpus {corpus.name} is of other weights of {name} than its embeddings of "
                "the images; build it again under another name"
            )
