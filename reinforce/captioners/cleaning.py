"""From raw text to a sample's captions: clean, distinct, bounded, with a few more draws where some repeat."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence

from reinforce.microbatch import MicroBatch

MAX_REDRAWS = 3
"""Further captions drawn for a sample whose captions repeat or are empty; what is still missing is left out."""

_UNWANTED = {"\ufffd", "\ufeff"}
"""Replacement characters (bytes cut in mid-character) and byte order marks."""


def clean_caption(text: str) -> str:
    """One line: control characters become spaces, lone surrogates go, whitespace is collapsed and stripped."""
    kept = []
    for character in text:
        category = unicodedata.category(character)
        if category == "Cc":
            kept.append(" ")
        elif category != "Cs" and character not in _UNWANTED:
            kept.append(character)
    return " ".join("".join(kept).split())


def distinct_captions(texts: Iterable[str], limit: int) -> list[str]:
    """The first `limit` captions that are, once clean, neither empty nor a repeat; in order."""
    captions = dict.fromkeys(clean_caption(text) for text in texts)
    captions.pop("", None)
    return list(captions)[:limit]


def draw_distinct(
    num_samples: int,
    *,
    num_captions: int,
    micro_batch: MicroBatch,
    draw: Callable[[Sequence[int], range], list[list[str] | None]],
) -> list[list[str]]:
    """Up to `num_captions` distinct captions for each of `num_samples` samples.

    `draw(samples, caption_indices)` gives raw texts for each sample index, None where the model failed; it is called
    with a micro-batch of sample indices, then, for those short of captions, with further caption indices and a power of
    two of them (padded with the last): rarely more than a few samples, and a handful of shapes. A sample goes with all
    its captions, also where memory is short: a micro-batch of one is the least.
    """
    texts = micro_batch.run(range(num_samples), lambda samples: draw(samples, range(num_captions)))
    captions = [distinct_captions(raw or [], num_captions) for raw in texts]
    short = [i for i, raw in enumerate(texts) if raw is not None and len(captions[i]) < num_captions]
    if short:
        further = range(num_captions, num_captions + MAX_REDRAWS)
        power_of_two = 1 << (len(short) - 1).bit_length()
        redrawn = micro_batch.run(short, lambda samples: draw(samples, further), at_most=power_of_two)
        for i, raw in zip(short, redrawn, strict=True):
            captions[i] = distinct_captions([*captions[i], *(raw or [])], num_captions)
    return captions
