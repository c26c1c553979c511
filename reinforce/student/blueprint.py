"""From a recipe's `student.model` to what is to be built: open_clip's configuration, a tokenizer, a file of weights.

An architecture brings open_clip's own configuration; a backbone gets one around timm's network; a student's folder
brings its own, which must be what the recipe asks for. Nothing is built here; weights and tokenizers of a hub or a URI
are fetched. What a recipe names and is not there is refused: nothing starts from random weights unasked.
"""

import copy
import difflib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch

from reinforce.config import ConfigError, StudentModelConfig
from reinforce.image_tower import IMAGE_TOWER_CONFIG_NAME, WEIGHTS_NAME
from reinforce.student.tokenizer import StudentTokenizer, one_line, tokenizer_folder
from reinforce.weights import ModelError, fetch

JSON = dict[str, Any]

CONFIG_NAME = "open_clip_config.json"

_CLIP_VOCAB_SIZE = 49408
_OF_THE_TOKENIZER = {"vocab_size", "hf_tokenizer_name", "tokenizer_kwargs", "pad_id", "eos_id", "pool_type"}
_FREE_IN_A_CHECKPOINT = _OF_THE_TOKENIZER | {"image_size", "timm_model_pretrained", "hf_model_pretrained", "timm_pool"}
_FIELDS = {"timm_model_name": "backbone", "timm_proj": "projection", "embed_dim": "embed_dim"}


@dataclass(frozen=True)
class Blueprint:
    """What `reinforce.student.models` builds. `config` is what open_clip_config.json says of it.

    `weights` is None for random ones; with `is_imagenet` the backbone's are then timm's.
    """

    config: JSON
    tokenizer: StudentTokenizer | None
    weights: Path | None
    is_imagenet: bool


def draw_blueprint(config: StudentModelConfig) -> Blueprint:
    """Raises ConfigError or ModelError, naming the field of `student.model`, for what does not exist or fit."""
    model_cfg = _of_architecture(config) if config.architecture else _of_backbone(config)
    folder = Path(config.checkpoint) if config.checkpoint and Path(config.checkpoint).is_dir() else None
    weights: Path | None = None
    if folder:
        document = _of_folder(folder, model_cfg)
        model_cfg, preprocess_cfg, weights = document["model_cfg"], document["preprocess_cfg"], folder / WEIGHTS_NAME
    elif config.checkpoint in (None, "imagenet"):
        preprocess_cfg = _default_preprocess(config)
    else:
        weights, tag_cfg = _of_checkpoint(config)
        preprocess_cfg = tag_cfg or _default_preprocess(config)
        if tag_cfg:
            model_cfg["quick_gelu"] = tag_cfg.get("quick_gelu", False)  # the activation the weights were trained with
    if config.image_size:
        model_cfg["vision_cfg"]["image_size"] = config.image_size
    if config.drop_path is not None:
        model_cfg["vision_cfg"]["timm_drop_path"] = config.drop_path
    tokenizer = _tokenizer(config, model_cfg["text_cfg"], folder)
    preprocess = {
        "mean": list(config.mean or preprocess_cfg["mean"]),
        "std": list(config.std or preprocess_cfg["std"]),
        "interpolation": "bicubic",  # these two as views are rendered, whatever the checkpoint was trained with
        "resize_mode": "shortest",
    }
    is_imagenet = config.checkpoint == "imagenet"
    return Blueprint({"model_cfg": model_cfg, "preprocess_cfg": preprocess}, tokenizer, weights, is_imagenet)


def read_config(folder: Path) -> JSON:
    """What a student's folder says of its model; raises ModelError if that is nothing."""
    names = [name for name in (CONFIG_NAME, IMAGE_TOWER_CONFIG_NAME) if (folder / name).is_file()]
    if not names or not (folder / WEIGHTS_NAME).is_file():
        missing = WEIGHTS_NAME if names else CONFIG_NAME
        raise ModelError(f"student {folder}: no {missing} in that folder; give one that train-student wrote")
    try:
        document: JSON = json.loads((folder / names[0]).read_text(encoding="utf-8"))
        for key in ("embed_dim", "vision_cfg", "text_cfg"):
            document["model_cfg"][key]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"student {folder}: {names[0]} is not open_clip's ({one_line(error)})") from None
    default = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    return document | {"preprocess_cfg": default | document.get("preprocess_cfg", {})}


