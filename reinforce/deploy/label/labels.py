"""Which labels an image can get, and the least score of each: the model's own, narrowed and limited by files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from reinforce.deploy.label.errors import LabelError
from reinforce.deploy.model_file import ModelCard, ModelLabels
from reinforce.label_names import bank_key


def choose_labels(model: Path, card: ModelCard, labels_file: Path | None) -> ModelLabels:
    """The labels in the model's file, or those that `labels_file` names, one a line, in its order.

    Case and spaces do not tell labels apart; they come out as the model spells them. Raises LabelError.
    """
    if card.labels is None:
        raise LabelError(f"model {model}: has no labels in it; export a student that has a bank, or give --text-model")
    if labels_file is None:
        return card.labels
    rows = _rows_of(card.labels)
    chosen: list[int] = []
    for label in read_names(labels_file):
        row = rows.get(bank_key(label))
        if row is None:
            raise LabelError(f"--labels {labels_file}: the model does not know {label!r}")
        chosen.append(row)
    labels = tuple(card.labels.labels[row] for row in chosen)
    return replace(card.labels, labels=labels, embeddings=card.labels.embeddings[chosen])


def read_names(path: Path) -> tuple[str, ...]:
    """The labels of a file, one a line; raises LabelError if one comes twice, or if there is none."""
    names: dict[str, str] = {}
    for line in read_text("--labels", path).splitlines():
        name = " ".join(line.split())
        if name and bank_key(name) in names:
            raise LabelError(f"--labels {path}: {name!r} is in it twice; case and spaces do not count")
        if name:
            names[bank_key(name)] = name
    if not names:
        raise LabelError(f"--labels {path}: no label in it; write one a line")
    return tuple(names.values())


def read_thresholds(path: Path, labels: ModelLabels) -> dict[str, float]:
    """The least score of each label that the file names: a JSON object, or lines of label, tab, value.

    Raises LabelError for a label that is not among `labels`, one that comes twice, or a value that is no number.
    """
    rows = _rows_of(labels)
    thresholds: dict[str, float] = {}
    for name, value in _pairs(path):
        row = rows.get(bank_key(name))
        if row is None:
            raise LabelError(f"--thresholds {path}: {name!r} is not among the labels")
        label = labels.labels[row]
        if label in thresholds:
            raise LabelError(f"--thresholds {path}: {name!r} is in it twice; case and spaces do not count")
        thresholds[label] = _number(path, name, value)
    if not thresholds:
        raise LabelError(f"--thresholds {path}: nothing in it; write label, tab, value, or a JSON object")
    return thresholds


def _rows_of(labels: ModelLabels) -> dict[str, int]:
    return {bank_key(label): row for row, label in enumerate(labels.labels)}


def _pairs(path: Path) -> list[tuple[str, Any]]:
    text = read_text("--thresholds", path)
    if text.lstrip().startswith("{"):
        try:
            # As pairs: a dict would keep the last of two values of one label.
            pairs: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=list)
        except (ValueError, RecursionError) as error:
            raise LabelError(f"--thresholds {path}: not JSON ({error})") from None
        return pairs
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    for number, line in lines:
        if line.count("\t") != 1:
            raise LabelError(f"--thresholds {path}: line {number} is not label, tab, value")
    return [(name.strip(), value.strip()) for name, value in (line.split("\t") for _, line in lines)]


def _number(path: Path, name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise LabelError(f"--thresholds {path}: the value of {name!r} is no number")
    return number


def read_text(option: str, path: Path) -> str:
    """A file that was given with an option; raises LabelError."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise LabelError(f"{option} {path}: not UTF-8 text") from None
    except OSError as error:
        raise LabelError(f"{option} {path}: {(error.strerror or str(error)).lower()}") from None
