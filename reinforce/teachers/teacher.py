"""What the builder asks of a teacher, and texts as teachers read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Int, UInt8

from reinforce.sample import Embeddings


@dataclass(frozen=True, eq=False, slots=True)
class TokenizedText:
    """A text as one teacher reads it. The whole of it follows from the text alone, not from its neighbours."""

    ids: Int[np.ndarray, " context"]
    """Of the whole context, padding included."""
    length: int
    """The positions its forward pass has: `ids` beyond them are padding that the model does not look at."""
    is_cut: bool
    """Whether it was longer than the context."""


class Teacher(Protocol):
    """What the builder asks of a teacher. `mantissa_bits` says how its embeddings are rounded when stored."""

    name: str
    dim: int
    image_size: int
    mantissa_bits: int

    @property
    def micro_batch(self) -> int | None:
        """Rows of a forward pass, fewer since the device ran out of memory; None if it takes any number."""

    def describe(self) -> dict[str, Any]:
        """What `signal.json` says of the model, as JSON data."""

    def image_content(self) -> dict[str, Any]:
        """What of the model decides its image embeddings: never a path, a hub name or a batch size."""

    def text_content(self) -> dict[str, Any]:
        """What of the model decides its text embeddings."""

    def embed_images(self, views: UInt8[np.ndarray, "rows size size 3"]) -> Embeddings:
        """Unit-norm embeddings of rendered views; a row of NaN where the model gave nothing finite."""

    def tokenize(self, texts: list[str]) -> list[TokenizedText]:
        """The texts as tokens, in order. Needs no device: it may be done ahead, in another thread."""

    def embed_tokens(self, texts: Sequence[TokenizedText]) -> Embeddings:
        """Unit-norm embeddings of texts of one `length`; a row of NaN where the model gave nothing finite."""

    def rows_of_pass(self, length: int) -> int:
        """How many texts of this length make a full forward pass."""

    def embed_texts(self, texts: list[str]) -> tuple[Embeddings, Bool[np.ndarray, " rows"]]:
        """Unit-norm embeddings of texts of any length, and which texts were cut at the context length."""


def embed_by_length(teacher: Teacher, texts: list[str]) -> tuple[Embeddings, Bool[np.ndarray, " rows"]]:
    """`Teacher.embed_texts` by its `tokenize` and `embed_tokens`: the texts of each length together."""
    tokenized = teacher.tokenize(texts)
    embeddings = np.full((len(texts), teacher.dim), np.nan, np.float32)
    for length in sorted({text.length for text in tokenized}):
        rows = [row for row, text in enumerate(tokenized) if text.length == length]
        embeddings[rows] = teacher.embed_tokens([tokenized[row] for row in rows])
    return embeddings, np.array([text.is_cut for text in tokenized], bool)
