"""Which labels an image can get, and the least score of each: the model's own, narrowed and limited by files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from reinforce.deploy.label.errors import LabelError
from reinforce.deploy.model_file import ModelCard, ModelLabels


def choose_labels(model: Path, card: ModelCard, labels_file: Path | None) -> ModelLabels:
    """The labels in the model's file, or those that `labels_file` names, one a line, in its order.

    Case and spaces do not tell labels apart; they come out as the model spells them. Raises LabelError.
    """
    if card.labels is None:
        raise LabelError(f"model {model}: has no labels in it; export a student that has a bank")
    if labels_file is None:
        return card.labels
    rows = _rows_of(card.labels)
    chosen: list[int] = []
    for line in _read_text("--labels", labels_file).splitlines():
        if not line.strip():
            continue
        row = rows.get(label_key(line))
        if row is None:
            raise LabelError(f"--labels {labels_file}: the model does not know {line.strip()!r}")
        if row in chosen:
            raise LabelError(f"--labels {labels_file}: {line.strip()!r} is in it twice; case and spaces do not count")
        chosen.append(row)
    if not chosen:
        raise LabelError(f"--labels {labels_file}: no label in it; write one a line")
    labels = tuple(card.labels.labels[row] for row in chosen)
    return replace(card.labels, labels=labels, embeddings=card.labels.embeddings[chosen])


def read_thresholds(path: Path, labels: ModelLabels) -> dict[str, float]:
    """The least score of each label that the file names: a JSON object, or lines of label, tab, value.

    Raises LabelError for a label that is not among `labels`, one that comes twice, or a value that is no number.
    """
    rows = _rows_of(labels)
    thresholds: dict[str, float] = {}
    for name, value in _pairs(path):
        row = rows.get(label_key(name))
        if row is None:
            raise LabelError(f"--thresholds {path}: {name!r} is not among the labels")
        label = labels.labels[row]
        if label in thresholds:
            raise LabelError(f"--thresholds {path}: {name!r} is in it twice; case and spaces do not count")
        thresholds[label] = _number(path, name, value)
    if not thresholds:
        raise LabelError(f"--thresholds {path}: nothing in it; write label, tab, value, or a JSON object")
    return thresholds


def label_key(label: str) -> str:
    """What spellings of one label have in common, as in banks."""
    return " ".join(label.split()).casefold()


def _rows_of(labels: ModelLabels) -> dict[str, int]:
    return {label_key(label): row for row, label in enumerate(labels.labels)}


def _pairs(path: Path) -> list[tuple[str, Any]]:
    text = _read_text("--thresholds", path)
    if text.lstrip().startswith("{"):
        try:
            # As pairs: a dict would keep the last of two values of one label.
            pairs: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=list)
        except ValueError as error:
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
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise LabelError(f"--thresholds {path}: the value of {name!r} is no number")
    return number


def _read_text(option: str, path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise LabelError(f"{option} {path}: not UTF-8 text") from None
    except OSError as error:
        raise LabelError(f"{option} {path}: {(error.strerror or str(error)).lower()}") from None
