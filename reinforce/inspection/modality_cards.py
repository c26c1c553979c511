"""Images of further modalities beside a card's RGB image: a picture by the recorded range, or why there is none.

Few rows are kept of each file, whose columns are in memory one shard at a time. Images whose bytes are not those that
were built from are not shown.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from reinforce.config import ModalityConfig
from reinforce.inspection.pictures import thumbnail
from reinforce.inspection.values import open_checked
from reinforce.modality import load_modality
from reinforce.rgb import ImageError
from reinforce.sample import Sample
from reinforce.shards.dataset import Dataset
from reinforce.shards.reader import FormatError
from reinforce.shards.schema import Signal


@dataclass(frozen=True, slots=True)
class ModalityCard:
    """One image of a sample's. `picture` is None if it cannot be shown; `words` are its size, or what is wrong."""

    name: str
    words: str
    picture: str | None


def modality_cards(
    dataset: Dataset,
    documents: Mapping[Signal, dict[str, Any]],
    stem: str,
    keys: list[str],
    rows: Sequence[int],
    samples: Mapping[str, Sample] | None,
) -> list[tuple[ModalityCard, ...]]:
    """The cards of these rows of a shard's kept ones, whose keys are `keys`. `samples` are None without a source."""
    cards: list[list[ModalityCard]] = [[] for _ in rows]
    for signal in (signal for signal in documents if signal.kind == "modality"):
        # What is wrong with a file stands among the problems already; one that is missing is counted.
        with suppress(FormatError, OSError, ValueError, KeyError), open_checked(dataset, signal, stem, keys) as file:
            content = documents[signal]["content"]
            modality = ModalityConfig(suffix=content["suffix"], range=content["range"])
            for place, row in zip(cards, file.read().take(list(rows)).to_pylist(), strict=True):
                sample = None if samples is None else samples.get(row["key"])
                place.append(_card(signal.model, row, modality, sample))
    return [tuple(place) for place in cards]


def _card(name: str, row: dict[str, Any], modality: ModalityConfig, sample: Sample | None) -> ModalityCard:
    if row["null_reason"] is not None:
        return ModalityCard(name, row["null_reason"], None)
    words = f"{row['width']} × {row['height']}"
    if sample is None:
        return ModalityCard(name, words, None)
    data = sample.modalities.get(name, b"")
    if hashlib.sha256(data).digest() != row["sha256"]:
        return ModalityCard(name, f"{words}; it has changed since the build", None)
    try:
        pixels = load_modality(data, modality.range, row["width"] * row["height"])
    except ImageError as error:
        return ModalityCard(name, f"{words}; does not decode here: {error}", None)
    return ModalityCard(name, words, thumbnail(pixels))
