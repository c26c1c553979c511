"""A teacher without weights, for tests and for whoever measures the rest of a build."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from reinforce.sample import Embeddings
from reinforce.teachers.teacher import TokenizedText, embed_by_length

_BUCKET = 16


class FakeTeacher:
    """A teacher without weights, exact in integers: 4 x 4 mean colours, or character counts, through fixed weights.

    Its tokens are the bytes of a text, and texts of up to 16, 32, 48, ... of them have passes of their own.
    """

    micro_batch: int | None = None

    def __init__(self, name: str, *, dim: int = 16, image_size: int = 32, mantissa_bits: int = 7) -> None:
        self.name = name
        self.dim = dim
        self.image_size = image_size
        self.mantissa_bits = mantissa_bits
        generator = np.random.Generator(np.random.Philox(dim))
        self._weights = generator.integers(-100, 100, (256, dim), dtype=np.int64)

    def describe(self) -> dict[str, Any]:
        return {"kind": "fake", "dim": self.dim, "image_size": self.image_size, "logit_scale": 10.0}

    def image_content(self) -> dict[str, Any]:
        return {"weights_sha256": "0" * 64, "image_size": self.image_size, "mantissa_bits": self.mantissa_bits}

    def text_content(self) -> dict[str, Any]:
        return {"weights_sha256": "0" * 64, "mantissa_bits": self.mantissa_bits}

    def embed_images(self, views: UInt8[np.ndarray, "rows size size 3"]) -> Embeddings:
        cell = self.image_size // 4
        cells = views[:, : 4 * cell, : 4 * cell].astype(np.int64).reshape(-1, 4, cell, 4, cell, 3).sum(axis=(2, 4))
        return self._project(cells.reshape(-1, 48))

    def tokenize(self, texts: list[str]) -> list[TokenizedText]:
        tokenized = []
        for text in texts:
            ids = np.frombuffer(text.encode() or b"\0", np.uint8).astype(np.int64)
            tokenized.append(TokenizedText(ids, -(-len(ids) // _BUCKET) * _BUCKET, len(text) > 60))
        return tokenized

    def embed_tokens(self, texts: Sequence[TokenizedText]) -> Embeddings:
        assert len({text.length for text in texts}) == 1, "one pass has texts of one length"
        return self._project(np.stack([np.bincount(text.ids, minlength=256) for text in texts]))

    def rows_of_pass(self, length: int) -> int:
        return max(1, 128 // length)

    def embed_texts(self, texts: list[str]) -> tuple[Embeddings, Bool[np.ndarray, " rows"]]:
        return embed_by_length(self, texts)

    def _project(self, features: np.ndarray) -> Embeddings:
        projected = (features @ self._weights[: features.shape[1]]).astype(np.float64)
        norms = np.sqrt((projected**2).sum(axis=1, keepdims=True))
        return np.asarray(projected / np.maximum(norms, 1e-9), np.float32)
