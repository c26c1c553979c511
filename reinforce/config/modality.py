"""How a further modality of a sample, such as depth or a thermal image, is found in the tar and brought to 8 bits."""

from typing import Any, Literal, Self

from pydantic import model_validator

from reinforce.config.base import Strict

ValueRange = Literal["type", "image"] | tuple[float, float]
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
        if isinstance(self.range, tuple) and not self.range[0] < self.range[1]:
            raise ValueError(f"range {list(self.range)} must satisfy LOW < HIGH")
        return self
