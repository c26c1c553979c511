"""The JSON documents of a dataset: each by its own digest, and all of them against each other. A few kB each."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from reinforce.config import ModalityConfig, SourceConfig
from reinforce.inspection.corpus_documents import faults_of_corpus, faults_of_sentence_signal
from reinforce.inspection.faults import FileFaults
from reinforce.shards.banks import bank_content
from reinforce.shards.dataset import DATASET_FILE, SIGNAL_FILE
from reinforce.shards.digests import DOCUMENT_DIGEST, document_fault, has_end_of_part, lines_fault
from reinforce.shards.explicit import EXPLICIT
from reinforce.shards.reader import FormatError
from reinforce.shards.schema import (
    BANK_FILE,
    CORPUS_FILE,
    FORMAT_VERSION,
    MODALITY_SCHEMA,
    Signal,
    caption_column,
    corpus_embeddings_folder,
    fingerprint,
    view_column,
)
from reinforce.storage import Store

_FIELDS = {
    DATASET_FILE: ("format_version", "spine_fingerprint", "spine", "view_policy", "source_root", "created_with"),
    SIGNAL_FILE: ("format_version", "signal", "fingerprint", "content", "columns", "model"),
    BANK_FILE: ("format_version", "bank", "fingerprint", "content", "num_duplicates"),
    CORPUS_FILE: ("format_version", "corpus", "fingerprint", "content", "source_root"),
    "failures": ("stem", "error", "attempts", "run"),
}


@dataclass
class Documents:
    """What the documents of a dataset say, as far as they can be read."""

    dataset: dict[str, Any]
    signals: dict[Signal, dict[str, Any]]
    failures: dict[str, str]
    banks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The `bank.json` of each bank, by name."""
    corpora: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The `corpus.json` of each corpus, by name."""
    sentence_signals: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """The `signal.json` of each teacher of sentences, by corpus and teacher."""
    checked: list[FileFaults] = field(default_factory=list)

    @property
    def is_explicit(self) -> bool:
        """Whether the views are stored, as in imported datasets, which lack some of what a build knows."""
        return self.dataset.get("views") == EXPLICIT

    @cached_property
    def source(self) -> SourceConfig:
        return SourceConfig.model_validate(self.dataset["spine"]["source"])

    @property
    def seed(self) -> int:
        return int(self.dataset["spine"]["seed"])


def read_documents(store: Store, sizes: dict[str, int]) -> Documents | FileFaults:
    """Reads and checks all documents and run logs; `FileFaults` if `dataset.json` says nothing that can be checked.

    Raises `FormatError` if it is that of another format version.
    """
    faults, dataset = _read(store, DATASET_FILE)
    if dataset is None:
        return faults
    if dataset.get("format_version") != FORMAT_VERSION and not faults.found:
        version = dataset.get("format_version")
        raise FormatError(f"{store.uri}: format version {version}; this software reads {FORMAT_VERSION}")
    try:
        _check_dataset(faults, dataset)
    except (KeyError, TypeError, ValueError) as error:
        faults.add(f"says nothing that can be checked ({type(error).__name__}: {' '.join(str(error).split())[:100]})")
        return faults
    documents = Documents(dataset, {}, {}, checked=[faults])
    for path in sorted(sizes):
        folder, _, name = path.rpartition("/")
        if name == SIGNAL_FILE and Signal.is_folder(folder):
            faults, document = _read(store, path)
            if document is not None:
                documents.signals[Signal.parse(folder)] = document
        elif name == BANK_FILE and folder.startswith("banks/") and folder.count("/") == 1:
            faults, document = _read(store, path)
            bank = folder.removeprefix("banks/")
            if document is not None and _is_sound(_faults_of_bank(bank, document), faults):
                documents.banks[bank] = document
        elif path.startswith("corpora/") and name in (CORPUS_FILE, SIGNAL_FILE):
            found = _read_of_corpus(store, path, documents)
            if found is None:
                continue
            faults = found
        elif path.startswith("failures/") and path.endswith(".json"):
            faults, document = _read(store, path)
            stem = path.removeprefix("failures/").removesuffix(".json")
            documents.failures[stem] = str((document or {}).get("error", "no reason given"))
            if document is not None and document.get("stem", stem) != stem:
                faults.add(f"its stem is {document['stem']!r}")
        elif path.startswith("runs/") and path.endswith(".jsonl"):
            faults = _check_part(store, path)
            if documents.checked[0].has_digest and not faults.has_digest:
                # Cut off, a part looks like one of an older version; but that did not begin this dataset.
                faults.add("does not end with its digest: it was cut short")
        else:
            continue
        documents.checked.append(faults)
    _check_signals(documents)
    _check_sentence_signals(documents)
    return documents


def _read_of_corpus(store: Store, path: str, documents: Documents) -> FileFaults | None:
    """Reads `corpus.json` or a `signal.json` of a corpus into `documents`; None if the path is neither's."""
    match path.split("/"):
        case ["corpora", corpus, file] if file == CORPUS_FILE:
            faults, document = _read(store, path)
            if document is not None and _is_sound(faults_of_corpus(corpus, document), faults):
                documents.corpora[corpus] = document
        case ["corpora", corpus, "embeddings", teacher, file] if file == SIGNAL_FILE:
            faults, document = _read(store, path)
            if document is not None:
                documents.sentence_signals[corpus, teacher] = document
        case _:
            return None
    return faults


