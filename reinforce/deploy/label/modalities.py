"""As which modality images are read: RGB, or one that the model was trained on besides it."""

from __future__ import annotations

from pathlib import Path

from reinforce.deploy.label.errors import LabelError
from reinforce.deploy.label.inputs import Names
from reinforce.deploy.model_file import ModelCard

RGB = "rgb"


def choose_modality(model: Path, card: ModelCard, name: str | None) -> str:
    """`name`, by default `rgb`. Raises LabelError if the model was not trained on it."""
    known = [RGB] * card.takes_rgb + list(card.modalities)
    chosen = name or RGB
    if chosen in known:
        return chosen
    if name is None:
        raise LabelError(f"model {model}: was trained on {', '.join(known)} alone; pass --modality {known[0]}")
    raise LabelError(f"--modality {name}: model {model} knows {', '.join(known)}")


def names_of(card: ModelCard, modality: str) -> Names:
    """The files that are taken from folders, which may hold images of every modality side by side."""
    if modality != RGB:
        return Names(f"{modality} image", (f".{card.modalities[modality].suffix}",))
    others = tuple(f".{other.suffix}" for other in card.modalities.values())
    return Names("RGB image" if others else "image", but_not=others)
