"""What a row of the spine, or of a modality beside it, must be, whatever the others are."""

from collections.abc import Iterator
from typing import Any

from reinforce.inspection.documents import Documents
from reinforce.sample import DropReason, ModalityImage, NullReason
from reinforce.views.draw import view_seed

_UNREAD = {DropReason.DUPLICATE_KEY, DropReason.NOT_SELECTED}
"""Dropped before anything of them is read."""
_UNUSABLE = {DropReason.NOT_AN_IMAGE, DropReason.CORRUPT_IMAGE, DropReason.TOO_MANY_PIXELS}
_WITHOUT_IMAGE = _UNREAD | {DropReason.MISSING_IMAGE}


def faults_of_row(row: dict[str, Any], documents: Documents, *, is_repeated: bool) -> Iterator[tuple[str, str]]:
    """Column and words of each fault of one row; `is_repeated`: its key was seen before."""
    reason = row["drop_reason"]
    if is_repeated != (reason == DropReason.DUPLICATE_KEY):
        yield "key", "was seen before" if is_repeated else "is no duplicate of an earlier one"
    if not documents.is_explicit:
        if row["view_seed"] != view_seed(documents.seed, row["key"]):
            yield "view_seed", "is not that of the key and the dataset's seed"
        yield from _faults_of_image(row, reason)
    if (row["drop_detail"] is None) != (reason is None):
        yield "drop_detail", "is there for dropped samples alone"
    captions, bound = row["captions"], documents.source.max_captions
    if reason in _UNREAD and (captions or row["modalities"]):
        yield "captions", f"is not empty, and the sample was dropped as {reason}"
    if len(captions) > bound:
        yield "captions", f"has {len(captions)} captions, at most {bound} are kept"
    if any(not text or text != text.strip() for text in captions):
        yield "captions", "has a caption that is empty or not stripped"
    modalities = row["modalities"]
    if modalities != sorted(set(modalities)) or not set(modalities) <= documents.source.modalities.keys():
        yield "modalities", "is not a sorted list of the declared modalities"


def _faults_of_image(row: dict[str, Any], reason: str | None) -> Iterator[tuple[str, str]]:
    for column in ("image_width", "image_height"):
        size = row[column]
        if (size is None) != (reason is not None) or (size is not None and size < 1):
            yield column, f"is {size} in a row that is {'kept' if reason is None else 'dropped'}"
    has_digest = row["image_sha256"] is not None
    if has_digest != (reason not in _WITHOUT_IMAGE):
        yield "image_sha256", f"is {'there' if has_digest else 'null'} in a row that is {reason or 'kept'}"


def faults_of_modality(image: ModalityImage, *, is_listed: bool) -> Iterator[tuple[str, str]]:
    """Column and words of each fault of one row; `is_listed`: the spine says that the sample has the modality."""
    reason = image.null_reason
    if reason is not None and reason not in _UNUSABLE | {NullReason.NO_MODALITY}:
        yield "null_reason", f"{reason!r} is none of the format"
    if is_listed == (reason == NullReason.NO_MODALITY):
        yield "null_reason", f"is {reason}, and the spine says that the sample has {'it' if is_listed else 'none'}"
    for column, size in (("width", image.width), ("height", image.height)):
        if (size is None) != (reason is not None) or (size is not None and size < 1):
            yield column, f"is {size} in a row that is {reason or 'not null'}"
    if (image.sha256 is None) != (reason is not None):
        yield "sha256", f"is {'null' if image.sha256 is None else 'there'} in a row that is {reason or 'not null'}"
