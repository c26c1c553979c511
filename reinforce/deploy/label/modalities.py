"""As which modality images are read: RGB, or one that the model was trained on besides it."""

from __future__ import annotations

from pathlib import Path

from reinforce.deploy.label.errors import LabelError
from reinforce.deploy.label.inputs import Names
from reinforce.deploy.model_file import ModelCard

RGB = "rgb"

_MOST_OF_8_BITS = 255


def choose_modality(model: Path, card: ModelCard, name: str | None) -> str:
    """`name`, by default `rgb`. Raises LabelError if the model was not trained on it."""
    known = [RGB] * card.takes_rgb + list(card.modalities)
    chosen = name or RGB
    if chosen in known:
        return chosen
    if name is None:
        raise LabelError(f"model {model}: was trained on {', '.join(known)} alone; pass --modality {known[0]}")
    raise LabelError(f"--modality {name}: model {model} knows {', '.join(known)}")


def check_stream(card: ModelCard, modality: str) -> None:
    """Raises LabelError if every image of a stream, of 8 bits, would be black."""
    value_range = card.modalities[modality].range if modality != RGB else "type"
    if isinstance(value_range, tuple) and value_range[0] >= _MOST_OF_8_BITS:
        beyond = f"its range {words_of(value_range)} lies beyond the 8 bits of a stream's JPEGs"
        raise LabelError(f"--modality {modality}: {beyond}; name 16-bit files")


def words_of(value_range: tuple[float, float]) -> str:
    return f"{value_range[0]:g} to {value_range[1]:g}"


def names_of(card: ModelCard, modality: str) -> Names:
    """The files that are taken from folders, which may hold images of every modality side by side."""
    if modality != RGB:
        return Names(f"{modality} image", (f".{card.modalities[modality].suffix}",))
    others = tuple(f".{other.suffix}" for other in card.modalities.values())
    return Names("RGB image" if others else "image", but_not=others)
