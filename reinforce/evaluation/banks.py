"""Which bank a model is evaluated by, and what the classes of a data set are in it.

A bank stands for a text tower: the labels as one teacher embeds them. It fits that teacher, and every image tower that
was trained in its space.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from reinforce.config import ConfigError
from reinforce.evaluation.model import EmbeddingModel
from reinforce.shards.banks import Bank, bank_in_space, bank_key, read_bank, teachers_of_bank


@dataclass(frozen=True)
class Classes:
    """Classes that images are told apart by: names, unit-norm embeddings, and the class of every label id."""

    names: tuple[str, ...]
    embeddings: Float[Tensor, "classes dim"]
    of_label: Int[np.ndarray, " labels"]


def classes_in(bank: Bank, classnames: Sequence[str]) -> Classes:
    """The labels of a bank that a data set's class names name, in the order of these; case and spaces do not matter.

    Class names of one label are one class. Raises `ConfigError` if the bank lacks one.
    """
    places = {bank_key(label): place for place, label in enumerate(bank.labels)}
    missing = [name for name in classnames if bank_key(name) not in places]
    if missing:
        raise ConfigError(
            f"bank {bank.name} has no label {missing[0]!r}, nor {len(missing) - 1} more of {len(classnames)} class "
            "names; name the classes as the bank does (--classnames FILE)"
        )
    rows = [places[bank_key(name)] for name in classnames]
    used = list(dict.fromkeys(rows))
    return Classes(
        names=tuple(bank.labels[row] for row in used),
        embeddings=torch.from_numpy(bank.embeddings[used]),
        of_label=np.array([used.index(row) for row in rows]),
    )


def bank_for(model: EmbeddingModel, uri: str | None, teacher: str | None = None) -> Bank | None:
    """The bank at `uri` as it fits the model, or the one in a student's folder; None for a model with a text tower.

    Where several teachers have embedded the labels, that of the model's own or recorded weights: of `teacher`, or of
    the first by name. Raises `ConfigError` or `FormatError`.
    """
    if uri is None and model.has_text:
        if teacher is not None:
            raise ConfigError(f"--teacher {teacher}: {model.name} is scored by its own texts; pass --bank URI too")
        return None
    where = str(model.bank) if uri is None and model.bank else uri
    if where is None:
        raise ConfigError(
            f"model {model.name}: an image tower alone, and its folder has no bank or several; pass --bank URI"
        )
    there = teachers_of_bank(where)
    if uri is None and teacher is not None and teacher not in there:
        whose = ", ".join(there) or "no teacher"
        raise ConfigError(
            f"--teacher {teacher}: {where}, the bank that {model.name} has taken along, is of {whose}; "
            "pass --bank DATASET/banks/NAME"
        )
    names = there if teacher is None else [teacher]
    bank = _of_its_space(model, [read_bank(where, name) for name in names] or [read_bank(where)], where)
    pixels = np.zeros((1, model.image_size, model.image_size, 3), np.uint8)
    with model.evaluating():
        dim = model.in_space_of(model.embed_images(pixels), bank.teacher, bank.weights_sha256).shape[1]
    if dim != bank.embeddings.shape[1]:
        raise ConfigError(
            f"--bank {where}: its labels have {bank.embeddings.shape[1]} values, an image of {model.name} has {dim}"
        )
    return bank


def notes_of(model: EmbeddingModel, bank: Bank) -> tuple[str, ...]:
    """What a reader of figures by a foreign bank must know."""
    is_its_space = not model.space or bank.weights_sha256 in model.space
    return () if is_its_space else (f"{model.name}: bank {bank.name} is of other weights, those of {bank.teacher}",)


def _of_its_space(model: EmbeddingModel, banks: Sequence[Bank], where: str) -> Bank:
    fitting = bank_in_space(banks, model.space)
    if fitting is not None:
        return fitting
    teachers = ", ".join(bank.teacher for bank in banks) or "no teacher"
    if model.space and not model.has_text:
        raise ConfigError(f"--bank {where}: is of {teachers}, whose weights {model.name} was not trained from")
    if len(banks) != 1:
        raise ConfigError(f"--bank {where}: is of {teachers}, and none of them is {model.name}; give a bank of one")
    return banks[0]
