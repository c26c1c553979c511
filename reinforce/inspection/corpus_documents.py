"""The documents of corpora: what `corpus.json` says, and each teacher's `signal.json` against it and the images."""

from collections.abc import Iterator
from typing import Any

from reinforce.config import CorpusConfig
from reinforce.shards.schema import (
    CORPUS_FILE,
    FORMAT_VERSION,
    SENTENCE_COLUMN,
    corpus_embeddings_folder,
    fingerprint,
)

_CONTENT = {"format_version", "column", "max_characters", "too_long", "limit_samples"}


def faults_of_corpus(name: str, document: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a `corpus.json`, in words; raises what a document without sense leads to."""
    content = document["content"]
    if document["corpus"] != name:
        yield f"says that it is {document['corpus']}"
    if fingerprint(content) != document["fingerprint"]:
        yield "fingerprint is not that of content: it was edited"
    if content.keys() != _CONTENT or content["format_version"] != FORMAT_VERSION:
        yield f"content is not that of format version {FORMAT_VERSION}"
    CorpusConfig.model_validate({"files": "-", **{name: content[name] for name in sorted(_CONTENT - _NOT_OF_RECIPE)}})
    limit = content["limit_samples"]
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ValueError(f"content.limit_samples is {limit}")
    if not isinstance(document["source_root"], str):
        raise TypeError("source_root is no text")


_NOT_OF_RECIPE = {"format_version", "limit_samples"}


def faults_of_sentence_signal(
    corpus: str,
    teacher: str,
    document: dict[str, Any],
    of_corpus: dict[str, Any] | None,
    images: dict[str, Any] | None,
) -> Iterator[str]:
    """What is wrong with a teacher's `signal.json` of a corpus; `images` is that of the same teacher's images."""
    content, model, folder = document["content"], document["model"], corpus_embeddings_folder(corpus, teacher)
    if document["signal"] != folder:
        yield f"says that it is {document['signal']}"
    if fingerprint(content) != document["fingerprint"]:
        yield "fingerprint is not that of content: it was edited"
    if document["columns"] != [SENTENCE_COLUMN]:
        yield f"columns {', '.join(map(str, document['columns']))} are not those of sentences"
    if of_corpus is not None and content["sentences"] != of_corpus["fingerprint"]:
        yield f"content.sentences is not the fingerprint of {CORPUS_FILE}"
    if model.get("weights_sha256", content.get("weights_sha256")) != content.get("weights_sha256"):
        yield "weights_sha256 of model is not that of content"
    if not (1 <= content["mantissa_bits"] <= 10 and model["dim"] >= 1):
        raise ValueError(f"{content['mantissa_bits']} mantissa bits of {model['dim']} values")
    if images is None:
        return
    if content.get("weights_sha256") != images["content"].get("weights_sha256"):
        yield f"weights_sha256 is not that of embeddings/{teacher}/image: sentences and images of two models"
    if model["dim"] != images["model"]["dim"]:
        yield f"dim is not that of embeddings/{teacher}/image"
