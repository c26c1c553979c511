"""How a further modality of a sample, such as depth or a thermal image, is found in the tar and brought to 8 bits."""

from math import nan
from reprlib import repr as shortened
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from reinforce.config.base import Strict

_LARGEST = 3e38
"""About what a pixel can be, a float of 32 bits: HIGH - LOW is finite, too."""


def _check_range(given: Any) -> Any:
    if given in ("type", "image"):
        return given
    try:
        low, high = map(_number, given if isinstance(given, (list, tuple)) else ())
    except (ValueError, OverflowError):
        what = f"type, image or [LOW, HIGH], two numbers of at most {_LARGEST:.0e}"
        raise ValueError(f"range {shortened(given)} must be {what}") from None
    if not low < high:
        raise ValueError(f"range {list(given)} must satisfy LOW < HIGH")
    return low, high


def _number(given: Any) -> float:
    """Of a number, or of its text: YAML reads 1e4 as text. Raises ValueError or OverflowError."""
    number = float(given) if isinstance(given, (int, float, str)) and not isinstance(given, bool) else nan
    if not abs(number) <= _LARGEST:
        raise ValueError("not finite, or too large")
    return number


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
        if not isinstance(given, (str, dict, ModalityConfig)):
            raise ValueError(f"must be a suffix such as ir.jpg, or {{suffix: ..., range: ...}}, not {shortened(given)}")
        return {"suffix": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _check(self) -> Self:
        object.__setattr__(self, "suffix", check_suffix(self.suffix))
        return self
