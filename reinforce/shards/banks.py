"""Banks: a fixed list of labels as each teacher embeds it, `banks/<bank>/bank.json` and `<teacher>.parquet`.

A bank is small and read whole. Each of its two kinds of files says all that is needed to use it, so that its folder may
be copied out of the dataset: a student in a teacher's space takes the bank it was trained against along.
"""

import re
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from reinforce.label_names import bank_key as bank_key  # of this module's face
from reinforce.shards.dataset import DatasetMismatchError, create_or_compare, read_document
from reinforce.shards.reader import FormatError, ShardFile, to_numpy
from reinforce.shards.schema import BANK_FILE, FORMAT_VERSION, bank_file, bank_folder, bank_schema, fingerprint
from reinforce.shards.writer import ShardFileWriter
from reinforce.storage import Store, open_store


@dataclass(frozen=True, eq=False)
class Bank:
    """Labels with the unit-norm embeddings that one teacher gives them.

    `embeddings[i]` is the normalised mean of the normalised embeddings of `labels[i]` in each of `templates`.
    `logit_scale` and `logit_bias` are the teacher's; the latter None unless it has one (SigLIP). `fingerprint` is of
    the labels, the templates and the teacher's text tower.
    """

    name: str
    teacher: str
    labels: tuple[str, ...]
    templates: tuple[str, ...]
    embeddings: Float32[np.ndarray, "labels dim"]
    logit_scale: float
    logit_bias: float | None
    weights_sha256: str
    fingerprint: str


def bank_content(labels: tuple[str, ...], templates: tuple[str, ...]) -> dict[str, Any]:
    """The `content` of `bank.json`: the labels without repetitions, and the templates."""
    kept: dict[str, str] = {}
    for label in labels:
        kept.setdefault(bank_key(label), " ".join(label.split()))
    return {"labels": list(kept.values()), "templates": list(templates)}


def record_bank(store: Store, name: str, content: dict[str, Any], num_duplicates: int) -> None:
    """Creates `bank.json`, or compares; raises `DatasetMismatchError`."""
    document = {
        "format_version": FORMAT_VERSION,
        "bank": name,
        "fingerprint": fingerprint(content),
        "content": content,
        "num_duplicates": num_duplicates,
    }
    create_or_compare(store, f"{bank_folder(name)}/{BANK_FILE}", document, ["format_version", "content"])


def write_bank(store: Store, bank: Bank, *, content: dict[str, Any], num_truncated_texts: int) -> None:
    """Commits the file of one teacher; of exact float16, whatever the teacher's `mantissa_bits`.

    `content` is what the bank's `fingerprint` is of. Raises `DatasetMismatchError` if one is there that was made
    differently.
    """
    assert bank.fingerprint == fingerprint(content), content
    path = bank_file(bank.name, bank.teacher)
    schema = bank_schema(bank.embeddings.shape[1])
    flat = pa.array(bank.embeddings.astype(np.float16).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type)
    footer = {
        "format_version": FORMAT_VERSION,
        "kind": "bank",
        "bank": bank.name,
        "teacher": bank.teacher,
        "fingerprint": bank.fingerprint,
        "content": content,
        "weights_sha256": bank.weights_sha256,
        "logit_scale": bank.logit_scale,
        "logit_bias": bank.logit_bias,
        "num_rows": len(bank.labels),
        "num_truncated_texts": num_truncated_texts,
    }
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardFileWriter(Path(folder) / "bank.parquet", schema)
        writer.append(pa.RecordBatch.from_arrays([pa.array(bank.labels, pa.string()), vectors], schema=schema))
        if writer.commit(store, path, footer):
            return
    check_bank(store, bank.name, bank.teacher, bank.fingerprint)


def check_bank(store: Store, bank: str, teacher: str, expected: str) -> None:
    """Refuses a teacher's file that is there with another fingerprint; raises `DatasetMismatchError`."""
    with ShardFile(store, bank_file(bank, teacher)) as file:
        if file.footer.get("fingerprint") != expected:
            raise DatasetMismatchError(
                f"{file.path} was made of other labels, templates or weights; use another name for the bank"
            )


def read_bank(uri: str, teacher: str | None = None) -> Bank:
    """Reads the bank of a folder, `DATASET/banks/NAME` or a copy; `teacher` may be left out if it holds one only.

    Raises `FormatError` in one line that names what there is.
    """
    store = open_store(uri)
    document = read_document(store, BANK_FILE)
    if document is None:
        raise FormatError(f"{store.uri}: no bank (it has no {BANK_FILE}); give the folder banks/NAME of a dataset")
    teachers = _teachers(store)
    if teacher is None and len(teachers) == 1:
        teacher = teachers[0]
    if teacher not in teachers:
        wanted = "which teacher's?" if teacher is None else f"nothing of teacher {teacher}:"
        raise FormatError(f"{store.uri}: {wanted} it has {', '.join(teachers) or 'none'}")
    with ShardFile(store, f"{teacher}.parquet") as file:
        table, footer = file.read(), file.footer
        path = file.path
    try:
        labels, templates = tuple(document["content"]["labels"]), tuple(document["content"]["templates"])
        if table.column("label").to_pylist() != list(labels):
            raise FormatError(f"{path}: its labels are not those of {BANK_FILE}")
        return Bank(
            name=document["bank"],
            teacher=teacher,
            labels=labels,
            templates=templates,
            embeddings=_unit_norm(to_numpy(table.column("embedding")).astype(np.float32)),
            logit_scale=float(footer["logit_scale"]),
            logit_bias=None if footer["logit_bias"] is None else float(footer["logit_bias"]),
            weights_sha256=footer["weights_sha256"],
            fingerprint=footer["fingerprint"],
        )
    except (KeyError, TypeError) as error:
        raise FormatError(f"{path}: says nothing of {error}") from None


def bank_in_space(banks: Sequence[Bank], space: Collection[str | None]) -> Bank | None:
    """The first bank of weights whose sha256 is in `space`: names of teachers say nothing of that."""
    return next((bank for bank in banks if bank.weights_sha256 in space), None)


def teachers_of_bank(uri: str) -> list[str]:
    """The teachers whose embeddings a bank's folder holds, sorted."""
    return _teachers(open_store(uri))


def _teachers(store: Store) -> list[str]:
    return sorted(
        info.path.removesuffix(".parquet") for info in store.list() if re.fullmatch(r"[^/]+\.parquet", info.path)
    )


def _unit_norm(rows: Float32[np.ndarray, "rows dim"]) -> Float32[np.ndarray, "rows dim"]:
    normed: Float32[np.ndarray, "rows dim"] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normed
