"""Corpora written by the schema's own writer, from given embeddings: for whoever reads corpora and builds none."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from reinforce.shards.corpora import record_corpus
from reinforce.shards.dataset import SIGNAL_FILE, create_or_compare
from reinforce.shards.schema import (
    FORMAT_VERSION,
    SENTENCE_COLUMN,
    SENTENCES_SCHEMA,
    corpus_embeddings_file,
    corpus_embeddings_folder,
    corpus_stem,
    embeddings_schema,
    fingerprint,
    round_mantissa,
    sentences_file,
)
from reinforce.shards.writer import ShardFileWriter, embeddings_batch
from reinforce.storage import open_store

CONTENT = {"column": "text", "max_characters": 1000, "too_long": "drop", "limit_samples": None}


def write_corpus(
    dataset: Path,
    corpus: str,
    files: Mapping[str, Sequence[str]],
    embeddings: Mapping[str, Mapping[str, np.ndarray]],
    *,
    models: Mapping[str, dict[str, Any]] | None = None,
    weights_sha256: str = "0" * 64,
) -> list[str]:
    """Writes `corpora/<corpus>` into a dataset's folder; the stems of its files, in the order of `files`.

    `files`: name -> the texts of its records, of which empty ones are dropped. `embeddings`: teacher -> name -> one row
    for each text that is not empty, NaN for a null; they are stored as they are given, rounded to float16. `models`:
    teacher -> what its `signal.json` says of it besides its dim.
    """
    store = open_store(str(dataset), create=True)
    content: dict[str, Any] = {"format_version": FORMAT_VERSION, **CONTENT}
    record_corpus(store, corpus, content, "file:///sentences")
    for name, texts in files.items():
        _write_sentences(dataset, corpus, name, texts, fingerprint(content))
    for teacher, of_files in embeddings.items():
        dim = next(iter(of_files.values())).shape[1]
        signal = {"sentences": fingerprint(content), "weights_sha256": weights_sha256, "mantissa_bits": 10}
        document = {
            "format_version": FORMAT_VERSION,
            "signal": corpus_embeddings_folder(corpus, teacher),
            "fingerprint": fingerprint(signal),
            "content": signal,
            "columns": [SENTENCE_COLUMN],
            "model": {"kind": "fake", "dim": dim, "logit_scale": 10.0, **(models or {}).get(teacher, {})},
        }
        create_or_compare(store, f"{document['signal']}/{SIGNAL_FILE}", document, ["format_version", "content"])
        for name, rows in of_files.items():
            keys = [str(number) for number, text in enumerate(files[name], start=1) if text]
            write_sentence_embeddings(dataset, document, corpus_stem(corpus, name), keys, rows, files[name])
    return [corpus_stem(corpus, name) for name in files]


def random_corpus(
    dataset: Path, corpus: str, sizes: Mapping[str, int], dims: Mapping[str, int], *, seed: int = 0
) -> list[str]:
    """A corpus of so many sentences a file, each with a random embedding by teacher; the stems of its files."""
    generator = np.random.default_rng(seed)
    files = {name: [f"sentence {number} of {name}" for number in range(size)] for name, size in sizes.items()}
    embeddings: dict[str, dict[str, np.ndarray]] = {}
    for teacher, dim in dims.items():
        rows = {name: generator.normal(size=(size, dim)) for name, size in sizes.items()}
        embeddings[teacher] = {
            name: values / np.linalg.norm(values, axis=1, keepdims=True) for name, values in rows.items()
        }
    return write_corpus(dataset, corpus, files, embeddings)


def _write_sentences(dataset: Path, corpus: str, name: str, texts: Sequence[str], of_corpus: str) -> None:
    stem = corpus_stem(corpus, name)
    rows = [
        {"key": str(number), "text": text or None, "drop_reason": None if text else "empty_sentence"}
        for number, text in enumerate(texts, start=1)
    ]
    drops = Counter(row["drop_reason"] for row in rows if row["drop_reason"])
    writer = ShardFileWriter(_spool(dataset), SENTENCES_SCHEMA)
    writer.append(pa.RecordBatch.from_pylist(rows, SENTENCES_SCHEMA))
    footer = {
        "kind": "sentences",
        "corpus": corpus,
        "fingerprint": of_corpus,
        "num_rows": len(rows),
        "num_kept": sum(bool(text) for text in texts),
        "drops": dict(drops),
        "counts": {},
    }
    _commit(writer, dataset, sentences_file(stem), _source(stem, texts) | footer)


def write_sentence_embeddings(
    dataset: Path, signal: dict[str, Any], stem: str, keys: list[str], rows: np.ndarray, texts: Sequence[str]
) -> None:
    """The file of one teacher, whose `signal.json` is `signal`; `texts` are all records of the source."""
    stored = round_mantissa(rows.astype(np.float32), signal["content"]["mantissa_bits"])
    writer = ShardFileWriter(_spool(dataset), embeddings_schema([SENTENCE_COLUMN], rows.shape[1]))
    writer.append(embeddings_batch(keys, {SENTENCE_COLUMN: stored}))
    num_nulls = int(np.isnan(stored).any(axis=1).sum())
    footer = {
        "kind": "sentence_embeddings",
        "signal": signal["signal"],
        "fingerprint": signal["fingerprint"],
        "weights_sha256": signal["content"]["weights_sha256"],
        "num_rows": len(rows),
        "nulls": {"non_finite": num_nulls} if num_nulls else {},
        "num_truncated_texts": 0,
    }
    teacher = signal["signal"].rsplit("/", 1)[1]
    _commit(writer, dataset, corpus_embeddings_file(stem, teacher), _source(stem, texts) | footer)


def _source(stem: str, texts: Sequence[str]) -> dict[str, Any]:
    data = "\n".join(texts).encode()
    source = {"source_sha256": hashlib.sha256(data).hexdigest(), "source_bytes": len(data)}
    return {"format_version": FORMAT_VERSION, "stem": stem} | source


def _spool(dataset: Path) -> Path:
    return dataset.with_name(f"{dataset.name}.spool.parquet")


def _commit(writer: ShardFileWriter, dataset: Path, path: str, footer: dict[str, Any]) -> None:
    assert writer.commit(open_store(str(dataset)), path, footer), f"{path} was there already"
    writer.spool.unlink()