def tokenizer_of_folder(folder: Path, text_cfg: JSON) -> StudentTokenizer:
    """The tokenizer of a student's folder, as `open_clip.get_tokenizer("local-dir:...")` has it."""
    source = str(folder) if text_cfg.get("hf_tokenizer_name") else None
    return StudentTokenizer(text_cfg.get("context_length", 77), source, text_cfg.get("tokenizer_kwargs") or {})


def _of_architecture(config: StudentModelConfig) -> JSON:
    name = config.architecture
    assert name is not None
    if name not in open_clip.list_models():
        if timm.is_model(name.partition(".")[0]):
            raise ConfigError(f"student.model.architecture: {name} is a model of timm; give it as backbone")
        raise ConfigError(
            f"student.model.architecture: open_clip has no {name!r}{_close(name, open_clip.list_models())}"
        )
    model_cfg: JSON = open_clip.get_model_config(name)
    if "multimodal_cfg" in model_cfg:
        raise ConfigError(f"student.model.architecture: {name} has a decoder, which nothing here trains; use a CLIP")
    if config.text is None:
        vision_cfg = model_cfg["vision_cfg"]
        if vision_cfg.get("timm_proj") == "none":
            vision_cfg["timm_proj"] = "linear"  # SigLIP's embedding is as wide as its network, ours is the teacher's
        return {
            "embed_dim": config.embed_dim,
            "vision_cfg": vision_cfg,
            "text_cfg": None,
            "quick_gelu": model_cfg.get("quick_gelu", False),
        }
    text_cfg = model_cfg["text_cfg"]
    is_random = "reduction_mask" in text_cfg.get("tokenizer_kwargs", {})
    if config.tokenizer is None and (is_random or text_cfg.get("tokenizer_mode")):
        raise ConfigError(f"student.model.architecture: the tokenizer of {name} is not supported; set tokenizer")
    return model_cfg


def _of_backbone(config: StudentModelConfig) -> JSON:
    name = config.backbone
    assert name is not None
    timm_cfg = _timm_cfg(name)
    with torch.device("meta"):
        trunk = timm.create_model(name)
        if config.drop_path is not None:
            try:
                timm.create_model(name, drop_path_rate=config.drop_path)
            except TypeError:
                raise ConfigError(f"student.model.drop_path: {name} has none; leave it out") from None
    # open_clip's projections expect num_features channels; where a network widens them on the way to its classifier
    # (MobileNet, GhostNet), its classifier is the projection instead.
    is_widened = getattr(trunk, "head_hidden_size", trunk.num_features) != trunk.num_features
    if is_widened and config.projection == "mlp":
        raise ConfigError(
            f"student.model.projection: mlp does not fit {name}, which has a layer of its own; use linear"
        )
    vision_cfg = {
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": "avg" if is_widened else "",  # '': as the network itself pools
        "timm_proj": None if is_widened else config.projection,
        "image_size": timm_cfg.input_size[-1],
    }
    text_cfg = None
    if config.text:
        if config.text.width % config.text.heads:
            raise ConfigError(
                f"student.model.text: width {config.text.width} does not divide by {config.text.heads} heads"
            )
        text_cfg = config.text.model_dump() | {"vocab_size": _CLIP_VOCAB_SIZE}
    return {"embed_dim": config.embed_dim, "vision_cfg": vision_cfg, "text_cfg": text_cfg, "custom_text": True}


def _timm_cfg(name: str) -> Any:
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        if name in open_clip.list_models():
            raise ConfigError(f"student.model.backbone: {name} is a model of open_clip; give it as architecture")
        raise ConfigError(f"student.model.backbone: timm has no {name!r}{_close(name, timm.list_models())}")
    tagged = timm.list_models(f"{base}.*", pretrained=True)
    if tag and name not in tagged:
        raise ConfigError(f"student.model.backbone: timm has no weights {name}; known: {', '.join(tagged) or 'none'}")
    return timm.get_pretrained_cfg(name)


def _of_folder(folder: Path, asked: JSON) -> JSON:
    """The configuration of a student's folder, refused where it is not the model the recipe asks for."""
    document = read_config(folder)
    found = copy.deepcopy(document["model_cfg"])
    defaults = {"vision_cfg": asdict(open_clip.CLIPVisionCfg()), "text_cfg": asdict(open_clip.CLIPTextCfg())}
    for part, default in defaults.items():
        asked_part, found_part = asked[part], found[part]
        if (asked_part is None) != (found_part is None):
            with_or_without = "without" if found_part is None else "with"
            raise ConfigError(f"student.model.text: the checkpoint {folder} is {with_or_without} a text tower")
        _check_same(folder, asked_part or {}, default | (found_part or {}), part)
    _check_same(folder, {"embed_dim": asked["embed_dim"], "quick_gelu": asked.get("quick_gelu", False)}, found, "")
    return document | {"model_cfg": found}


