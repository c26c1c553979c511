"""The texts of a shard on their way through one text tower: each distinct text once, in full passes of like length.

Web captions repeat and are short: most of what a plain loop over them computes is padding. A pass here has as many
texts as the teacher takes at once, all of one padded length, whichever rows and sources they came from; a row is given
out, in order, when all of its texts are embedded. Which texts share a pass is a function of the shard alone.
"""

from collections import defaultdict, deque
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float16

from reinforce.shards.schema import round_mantissa
from reinforce.teachers import Teacher, TokenizedText

MAX_WAITING_ROWS = 1024
"""Rows that wait for a pass to fill up; beyond, the first one's passes are run as they are."""
MAX_KNOWN_TEXTS = 16_384
"""Texts whose tokens and embeddings are kept in case they come again: 35 MB at 77 tokens and 768 dims."""


class Times(Protocol):
    def measure(self, stage: str) -> AbstractContextManager[Any]: ...


@dataclass(eq=False, slots=True)
class Text:
    """One distinct text; its `embedding`, in the form it is stored in, comes later."""

    tokens: TokenizedText
    embedding: Float16[np.ndarray, " dim"] | None = None


@dataclass(frozen=True, slots=True)
class TextRow:
    """The texts of one sample, by source, in the order of the source's list."""

    key: str
    texts: dict[str, list[Text]]

    @property
    def missing(self) -> Text | None:
        """The first text that is not embedded yet."""
        return next((text for texts in self.texts.values() for text in texts if text.embedding is None), None)


class ShardTexts:
    """Embeds the texts of one shard with one teacher."""

    def __init__(self, teacher: Teacher, times: Times) -> None:
        self._teacher = teacher
        self._times = times
        self._known: dict[str, Text] = {}
        self._pending: defaultdict[int, list[Text]] = defaultdict(list)
        self._waiting: deque[TextRow] = deque()

    def add(self, keys: list[str], captions: dict[str, list[list[str]]]) -> list[TextRow]:
        """Takes the next rows, with the texts of each by source; gives those, and earlier ones, that are complete."""
        self._tokenize([text for lists in captions.values() for texts in lists for text in texts])
        for row, key in enumerate(keys):
            texts = {source: [self._known[text] for text in lists[row]] for source, lists in captions.items()}
            self._waiting.append(TextRow(key, texts))
        for length in sorted(self._pending):
            while len(self._pending[length]) >= self._teacher.rows_of_pass(length):
                self._run(length)
        complete = self._complete()
        while len(self._waiting) > MAX_WAITING_ROWS:
            while (text := self._waiting[0].missing) is not None:
                self._run(text.tokens.length)
            complete += self._complete()
        for oldest in list(islice(self._known, max(0, len(self._known) - MAX_KNOWN_TEXTS))):
            del self._known[oldest]
        return complete

    def finish(self) -> list[TextRow]:
        """The rows that are left."""
        for length in sorted(self._pending):
            self._run(length)
        return self._complete()

    def _tokenize(self, texts: list[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if not new:
            return
        with self._times.measure("tokenize"):
            tokenized = self._teacher.tokenize(new)
        for text, tokens in zip(new, tokenized, strict=True):
            self._known[text] = Text(tokens)
            self._pending[tokens.length].append(self._known[text])

    def _run(self, length: int) -> None:
        """One pass of the texts of this length that have waited longest."""
        rows = slice(self._teacher.rows_of_pass(length))
        texts = self._pending[length][rows]
        del self._pending[length][rows]
        if not texts:
            return
        with self._times.measure("teachers"):
            embeddings = self._teacher.embed_tokens([text.tokens for text in texts])
        for text, embedding in zip(texts, round_mantissa(embeddings, self._teacher.mantissa_bits), strict=True):
            text.embedding = embedding

    def _complete(self) -> list[TextRow]:
        rows = []
        while self._waiting and self._waiting[0].missing is None:
            rows.append(self._waiting.popleft())
        return rows
