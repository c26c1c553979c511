"""The files of banks against `bank.json` and the teachers' images: labels, embeddings, fingerprints.

Each is read whole: it has a row a label.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from reinforce.inspection.checked_files import local_copy
from reinforce.inspection.documents import Documents
from reinforce.inspection.faults import Fault, FileFaults
from reinforce.inspection.files import check_fields, check_layout, read_checked, read_column
from reinforce.inspection.vectors import check_column
from reinforce.shards.dataset import SIGNAL_FILE, Dataset
from reinforce.shards.reader import ShardFile
from reinforce.shards.schema import BANK_FILE, Signal, bank_folder, bank_schema, canonical_json, fingerprint

_MANTISSA_BITS = 10
_FOOTER_FIELDS = {
    "format_version",
    "kind",
    "bank",
    "teacher",
    "fingerprint",
    "content",
    "weights_sha256",
    "logit_scale",
    "logit_bias",
    "num_rows",
    "num_truncated_texts",
}


def verify_banks(dataset: Dataset, documents: Documents, spool: Path) -> list[FileFaults]:
    """Checks each teacher's file of every bank that has a `bank.json`, which `read_documents` has checked."""
    checked = []
    for path in sorted(dataset.sizes):
        match path.split("/"):
            case ["banks", name, file] if file.endswith(".parquet") and name in documents.banks:
                checked.append(_verify_file(dataset, documents, path, spool))
    return checked


def undocumented_banks(dataset: Dataset, documents: Documents) -> list[Fault]:
    """Files of banks that no `bank.json` explains."""
    folders = tuple(f"{bank_folder(name)}/" for name in documents.banks)
    files = [path for path in sorted(dataset.sizes) if path.startswith("banks/") and path.endswith(".parquet")]
    return [Fault(path, f"no {BANK_FILE} says what it is") for path in files if not path.startswith(folders)]


def _verify_file(dataset: Dataset, documents: Documents, path: str, spool: Path) -> FileFaults:
    faults = FileFaults(path)
    try:
        with local_copy(dataset.store, path, spool, size=dataset.sizes[path]) as local:
            read_checked(dataset.store, local, faults, lambda file: _check_file(file, documents, faults))
    except FileNotFoundError:
        faults.add("was listed and is gone")
    return faults


def _check_file(file: ShardFile, documents: Documents, faults: FileFaults) -> None:
    _, name, last = faults.path.split("/")
    teacher, document, footer = last.removesuffix(".parquet"), documents.banks[name], file.footer
    check_fields(footer, _FOOTER_FIELDS, faults)
    for what in _faults_of_footer(footer, {"bank": name, "teacher": teacher, "num_rows": file.num_rows}, document):
        faults.add(what)
    images = documents.signals.get(Signal("image", teacher))
    if images is None:
        faults.add(f"embeddings/{teacher}/image has no {SIGNAL_FILE}: labels of a teacher without images")
    elif footer["weights_sha256"] != images["content"].get("weights_sha256"):
        faults.add(f"weights_sha256 is not that of embeddings/{teacher}/image: labels and images of two models")
    elif footer["logit_scale"] != images["model"]["logit_scale"]:
        faults.add(f"logit_scale is not that of embeddings/{teacher}/image")
    dim = images["model"]["dim"] if images is not None else file.schema.field("embedding").type.list_size
    check_layout(file, bank_schema(dim), faults)
    labels = _check_labels(file, document["content"]["labels"], faults)
    column = read_column(file, "embedding", faults)
    if labels is not None and column is not None:
        check_column(column, "embedding", labels, _MANTISSA_BITS, 0.0, np.ones(len(column), bool), faults)


def _check_labels(file: ShardFile, expected: list[str], faults: FileFaults) -> list[str] | None:
    """The labels of a file, after they are compared with those of its `bank.json`."""
    column = read_column(file, "label", faults)
    if column is None:
        return None
    labels: list[str] = column.to_pylist()
    row = next((i for i, pair in enumerate(zip(expected, labels, strict=False)) if pair[0] != pair[1]), None)
    if row is not None:
        faults.add(f"is {labels[row]!r}, in {BANK_FILE} it is {expected[row]!r}", column="label", row=row)
    elif len(labels) != len(expected):
        faults.add(f"{len(labels)} labels, {BANK_FILE} has {len(expected)}", column="label")
    return labels


def _faults_of_footer(footer: dict[str, Any], expected: dict[str, Any], document: dict[str, Any]) -> Iterator[str]:
    content = footer["content"]
    for field, value in {"kind": "bank", **expected}.items():
        if footer[field] != value:
            yield f"its {field} is {canonical_json(footer[field])}, not {canonical_json(value)}"
    if fingerprint(content) != footer["fingerprint"]:
        yield "its fingerprint is not that of its content"
    for field, value in {
        "bank": document["fingerprint"],
        "weights_sha256": footer["weights_sha256"],
        "mantissa_bits": _MANTISSA_BITS,
    }.items():
        if content[field] != value:
            yield f"content.{field} is {canonical_json(content[field])}, not {canonical_json(value)}"
    num_prompts = len(document["content"]["labels"]) * len(document["content"]["templates"])
    if not 0 <= footer["num_truncated_texts"] <= num_prompts:
        yield f"num_truncated_texts is {footer['num_truncated_texts']}, of {num_prompts} prompts"
    if not (math.isfinite(footer["logit_scale"]) and footer["logit_scale"] > 0):
        yield f"logit_scale is {footer['logit_scale']}"
