"""New labels on the device: an exported text tower embeds them, and the model scores them like its own.

A label is the normalised mean of its normalised prompts, as in the banks of a dataset. The tower is in memory only
while this runs. A short prompt costs 3 ms (int8) to 5 ms (fp32) of a core with the tower of a ViT-B-32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reinforce.deploy.label.errors import LabelError
from reinforce.deploy.label.labels import read_names, read_text
from reinforce.deploy.label.session import open_session
from reinforce.deploy.label.tokenizer import ClipTokenizer
from reinforce.deploy.model_file import ModelCard, ModelFileError, ModelLabels
from reinforce.deploy.text_file import TextCard

if TYPE_CHECKING:
    from jaxtyping import Float32

DEFAULT_TEMPLATES = ("a photo of a {}.",)
"""As `reinforce evaluate`."""

_PROMPTS_PER_PASS = 32


@dataclass(frozen=True, eq=False)
class NewLabels:
    """Labels as a model's own, and how many of their prompts were cut at the context length."""

    labels: ModelLabels
    num_cut_prompts: int


def read_new_labels(
    text_model: Path, model: ModelCard, labels_file: Path, templates_file: Path | None, *, num_threads: int
) -> NewLabels:
    """The labels of a file, one a line, in the prompts of another; raises LabelError."""
    labels = read_names(labels_file)
    templates = DEFAULT_TEMPLATES if templates_file is None else _read_templates(templates_file)
    return embed_labels(text_model, labels, templates, model=model, name=labels_file.stem, num_threads=num_threads)


def embed_labels(
    text_model: Path,
    labels: Sequence[str],
    templates: Sequence[str],
    *,
    model: ModelCard,
    name: str = "new",
    num_threads: int = 1,
) -> NewLabels:
    """Embeds `labels`, each in all `templates` (`{}` is where it goes), for a model exported of the same student.

    `name` is what the labels are called as a bank. Raises LabelError if `text_model` is no exported text tower or of
    another space, or gives nothing finite.
    """
    session = open_session(text_model, num_threads, exact_int8=True)
    try:
        card = TextCard.from_metadata(session.get_modelmeta().custom_metadata_map)
        card.check_same_space(model)
    except ModelFileError as error:
        raise LabelError(f"--text-model {text_model}: {error}") from None
    tokenizer = ClipTokenizer(card.merges, card.context_length)
    sums = np.zeros((len(labels), card.embed_dim))
    num_prompts, num_cut = len(labels) * len(templates), 0
    for start in range(0, num_prompts, _PROMPTS_PER_PASS):
        places = [divmod(place, len(templates)) for place in range(start, min(start + _PROMPTS_PER_PASS, num_prompts))]
        prompts = [templates[place].replace("{}", labels[row]) for row, place in places]
        tokens, lengths = tokenizer(prompts)
        num_cut += sum(length > card.context_length for length in lengths)
        longest = max(lengths) if card.takes_shorter else card.context_length
        np.add.at(sums, [row for row, _ in places], session.run(["embedding"], {"tokens": tokens[:, :longest]})[0])
    content: dict[str, Any] = {"labels": list(labels), "templates": list(templates), "weights": card.weights_sha256}
    embedded = ModelLabels(
        bank=name,
        teacher=card.teacher or "student",
        labels=tuple(labels),
        embeddings=_unit_norm(sums, labels, text_model),
        logit_scale=card.logit_scale,
        logit_bias=card.logit_bias,
        fingerprint=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
    )
    return NewLabels(embedded, num_cut)


def _unit_norm(sums: np.ndarray, labels: Sequence[str], text_model: Path) -> Float32[np.ndarray, "labels dim"]:
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    is_good = (np.isfinite(norms) & (norms > 0))[:, 0]
    if not is_good.all():
        raise LabelError(f"--text-model {text_model}: gives nothing finite for {labels[int(is_good.argmin())]!r}")
    normed: Float32[np.ndarray, "labels dim"] = (sums / norms).astype(np.float32)
    return normed


def _read_templates(path: Path) -> tuple[str, ...]:
    """One a line, with {} (or CLIP_benchmark's {c}) where the label goes."""
    lines = [line.strip().replace("{c}", "{}") for line in read_text("--templates", path).splitlines()]
    for number, line in enumerate(lines, 1):
        if line and "{}" not in line:
            raise LabelError(f"--templates {path}: line {number} has no {{}} for the label")
    if not any(lines):
        raise LabelError(f"--templates {path}: no template in it; write one a line, such as: a photo of a {{}}.")
    return tuple(line for line in lines if line)
