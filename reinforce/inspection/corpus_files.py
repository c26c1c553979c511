"""All files of one file of sentences: fetched, one after the other, and checked against its spine and its source."""

import re
from collections.abc import Mapping
from pathlib import Path

from reinforce.inspection.cells import AnySignal, CorpusSignal
from reinforce.inspection.checked_files import CheckedFiles, ShardFindings
from reinforce.inspection.documents import Documents
from reinforce.inspection.faults import Fault, FileFaults
from reinforce.inspection.sentence_source import SentenceSource, check_source
from reinforce.inspection.sentences import Sentences, check_sentence_embeddings, check_sentences
from reinforce.shards.corpora import Corpus
from reinforce.shards.dataset import SIGNAL_FILE, Dataset
from reinforce.shards.schema import (
    CORPUS_FILE,
    corpus_embeddings_file,
    corpus_embeddings_folder,
    corpus_stem,
    sentences_file,
    spine_file,
    split_corpus_stem,
)
from reinforce.storage import StorageError

_FILE = re.compile(r"corpora/[^/]+/(sentences|embeddings/[^/]+)/.+\.parquet")


def sentence_stems(dataset: Dataset, documents: Documents) -> list[str]:
    """The stems of all files of sentences of the corpora that have a `corpus.json`."""
    corpora = (Corpus(dataset, name, document) for name, document in documents.corpora.items())
    return [stem for corpus in corpora for stem in corpus.stems]


def verify_sentences(
    dataset: Dataset, documents: Documents, sources: Mapping[str, SentenceSource], stem: str, spool: Path
) -> ShardFindings:
    """Checks what there is of one file of sentences, and that file if its corpus is among `sources`.

    Raises `StorageError`.
    """
    checked = CheckedFiles(dataset, documents, stem, spool, noun="file")
    corpus, _ = split_corpus_stem(stem)

    def read_embeddings(teacher: str, sentences: Sentences) -> None:
        document = documents.sentence_signals[corpus, teacher]
        path = corpus_embeddings_file(stem, teacher)
        checked.read(path, lambda file, faults: check_sentence_embeddings(file, document, sentences, faults))

    document = documents.corpora[corpus]
    num_nulls: dict[AnySignal, int] = {}
    sentences = checked.read(sentences_file(stem), lambda file, faults: check_sentences(file, document, stem, faults))
    read_sources: list[FileFaults] = []
    if sentences is not None:
        for name, teacher in sorted(documents.sentence_signals):
            if name == corpus:
                read_embeddings(teacher, sentences)
                num_nulls[CorpusSignal(corpus, teacher)] = checked.files[-1].num_nulls
        if corpus in sources:
            read_sources.append(_verify_source(sources[corpus], stem, document, sentences, spool))
    return checked.findings(len(sentences.kept_keys) if sentences else 0, num_nulls, read_sources)


def _verify_source(
    source: SentenceSource, stem: str, document: dict[str, object], sentences: Sentences, spool: Path
) -> FileFaults:
    faults = FileFaults(source.store.uri_of(split_corpus_stem(stem)[1]))
    try:
        check_source(source, stem, document, sentences, faults, spool)
    except FileNotFoundError:
        faults.add("the source file is not there")
    except StorageError:
        raise
    except OSError as error:
        faults.add(f"cannot be read: {error.strerror or error}")
    return faults


def strays_of_corpora(dataset: Dataset) -> list[Fault]:
    """Files of corpora that no document and no sentences explain, and shards of images under a name of sentences."""
    faults = []
    for path in sorted(files_of_corpora(dataset)):
        _, corpus, kind, rest = path.split("/", 3)
        if f"corpora/{corpus}/{CORPUS_FILE}" not in dataset.sizes:
            faults.append(Fault(path, f"no {CORPUS_FILE} says what it is"))
        elif kind == "embeddings":
            teacher, name = rest.split("/", 1)
            spine = sentences_file(corpus_stem(corpus, name.removesuffix(".parquet")))
            if f"{corpus_embeddings_folder(corpus, teacher)}/{SIGNAL_FILE}" not in dataset.sizes:
                faults.append(Fault(path, f"no {SIGNAL_FILE} says what it is"))
            elif spine not in dataset.sizes:
                faults.append(Fault(path, f"no sentences: {spine} is not there"))
    if any(path.startswith("corpora/") for path in dataset.sizes):
        taken = [spine_file(stem) for stem in dataset.stems if stem.startswith("corpora/")]
        faults += [Fault(path, "a shard of images under the name of a file of sentences") for path in taken]
    return faults


def files_of_corpora(dataset: Dataset) -> set[str]:
    """The Parquet files of corpora, at places that the format knows."""
    return {path for path in dataset.sizes if _FILE.fullmatch(path)}
