"""What view `index` of an image is: a pure function of (policy, `view_seed`, index, image size).

Part of the dataset format: a dataset stores seeds, not parameters, so the steps below never change. They use 64-bit
integers, IEEE double arithmetic and sqrt, log, exp, and can be replayed in any language. 25 us a view; numpy only.

Random words come from Philox4x64-10 (Salmon et al., 2011) with the 128-bit key (`view_seed`, `index`), first key word
first. Block b, counted from 0, is the encryption of the 256-bit counter (b + 1, 0, 0, 0), first counter word first: the
counter is incremented before its first use. A block is 4 words of 64 bits, each with one fixed purpose, so that no
parameter depends on how many tries another one needed:

    blocks 0..9    one RandomResizedCrop try each: area, log-ratio, top, left
    block 10       word 0: horizontal flip
    block 11 + j   operation j: which, sign

A word w gives the real (w >> 11) * 2**-53 in [0, 1), or the integer (w * n) >> 64 in [0, n).
"""

import hashlib
import math
import threading
from typing import Any

import numpy as np

from reinforce.config import ViewPolicy
from reinforce.sample import Box, View, ViewOp

NUM_TRIES = 10
NUM_MAGNITUDES = 31

GEOMETRIC_OPS = frozenset({"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"})
"""Operations that move pixels. They apply to every modality of a sample; the others to RGB only."""

OP_NAMES = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
"""The operations of torchvision's RandAugment, in its order, which is the order they are drawn from."""

_NON_PHOTOMETRIC = tuple(name for name in OP_NAMES if name == "Identity" or name in GEOMETRIC_OPS)

_SIGNED_RANGES = {
    "ShearX": 0.3,
    "ShearY": 0.3,
    "TranslateX": 150.0 / 331.0,
    "TranslateY": 150.0 / 331.0,
    "Rotate": 30.0,
    "Brightness": 0.9,
    "Color": 0.9,
    "Contrast": 0.9,
    "Sharpness": 0.9,
}
"""Largest absolute value, that of the last magnitude bin, of the operations whose sign is drawn."""

_THREAD = threading.local()
_AT_THE_START: dict[str, Any] = {
    "bit_generator": "Philox",
    "buffer": np.zeros(4, dtype=np.uint64),
    "buffer_pos": 4,
    "has_uint32": 0,
    "uinteger": 0,
}


def view_seed(dataset_seed: int, key: str) -> int:
    """The seed of all views of the sample `key`, in [0, 2**64).

    It is blake2b, 8 bytes long, of the dataset seed as 8 little-endian bytes followed by the key in UTF-8, read as a
    little-endian integer. `dataset_seed` must lie in [0, 2**64).
    """
    content = dataset_seed.to_bytes(8, "little") + key.encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def draw(policy: ViewPolicy, view_seed: int, index: int, image_width: int, image_height: int) -> View:
    """View `index` of an image of `image_width` x `image_height` pixels (EXIF orientation applied).

    Index 0 is the clean view. Any other is drawn as torchvision draws RandomResizedCrop, then a flip, then
    RandAugment; the box is in whole pixels of that image. `view_seed` is what the function of that name returns.
    Raises ValueError for a negative index or an empty image.
    """
    if index < 0:
        raise ValueError(f"view index {index} is negative; 0 is the clean view, 1 the first augmented one")
    if image_width < 1 or image_height < 1:
        raise ValueError(f"an image of {image_width} x {image_height} pixels has no views")
    if index == 0:
        return View(box=None)
    blocks = _random_blocks(view_seed, index, num_blocks=NUM_TRIES + 1 + policy.num_ops)
    box = _draw_box(policy, blocks[:NUM_TRIES], image_width, image_height)
    hflip = _real(blocks[NUM_TRIES][0]) < policy.hflip
    ops = tuple(_draw_op(policy, words) for words in blocks[NUM_TRIES + 1 :])
    return View(box=box, hflip=hflip, ops=ops)


def _random_blocks(view_seed: int, index: int, num_blocks: int) -> list[list[int]]:
    if not hasattr(_THREAD, "philox"):
        _THREAD.philox = np.random.Philox(key=0)
    # A new generator would read the operating system's entropy before it is told the key: 80 us where this takes 2.
    # The key must be an array: numpy turns a list that holds an integer of 2**63 or more into floats, and so rounds it.
    key = np.array([view_seed, index], dtype=np.uint64)
    _THREAD.philox.state = _AT_THE_START | {"state": {"counter": np.zeros(4, dtype=np.uint64), "key": key}}
    words: list[int] = _THREAD.philox.random_raw(4 * num_blocks).tolist()
    return [words[start : start + 4] for start in range(0, len(words), 4)]


def _real(word: int) -> float:
    return (word >> 11) * 2.0**-53


def _integer(word: int, stop: int) -> int:
    return (word * stop) >> 64


def _draw_box(policy: ViewPolicy, tries: list[list[int]], image_width: int, image_height: int) -> Box:
    """torchvision's RandomResizedCrop.get_params; `round` is half to even, as there."""
    low_area, high_area = policy.scale
    low_log_ratio, high_log_ratio = math.log(policy.ratio[0]), math.log(policy.ratio[1])
    for area_word, ratio_word, top_word, left_word in tries:
        area = image_width * image_height * (low_area + _real(area_word) * (high_area - low_area))
        ratio = math.exp(low_log_ratio + _real(ratio_word) * (high_log_ratio - low_log_ratio))
        width = round(math.sqrt(area * ratio))
        height = round(math.sqrt(area / ratio))
        if 0 < width <= image_width and 0 < height <= image_height:
            top = _integer(top_word, image_height - height + 1)
            left = _integer(left_word, image_width - width + 1)
            return Box(top, left, height, width, image_width, image_height)
    return _central_box(policy, image_width, image_height)


def _central_box(policy: ViewPolicy, image_width: int, image_height: int) -> Box:
    """The fallback of torchvision's RandomResizedCrop: the largest central box whose ratio is within bounds."""
    width, height = image_width, image_height
    if image_width / image_height < policy.ratio[0]:
        height = round(width / policy.ratio[0])
    elif image_width / image_height > policy.ratio[1]:
        width = round(height * policy.ratio[1])
    # torchvision lets a ratio far from 1 round a side of a one-pixel-wide image to nothing.
    width, height = max(width, 1), max(height, 1)
    return Box((image_height - height) // 2, (image_width - width) // 2, height, width, image_width, image_height)


def _draw_op(policy: ViewPolicy, words: list[int]) -> ViewOp:
    candidates = OP_NAMES if policy.photometric else _NON_PHOTOMETRIC
    name = candidates[_integer(words[0], len(candidates))]
    is_negative = _integer(words[1], 2) == 1
    return ViewOp(name, _op_value(name, policy.magnitude, is_negative))


def _op_value(name: str, magnitude: int, is_negative: bool) -> float:
    """The value of torchvision's RandAugment at bin `magnitude` of 31, in the units of `ViewOp`."""
    last = NUM_MAGNITUDES - 1
    if name in _SIGNED_RANGES:
        value = _SIGNED_RANGES[name] * magnitude / last
        return -value if is_negative and magnitude > 0 else value
    if name == "Posterize":
        return float(8 - round(magnitude / (last / 4)))
    if name == "Solarize":
        return 255.0 - 255.0 * magnitude / last
    return 0.0
