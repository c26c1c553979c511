"""An image tower alone, in the space of a teacher: what its folder holds, and how it is opened without the trainer.

It has the face of open_clip's models, which could not open the folder: there is no text tower to build.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reinforce.config import ModalityConfig
from reinforce.weights import ModelError

IMAGE_TOWER_CONFIG_NAME = "image_tower_config.json"
"""As open_clip_config.json; the text tower is null."""
WEIGHTS_NAME = "open_clip_model.safetensors"
STUDENT_NAME = "student.json"
"""Says that a folder is a student's, and what made it."""
BANKS_FOLDER = "banks"
"""Of the banks that a student has taken along."""


class ImageTower(torch.nn.Module):
    """An image tower alone, with the face of open_clip's models."""

    def __init__(self, embed_dim: int, vision_cfg: dict[str, Any], quick_gelu: bool = False) -> None:
        import open_clip

        super().__init__()
        self.visual = open_clip.model._build_vision_tower(embed_dim, vision_cfg, quick_gelu)
        self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.logit_bias = None

    def encode_image(self, image: Float[Tensor, "batch 3 size size"], normalize: bool = False) -> Tensor:
        features: Tensor = self.visual(image)
        return torch.nn.functional.normalize(features, dim=-1) if normalize else features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.visual.set_grad_checkpointing(enable)


@dataclass(frozen=True)
class LoadedImageTower:
    """An image tower in evaluation mode with what belongs to it. `preprocess` has `size`, `mean`, `std` and more.

    `space` are the sha256 of the weights of the teachers it was trained from; `bank` is the folder of the one bank that
    it has taken along; `heads` are the dims of its teachers, by name, if they are several; `teachers` the sha256s by
    name.
    """

    model: ImageTower
    preprocess: dict[str, Any]
    space: frozenset[str]
    bank: Path | None
    heads: dict[str, int]
    teachers: dict[str, str | None]


def banks_in(folder: Path) -> list[Path]:
    """The folders of the banks that a student has taken along, sorted."""
    return [path.parent for path in sorted((folder / BANKS_FOLDER).glob("*/bank.json"))]


def recorded_modalities(folder: Path | str) -> dict[str, ModalityConfig]:
    """By name, those that a student was trained on besides RGB; none of a folder without student.json.

    Raises `ModelError` if they are damaged.
    """
    path = Path(folder) / STUDENT_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        recorded: dict[str, Any] = document.get("modalities", {})
        return {name: ModalityConfig.model_validate(modality) for name, modality in recorded.items()}
    except (ValueError, AttributeError):
        raise ModelError(f"student {folder}: {STUDENT_NAME} is damaged") from None


def recorded_heads(folder: Path | str) -> dict[str, int]:
    """Teacher -> the dim of its head, of a student of several teachers; empty of any other.

    Raises `ModelError` if that is damaged.
    """
    path = Path(folder) / STUDENT_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {str(name): int(dim) for name, dim in document.get("heads", {}).items()}
    except (ValueError, TypeError, AttributeError):
        raise ModelError(f"student {folder}: {STUDENT_NAME} is damaged") from None


def head_of(heads: Mapping[str, int], teacher: str) -> slice:
    """Where the head of a teacher is in a student's embedding: all of it, if there are no `heads`.

    A head is in its teacher's space once it is normalised for itself. Heads lie in the order of their names. Raises
    `ModelError` if the student has no head of that teacher.
    """
    if not heads:
        return slice(None)
    if teacher not in heads:
        raise ModelError(f"the student has no head of teacher {teacher}; it has {', '.join(sorted(heads))}")
    first = sum(dim for name, dim in heads.items() if name < teacher)
    return slice(first, first + heads[teacher])


def name_of_teacher(teachers: Mapping[str, str | None], name: str, weights_sha256: str | None) -> str:
    """The name by which a student has the teacher that a bank or a dataset calls `name`: weights tell, not names.

    `teachers` are the sha256s of the student's, by name. `name` itself where they are of that name, or of none.
    """
    if teachers.get(name) == weights_sha256:
        return name
    return next((own for own, sha256 in teachers.items() if sha256 == weights_sha256), name)


def is_image_tower(folder: Path | str) -> bool:
    """Whether a folder is that of an image tower alone."""
    return (Path(folder) / IMAGE_TOWER_CONFIG_NAME).is_file()


def load_image_tower(folder: Path | str) -> LoadedImageTower:
    """The image tower of a folder, in fp32 on the CPU. Raises `ModelError` if it is not a whole one."""
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        document = json.loads((folder / IMAGE_TOWER_CONFIG_NAME).read_text(encoding="utf-8"))
        model_cfg, preprocess = document["model_cfg"], document["preprocess_cfg"]
        vision_cfg = model_cfg["vision_cfg"] | {"timm_model_pretrained": False}
        model = ImageTower(model_cfg["embed_dim"], vision_cfg, model_cfg.get("quick_gelu", False))
        model.load_state_dict(load_file(folder / WEIGHTS_NAME))
        made = json.loads((folder / STUDENT_NAME).read_text(encoding="utf-8"))
        teachers = dict(made.get("teachers", {}))
        recorded = [*teachers.values(), made.get("bank", {}).get("weights_sha256")]
    except Exception as error:  # open_clip and timm raise whatever a damaged folder leads them to
        raise ModelError(f"model {folder}: {' '.join(str(error).split())[:300] or type(error).__name__}") from None
    banks = banks_in(folder)
    size = {"size": model_cfg["vision_cfg"].get("image_size", 224)}
    space = frozenset(sha256 for sha256 in recorded if isinstance(sha256, str))
    bank = banks[0] if len(banks) == 1 else None
    return LoadedImageTower(model.eval(), size | preprocess, space, bank, recorded_heads(folder), teachers)
