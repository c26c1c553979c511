"""How good the demo's models are, on scenes that none of them has seen: what training prints and the tests check.

python -m reinforce.demo.measure
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from jaxtyping import Float
from transformers import AutoModelForImageTextToText, AutoProcessor

from reinforce.demo import MODELS
from reinforce.demo.captions import TEMPLATES, describe, names
from reinforce.demo.painting import render_scene
from reinforce.demo.scenes import TRAINING_SEEDS, Scene, draw_scene
from reinforce.demo.shapes import CLASSES

HELD_OUT_SEEDS = TRAINING_SEEDS + (1 << 30)


def held_out_scenes(num_scenes: int) -> list[Scene]:
    """Scenes that belong neither to the training data nor to any data that `write_scenes` makes."""
    return [draw_scene(HELD_OUT_SEEDS + index) for index in range(num_scenes)]


class LoadedTeacher:
    """A teacher's folder, loaded as a build loads it."""

    def __init__(self, folder: Path) -> None:
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")

    @torch.inference_mode()
    def embed_scenes(self, scenes: Sequence[Scene], side: int = 112) -> Float[torch.Tensor, "scenes dim"]:
        pixels = torch.stack([self.preprocess(render_scene(scene, side)) for scene in scenes])
        embeddings: Float[torch.Tensor, "scenes dim"] = self.model.encode_image(pixels, normalize=True)
        return embeddings

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Float[torch.Tensor, "texts dim"]:
        tokens = self.tokenizer(list(texts))
        embeddings: Float[torch.Tensor, "texts dim"] = self.model.encode_text(tokens, normalize=True)
        return embeddings

    def zero_shot_accuracy(self, scenes: Sequence[Scene]) -> float:
        """Share of scenes whose class has the nearest mean of three prompts."""
        prompts = [template.format(name) for name in CLASSES for template in TEMPLATES]
        bank = self.embed_texts(prompts).reshape(len(CLASSES), len(TEMPLATES), -1).mean(1)
        guesses = (self.embed_scenes(scenes) @ bank.T).argmax(1)
        return float((guesses == torch.tensor([scene.class_index for scene in scenes])).float().mean())

    def preference_for_truth(self, scenes: Sequence[Scene]) -> float:
        """Share of scenes that are more like a caption of their own than like the next scene's."""
        rng = np.random.default_rng(0)
        images, texts = self.embed_scenes(scenes), self.embed_texts([describe(scene, rng) for scene in scenes])
        return float(((images * texts).sum(1) > (images * texts.roll(1, 0)).sum(1)).float().mean())


@torch.inference_mode()
def caption_scenes(folder: Path, scenes: Sequence[Scene], side: int = 112) -> list[str]:
    """The captioner's greedy captions."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    pixels = processor.image_processor([render_scene(scene, side) for scene in scenes], return_tensors="pt")
    tokens = model.generate(pixel_values=pixels["pixel_values"], do_sample=False, max_new_tokens=30)
    captions: list[str] = processor.batch_decode(tokens, skip_special_tokens=True)
    return captions


def caption_accuracy(captions: Sequence[str], scenes: Sequence[Scene]) -> tuple[float, float]:
    """Shares of captions that name the main thing, and that name it with its colour."""
    pairs = [(caption, scene.things[0]) for caption, scene in zip(captions, scenes, strict=True)]
    named = float(np.mean([names(caption, thing) for caption, thing in pairs]))
    return named, float(np.mean([names(caption, thing, with_colour=True) for caption, thing in pairs]))


def report(models: Path, num_scenes: int = 1000) -> None:
    """Prints how good the models of a folder are on scenes that they have not seen."""
    scenes = held_out_scenes(num_scenes)
    for folder in sorted(path.parent for path in models.glob("*/open_clip_model.safetensors")):
        teacher = LoadedTeacher(folder)
        zero_shot, preference = teacher.zero_shot_accuracy(scenes), teacher.preference_for_truth(scenes)
        print(f"{folder.name}: zero-shot accuracy {zero_shot:.3f}, prefers the right caption {preference:.3f}")
    for folder in sorted(path.parent for path in models.glob("*/model.safetensors")):
        captions = caption_scenes(folder, scenes)
        named, coloured = caption_accuracy(captions, scenes)
        print(f"{folder.name}: names the thing {named:.3f}, with its colour {coloured:.3f}; e.g. {captions[:3]}")


if __name__ == "__main__":
    report(MODELS)