def _check_same(folder: Path, asked: JSON, found: JSON, part: str) -> None:
    for key, value in asked.items():
        other = found.get(key, False if key == "quick_gelu" else None)
        if key not in _FREE_IN_A_CHECKPOINT and value != other:
            name = _FIELDS.get(key) or (f"text.{key}" if part == "text_cfg" else "architecture")
            raise ConfigError(f"student.model.{name}: {key} is {value}, that of the checkpoint {folder} is {other}")


def _of_checkpoint(config: StudentModelConfig) -> tuple[Path, JSON]:
    """The weights of a tag with what open_clip says of them, or of a file or URI with nothing."""
    checkpoint, name = config.checkpoint, config.architecture
    assert checkpoint is not None
    if name and config.text is None:
        raise ConfigError(
            f"student.model.checkpoint: {checkpoint}: the image tower of an architecture alone starts from scratch or "
            "from a student's folder"
        )
    tags = open_clip.list_pretrained_tags_by_model(name) if name else []
    tag_cfg: JSON = open_clip.get_pretrained_cfg(name, checkpoint) if name else {}
    if tag_cfg:
        try:
            return Path(open_clip.download_pretrained(tag_cfg)), tag_cfg
        except Exception as error:  # hub and URL downloads raise many unrelated types
            raise ModelError(
                f"student.model.checkpoint: {checkpoint} of {name} not fetched ({one_line(error)})"
            ) from None
    if "://" not in checkpoint and not Path(checkpoint).is_file():
        known = f", nor a tag of {name} (known: {', '.join(tags) or 'none'})" if name else ""
        raise ModelError(f"student.model.checkpoint: {checkpoint} is no file and no student's folder{known}")
    try:
        return fetch(checkpoint), {}
    except ModelError as error:
        raise ModelError(f"student.model.{error}") from None


def _default_preprocess(config: StudentModelConfig) -> JSON:
    """The architecture's normalisation is that of the first weights open_clip knows for it."""
    if config.checkpoint == "imagenet":
        timm_cfg = timm.get_pretrained_cfg(config.backbone)
        if not timm_cfg.has_weights:
            raise ConfigError(f"student.model.checkpoint: timm has no weights of {config.backbone}")
        return {"mean": timm_cfg.mean, "std": timm_cfg.std}
    tags = open_clip.list_pretrained_tags_by_model(config.architecture) if config.architecture else []
    if tags:
        found: JSON = open_clip.get_pretrained_cfg(config.architecture, tags[0])
        return found
    return {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}


def _tokenizer(config: StudentModelConfig, text_cfg: JSON | None, folder: Path | None) -> StudentTokenizer | None:
    """The student's tokenizer; one that the recipe names is written into `text_cfg`."""
    if text_cfg is None:
        if config.tokenizer:
            raise ConfigError("student.model.tokenizer: there is no text tower; leave it out, or give text")
        return None
    if config.tokenizer:
        if "hf_model_name" in text_cfg:
            raise ConfigError(f"student.model.tokenizer: {config.architecture} reads no other tokenizer than its own")
        source = tokenizer_folder(config.tokenizer, "tokenizer")
        tokenizer = StudentTokenizer(text_cfg.get("context_length", 77), source)
        pool_type = text_cfg.get("pool_type", "argmax")
        for key in (*_OF_THE_TOKENIZER, "tokenizer_mode"):
            text_cfg.pop(key, None)
        name = Path(source).resolve().name if Path(config.tokenizer).is_dir() else config.tokenizer
        text_cfg.update(tokenizer.text_cfg(name))
        if pool_type not in ("argmax", "eos"):
            text_cfg["pool_type"] = pool_type
        return tokenizer
    hf_name = text_cfg.get("hf_tokenizer_name")
    if folder or not hf_name:
        return tokenizer_of_folder(folder or Path(), text_cfg)
    source = tokenizer_folder(hf_name, "architecture")
    return StudentTokenizer(text_cfg.get("context_length", 77), source, text_cfg.get("tokenizer_kwargs") or {})


def _close(name: str, known: list[str]) -> str:
    """Names that a person may have meant, for the end of a message."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(close)}?" if close else ""
