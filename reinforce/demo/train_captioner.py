"""Trains the demo's captioner: a BLIP of 1 million parameters, in transformers' own classes for the real one.

A transformer without pretraining needs far more images than this to see shapes. It gets there because the scenes are
known: each patch is first taught which thing covers it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from reinforce.demo.captions import describe
from reinforce.demo.painting import render_classes
from reinforce.demo.scenes import Scene
from reinforce.demo.shapes import CLASSES
from reinforce.demo.training import TrainingData, class_labels, fit, save_half, shuffled
from reinforce.demo.word_tokenizer import forget_where_it_was, save_tokenizer

Batch = tuple[Float[torch.Tensor, "batch 3 size size"], Int64[torch.Tensor, "batch patches"], list[Scene]]

_IMAGE_SIZE, _PATCH_SIZE = 64, 8
_SEEING_STEPS, _WRITING_STEPS = 1500, 900


def _make_captioner(tokenizer: Any) -> tuple[Any, Any]:
    """An untrained model and its image processor."""
    vision = {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": _IMAGE_SIZE,
        "patch_size": _PATCH_SIZE,
        "initializer_range": 0.02,  # the default, 1e-10, is for weights that are loaded: it never starts to learn
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "encoder_hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "sep_token_id": tokenizer.eos_token_id,  # where BLIP's generate stops
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = BlipConfig(vision_config=vision, text_config=text, projection_dim=64, image_text_hidden_size=64)
    image_processor = BlipImageProcessor(size={"height": _IMAGE_SIZE, "width": _IMAGE_SIZE})
    return BlipForConditionalGeneration(config), image_processor


def train_captioner(data: TrainingData, folder: Path) -> None:
    """Trains and saves what transformers loads."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(folder, max_length=32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, image_processor = _make_captioner(tokenizer)
    sight = _Sight(model.config.vision_config.hidden_size)
    rng = np.random.default_rng(2)

    def loss_of_seeing(batch: Batch) -> torch.Tensor:
        pixels, patch_labels, scenes = batch
        hidden = model.vision_model(pixel_values=pixels).last_hidden_state
        return sight.loss_of(hidden, patch_labels, scenes)

    def loss_of_writing(batch: Batch) -> torch.Tensor:
        pixels, patch_labels, scenes = batch
        captions = [describe(scene, rng) for scene in scenes]
        tokens = tokenizer(captions, padding=True, truncation=True, max_length=32, return_tensors="pt")
        labels = tokens.input_ids.masked_fill(tokens.attention_mask == 0, -100)
        output = model(
            pixel_values=pixels, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, labels=labels
        )
        # Without the other term, the gradients of a decoder that knows nothing yet undo what was learned.
        loss: torch.Tensor = output.loss + sight.loss_of(output.image_embeds, patch_labels, scenes)
        return loss

    batches = _clean_views(data, image_processor.image_mean, image_processor.image_std)
    both = torch.nn.ModuleList([model, sight])
    fit("demo-captioner sees", both, loss_of_seeing, batches, _SEEING_STEPS, learning_rate=1.5e-3)
    fit("demo-captioner writes", both, loss_of_writing, batches, _WRITING_STEPS, learning_rate=1e-3)
    _save_captioner(model, image_processor, tokenizer, folder)


class _Sight(torch.nn.Module):
    """Two heads on the vision tower that are not kept: the scene's class, and the thing that covers each patch."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.of_scene = torch.nn.Linear(hidden_size, len(CLASSES))
        self.of_patches = torch.nn.Linear(hidden_size, len(CLASSES) + 1)

    def loss_of(
        self,
        hidden: Float[torch.Tensor, "batch tokens width"],
        patch_labels: Int64[torch.Tensor, "batch patches"],
        scenes: list[Scene],
    ) -> torch.Tensor:
        cross_entropy = torch.nn.functional.cross_entropy
        scene_loss = cross_entropy(self.of_scene(hidden.mean(1)), class_labels(scenes))
        return scene_loss + 2 * cross_entropy(self.of_patches(hidden[:, 1:]).flatten(0, 1), patch_labels.flatten())


def _clean_views(data: TrainingData, mean: list[float], std: list[float]) -> Iterator[Batch]:
    """Squares that hold at least 3/4 of the clean view's side, with the class at the middle of each patch."""
    rng = np.random.default_rng(3)
    mean_std = torch.tensor(mean).view(3, 1, 1) * 255, torch.tensor(std).view(3, 1, 1) * 255
    side, patches = (_IMAGE_SIZE, _IMAGE_SIZE), (_IMAGE_SIZE // _PATCH_SIZE,) * 2
    for chosen in shuffled(data, batch_size=64):
        boxes = [_draw_square(rng, *image.size) for _, image in chosen]
        views = [
            np.asarray(image.resize(side, Image.Resampling.BICUBIC, box))
            for (_, image), box in zip(chosen, boxes, strict=True)
        ]
        labels = [
            np.asarray(render_classes(scene, image.size).resize(patches, Image.Resampling.NEAREST, box))
            for (scene, image), box in zip(chosen, boxes, strict=True)
        ]
        pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
        patch_labels = torch.from_numpy(np.stack(labels)).long().flatten(1)
        yield (pixels - mean_std[0]) / mean_std[1], patch_labels, [scene for scene, _ in chosen]


def _draw_square(rng: np.random.Generator, width: int, height: int) -> tuple[float, float, float, float]:
    side = rng.uniform(0.75, 1) * min(width, height)
    slack = (min(width, height) - side) / 2
    x, y = np.array([width, height]) / 2 + rng.uniform(-slack, slack, size=2)
    return x - side / 2, y - side / 2, x + side / 2, y + side / 2


def _save_captioner(model: Any, image_processor: Any, tokenizer: Any, folder: Path) -> None:
    """Writes the folder with half-precision weights that still load, and run, in single precision."""
    model.save_pretrained(folder)
    BlipProcessor(image_processor, tokenizer).save_pretrained(folder)
    save_half(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    forget_where_it_was(folder)