def _read(store: Store, path: str) -> tuple[FileFaults, dict[str, Any] | None]:
    faults = FileFaults(path)
    try:
        data = store.read(path)
    except FileNotFoundError:
        if path == DATASET_FILE:
            raise FormatError(f"{store.uri}: not a reinforced dataset (it has no {DATASET_FILE})") from None
        faults.add("was listed and is gone")
        return faults, None
    faults.num_bytes = len(data)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        faults.add("not a JSON object: it was damaged")
        return faults, None
    faults.has_digest = DOCUMENT_DIGEST in document
    kind = path.partition("/")[0] if path.startswith("failures/") else path.rpartition("/")[2]
    if fault := document_fault(data, document):
        faults.add(fault)
    missing = set(_FIELDS[kind]) - set(document)
    # A digest whose name was damaged is a field that nobody knows.
    unknown = set() if faults.has_digest else set(document) - set(_FIELDS[kind])
    for name in sorted(missing):
        faults.add(f"has no field {name}")
    for name in sorted(unknown):
        faults.add(f"has a field {name!r}, which is none of a file without a digest")
    return faults, document


def _check_part(store: Store, path: str) -> FileFaults:
    faults = FileFaults(path)
    data = store.read(path)
    faults.num_bytes = len(data)
    faults.has_digest = has_end_of_part(data)
    if faults.has_digest:
        if fault := lines_fault(data):
            faults.add(fault)
        return faults
    for row, line in enumerate(data.split(b"\n")[:-1]):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict) or not {"event", "time"} <= event.keys():
            faults.add("not an event with its time", row=row)
    if not data.endswith(b"\n"):
        faults.add("does not end with a line feed")
    return faults


def _check_dataset(faults: FileFaults, dataset: dict[str, Any]) -> None:
    """Also raises what a document without sense leads to: it is needed for all that follows."""
    if fingerprint(dataset["spine"]) != dataset["spine_fingerprint"]:
        faults.add("spine_fingerprint is not that of spine: it was edited")
    SourceConfig.model_validate(dataset["spine"]["source"])
    if not 0 <= int(dataset["spine"]["seed"]) < 2**64:
        raise ValueError(f"spine.seed is {dataset['spine']['seed']}")


def _check_signals(documents: Documents) -> None:
    checked = {faults.path: faults for faults in documents.checked}
    for signal, document in list(documents.signals.items()):
        faults = checked[f"{signal.folder}/{SIGNAL_FILE}"]
        if not _is_sound(_faults_of_signal(documents, signal, document), faults):
            del documents.signals[signal]


