"""The nouns that travel through a build, frozen and without behaviour.

A `Sample` is what a source shard holds under one key, a `View` the recipe for one rendition of its image, a
`DropReason` why a sample could not be used. Nothing here imports anything of ours, torch or Arrow.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from jaxtyping import Float, UInt8

RGB_MODALITY = "rgb"
"""The name of a sample's own image among what a student sees of it."""

RGB = UInt8[np.ndarray, "height width 3"]
"""A decoded image: 8-bit sRGB, EXIF orientation applied."""

Pixels = UInt8[np.ndarray, "size size 3"]
"""A rendered view, before a teacher's normalisation."""

Embeddings = Float[np.ndarray, "rows dim"]
"""Unit-norm float32 rows; a row of NaN stands for a value that does not exist."""


class DropReason(StrEnum):
    """Why a source sample has no signals. Stored by name in the spine's `drop_reason`."""

    MISSING_IMAGE = "missing_image"
    EMPTY_IMAGE = "empty_image"
    NOT_AN_IMAGE = "not_an_image"
    CORRUPT_IMAGE = "corrupt_image"
    TOO_MANY_PIXELS = "too_many_pixels"
    DUPLICATE_KEY = "duplicate_key"
    NOT_SELECTED = "not_selected"
    MISSING_SIGNALS = "missing_signals"
    BAD_SIGNALS = "bad_signals"
    VIEWS_DO_NOT_FIT = "views_do_not_fit"
    EMPTY_SENTENCE = "empty_sentence"
    NOT_UTF8 = "not_utf8"
    NOT_A_SENTENCE = "not_a_sentence"
    TOO_LONG_SENTENCE = "too_long_sentence"
    DUPLICATE_SENTENCE = "duplicate_sentence"


SENTENCE_DROPS = frozenset(
    {
        DropReason.EMPTY_SENTENCE,
        DropReason.NOT_UTF8,
        DropReason.NOT_A_SENTENCE,
        DropReason.TOO_LONG_SENTENCE,
        DropReason.DUPLICATE_SENTENCE,
    }
)
"""Of records of files of sentences, and of nothing else."""


class NullReason(StrEnum):
    """Why a kept sample lacks one value of a signal. Counted by name in the footer of the signal's file."""

    NO_CAPTION = "no_caption"
    NON_FINITE = "non_finite"
    CAPTIONER_FAILED = "captioner_failed"
    NO_VIEW = "no_view"
    NOT_UNIT = "not_unit"
    NO_MODALITY = "no_modality"


@dataclass(frozen=True, slots=True)
class Drop:
    """A sample that could not be used, and what was wrong with it in words."""

    reason: DropReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ModalityImage:
    """What a sample's image of a further modality is: upright size and sha256 of its bytes, or why it is unusable."""

    width: int | None = None
    height: int | None = None
    sha256: bytes | None = None
    null_reason: NullReason | DropReason | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One record of a source shard: everything the tar says about a key, before the image is decoded.

    `captions` are the usable original captions, in the order of the recipe's caption fields, at most its bound.
    `fields` are the texts of further JSON fields a captioner of kind `files` asks for, by field name;
    `modalities` maps a declared modality's name to its bytes. `drop` is set when the tar alone rules the sample out.
    `label` is the `.cls` member as it stands, for whoever evaluates.
    """

    key: str
    image: bytes = b""
    captions: tuple[str, ...] = ()
    fields: dict[str, tuple[str, ...]] = field(default_factory=dict)
    modalities: dict[str, bytes] = field(default_factory=dict)
    drop: Drop | None = None
    label: bytes | None = None


@dataclass(frozen=True, slots=True)
class Sentence:
    """One record of a file of sentences. `key` is its number there, from 1 on, in decimal digits: that of the line, or
    of the row. `text` is stripped, and cut if `is_cut`; empty if there is a `drop`."""

    key: str
    text: str = ""
    is_cut: bool = False
    drop: Drop | None = None


@dataclass(frozen=True, slots=True)
class Box:
    """A crop in whole pixels of an image of `image_width` x `image_height`: an exact fraction of it."""

    top: int
    left: int
    height: int
    width: int
    image_width: int
    image_height: int


@dataclass(frozen=True, slots=True)
class ViewOp:
    """One RandAugment operation and its signed, size-independent value.

    ShearX/Y: the shear factor; TranslateX/Y: a fraction of the view's side; Rotate: degrees counter-clockwise;
    Brightness, Color, Contrast, Sharpness: the enhancement factor minus 1; Posterize: bits kept; Solarize: the
    threshold on the 0..255 scale; Identity, AutoContrast, Equalize: 0.
    """

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class View:
    """One rendition of an image. `box=None` is the clean view: shortest side to the size, then the centre crop."""

    box: Box | None
    hflip: bool = False
    ops: tuple[ViewOp, ...] = ()
