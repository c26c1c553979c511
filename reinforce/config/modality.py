"""How a further modality of a sample, such as depth or a thermal image, is found in the tar and brought to 8 bits."""

from math import isfinite
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from reinforce.config.base import Strict


def _check_range(given: Any) -> Any:
    if given in ("type", "image"):
        return given
    is_pair = isinstance(given, (list, tuple)) and len(given) == 2
    if not is_pair or not all(isinstance(bound, (int, float)) and isfinite(bound) for bound in given):
        raise ValueError(f"range {given!r} must be type, image or [LOW, HIGH]")
    if not given[0] < given[1]:
        raise ValueError(f"range {list(given)} must satisfy LOW < HIGH")
    return tuple(given)


ValueRange = Annotated[Literal["type", "image"] | tuple[float, float], BeforeValidator(_check_range)]
"""What becomes 0 and 255: `type`, all that the pixels' type holds; `image`, the least and the greatest value of each
image; or two numbers, LOW and HIGH, beyond which values are clipped."""

_TAKEN = ("jpg", "jpeg", "png", "webp", "txt", "json", "cls")


def check_suffix(suffix: str) -> str:
    """The suffix in lower case and without its dot; raises ValueError if it is none that a modality can have."""
    bare = suffix.lower().lstrip(".")
    if bare in _TAKEN or "/" in bare or not bare:
        raise ValueError(f"suffix {bare!r} is not a modality's; use one such as 'ir.jpg'")
    return bare


class ModalityConfig(Strict):
    """A further image of a sample, registered with its RGB image. A plain text stands for its suffix."""

    suffix: str
    """Of the member: `ir.jpg`, `depth.png`."""
    range: ValueRange = "type"
    """`type` (8 bits: 0 to 255, 16 bits: 0 to 65535), `image` (least to greatest value of each image), or [LOW, HIGH]:
    what becomes black and white."""

    @model_validator(mode="before")
    @classmethod
    def _from_suffix(cls, given: Any) -> Any:
        return {"suffix": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _check(self) -> Self:
        object.__setattr__(self, "suffix", check_suffix(self.suffix))
        return self