def _faults_of_signal(documents: Documents, signal: Signal, document: dict[str, Any]) -> Iterator[str]:
    content, model, columns = document["content"], document["model"], document["columns"]
    if document["signal"] != signal.folder:
        yield f"says that it is {document['signal']}"
    if fingerprint(content) != document["fingerprint"]:
        yield "fingerprint is not that of content: it was edited"
    spine = documents.dataset["spine_fingerprint"]
    if signal.kind != "text" and content["spine"] != spine:
        yield "content.spine is not the spine_fingerprint of dataset.json"
    is_drawn = signal.kind == "image" and not documents.is_explicit
    if is_drawn and content["view_policy"] != documents.dataset["view_policy"]:
        yield "content.view_policy is not that of dataset.json"
    if signal.kind == "text":
        source = documents.signals.get(Signal("captions", signal.source))
        expected = spine if signal.source == "original" else source and source["fingerprint"]
        if expected is None:
            yield f"was made from captions/{signal.source}, which has no {SIGNAL_FILE}"
        elif content["captions"] != expected:
            yield f"content.captions is not the fingerprint of the captions of {signal.source}"
    if signal.kind == "modality":
        yield from _faults_of_modality(documents, signal, document)
        return
    if columns != _columns(documents, signal, content, columns):
        yield f"columns {', '.join(map(str, columns))} are not those that content asks for"
    if model.get("weights_sha256", content.get("weights_sha256")) != content.get("weights_sha256"):
        yield "weights_sha256 of model is not that of content"
    image = documents.signals.get(Signal("image", signal.model))
    if signal.kind == "text" and image is not None:
        if content.get("weights_sha256") != image["content"].get("weights_sha256"):
            yield f"weights_sha256 is not that of embeddings/{signal.model}/image: texts and images of two models"
        if model.get("dim") != image["model"].get("dim"):
            yield f"dim is not that of embeddings/{signal.model}/image"


def _faults_of_modality(documents: Documents, signal: Signal, document: dict[str, Any]) -> Iterator[str]:
    content = document["content"]
    if content["suffix"] != documents.source.modalities.get(signal.model):
        yield "content.suffix is not that of spine.source.modalities in dataset.json"
    if document["columns"] != MODALITY_SCHEMA.names[1:]:
        yield f"columns {', '.join(map(str, document['columns']))} are not those of a modality"
    if document["model"] is not None:
        yield "model is not null: no model has seen it"
    ModalityConfig.model_validate({"suffix": content["suffix"], "range": content["range"]})


def _check_sentence_signals(documents: Documents) -> None:
    checked = {faults.path: faults for faults in documents.checked}
    for (corpus, teacher), document in list(documents.sentence_signals.items()):
        faults = checked[f"{corpus_embeddings_folder(corpus, teacher)}/{SIGNAL_FILE}"]
        of_corpus, images = documents.corpora.get(corpus), documents.signals.get(Signal("image", teacher))
        if not _is_sound(faults_of_sentence_signal(corpus, teacher, document, of_corpus, images), faults):
            del documents.sentence_signals[corpus, teacher]


def _is_sound(found: Iterator[str], faults: FileFaults) -> bool:
    """Notes what is wrong with a document; whether it says enough for its files to be checked."""
    try:
        for what in found:
            faults.add(what)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        faults.add(f"says nothing that can be checked ({type(error).__name__}: {' '.join(str(error).split())[:100]})")
        return False
    return True


def _faults_of_bank(name: str, document: dict[str, Any]) -> Iterator[str]:
    content = document["content"]
    if document["bank"] != name:
        yield f"says that it is {document['bank']}"
    if fingerprint(content) != document["fingerprint"]:
        yield "fingerprint is not that of content: it was edited"
    if content != bank_content(tuple(content["labels"]), tuple(content["templates"])):
        yield "content has a label twice, or one with spaces to spare"
    for template in content["templates"]:
        if "{}" not in template:
            yield f"the template {template!r} has no {{}}"


def _columns(documents: Documents, signal: Signal, content: dict[str, Any], columns: list[str]) -> list[str]:
    if signal.kind == "captions":
        return ["captions"]
    if signal.kind == "text":
        return [caption_column(index) for index in range(content["num_captions"])]
    first = 1 if documents.is_explicit and view_column(0) not in columns else 0
    return [view_column(index) for index in range(first, first + content["num_views"])]
