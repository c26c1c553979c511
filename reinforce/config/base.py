"""What every part of a recipe shares: strict, frozen models, and the one error that names a field."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Precision = Literal["fp32", "bf16", "fp16"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ConfigError(ValueError):
    """A recipe or an option that cannot be used; the message is one line that names the field."""


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"name {name!r} must be of a-z, 0-9 and _ only")
    return name


def _check_captioner_name(name: str) -> str:
    if name == "original":
        raise ValueError("name 'original' is taken by the source's own captions")
    return _check_name(name)


def _check_modality_name(name: str) -> str:
    if name == "rgb":
        raise ValueError("name 'rgb' is taken by the image itself")
    return _check_name(name)


Name = Annotated[str, AfterValidator(_check_name)]
CaptionerName = Annotated[str, AfterValidator(_check_captioner_name)]
ModalityName = Annotated[str, AfterValidator(_check_modality_name)]
