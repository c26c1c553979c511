"""Tiny checkpoints of real architectures with random weights, saved as people have them on disk."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
WORDS = ["a", "photo", "of", "the", "picture", "caption", "red", "cat", "dog", "boat", "sky", ".", ",", "two"]


def save_open_clip(folder: Path, seed: int = 0, preprocess: dict[str, Any] | None = None, **model_cfg: Any) -> str:
    """Saves a random open_clip model as a `local-dir:` folder and returns that name."""
    folder.mkdir(parents=True)
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT} | model_cfg
    document = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return f"local-dir:{folder}"


def save_siglip_like(folder: Path, seed: int = 1) -> str:
    """Sigmoid-trained: a bias, another mean and std, the text read at its last token."""
    half = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}
    return save_open_clip(
        folder,
        seed,
        half,
        embed_dim=20,
        vision_cfg=VISION | {"image_size": 48},
        text_cfg=TEXT | {"context_length": 16, "pool_type": "last", "no_causal_mask": True},
        custom_text=True,
        init_logit_bias=-10.0,
    )


def save_resnet(folder: Path, seed: int = 5) -> str:
    """A convolutional image tower, pooled by attention; the text tower is a module of its own."""
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    return save_open_clip(folder, seed, embed_dim=32, vision_cfg=vision, custom_text=True)


def save_coca(folder: Path, seed: int = 2) -> str:
    """A CoCa, whose image and text towers make a teacher too."""
    return save_open_clip(
        folder,
        seed,
        embed_dim=16,
        vision_cfg=VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        text_cfg=TEXT | {"embed_cls": True, "output_tokens": True},
        multimodal_cfg={"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        custom_text=True,
    )


def word_tokenizer(length: int, padding: str = "<pad>") -> PreTrainedTokenizerFast:
    """A word-level tokenizer with begin, end and padding tokens, of which two may be one."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<bos>", "<eos>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=length,
        pad_token=padding,
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
    )


def save_transformers_clip(folder: Path) -> str:
    torch.manual_seed(3)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {
        "vocab_size": 30,
        "max_position_embeddings": 10,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    config = CLIPConfig(text_config=text, vision_config=tower | {"image_size": 32, "patch_size": 8}, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    word_tokenizer(10).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return str(folder)


def save_transformers_siglip(folder: Path) -> str:
    torch.manual_seed(4)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": 30, "max_position_embeddings": 16, "projection_size": 16}
    config = SiglipConfig(text_config=text, vision_config=tower | {"image_size": 40, "patch_size": 8})
    SiglipModel(config).save_pretrained(folder)
    word_tokenizer(16).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 40, "width": 40}).save_pretrained(folder)
    return str(folder)
