"""Teachers: models that embed images and texts into one space.

open_clip and transformers models look alike from here on: views of the teacher's own size in, unit-norm rows out.
Every forward pass has the same micro-batch (the tail is padded), so that a row's bytes do not depend on how many
other rows its shard has.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from reinforce.config import TeacherConfig
from reinforce.microbatch import MicroBatch
from reinforce.sample import Embeddings
from reinforce.weights import (
    ModelError,
    autocast_dtype,
    check_sha256,
    load_open_clip,
    transformers_folder,
    transformers_weights,
)

Tokens = dict[str, Tensor]
_TOKENIZER_PROBE = ["a photo of a cat.", "Zwei Kinder – 2 dogs & 3 boats!", "#hashtag, 12:30 IMG_2041.jpg", ""]


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

    def embed_texts(self, texts: list[str]) -> tuple[Embeddings, Bool[np.ndarray, " rows"]]:
        """Unit-norm embeddings of texts, and which texts were cut at the context length."""


@dataclass(frozen=True)
class _Clip:
    """A loaded model behind one face: the two towers unnormalised, the tokenizer, the preprocessing."""

    module: torch.nn.Module
    encode_image: Callable[[Tensor], Tensor]
    encode_text: Callable[[Tokens], Tensor]
    tokenize: Callable[[list[str], int], Tokens]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    context_length: int
    logit_scale: float
    logit_bias: float | None
    weights_sha256: str


class ClipTeacher:
    """A CLIP-like model as a `Teacher`: fp32, or autocast on an accelerator with one fp32 retry of what overflowed."""

    def __init__(self, name: str, config: TeacherConfig, clip: _Clip, *, device: torch.device, batch_size: int) -> None:
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
        self.dim = self.embed_texts([""])[0].shape[1]

    @property
    def micro_batch(self) -> int:
        return self._micro_batch.size

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.config.kind,
            "model": self.config.model,
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
        ids = self._ids(_TOKENIZER_PROBE, self._clip.context_length).numpy().astype("<i8").tobytes()
        return self._content() | {
            "context_length": self._clip.context_length,
            "tokenizer_sha256": hashlib.sha256(ids).hexdigest(),
        }

    def embed_images(self, views: UInt8[np.ndarray, "rows size size 3"]) -> Embeddings:
        def forward(batch: UInt8[np.ndarray, "rows size size 3"]) -> Tensor:
            pixels = torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2).float().div_(255)
            return self._clip.encode_image((pixels - self._mean) / self._std)

        return self._embed(views, forward)

    def embed_texts(self, texts: list[str]) -> tuple[Embeddings, Bool[np.ndarray, " rows"]]:
        def forward(batch: np.ndarray) -> Tensor:
            tokens = self._clip.tokenize(batch.tolist(), self._clip.context_length)
            return self._clip.encode_text({name: ids.to(self.device) for name, ids in tokens.items()})

        return self._embed(np.array(texts, dtype=object), forward), self._truncated(texts)

    def _content(self) -> dict[str, Any]:
        return {
            "weights_sha256": self._clip.weights_sha256,
            "precision": self.config.precision,
            "mantissa_bits": self.mantissa_bits,
        }

    def _embed(self, rows: np.ndarray, forward: Callable[[np.ndarray], Tensor]) -> Embeddings:
        embeddings = self._micro_batch.run(range(len(rows)), lambda some: self._forward_finite(rows[some], forward))
        return np.stack(embeddings)

    @torch.inference_mode()
    def _forward_finite(self, batch: np.ndarray, forward: Callable[[np.ndarray], Tensor]) -> Embeddings:
        with torch.autocast(self.device.type, self._autocast, enabled=self._autocast is not None):
            embeddings = _unit_norm(forward(batch))
        if self._autocast is not None and bool(embeddings.isnan().any()):
            retried = _unit_norm(forward(batch))
            embeddings = torch.where(embeddings.isnan(), retried, embeddings)
        return embeddings.cpu().numpy()

    def _truncated(self, texts: list[str]) -> Bool[np.ndarray, " rows"]:
        """Tokenises with one more position: a text was cut if that changes it, or fills the new position."""
        length = self._clip.context_length
        empty, short, long = (self._ids(*args) for args in (([""], length + 1), (texts, length), (texts, length + 1)))
        padding = empty[0, -2]
        if empty[0, -1] != padding:
            # A class token at the very end (open_clip's CLIPS tokenizers) moves with the length and says nothing.
            short, long = short[:, :-1], long[:, :-1]
        cut = (long[:, :-1] != short).any(dim=1) | (long[:, -1] != padding)
        return np.asarray(cut.numpy())

    def _ids(self, texts: list[str], length: int) -> Int[Tensor, "rows length"]:
        return next(iter(self._clip.tokenize(texts, length).values()))


class FakeTeacher:
    """A teacher without weights, exact in integers: 4 x 4 mean colours, or character counts, through fixed weights."""

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

    def embed_texts(self, texts: list[str]) -> tuple[Embeddings, Bool[np.ndarray, " rows"]]:
        counts = np.stack([np.bincount(list(text.encode()) or [0], minlength=256) for text in texts])
        return self._project(counts), np.array([len(text) > 60 for text in texts])

    def _project(self, features: np.ndarray) -> Embeddings:
        projected = (features @ self._weights[: features.shape[1]]).astype(np.float64)
        norms = np.sqrt((projected**2).sum(axis=1, keepdims=True))
        return np.asarray(projected / np.maximum(norms, 1e-9), np.float32)


def load_teacher(name: str, config: TeacherConfig, *, device: torch.device, batch_size: int) -> Teacher:
    """Loads a teacher of a recipe; raises `ModelError` with its name in the recipe."""
    try:
        clip = _open_clip(config) if config.kind == "open_clip" else _transformers(config)
        return ClipTeacher(name, config, clip, device=device, batch_size=batch_size)
    except ModelError as error:
        raise ModelError(f"build.teachers.{name}: {error}") from None


def _unit_norm(embeddings: Tensor) -> Float[Tensor, "rows dim"]:
    """Rows divided by their norm in fp32; NaN where there is no finite, non-zero vector."""
    rows = embeddings.float()
    norms = rows.norm(dim=-1, keepdim=True)
    is_good = rows.isfinite().all(dim=-1, keepdim=True) & norms.isfinite() & (norms > 0)
    return torch.where(is_good, rows / norms, torch.nan)


def _open_clip(config: TeacherConfig) -> _Clip:
    loaded = load_open_clip(config.model, checkpoint=config.checkpoint, sha256=config.sha256)
    model, tokenizer = loaded.model, loaded.tokenizer
    bias = getattr(model, "logit_bias", None)
    return _Clip(
        module=model,
        encode_image=model.encode_image,
        encode_text=lambda tokens: model.encode_text(tokens["text"]),
        tokenize=lambda texts, length: {"text": tokenizer(texts, context_length=length)},
        image_size=_square(loaded.preprocess["size"]),
        mean=tuple(loaded.preprocess["mean"]),
        std=tuple(loaded.preprocess["std"]),
        context_length=int(tokenizer.context_length),
        logit_scale=float(model.logit_scale.detach().exp().max()),
        logit_bias=None if bias is None else float(bias.detach().max()),
        weights_sha256=loaded.weights_sha256,
    )


def _transformers(config: TeacherConfig) -> _Clip:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    folder = transformers_folder(config.model, config.revision)
    sha256 = check_sha256(transformers_weights(folder), config.sha256)
    try:
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model {config.model}: {' '.join(str(error).split())[:300]}") from None
    if model.config.model_type not in ("clip", "siglip"):
        raise ModelError(f"model {config.model}: a {model.config.model_type} model; teachers are clip or siglip")

    def tokenize(texts: list[str], length: int) -> Tokens:
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return {"input_ids": tokens["input_ids"]}

    bias = getattr(model, "logit_bias", None)
    return _Clip(
        module=model,
        encode_image=lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output,
        encode_text=lambda tokens: model.get_text_features(**tokens).pooler_output,
        tokenize=tokenize,
        image_size=_square(model.config.vision_config.image_size),
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        context_length=int(model.config.text_config.max_position_embeddings),
        logit_scale=float(model.logit_scale.detach().exp().max()),
        logit_bias=None if bias is None else float(bias.detach().max()),
        weights_sha256=sha256,
    )


def _square(size: int | tuple[int, int] | list[int]) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ModelError(f"its images are {size}; teachers with square input are supported")
    return sides.pop()
