"""The files of one shard against the format, the documents and each other: rows, keys, counts, links.

Of a spine all columns are in memory, of a signal one at a time.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reinforce.inspection.documents import Documents
from reinforce.inspection.faults import FileFaults
from reinforce.inspection.files import (
    COMMON_FIELDS,
    check_fields,
    check_keys,
    check_layout,
    compare_counts,
    read_column,
    read_rows,
)
from reinforce.inspection.footers import check_footer
from reinforce.inspection.spine_rows import faults_of_modality, faults_of_row
from reinforce.inspection.vectors import check_embeddings, check_nulls
from reinforce.sample import SENTENCE_DROPS, DropReason, ModalityImage, NullReason
from reinforce.shards.explicit import BoxOutsideError, ExplicitView, Size, read_sizes, read_views, views_schema
from reinforce.shards.reader import ShardFile
from reinforce.shards.schema import (
    CAPTIONS_SCHEMA,
    MODALITY_SCHEMA,
    SPINE_SCHEMA,
    Signal,
    canonical_json,
    embeddings_schema,
)
from reinforce.views.draw import OP_NAMES

ORIGINAL = "original"
Captions = list[list[str] | None]
_COLUMNS_BEFORE_VIEWS = 3
_SPINE_FIELDS = COMMON_FIELDS | {"num_kept", "drops", "counts"}
_SIGNAL_FIELDS = COMMON_FIELDS | {"signal", "weights_sha256", "nulls"}
SOURCE_COUNTS = frozenset({"unused_members", "captions_empty", "captions_undecodable", "captions_over_bound"})
"""What a tar says of itself."""
_IMPORT_COUNTS = {"extra_text_rows", "images_changed", "synthetic_over_bound", "views_over_bound"}
"""What an import adds to that: embeddings say it, not the members that a source is read for."""


@dataclass(frozen=True)
class Spine:
    """A spine that was read whole: what the other files of its shard are compared with."""

    footer: dict[str, Any]
    rows: pa.Table
    kept: pa.Table

    @property
    def kept_keys(self) -> list[str]:
        keys: list[str] = self.kept.column("key").to_pylist()
        return keys


def check_spine(file: ShardFile, documents: Documents, stem: str, faults: FileFaults) -> Spine | None:
    """Checks a spine. None if its rows cannot be read."""
    expected = {"kind": "samples", "stem": stem, "fingerprint": documents.dataset["spine_fingerprint"]}
    footer = check_footer(file, expected, list(SPINE_SCHEMA.names))
    check_fields(footer, _SPINE_FIELDS, faults)
    table = read_rows(file, SPINE_SCHEMA, faults)
    if table is None:
        return None
    keys = table.column("key").to_pylist()
    seen: set[str] = set()
    rows_of: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for index, row in enumerate(table.to_pylist()):
        for kind in faults_of_row(row, documents, is_repeated=row["key"] in seen):
            rows_of[kind].append(index)
        seen.add(row["key"])
    for (name, what), rows in rows_of.items():
        faults.add_rows(what, rows, keys, name)
    drops = Counter(filter(None, table.column("drop_reason").to_pylist()))
    kept = table.filter(pc.is_null(table.column("drop_reason")))
    compare_counts(footer, {"drops": dict(drops), "num_kept": kept.num_rows}, faults)
    for name in sorted(set(footer["counts"]) - SOURCE_COUNTS - (_IMPORT_COUNTS if documents.is_explicit else set())):
        faults.add(f"counts in its footer has {name!r}, which is nothing that is left out")
    for name in sorted(set(drops) - (set(DropReason) - SENTENCE_DROPS)):
        faults.add(f"drop_reason {name!r} is none of the format", column="drop_reason")
    return Spine(footer, table, kept)


def check_signal(
    file: ShardFile,
    signal: Signal,
    documents: Documents,
    spine: Spine,
    faults: FileFaults,
    *,
    captions: Captions | None,
) -> Captions | None:
    """Checks a model's file. `captions` are those of the kept rows that a text signal was made from, if readable.

    Returns the captions of a captions file.
    """
    document = documents.signals[signal]
    keys = check_frame(file, signal, documents, spine, faults)
    if keys is None:
        return None
    if signal.kind == "captions":
        return _check_captions(file, document["content"]["num_captions"], keys, faults)
    num_captions = None
    if signal.kind == "text" and captions is not None:
        _check_made_from(file.footer, signal, keys, captions, faults)
        num_captions = np.array([len(texts or ()) for texts in captions], np.int64)
    nulls = check_embeddings(file, document, keys, num_captions, faults)
    is_known = num_captions is not None or signal.kind == "image"
    if nulls is not None and is_known and not documents.is_explicit:
        absent = NullReason.NO_CAPTION if signal.kind == "text" else NullReason.NO_VIEW
        reasons = (NullReason.NON_FINITE, NullReason.NOT_UNIT, absent)
        check_nulls(file.footer["nulls"], nulls, reasons, keys, faults)
    return None


def check_modality(
    file: ShardFile, signal: Signal, documents: Documents, spine: Spine, faults: FileFaults
) -> dict[str, ModalityImage] | None:
    """Checks a modality's file; its rows by key, None if they cannot be read."""
    keys = check_frame(file, signal, documents, spine, faults)
    columns = {name: read_column(file, name, faults) for name in MODALITY_SCHEMA.names[1:]}
    if keys is None or any(column is None for column in columns.values()):
        return None
    images = [ModalityImage(**row) for row in pa.table(columns).to_pylist()]
    declared = spine.kept.column("modalities").to_pylist()
    rows_of: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        for kind in faults_of_modality(image, is_listed=signal.model in declared[index]):
            rows_of[kind].append(index)
    for (name, what), rows in rows_of.items():
        faults.add_rows(what, rows, keys, name)
    compare_counts(
        file.footer, {"nulls": dict(Counter(image.null_reason for image in images if image.null_reason))}, faults
    )
    return dict(zip(keys, images, strict=True))


