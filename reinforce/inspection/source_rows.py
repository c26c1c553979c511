"""A spine against the tar it was made from: the same samples, in the same order, with the same captions and images.

The tar is read once for its sha256 and once for its samples. Images are hashed, and their headers read for the size:
none is decoded, but for PNGs, of which Pillow reads all to know that they have no EXIF.
"""

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from reinforce.inspection.documents import Documents
from reinforce.inspection.faults import FileFaults
from reinforce.inspection.structure import SOURCE_COUNTS, Spine
from reinforce.sample import DropReason, ModalityImage, Sample
from reinforce.shards.source import ShardError, SourceShard

_TURNED_BY_A_QUARTER = (5, 6, 7, 8)
_OF_THE_TAR = {DropReason.DUPLICATE_KEY, DropReason.MISSING_IMAGE, DropReason.NOT_SELECTED}


Modalities = dict[str, dict[str, ModalityImage]]
"""By modality, then by key."""


def check_source(tar: Path, documents: Documents, spine: Spine, modalities: Modalities, faults: FileFaults) -> None:
    """Compares a tar with a spine; `faults` are those of the tar. Raises `OSError` if it cannot be read."""
    faults.num_bytes = tar.stat().st_size
    with tar.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    is_same = sha256 == spine.footer["source_sha256"]
    if is_same and faults.num_bytes != spine.footer["source_bytes"]:
        faults.add(f"has {faults.num_bytes} bytes, in the spine's footer they are {spine.footer['source_bytes']}")
    if not is_same:
        faults.add("its sha256 is not that of the shard the spine was made from: it has changed")
    try:
        source = SourceShard(tar, documents.source)
        _compare(source, documents, spine, modalities, faults)
    except ShardError as error:
        faults.add(str(error))
        return
    counts = dict(+source.counts)
    recorded = {name: number for name, number in spine.footer["counts"].items() if name in SOURCE_COUNTS}
    if is_same and counts != recorded:
        faults.add(f"leaves out {counts}, in the spine's footer it is {recorded}")


def _compare(
    source: SourceShard, documents: Documents, spine: Spine, modalities: Modalities, faults: FileFaults
) -> None:
    rows = spine.rows.to_pylist()
    seen: Counter[str] = Counter()
    left: dict[tuple[str, int], tuple[int, dict[str, Any]]] = {}
    for index, row in enumerate(rows):
        left[row["key"], seen[row["key"]]] = (index, row)
        seen[row["key"]] += 1
    # A selection is known by its digest alone: what the spine did not select is taken as not selected.
    is_selected = documents.dataset["spine"].get("selection_sha256") is not None
    unread = (DropReason.NOT_SELECTED, DropReason.DUPLICATE_KEY)
    selected = {row["key"] for row in rows if row["drop_reason"] not in unread} if is_selected else None
    limit = documents.dataset["spine"].get("limit_samples")
    found: defaultdict[tuple[str | None, str], list[tuple[int | None, str]]] = defaultdict(list)
    last_row, is_ordered = -1, True
    seen.clear()
    for sample in source.samples(selected=selected, limit=limit):
        place = left.pop((sample.key, seen[sample.key]), None)
        seen[sample.key] += 1
        if place is None:
            found[None, "a sample that the spine does not have"].append((None, sample.key))
            continue
        index, row = place
        if index < last_row and is_ordered:
            is_ordered = False
            faults.add("the samples come in another order than in the spine, first here", row=index, key=sample.key)
        last_row = index
        for kind in _differences(sample, row, documents):
            found[kind].append((index, sample.key))
        for kind in _modality_differences(sample, modalities) if row["drop_reason"] is None else ():
            found[kind].append((index, sample.key))
    found[None, "a sample of the spine that is not there"] += [(index, row["key"]) for index, row in left.values()]
    for (column, what), samples in found.items():
        faults.add_samples(what, samples, column)


def _differences(sample: Sample, row: dict[str, Any], documents: Documents) -> Iterator[tuple[str, str]]:
    """Column and words of what differs between a sample of the tar and its row."""
    reason = sample.drop.reason if sample.drop else None
    recorded = row["drop_reason"]
    if (reason or recorded) in _OF_THE_TAR and reason != recorded and not documents.is_explicit:
        yield "drop_reason", f"is {reason or 'not dropped by the tar'}, in the spine it is {recorded or 'kept'}"
    if reason in (DropReason.DUPLICATE_KEY, DropReason.NOT_SELECTED):
        return
    if list(sample.captions) != row["captions"]:
        yield "captions", "has other captions than in the spine"
    if sorted(sample.modalities) != row["modalities"]:
        yield "modalities", "has other modalities than in the spine"
    if reason == DropReason.MISSING_IMAGE or row["image_sha256"] is None:
        return
    if hashlib.sha256(sample.image).digest() != row["image_sha256"]:
        yield "image_sha256", "has another image than the spine was made from"
    elif recorded is None and row["image_width"] is not None:
        size = _upright_size(sample.image)
        if size is not None and size != (row["image_width"], row["image_height"]):
            yield "image_width", f"is {size[0]} x {size[1]}, in the spine {row['image_width']} x {row['image_height']}"


def _modality_differences(sample: Sample, modalities: Modalities) -> Iterator[tuple[str, str]]:
    """What differs between a kept sample's images of further modalities and their rows."""
    for name, images in modalities.items():
        image, data = images.get(sample.key), sample.modalities.get(name)
        if image is None or image.sha256 is None or data is None:
            continue
        if hashlib.sha256(data).digest() != image.sha256:
            yield f"modalities/{name}", "has another image than the dataset was made from"
            continue
        size = _upright_size(data)
        if size is not None and size != (image.width, image.height):
            yield f"modalities/{name}", f"is {size[0]} x {size[1]}, in the dataset {image.width} x {image.height}"


def _upright_size(data: bytes) -> tuple[int, int] | None:
    """Width and height by the header and the EXIF orientation, None if the header alone does not tell."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED_BY_A_QUARTER
    except Exception:  # Pillow's plugins raise whatever a damaged header leads them to
        return None
    return (height, width) if is_turned else (width, height)
