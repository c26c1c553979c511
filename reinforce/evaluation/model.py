"""A CLIP-like model as evaluation sees it: 8-bit pixels and texts in, unit-norm fp32 embeddings out.

Built from a loaded open_clip model, or by a trainer from the student it holds. Nothing about the model changes:
each module's training mode is put back, no gradient is kept, and no random number is drawn.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from reinforce.image_tower import (
    IMAGE_TOWER_CONFIG_NAME,
    head_of,
    is_image_tower,
    load_image_tower,
    name_of_teacher,
)
from reinforce.weights import ModelError, OpenClipModel, load_open_clip

TEXTS_PER_BATCH = 256

Tokens = Int[Tensor, "rows length"]


@dataclass(frozen=True)
class EmbeddingModel:
    """Two towers and what belongs to them. Functions and embeddings need not be normalised."""

    name: str
    module: torch.nn.Module
    """Holds every parameter that takes part; its mode is switched while it is evaluated."""
    encode_image: Callable[[Float[Tensor, "rows 3 size size"]], Float[Tensor, "rows dim"]]
    encode_text: Callable[[Tokens], Float[Tensor, "rows dim"]] | None
    """None, as `tokenize`: an image tower alone."""
    tokenize: Callable[[list[str]], Tokens] | None
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    squashes: bool = False
    """Whether images are resized to the square whole, not cropped to it."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures must know, one line each."""
    space: frozenset[str] = frozenset()
    """The sha256 of the weights whose space the embeddings are in: a model's own, of an image tower its teacher's."""
    bank: Path | None = None
    """The folder of the bank that an image tower has taken along."""
    heads: Mapping[str, int] = field(default_factory=dict)
    """Of an image tower of several teachers, the dims that each has of its embedding, by name."""
    teachers: Mapping[str, str | None] = field(default_factory=dict)
    """The sha256s of their weights."""

    @property
    def has_text(self) -> bool:
        return self.encode_text is not None

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters())

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Every module in evaluation mode and no gradients; afterwards every module as it was."""
        # One by one: of a student in training, a frozen tower is in evaluation mode already.
        was_training = [(module, module.training) for module in self.module.modules()]
        self.module.eval()
        try:
            # Not inference mode: what a model caches in it could take no part in a later backward pass.
            with torch.no_grad():
                yield
        finally:
            for module, training in was_training:
                module.training = training

    def embed_images(self, pixels: UInt8[np.ndarray, "rows size size 3"]) -> Float[Tensor, "rows dim"]:
        """Unit-norm rows on the CPU; NaN where the model gave something that is not finite."""
        mean, std = (torch.tensor(values, device=self.device).view(-1, 1, 1) for values in (self.mean, self.std))
        scaled = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float().div_(255)
        return _unit_norm(self.encode_image((scaled - mean) / std))

    def in_space_of(
        self, embeddings: Float[Tensor, "rows dim"], teacher: str, weights_sha256: str | None
    ) -> Float[Tensor, "rows head"]:
        """Embeddings of images as they compare with those of a teacher, or of one of its weights under another name:
        its head, of unit norm; all of them where there are no heads. Raises `ModelError` if it is no teacher of it."""
        if not self.heads:
            return embeddings
        head = head_of(self.heads, name_of_teacher(self.teachers, teacher, weights_sha256))
        return torch.nn.functional.normalize(embeddings[:, head], dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "rows dim"]:
        """Unit-norm rows on the CPU, in batches. Raises `ModelError` without a text tower."""
        encode, tokenize = self.encode_text, self.tokenize
        if encode is None or tokenize is None:
            raise ModelError(f"model {self.name}: an image tower alone embeds no texts; see --bank")
        batches = (list(texts[start : start + TEXTS_PER_BATCH]) for start in range(0, len(texts), TEXTS_PER_BATCH))
        return torch.cat([_unit_norm(encode(tokenize(batch).to(self.device))) for batch in batches])


def load_embedding_model(name: str, device: torch.device) -> EmbeddingModel:
    """Opens a student's folder, `local-dir:PATH`, `NAME:TAG` or `hf-hub:ORG/NAME`, in fp32."""
    folder = name.removeprefix("local-dir:")
    if is_image_tower(folder):
        tower = load_image_tower(folder)
        model = embedding_model_of(OpenClipModel(tower.model, None, tower.preprocess, ""), name, device)
        return replace(model, space=tower.space, bank=tower.bank, heads=tower.heads, teachers=tower.teachers)
    loaded = load_open_clip(open_clip_name(name))
    return replace(embedding_model_of(loaded, name, device), space=frozenset([loaded.weights_sha256]))


def check_model_name(name: str) -> None:
    """Raises `ModelError` for what is no model at first sight, before anything is loaded."""
    if not is_image_tower(name.removeprefix("local-dir:")):
        open_clip_name(name)


def open_clip_name(name: str) -> str:
    """The name that open_clip knows a model by: a bare folder is a `local-dir:`."""
    if ":" in name and not Path(name).is_dir():
        return name
    if (Path(name) / "open_clip_config.json").is_file():
        return f"local-dir:{name}"
    if Path(name).is_dir():
        raise ModelError(f"model {name}: no open_clip_config.json or {IMAGE_TOWER_CONFIG_NAME} in that folder")
    hint = "no such folder" if "/" in name else "give a folder, local-dir:PATH, NAME:TAG or hf-hub:ORG/NAME"
    raise ModelError(f"model {name}: {hint}")


def embedding_model_of(loaded: OpenClipModel, name: str, device: torch.device | None = None) -> EmbeddingModel:
    """An open_clip model, moved to `device` (the CPU), with its own preprocessing but that resizing is bicubic."""
    device = device or torch.device("cpu")
    preprocess = loaded.preprocess
    sides = {preprocess["size"]} if isinstance(preprocess["size"], int) else set(preprocess["size"])
    mode, interpolation = preprocess.get("resize_mode", "shortest"), preprocess.get("interpolation", "bicubic")
    if len(sides) != 1:
        raise ModelError(f"model {name}: its images are {preprocess['size']}; models with square input are supported")
    if mode not in ("shortest", "squash"):
        raise ModelError(f"model {name}: resize_mode {mode!r} is not supported; shortest and squash are")
    notes = (
        () if interpolation == "bicubic" else (f"{name}: resized bicubic, its own preprocessing is {interpolation}",)
    )
    return EmbeddingModel(
        name=name,
        module=loaded.model.to(device),
        encode_image=loaded.model.encode_image,
        encode_text=loaded.model.encode_text if loaded.tokenizer is not None else None,
        tokenize=loaded.tokenizer,
        image_size=sides.pop(),
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        device=device,
        squashes=mode == "squash",
        notes=notes,
    )


def _unit_norm(embeddings: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
    return torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu()
