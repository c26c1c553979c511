"""Students: built from a recipe, saved as a folder that open_clip opens, loaded again.

`open_clip.create_model_and_transforms("local-dir:FOLDER")` and `open_clip.get_tokenizer("local-dir:FOLDER")` give the
same embeddings as the student itself. An image tower alone (`text: null`) has no text tower for open_clip to build:
only `load_student` opens its folder. Building takes about a second a hundred million parameters, and is deterministic.
"""

import copy
import json
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from reinforce.config import ConfigError, ModalityConfig, StudentModelConfig
from reinforce.image_tower import (
    IMAGE_TOWER_CONFIG_NAME,
    STUDENT_NAME,
    WEIGHTS_NAME,
    ImageTower,
    recorded_heads,
    recorded_modalities,
)
from reinforce.software import versions
from reinforce.student.blueprint import (
    CONFIG_NAME,
    JSON,
    Blueprint,
    draw_blueprint,
    read_config,
    tokenizer_of_folder,
)
from reinforce.student.tensors import save_tensors
from reinforce.student.tokenizer import StudentTokenizer, one_line
from reinforce.weights import ModelError


@dataclass(frozen=True)
class Student:
    """A model with all that belongs to it.

    `model` has open_clip's `encode_image` and `encode_text`, `visual`, `logit_scale` (its logarithm) and `logit_bias`
    (or None). `image_size` is the side of its square images. Of an image tower alone `tokenizer` and `context_length`
    are None. `config` is the content of open_clip_config.json. `modalities` are those it was trained on besides RGB, as
    it reads them. `heads` are the dims of its teachers, by name, if they are several: `image_tower.head_of` says where
    each is in the embedding.
    """

    model: Any
    tokenizer: StudentTokenizer | None
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    context_length: int | None
    embed_dim: int
    config: JSON
    modalities: dict[str, ModalityConfig] = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)

    @property
    def has_text(self) -> bool:
        return self.tokenizer is not None


