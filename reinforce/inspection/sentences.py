"""The files of one file of sentences against the format, the documents and each other: rows, keys, counts, norms.

Of the sentences all columns are in memory, of each teacher its keys and its embeddings.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reinforce.inspection.faults import FileFaults
from reinforce.inspection.files import (
    COMMON_FIELDS,
    check_fields,
    check_keys,
    check_layout,
    compare_counts,
    read_rows,
)
from reinforce.inspection.footers import check_footer
from reinforce.inspection.vectors import check_embeddings, check_nulls
from reinforce.sample import SENTENCE_DROPS, DropReason, NullReason
from reinforce.shards.reader import ShardFile
from reinforce.shards.schema import SENTENCE_COLUMN, SENTENCES_SCHEMA, embeddings_schema

TRUNCATED = "truncated_sentences"
"""What the footer of sentences counts besides drops."""
_SENTENCES_FIELDS = COMMON_FIELDS | {"corpus", "num_kept", "drops", "counts"}
_EMBEDDINGS_FIELDS = COMMON_FIELDS | {"signal", "weights_sha256", "nulls", "num_truncated_texts"}


@dataclass(frozen=True)
class Sentences:
    """A file of sentences that was read whole: what the other files of its stem are compared with."""

    footer: dict[str, Any]
    rows: pa.Table

    @property
    def kept_keys(self) -> list[str]:
        keys: list[str] = self.rows.column("key").filter(pc.is_null(self.rows.column("drop_reason"))).to_pylist()
        return keys


def check_sentences(file: ShardFile, corpus: dict[str, Any], stem: str, faults: FileFaults) -> Sentences | None:
    """Checks the spine of a file of sentences; `corpus` is its `corpus.json`. None if its rows cannot be read."""
    expected = {"kind": "sentences", "corpus": corpus["corpus"], "stem": stem, "fingerprint": corpus["fingerprint"]}
    footer = check_footer(file, expected, list(SENTENCES_SCHEMA.names))
    check_fields(footer, _SENTENCES_FIELDS, faults)
    table = read_rows(file, SENTENCES_SCHEMA, faults)
    if table is None:
        return None
    keys = table.column("key").to_pylist()
    for name, what, is_fault in _faults_of_rows(table, corpus["content"]):
        faults.add_rows(what, np.flatnonzero(is_fault.fill_null(False)).tolist(), keys, name)
    reasons = table.column("drop_reason")
    drops = Counter(filter(None, reasons.to_pylist()))
    num_kept = reasons.null_count
    compare_counts(footer, {"drops": dict(drops), "num_kept": num_kept}, faults)
    # Those after the first `limit_samples` are not selected.
    for name in sorted(set(drops) - SENTENCE_DROPS - {DropReason.NOT_SELECTED}):
        faults.add(f"drop_reason {name!r} is none of the format for sentences", column="drop_reason")
    _check_truncated(footer["counts"], corpus["content"], num_kept, faults)
    return Sentences(footer, table)


def _faults_of_rows(table: pa.Table, content: dict[str, Any]) -> Iterator[tuple[str, str, pa.ChunkedArray]]:
    """Column, words, and which rows are so: each check over all rows."""
    key, text, reason, detail = (table.column(name) for name in SENTENCES_SCHEMA.names)
    numbers = pa.array(np.arange(1, len(table) + 1)).cast(pa.string())
    yield "key", "is not the number of its record, counted from 1", pc.not_equal(key, numbers)
    is_kept = pc.is_null(reason)
    yield "text", "is null, and the sentence is kept", pc.and_(is_kept, pc.is_null(text))
    yield "text", "is there, and the sentence was dropped", pc.and_(pc.invert(is_kept), pc.is_valid(text))
    yield "drop_detail", "is there for dropped sentences alone", pc.not_equal(pc.is_null(detail), is_kept)
    most = content["max_characters"]
    yield "text", f"has more than {most} characters", pc.greater(pc.utf8_length(text), most)
    is_bare = (found is not None and (not found or found != found.strip()) for found in _each(text))
    yield "text", "is empty, or not stripped", pa.chunked_array([pa.array(is_bare, pa.bool_())])
    yield "text", "holds U+0000", pc.match_substring(text, "\0")
    yield "text", "was there before", _repeated(text)
    limit = content["limit_samples"]
    is_after = pa.array(np.arange(len(table)) >= (len(table) if limit is None else limit))
    is_unselected = pc.fill_null(pc.equal(reason, DropReason.NOT_SELECTED.value), False)
    yield (
        "drop_reason",
        f"is not_selected for the records after the first {limit} alone",
        pc.xor(is_unselected, is_after),
    )


def _repeated(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which rows repeat the text of an earlier one. Told row by row only if there are any."""
    seen: set[str] = set()
    if pc.count_distinct(text).as_py() == len(text) - text.null_count:
        return pa.chunked_array([pa.nulls(len(text), pa.bool_())])
    is_repeated = []
    for found in _each(text):
        is_repeated.append(found is not None and found in seen)
        seen.add(found or "")
    return pa.chunked_array([pa.array(is_repeated, pa.bool_())])


def _each(text: pa.ChunkedArray) -> Iterator[str | None]:
    for chunk in text.chunks:
        yield from chunk.to_pylist()


def _check_truncated(counts: dict[str, int], content: dict[str, Any], num_kept: int, faults: FileFaults) -> None:
    """Which ones were cut a row does not say: some of those that are kept, and none where long ones are dropped."""
    for name in sorted(set(counts) - {TRUNCATED}):
        faults.add(f"counts in its footer has {name!r}, which is nothing that is counted of sentences")
    most = num_kept if content["too_long"] == "truncate" else 0
    if not 0 <= counts.get(TRUNCATED, 0) <= most:
        faults.add(f"{TRUNCATED} is {counts[TRUNCATED]} in its footer, and at most {most} can have been cut")


def check_sentence_embeddings(
    file: ShardFile, document: dict[str, Any], sentences: Sentences, faults: FileFaults
) -> None:
    """Checks what a teacher says of a file of sentences; `document` is the `signal.json`."""
    kept_keys = sentences.kept_keys
    expected = {
        "kind": "sentence_embeddings",
        "signal": document["signal"],
        "stem": sentences.footer["stem"],
        "fingerprint": document["fingerprint"],
        "source_sha256": sentences.footer["source_sha256"],
        "source_bytes": sentences.footer["source_bytes"],
        "weights_sha256": document["content"].get("weights_sha256"),
        "num_rows": len(kept_keys),
    }
    footer = check_footer(file, expected, ["key", SENTENCE_COLUMN])
    check_fields(footer, _EMBEDDINGS_FIELDS, faults)
    check_layout(file, embeddings_schema([SENTENCE_COLUMN], document["model"]["dim"]), faults)
    num_cut = footer.get("num_truncated_texts", 0)
    if not 0 <= num_cut <= len(kept_keys):
        faults.add(f"num_truncated_texts is {num_cut}, of {len(kept_keys)} sentences")
    if check_keys(file, kept_keys, faults) is None:
        return
    nulls = check_embeddings(file, document, kept_keys, None, faults)
    if nulls is not None:
        check_nulls(footer["nulls"], nulls, (NullReason.NON_FINITE,), kept_keys, faults)
