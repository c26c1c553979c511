"""A CLIP-like model as a teacher: micro-batches, precision, and what decides its embeddings.

Every forward pass has the same micro-batch (the tail is padded), so that a row's bytes do not depend on how many
other rows its shard has.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from reinforce.config import TeacherConfig
from reinforce.microbatch import MicroBatch
from reinforce.sample import Embeddings
from reinforce.teachers.loading import ClipModel
from reinforce.teachers.precision import cast_weights, lay_out_for_cuda
from reinforce.teachers.teacher import TokenizedText, embed_by_length
from reinforce.teachers.texts import BUCKET, PROBE_TEXTS, TextTokenizer
from reinforce.weights import ModelError, autocast_dtype

_TOKENIZER_PROBE = ["a photo of a cat.", "Zwei Kinder – 2 dogs & 3 boats!", "#hashtag, 12:30 IMG_2041.jpg", ""]
# Rows of unit norm in fp32, of the same weights and tokens, differ by rounding alone: by some 1e-7.
_SAME = 1e-5


class ClipTeacher:
    """A CLIP-like model as a `Teacher`: fp32, or autocast on an accelerator.

    bf16 weights are kept in bf16; those of fp16 in fp32, for one retry of what overflowed.
    """

    def __init__(
        self,
        name: str,
        config: TeacherConfig,
        clip: ClipModel,
        *,
        device: torch.device,
        batch_size: int,
        compiled: bool = False,
    ) -> None:
        self.name = name
        self.config = config
        self.device = device
        self.image_size = clip.image_size
        self.mantissa_bits = config.mantissa_bits
        self._clip = clip
        self._micro_batch = MicroBatch(batch_size)
        self._autocast = autocast_dtype(config.precision, device)
        clip.module.to(device)
        self._mean = torch.tensor(clip.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(clip.std, device=device).view(3, 1, 1)
        self._tokenizer = TextTokenizer(clip.tokenize, clip.context_length)
        # In fp32, before any weight is rounded: what is asked is how the tower is made.
        self.dim, self._is_bucketed = self._probe_texts()
        if self._autocast is torch.bfloat16:
            cast_weights(clip.module, torch.bfloat16)
        if device.type == "cuda":
            lay_out_for_cuda(clip.module)
        if compiled:
            self._compile()

    @property
    def micro_batch(self) -> int:
        return self._micro_batch.size

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.config.kind,
            "model": self.config.model,
            "checkpoint": self.config.checkpoint,
            "revision": self.config.revision,
            "weights_sha256": self._clip.weights_sha256,
            "dim": self.dim,
            "image_size": self.image_size,
            "context_length": self._clip.context_length,
            "logit_scale": self.config.logit_scale or self._clip.logit_scale,
            "learned_logit_scale": self._clip.logit_scale,
            "logit_bias": self._clip.logit_bias,
            "micro_batch": self._micro_batch.initial,
        }

    def image_content(self) -> dict[str, Any]:
        return self._content() | {
            "image_size": self.image_size,
            "mean": list(self._clip.mean),
            "std": list(self._clip.std),
            "interpolation": "bicubic",
        }

    def text_content(self) -> dict[str, Any]:
        ids = self._tokenizer.ids(_TOKENIZER_PROBE, self._clip.context_length).astype("<i8").tobytes()
        return self._content() | {
            "context_length": self._clip.context_length,
            "tokenizer_sha256": hashlib.sha256(ids).hexdigest(),
        }

    def embed_images(self, views: UInt8[np.ndarray, "rows size size 3"]) -> Embeddings:
        def encode(batch: UInt8[Tensor, "rows size size 3"]) -> Tensor:
            pixels = batch.permute(0, 3, 1, 2).float().div_(255)
            return self._clip.encode_image((pixels - self._mean) / self._std)

        return self._embed(views, encode)

    def tokenize(self, texts: list[str]) -> list[TokenizedText]:
        return self._tokenizer.tokenize(texts, bucketed=self._is_bucketed)

    def embed_tokens(self, texts: Sequence[TokenizedText]) -> Embeddings:
        (length,) = {text.length for text in texts}
        ids = np.stack([text.ids[:length] for text in texts])
        return self._embed(ids, self._clip.encode_text, self.rows_of_pass(length))

    def rows_of_pass(self, length: int) -> int:
        # As many tokens for every length: a few long texts would else be padded to a whole micro-batch of them.
        return max(1, self._micro_batch.size * BUCKET // length) if self._is_bucketed else self._micro_batch.size

    def embed_texts(self, texts: list[str]) -> tuple[Embeddings, Bool[np.ndarray, " rows"]]:
        return embed_by_length(self, texts)

    def _content(self) -> dict[str, Any]:
        return {
            "weights_sha256": self._clip.weights_sha256,
            "precision": self.config.precision,
            "mantissa_bits": self.mantissa_bits,
        }

    @torch.inference_mode()
    def _embed(self, rows: np.ndarray, encode: Callable[[Tensor], Tensor], most_rows: int | None = None) -> Embeddings:
        """One row of unit norm for each of `rows`. The device is waited for once, at the end of all passes."""
        embeddings = self._micro_batch.run(
            range(len(rows)), lambda some: self._forward(_taken(rows, some), encode), at_most=most_rows
        )
        return torch.stack(embeddings).cpu().numpy()

    def _forward(self, batch: np.ndarray, encode: Callable[[Tensor], Tensor]) -> Float[Tensor, "rows dim"]:
        inputs = self._on_device(batch)
        with torch.autocast(self.device.type, self._autocast, enabled=self._autocast is not None):
            embeddings = _unit_norm(encode(inputs))
        # bf16 reaches as far as fp32: what is not finite in it is not finite.
        if self._autocast is torch.float16 and bool(embeddings.isnan().any()):
            embeddings = torch.where(embeddings.isnan(), _unit_norm(encode(inputs)), embeddings)
        return embeddings

    def _on_device(self, batch: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(batch)
        # From pinned memory the copy takes its turn on the device while the next batch is prepared here.
        if self.device.type == "cuda" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    @torch.inference_mode()
    def _probe_texts(self) -> tuple[int, bool]:
        """The dim, and whether texts give the same in their bucket as in the whole context."""
        texts = self._tokenizer.tokenize(PROBE_TEXTS, bucketed=True)
        ids = torch.from_numpy(np.stack([text.ids for text in texts])).to(self.device)
        whole = _unit_norm(self._clip.encode_text(ids))
        shorter = [row for row, text in enumerate(texts) if text.length < self._clip.context_length]
        try:
            parts = [_unit_norm(self._clip.encode_text(ids[row : row + 1, : texts[row].length])) for row in shorter]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # a tower that takes the whole context only
            parts = []
        is_same = bool(parts) and torch.allclose(torch.cat(parts), whole[shorter], rtol=0, atol=_SAME)
        return whole.shape[1], is_same

    def _compile(self) -> None:
        """Compiles the image tower, at the only shape it will have; the texts are a small part of the work.

        Raises `ModelError` where there is no compiler.
        """
        from torch._dynamo.exc import BackendCompilerFailed

        self._clip = replace(self._clip, encode_image=torch.compile(self._clip.encode_image, dynamic=False))
        size = self.image_size
        try:
            self.embed_images(np.zeros((self._micro_batch.size, size, size, 3), np.uint8))
        except BackendCompilerFailed as error:
            reason = " ".join(str(error.inner_exception).split())[:200]
            raise ModelError(f"not compiled ({reason}); set build.compile to false") from None


def _taken(rows: np.ndarray, some: list[int]) -> np.ndarray:
    """Those of `rows`, in place if they are consecutive."""
    first, last = some[0], some[-1]
    return rows[first : last + 1] if last - first + 1 == len(some) else rows[some]


def _unit_norm(embeddings: Tensor) -> Float[Tensor, "rows dim"]:
    """Rows divided by their norm in fp32; NaN where there is no finite, non-zero vector."""
    rows = embeddings.float()
    norms = rows.norm(dim=-1, keepdim=True)
    is_good = rows.isfinite().all(dim=-1, keepdim=True) & norms.isfinite() & (norms > 0)
    return torch.where(is_good, rows / norms, torch.nan)