def check_frame(
    file: ShardFile, signal: Signal, documents: Documents, spine: Spine, faults: FileFaults
) -> list[str] | None:
    """Checks what all signals' files have: the footer, the layout and the keys, which it returns if they are right."""
    document = documents.signals[signal]
    expected = {
        "kind": signal.kind,
        "signal": signal.folder,
        "stem": spine.footer["stem"],
        "fingerprint": document["fingerprint"],
        "source_sha256": spine.footer["source_sha256"],
        "source_bytes": spine.footer["source_bytes"],
        "weights_sha256": document["content"].get("weights_sha256"),
        "num_rows": spine.kept.num_rows,
    }
    footer = check_footer(file, expected, ["key", *document["columns"]])
    extra = {"num_truncated_texts"} if signal.kind == "text" else set()
    extra |= {"captions_sha256"} if signal.kind == "text" and signal.source != ORIGINAL else set()
    check_fields(footer, _SIGNAL_FIELDS | extra, faults)
    check_layout(file, _schema_of(signal, document), faults)
    return check_keys(file, spine.kept_keys, faults)


def check_views(file: ShardFile, spine: Spine, faults: FileFaults) -> None:
    """Checks stored views: the footer, the keys, that operations have names and boxes lie within their images."""
    expected = {
        "kind": "views",
        "stem": spine.footer["stem"],
        "fingerprint": spine.footer["fingerprint"],
        "source_sha256": spine.footer["source_sha256"],
        "source_bytes": spine.footer["source_bytes"],
        "num_rows": spine.kept.num_rows,
    }
    schema = views_schema(len(file.columns) - _COLUMNS_BEFORE_VIEWS)
    names = schema.names
    check_fields(check_footer(file, expected, names), COMMON_FIELDS | {"nulls"}, faults)
    check_layout(file, schema, faults)
    keys = check_keys(file, spine.kept_keys, faults)
    sizes = [read_column(file, name, faults) for name in ("image_width", "image_height")]
    if keys is None or any(column is None for column in sizes):
        return
    known = read_sizes(pa.table(sizes, ["image_width", "image_height"]))
    for name in names[_COLUMNS_BEFORE_VIEWS:]:
        column = read_column(file, name, faults)
        views = [] if column is None else read_views(column)
        outside = [row for row, view in enumerate(views) if view and not _is_view_of(view, known[row])]
        if outside:
            faults.add_rows("is no view of an image of its size", outside, keys, name)


def _is_view_of(view: ExplicitView, size: Size | None) -> bool:
    """Whether its operations are known, and its box lies within the image, if its size is known."""
    try:
        view.of(size or (view.left + view.width, view.top + view.height))
    except BoxOutsideError:
        return False
    return all(op.name in OP_NAMES for op in view.ops)


def _check_captions(file: ShardFile, most: int, keys: list[str], faults: FileFaults) -> Captions | None:
    column = read_column(file, "captions", faults)
    if column is None:
        return None
    captions: Captions = column.to_pylist()
    kinds: list[tuple[str, Callable[[list[str]], bool]]] = [
        ("an empty list, where there is none it is null", lambda texts: not texts),
        (f"more than {most} captions", lambda texts: len(texts) > most),
        ("an empty caption", lambda texts: any(not text.strip() for text in texts)),
        ("a caption twice", lambda texts: len(set(texts)) < len(texts)),
    ]
    for what, is_fault in kinds:
        rows = [row for row, texts in enumerate(captions) if texts is not None and is_fault(texts)]
        faults.add_rows(what, rows, keys, "captions")
    failed = {str(NullReason.CAPTIONER_FAILED): column.null_count} if column.null_count else {}
    compare_counts(file.footer, {"nulls": failed}, faults)
    return captions


def _check_made_from(
    footer: dict[str, Any], signal: Signal, keys: list[str], captions: Captions, faults: FileFaults
) -> None:
    if signal.source != ORIGINAL:
        digest = hashlib.sha256()
        for key, texts in zip(keys, captions, strict=True):
            digest.update(canonical_json([key, texts or []]).encode() + b"\n")
        if footer["captions_sha256"] != digest.hexdigest():
            faults.add(f"was made from other captions than those in captions/{signal.source}: captions_sha256 differs")
    num_texts = sum(len(texts or ()) for texts in captions)
    if not 0 <= footer["num_truncated_texts"] <= num_texts:
        faults.add(f"num_truncated_texts is {footer['num_truncated_texts']} in its footer, of {num_texts} texts")


def _schema_of(signal: Signal, document: dict[str, Any]) -> pa.Schema:
    if signal.kind == "captions":
        return CAPTIONS_SCHEMA
    if signal.kind == "modality":
        return MODALITY_SCHEMA
    return embeddings_schema(document["columns"], document["model"]["dim"])
