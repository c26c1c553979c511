"""What an exported ONNX file says of itself: preprocessing, labels, what made it and how well it agreed.

All of it stands in the file's own metadata, so one file is all that a device needs. Written by `export`, read by
`label`; numpy alone, no torch.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from reinforce.label_names import bank_key

if TYPE_CHECKING:
    from jaxtyping import Float32

    from reinforce.modality import ValueRange

MODEL_FILE_VERSION = 1

_CARD, _LABELS, _EMBEDDINGS = "reinforce.model", "reinforce.labels", "reinforce.label_embeddings"


class ModelFileError(ValueError):
    """A file that is no exported model, or one of another version; the message is one line."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelLabels:
    """A bank as a file carries it: labels with the unit-norm embeddings of the teacher whose space the model is in."""

    bank: str
    teacher: str
    labels: tuple[str, ...]
    embeddings: Float32[np.ndarray, "labels dim"]
    logit_scale: float
    logit_bias: float | None
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class ModelModality:
    """A modality that the student was trained on: how the names of its images end, what becomes black and white in them
    (`reinforce.modality`), and how well the file agreed with PyTorch on them; empty if it was checked with noise."""

    suffix: str
    range: ValueRange
    agreement: dict[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelCard:
    """Images are resized to `image_size` by the shortest side, bicubic and antialiased, cropped to the centre, scaled
    to 0..1 and normalised by `mean` and `std`; the file's input `pixels` is float32 [batch, 3, size, size], its output
    `embedding` unit-norm float32 [batch, embed_dim]."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    embed_dim: int
    precision: str
    """`fp32` or `int8`."""
    target: str | None
    """What int8 is for: `x86`, `arm` or `tensorrt`; None for fp32."""
    student_sha256: str
    """Of the student's weights."""
    software: dict[str, str]
    agreement: dict[str, float]
    """With PyTorch, over the images it was checked with: `num_images`, `min_cosine`, `mean_cosine`, `top1`. Of RGB
    images, or of the first modality where the student takes no RGB."""
    labels: ModelLabels | None = None
    modalities: dict[str, ModelModality] = field(default_factory=dict)
    """By name, those that the student was trained on besides RGB."""
    takes_rgb: bool = True
    """Whether it was trained on RGB images."""

    def to_metadata(self) -> dict[str, str]:
        """As the metadata of an ONNX file, text by name."""
        card = {"version": MODEL_FILE_VERSION} | {key: value for key, value in asdict(self).items() if key != "labels"}
        if not self.modalities:
            # Software of before there were modalities reads files that have none.
            del card["modalities"], card["takes_rgb"]
        metadata = {_CARD: json.dumps(card, ensure_ascii=False)}
        if self.labels is not None:
            labels = asdict(self.labels)
            embeddings = labels.pop("embeddings").astype("<f2")
            metadata[_LABELS] = json.dumps(labels, ensure_ascii=False)
            metadata[_EMBEDDINGS] = base64.b64encode(embeddings.tobytes()).decode()
        return metadata

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> ModelCard:
        """The card of a file; raises `ModelFileError` that says what is wrong with it."""
        with reading(metadata, _CARD, MODEL_FILE_VERSION, "not exported by reinforce") as card:
            card |= {"mean": _numbers(card["mean"]), "std": _numbers(card["std"])}
            if not all(type(card[name]) is int and card[name] > 0 for name in ("image_size", "embed_dim")):
                raise ValueError("image_size and embed_dim must be whole numbers")
            if min(card["std"]) <= 0:
                raise ValueError("std must be above 0")
            card["modalities"] = {name: _modality(fields) for name, fields in card.get("modalities", {}).items()}
            return cls(**card, labels=_labels(metadata, card["embed_dim"]))


@contextmanager
def reading(metadata: dict[str, str], name: str, version: int, otherwise: str) -> Iterator[dict[str, Any]]:
    """The fields of the card `name` but its version; what is wrong with them is a `ModelFileError` of one line.

    `otherwise` says what a file without it is.
    """
    if name not in metadata:
        raise ModelFileError(f"{otherwise} (its metadata has no {name})")
    try:
        card: dict[str, Any] = json.loads(metadata[name])
        found = card.pop("version")
        if found != version:
            raise ModelFileError(f"of version {found}; this software reads version {version}")
        yield card
    except ModelFileError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, zlib.error) as error:
        raise ModelFileError(f"its metadata is damaged ({' '.join(str(error).split())[:100]})") from None


def check_scale(scale: Any, bias: Any) -> None:
    """Raises ValueError unless they are what scores can be made with."""
    if not (_is_number(scale) and scale > 0 and (bias is None or _is_number(bias))):
        raise ValueError("logit_scale must be a number above 0, logit_bias a number or null")


def _labels(metadata: dict[str, str], embed_dim: int) -> ModelLabels | None:
    if _LABELS not in metadata:
        return None
    labels = json.loads(metadata[_LABELS])
    check_scale(labels["logit_scale"], labels["logit_bias"])
    if len({bank_key(label) for label in labels["labels"]}) < len(labels["labels"]):
        raise ValueError("a label is there twice")
    values = np.frombuffer(base64.b64decode(metadata[_EMBEDDINGS], validate=True), "<f2").astype(np.float32)
    embeddings = values.reshape(len(labels["labels"]), embed_dim)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return ModelLabels(**labels | {"labels": tuple(labels["labels"]), "embeddings": embeddings})


def _modality(fields: Any) -> ModelModality:
    modality = ModelModality(**fields)
    value_range: Any = modality.range
    if isinstance(value_range, list) and all(map(_is_number, value_range)) and len(value_range) == 2:
        value_range = (value_range[0], value_range[1])
    is_pair = isinstance(value_range, tuple) and value_range[0] < value_range[1]
    if not is_pair and value_range not in ("type", "image"):
        raise ValueError("the range of a modality must be type, image or two numbers, LOW < HIGH")
    if not isinstance(modality.suffix, str):
        raise ValueError("the suffix of a modality must be text")
    return replace(modality, range=value_range)


def _numbers(values: Any) -> tuple[float, float, float]:
    if not isinstance(values, list) or len(values) != 3 or not all(map(_is_number, values)):
        raise ValueError("mean and std must be three numbers")
    return values[0], values[1], values[2]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
