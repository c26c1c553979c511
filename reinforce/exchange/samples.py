"""A sample of the published layout, its members parsed and checked against one another, or the drop it becomes.

Only the header of an image is read here; everything else is: 1.3 ms for 36 rows of 1,536 values.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from reinforce.exchange.layout import (
    CLEAN_ROWS,
    IMAGE_ROWS,
    SIGNAL_MEMBERS,
    TEXT_ROWS,
    MemberError,
    Rows,
    parse_box,
    parse_json,
    parse_size,
    parse_texts,
    parse_views,
    read_embeddings,
)
from reinforce.exchange.pictures import read_header
from reinforce.sample import Drop, DropReason, Sample
from reinforce.shards.explicit import BoxOutsideError, ExplicitView, Size

UID_FIELD, SHA_FIELD = "json.uid", "json.sha256"
"""Fields that are read where a caller asks for them."""


@dataclass(frozen=True, slots=True)
class PublishedSample:
    """What the members of one key say. `image_size` is None where the image is not joined."""

    sample: Sample
    """Without image and members: hundreds of these wait for one another."""
    image_size: Size | None
    views: list[ExplicitView]
    views_size: Size | None
    """Of the image the boxes are in pixels of."""
    image_rows: Rows
    text_rows: Rows
    clean_row: Rows | None
    synthetic: list[str]
    num_synthetic: dict[str, int]
    """Captioner -> how many of `synthetic` are its, in their order; empty if the tar does not say."""

    @property
    def num_text_rows(self) -> int:
        """Rows that have a text: a first original caption, the synthetic ones, then further original ones."""
        return len(self.synthetic) + max(1, len(self.sample.captions))

    def original_row(self, caption: int) -> int:
        """Which text row is that of an original caption: the first, or behind the synthetic ones."""
        return 0 if caption == 0 else len(self.synthetic) + caption

    def synthetic_of(self, captioner: str, captioners: Sequence[str]) -> range:
        """Which of `synthetic` are this captioner's, `captioners` being all in their order."""
        start = 0
        for name in captioners:
            count = self.num_synthetic.get(name, 0) if self.num_synthetic else len(self.synthetic)
            if name == captioner:
                return range(start, start + count)
            start += count
        raise AssertionError(captioner)


def parse_sample(sample: Sample, max_pixels: int, counts: Counter[str], *, width: int | None) -> PublishedSample | Drop:
    """The sample's signals, or why they cannot be used. `width` is that of its embeddings, where it is known.

    Adds to `counts` the `extra_text_rows` beyond the sample's texts.
    """
    if sample.drop is not None and sample.drop.reason != DropReason.MISSING_IMAGE:
        return sample.drop
    members = sample.modalities
    absent = [SIGNAL_MEMBERS[name] for name in ("paug", "syn") if name not in members]
    absent += [] if "npz" in members or "pth" in members else ["npz, pth.gz"]
    if absent:
        return Drop(DropReason.MISSING_SIGNALS, f"no {', no '.join(absent)}")
    image_size = None
    if sample.drop is None:
        header = read_header(sample.image, max_pixels)
        if isinstance(header, Drop):
            return header
        if header.is_turned:
            return Drop(DropReason.VIEWS_DO_NOT_FIT, "the image is turned by EXIF, its boxes are not")
        image_size = header.size
    try:
        parsed = _parse(sample, members, image_size)
        _check(parsed, width)
    except MemberError as error:
        return Drop(DropReason.BAD_SIGNALS, str(error))
    except BoxOutsideError as error:
        return Drop(DropReason.VIEWS_DO_NOT_FIT, str(error))
    counts["extra_text_rows"] += len(parsed.text_rows) - parsed.num_text_rows
    return parsed


def _parse(sample: Sample, members: Mapping[str, bytes], image_size: Size | None) -> PublishedSample:
    paug, syn = parse_json(members["paug"], "paug.json"), parse_json(members["syn"], "syn.json")
    views, views_size = parse_views(paug), image_size
    if "boxes" in paug:  # of a packed tar, whose images are smaller than those the views were drawn for
        boxes, views_size = paug["boxes"], parse_size(paug)
        if not isinstance(boxes, list) or len(boxes) != len(views) or views_size is None:
            raise MemberError("paug.json: boxes are not those of param_aug")
        views = [ExplicitView(*parse_box(box), ops=view.ops) for box, view in zip(boxes, views, strict=True)]
    num_synthetic = syn.get("num_captions", {})
    if not isinstance(num_synthetic, dict) or not all(
        isinstance(count, int) and count >= 0 for count in num_synthetic.values()
    ):
        raise MemberError("syn.json: num_captions is not a count for each captioner")
    arrays = read_embeddings(members.get("npz"), members.get("pth"))
    missing = [name for name in (IMAGE_ROWS, TEXT_ROWS) if name not in arrays]
    if missing:
        raise MemberError(f"its embeddings lack {missing[0]}")
    return PublishedSample(
        sample=replace(sample, image=b"", modalities={}),
        image_size=image_size,
        views=views,
        views_size=views_size,
        image_rows=arrays[IMAGE_ROWS],
        text_rows=arrays[TEXT_ROWS],
        clean_row=arrays.get(CLEAN_ROWS),
        synthetic=parse_texts(syn, "syn_text"),
        num_synthetic=num_synthetic,
    )


def _check(parsed: PublishedSample, width: int | None) -> None:
    """Raises `MemberError` or `BoxOutsideError` if the members contradict one another."""
    if len(parsed.image_rows) != len(parsed.views):
        raise MemberError(f"image_emb has {len(parsed.image_rows)} rows for {len(parsed.views)} views")
    if len(parsed.text_rows) < parsed.num_text_rows:
        raise MemberError(f"text_emb has {len(parsed.text_rows)} rows for {parsed.num_text_rows} texts")
    found = parsed.image_rows.shape[1]
    if found != parsed.text_rows.shape[1]:
        raise MemberError("image_emb and text_emb differ in width")
    if width not in (None, found):
        raise MemberError(f"its embeddings are {found} wide, not {width}")
    if parsed.clean_row is not None and parsed.clean_row.shape != (1, found):
        raise MemberError(f"clean_emb is not one row {found} wide")
    if parsed.num_synthetic and sum(parsed.num_synthetic.values()) != len(parsed.synthetic):
        raise MemberError("syn.json: num_captions do not add up")
    if parsed.views_size is not None:
        for view in parsed.views:
            view.of(parsed.views_size)


def recorded_sha256(sample: Sample) -> bytes | None:
    """The image's sha256 by the `json` member, of a sample read with `SHA_FIELD`."""
    for text in sample.fields.get(SHA_FIELD, ()):
        try:
            digest = bytes.fromhex(text)
        except ValueError:
            continue
        if len(digest) == hashlib.sha256().digest_size:
            return digest
    return None