def build_student(config: StudentModelConfig, seed: int) -> Student:
    """The student a recipe asks for, in training mode, on the CPU; the same seed gives the same weights.

    Raises ConfigError or ModelError, naming the field of `student.model`; never falls back to random weights.
    """
    blueprint = draw_blueprint(config)
    kind, name = ("architecture", config.architecture) if config.architecture else ("backbone", config.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            model = _construct(blueprint.config["model_cfg"], is_imagenet=blueprint.is_imagenet)
        except Exception as error:  # open_clip, timm and the hub's client raise whatever they met
            if blueprint.is_imagenet:
                raise ModelError(f"student.model.checkpoint: imagenet of {name}: {one_line(error)}") from None
            raise ConfigError(f"student.model.{kind}: {name}: {one_line(error)}") from None
    student = _student(model, blueprint.tokenizer, blueprint.config)
    _check_image_size(student, kind, str(name))
    if blueprint.weights:
        _load_checkpoint(model, blueprint, f"student.model.checkpoint: {config.checkpoint}")
    return student


def load_student(folder: Path | str) -> Student:
    """The student of a folder, in evaluation mode, on the CPU. Raises ModelError if it is not a whole one."""
    folder = Path(folder)
    config = read_config(folder)
    text_cfg = config["model_cfg"]["text_cfg"]
    try:
        model = _construct(config["model_cfg"])
        model.load_state_dict(load_file(folder / WEIGHTS_NAME))
        tokenizer = tokenizer_of_folder(folder, text_cfg) if text_cfg else None
    except Exception as error:  # open_clip and timm raise whatever a damaged folder leads them to
        raise ModelError(f"student {folder}: {one_line(error)}") from None
    student = _student(model.eval(), tokenizer, config)
    return replace(student, modalities=recorded_modalities(folder), heads=recorded_heads(folder))


def save_student(
    student: Student, folder: Path | str, *, extra: JSON | None = None, files: dict[str, bytes] | None = None
) -> None:
    """Writes a student's folder, whole or not at all; `extra` goes into student.json, beside the software's versions.

    `files` are further ones, by their path in the folder.
    An earlier student of that name is replaced; any other folder is refused with a ValueError.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not (folder / STUDENT_NAME).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there and is no student's folder; choose another name")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write_student(student, temporary, extra or {}, files or {})
        _replace(folder, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_student(student: Student, folder: Path, extra: JSON, files: dict[str, bytes]) -> None:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in student.model.state_dict().items()}
    assert not any(name.startswith(("module.", "_orig_mod.")) for name in weights), "a wrapped model"
    save_tensors(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    modalities = {name: modality.model_dump(mode="json") for name, modality in student.modalities.items()}
    packages = ("torch", "open_clip_torch", "timm", "transformers")
    recorded = {"modalities": modalities, "heads": student.heads}
    documents = {
        CONFIG_NAME if student.tokenizer else IMAGE_TOWER_CONFIG_NAME: student.config,
        STUDENT_NAME: {"software": versions(*packages)} | {k: v for k, v in recorded.items() if v} | extra,
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if student.tokenizer:
        student.tokenizer.save(folder)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _replace(folder: Path, temporary: Path) -> None:
    """Puts `temporary` in the place of `folder`, which stays beside it until then.

    A folder can only be renamed over an empty one: killed between the two renames, there is none of that name, and
    the earlier student is whole at `.NAME.PID.previous`.
    """
    if not folder.exists() or not any(folder.iterdir()):
        temporary.rename(folder)
        return
    previous = folder.with_name(f".{folder.name}.{os.getpid()}.previous")
    folder.rename(previous)
    try:
        temporary.rename(folder)
    except OSError:
        previous.rename(folder)
        raise
    shutil.rmtree(previous)


def _construct(model_cfg: JSON, *, is_imagenet: bool = False) -> Any:
    """The model of a configuration with random weights, which are timm's in the backbone if `is_imagenet`.

    As `open_clip.create_model` builds it, which would warn of random weights and fetch a text tower's own unasked.
    """
    model_cfg = copy.deepcopy(model_cfg)
    if "timm_model_name" in model_cfg["vision_cfg"]:
        model_cfg["vision_cfg"]["timm_model_pretrained"] = is_imagenet
    if model_cfg["text_cfg"] is None:
        return ImageTower(model_cfg["embed_dim"], model_cfg["vision_cfg"], model_cfg.get("quick_gelu", False))
    is_custom_text = model_cfg.pop("custom_text", False)
    if "hf_model_name" in model_cfg["text_cfg"]:
        model_cfg["text_cfg"]["hf_model_pretrained"] = False
        is_custom_text = True
    return (open_clip.CustomTextCLIP if is_custom_text else open_clip.CLIP)(**model_cfg)


def _student(model: Any, tokenizer: StudentTokenizer | None, config: JSON) -> Student:
    preprocess_cfg = {"size": config["model_cfg"]["vision_cfg"].get("image_size", 224)} | config["preprocess_cfg"]
    open_clip.model.set_model_preprocess_cfg(model, preprocess_cfg)
    size = preprocess_cfg["size"]
    return Student(
        model=model,
        tokenizer=tokenizer,
        image_size=size if isinstance(size, int) else _square(size),
        mean=tuple(preprocess_cfg["mean"]),
        std=tuple(preprocess_cfg["std"]),
        context_length=tokenizer.context_length if tokenizer else None,
        embed_dim=config["model_cfg"]["embed_dim"],
        config=config,
    )


def _square(size: list[int]) -> int:
    if len(set(size)) != 1:
        raise ModelError(f"its images are {size[0]} x {size[1]}; students with square images are supported")
    return size[0]


@torch.no_grad()
def _check_image_size(student: Student, kind: str, name: str) -> None:
    """One image through the tower: what takes another size only after surgery, open_clip could not open once saved."""
    size, visual = student.image_size, student.model.visual
    visual.eval()
    try:
        shape = tuple(visual(torch.zeros(1, 3, size, size)).shape)
    except Exception as error:  # whatever a network meets in an image of a size it was not made for
        message = f"student.model.image_size: {name} does not take images of {size} pixels ({one_line(error)})"
        raise ConfigError(message) from None
    visual.train()
    if shape != (1, student.embed_dim):
        raise ConfigError(
            f"student.model.{kind}: {name} gives {shape} for an image, not a vector of {student.embed_dim}"
        )


def _load_checkpoint(model: Any, blueprint: Blueprint, where: str) -> None:
    assert blueprint.weights is not None
    try:
        if isinstance(model, ImageTower):
            model.load_state_dict(load_file(blueprint.weights))
        else:
            open_clip.load_checkpoint(model, str(blueprint.weights), strict=True, weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, AttributeError, AssertionError, SafetensorError) as error:
        raise ModelError(f"{where} does not fit the model: {one_line(error)}") from None
    except Exception as error:  # pickle's own errors, for a file that is none or holds more than tensors
        raise ModelError(f"{where} is not read: {one_line(error)}") from None
