"""What captioning models share on their way in and out: normalised pixels, and a tokenizer's identity."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from reinforce.sample import Pixels

_PROBE_TEXTS = ("a photo of a cat.", "Zwei Kinder – 2 dogs & 3 boats!", "#hashtag, 12:30 IMG_2041.jpg")
_PROBE_IDS = 1000


def normalised(
    images: Sequence[Pixels], mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Float[Tensor, "images 3 size size"]:
    """8-bit views scaled to 0..1 and normalised on the device, in float32."""
    pixels = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float() / 255
    offset, scale = (torch.tensor(list(values), device=device).view(1, 3, 1, 1) for values in (mean, std))
    return (pixels - offset) / scale


def tokenizer_sha256(
    encode: Callable[[str], list[int]], decode: Callable[[list[int]], str], vocabulary_size: int
) -> str:
    """Tells two tokenizers apart by what they do to some texts and ids, whatever their files and names."""
    ids = range(0, vocabulary_size, max(1, vocabulary_size // _PROBE_IDS))
    said = [str(encode(text)) for text in _PROBE_TEXTS] + [decode([i]) for i in ids]
    return hashlib.sha256("\x1f".join(said).encode("utf-8", "surrogatepass")).hexdigest()
