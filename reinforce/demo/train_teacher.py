"""Trains one CLIP teacher on generated scenes, and saves it as open_clip's `local-dir:` loads it."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from jaxtyping import Float
from torchvision import transforms

from reinforce.demo.captions import describe, describe_class
from reinforce.demo.scenes import Scene
from reinforce.demo.shapes import CLASSES
from reinforce.demo.training import TrainingData, class_labels, fit, save_half, shuffled
from reinforce.demo.word_tokenizer import save_tokenizer

Batch = tuple[Float[torch.Tensor, "batch 3 size size"], list[Scene]]

CLIP_MEAN, CLIP_STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """What distinguishes one teacher from the other."""

    embed_dim: int
    vision: dict[str, Any]
    text: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    learning_rate: float
    classifier_steps: int
    clip_steps: int


TEACHERS = {
    "demo-a": TeacherSpec(
        embed_dim=64,
        vision={"layers": (1, 1, 1, 1), "width": 12, "image_size": 64},
        text={"context_length": 28, "width": 64, "heads": 4, "layers": 2},
        mean=CLIP_MEAN,
        std=CLIP_STD,
        learning_rate=3e-3,
        classifier_steps=600,
        clip_steps=500,
    ),
    "demo-b": TeacherSpec(
        embed_dim=96,
        vision={"timm_model_name": "test_efficientnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 80},
        text={"context_length": 24, "width": 96, "heads": 4, "layers": 1},
        mean=HALF,
        std=HALF,
        learning_rate=4e-3,
        classifier_steps=450,
        clip_steps=500,
    ),
}


def train_teacher(name: str, spec: TeacherSpec, data: TrainingData, folder: Path) -> None:
    """Writes the tokenizer, the configuration and, once they are trained, the weights into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = save_tokenizer(folder, max_length=spec.text["context_length"])
    text = spec.text | {
        "vocab_size": len(tokenizer),
        "hf_tokenizer_name": name,  # local-dir reads the tokenizer from its own folder, if this is not empty
        "pad_id": tokenizer.pad_token_id,
        "eos_id": tokenizer.eos_token_id,
    }
    custom_text = "timm_model_name" in spec.vision  # open_clip then keeps the text tower under a name of its own
    model_cfg = {"embed_dim": spec.embed_dim, "vision_cfg": spec.vision, "text_cfg": text}
    preprocess_cfg = {"mean": spec.mean, "std": spec.std, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg | {"custom_text": custom_text}, "preprocess_cfg": preprocess_cfg}, indent=2)
        + "\n"
    )
    model = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**model_cfg)
    _fit_teacher(name, model, open_clip.get_tokenizer(f"local-dir:{folder}"), spec, data)
    save_half(model.state_dict(), folder / "open_clip_model.safetensors")


def _fit_teacher(name: str, model: Any, tokenize: Any, spec: TeacherSpec, data: TrainingData) -> None:
    """The image tower first learns to classify, then both towers learn with the CLIP loss.

    From nothing, with so few images, the CLIP loss alone does not get to shapes: colour and place tell the captions of
    a batch apart well enough. So the classifier's loss stays on, and prompts are classified with beside it.
    """
    classifier = torch.nn.Linear(spec.embed_dim, len(CLASSES))  # not kept
    clip_loss, rng = open_clip.ClipLoss(), np.random.default_rng(2)
    model.logit_scale.data.fill_(math.log(30))
    cross_entropy = torch.nn.functional.cross_entropy

    def loss_of_classes(batch: Batch) -> torch.Tensor:
        pixels, scenes = batch
        return cross_entropy(classifier(model.encode_image(pixels)), class_labels(scenes))

    def loss_of_all(batch: Batch) -> torch.Tensor:
        pixels, scenes = batch
        raw, logit_scale = model.encode_image(pixels), model.logit_scale.exp()
        captions = [describe(scene, rng) for scene in scenes]
        texts = model.encode_text(tokenize(captions + [describe_class(kind, rng) for kind in CLASSES]), normalize=True)
        images, labels = torch.nn.functional.normalize(raw, dim=-1), class_labels(scenes)
        loss: torch.Tensor = clip_loss(images, texts[: len(scenes)], logit_scale)
        loss = loss + cross_entropy(logit_scale * images @ texts[len(scenes) :].T, labels)
        return loss + cross_entropy(classifier(raw), labels)

    towers = torch.nn.ModuleList([model, classifier])
    views = _views(data, spec.vision["image_size"], spec.mean, spec.std)
    fit(f"{name} classes", towers, loss_of_classes, views, spec.classifier_steps, spec.learning_rate)
    fit(f"{name} captions", towers, loss_of_all, views, spec.clip_steps, spec.learning_rate / 2)


def _views(data: TrainingData, size: int, mean: Any, std: Any) -> Iterator[Batch]:
    """Endless shuffled batches; half of the views are clean, a quarter cropped, a quarter RandAugmented as well."""
    clean = [transforms.Resize(size, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(size)]
    crop = transforms.RandomResizedCrop(size, scale=(0.2, 1), interpolation=transforms.InterpolationMode.BICUBIC)
    augmented = transforms.Compose([crop, transforms.RandomApply([transforms.RandAugment(2, 9)], 0.5)])
    choose = transforms.RandomChoice([transforms.Compose(clean), augmented])
    mean_std = torch.tensor(mean).view(3, 1, 1) * 255, torch.tensor(std).view(3, 1, 1) * 255
    for chosen in shuffled(data, batch_size=64):
        views = torch.from_numpy(np.stack([np.asarray(choose(image)) for _, image in chosen]))
        yield (views.permute(0, 3, 1, 2) - mean_std[0]) / mean_std[1], [scene for scene, _ in chosen]
