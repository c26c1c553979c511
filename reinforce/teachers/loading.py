"""open_clip and transformers models behind one face: their towers, tokenizer and preprocessing."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reinforce.config import TeacherConfig
from reinforce.text_tower import text_encoder
from reinforce.weights import ModelError, check_sha256, load_open_clip, transformers_folder, transformers_weights


@dataclass(frozen=True)
class ClipModel:
    """A loaded model: the two towers unnormalised, the tokenizer, the preprocessing.

    `encode_text` takes the ids of the whole context, and of the first positions of it where the tower can do that.
    Attention goes through `scaled_dot_product_attention` in both libraries: open_clip's by torch's own attention
    without weights, transformers' by its default.
    """

    module: torch.nn.Module
    encode_image: Callable[[Float[Tensor, "rows 3 size size"]], Tensor]
    encode_text: Callable[[Int[Tensor, "rows length"]], Tensor]
    tokenize: Callable[[list[str], int], Int[Tensor, "rows length"]]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    context_length: int
    logit_scale: float
    logit_bias: float | None
    weights_sha256: str


def load_clip(config: TeacherConfig) -> ClipModel:
    """Loads a teacher's model in fp32 on the CPU. Raises `ModelError`."""
    return _open_clip(config) if config.kind == "open_clip" else _transformers(config)


def _open_clip(config: TeacherConfig) -> ClipModel:
    loaded = load_open_clip(config.model, checkpoint=config.checkpoint, sha256=config.sha256)
    model, tokenizer = loaded.model, loaded.tokenizer
    bias = getattr(model, "logit_bias", None)
    return ClipModel(
        module=model,
        encode_image=model.encode_image,
        encode_text=text_encoder(model),
        tokenize=lambda texts, length: tokenizer(texts, context_length=length),
        image_size=_square(loaded.preprocess["size"]),
        mean=tuple(loaded.preprocess["mean"]),
        std=tuple(loaded.preprocess["std"]),
        context_length=int(tokenizer.context_length),
        logit_scale=float(model.logit_scale.detach().exp().max()),
        logit_bias=None if bias is None else float(bias.detach().max()),
        weights_sha256=loaded.weights_sha256,
    )


def _transformers(config: TeacherConfig) -> ClipModel:
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

    def tokenize(texts: list[str], length: int) -> Tensor:
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids: Tensor = tokens["input_ids"]
        return ids

    bias = getattr(model, "logit_bias", None)
    return ClipModel(
        module=model,
        encode_image=lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output,
        encode_text=lambda ids: model.get_text_features(input_ids=ids).pooler_output,
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
