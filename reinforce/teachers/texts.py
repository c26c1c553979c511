"""Texts as tokens: which were cut, and how many positions the forward pass of each has.

A CLIP text tower that reads its result at the end-of-text token, and looks at nothing behind it, gives the same from
the first positions of the context alone. Captions fill a fifth of it. Lengths are rounded up to buckets, so that there
are a handful of shapes, and a text's bucket is a function of the text, so that its bytes are.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int
from torch import Tensor

from reinforce.teachers.teacher import TokenizedText

BUCKET = 8
_WORDS = ["a", "photo", "of", "the", "red", "cat", "and", "two", "dogs", "in", "a", "boat", "at", "sea"]

PROBE_TEXTS = [" ".join(_WORDS[:count]) for count in (0, 6, 7, 14)]
"""Texts of several buckets; with one token for each end, or for the last end, some fill theirs to the last position."""


class TextTokenizer:
    """Tokenises texts for one model. `tokenize` gives ids of a length, padded, as both libraries do."""

    def __init__(self, tokenize: Callable[[list[str], int], Int[Tensor, "rows length"]], context_length: int) -> None:
        self.context_length = context_length
        self._tokenize = tokenize
        *_, self._padding, last = self.ids([""], context_length + 1)[0].tolist()
        # A class token at the very end (open_clip's CLIPS tokenizers) moves with the length and says nothing.
        self._num_last = int(last != self._padding)
        ids = self.ids(PROBE_TEXTS, context_length)
        ends = {row[used - 1] for row, used in zip(ids.tolist(), self._num_used(ids), strict=True) if used}
        # If texts end differently, their end-of-text token is the padding itself, and the first of it is read.
        self._num_spare = int(len(ends) != 1)

    def ids(self, texts: list[str], length: int) -> Int[np.ndarray, "rows length"]:
        """The ids of texts in a context of `length` positions."""
        return np.asarray(self._tokenize(texts, length).numpy())

    def tokenize(self, texts: list[str], *, bucketed: bool) -> list[TokenizedText]:
        """The texts in the model's context; their `length` is the bucket, or the context if not `bucketed`.

        In one more position a text that surely fits leaves two of padding at the end. The others, which are few, are
        tokenised again: one was cut if the new position is filled, or changes what is before it.
        """
        if not texts:
            return []
        long = self.ids(texts, self.context_length + 1)
        body, last = np.split(long, [long.shape[1] - self._num_last], axis=1)
        ids = np.concatenate([body[:, :-1], last], axis=1)
        is_cut = np.zeros(len(texts), bool)
        doubtful = np.flatnonzero((body[:, -2:] != self._padding).any(axis=1))
        if len(doubtful):
            again = self.ids([texts[row] for row in doubtful], self.context_length)
            is_changed = (again[:, : body.shape[1] - 1] != body[doubtful, :-1]).any(axis=1)
            is_cut[doubtful] = is_changed | (body[doubtful, -1] != self._padding)
            ids[doubtful] = again
        lengths = self._buckets(ids) if bucketed else np.full(len(texts), self.context_length)
        return [TokenizedText(*row) for row in zip(ids, lengths.tolist(), is_cut.tolist(), strict=True)]

    def _buckets(self, ids: Int[np.ndarray, "rows context"]) -> Int[np.ndarray, " rows"]:
        used = np.maximum(self._num_used(ids) + self._num_spare, 1)
        buckets: np.ndarray = np.minimum(-(-used // BUCKET) * BUCKET, self.context_length)
        return buckets

    def _num_used(self, ids: Int[np.ndarray, "rows context"]) -> Int[np.ndarray, " rows"]:
        """Positions up to the last that is not padding."""
        is_used = ids != self._padding
        num_used: np.ndarray = np.where(is_used.any(axis=1), ids.shape[1] - is_used[:, ::-1].argmax(axis=1), 0)
        return num_used
