"""Finds, fetches and hashes model weights, for teachers and captioners alike.

Weights come from a hub, a folder, a file or a URI; whatever the way, the sha256 of the weight files is what a dataset
records, so that the same model under another name is the same model and another model under the same name is refused.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reinforce import storage
from reinforce.config import Precision


class ModelError(ValueError):
    """A model that cannot be loaded as the recipe asks; the message is one line that says what to change."""


@dataclass(frozen=True)
class OpenClipModel:
    """A loaded open_clip model with all that belongs to it. `preprocess` has `size`, `mean`, `std` and more."""

    model: Any
    tokenizer: Any
    preprocess: dict[str, Any]
    weights_sha256: str


def load_open_clip(model: str, *, checkpoint: str | None = None, sha256: str | None = None) -> OpenClipModel:
    """Loads `MODEL:PRETRAINED`, `hf-hub:ORG/NAME`, `local-dir:PATH` or a bare MODEL with `checkpoint`, in fp32 on CPU.

    Raises `ModelError` if there are no weights: open_clip itself would go on with random ones.
    """
    import open_clip

    weights = _open_clip_weights(model, checkpoint)
    found = check_sha256([weights], sha256)
    schema, _ = open_clip.factory.parse_model_name(model)
    architecture, _, tag = (model, "", "") if schema else model.partition(":")
    try:
        loaded = open_clip.create_model(architecture, tag or (str(weights) if checkpoint else None)).eval()
        tokenizer = open_clip.get_tokenizer(architecture)
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"model {model}: {_one_line(error)}") from None
    return OpenClipModel(loaded, tokenizer, dict(open_clip.get_model_preprocess_cfg(loaded)), found)


def transformers_folder(model: str, revision: str | None) -> Path:
    """The local folder of a transformers model: itself, or the hub's snapshot at `revision`."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for each file of weights says nothing a build's own progress does not
    if Path(model).is_dir():
        return Path(model)
    if model.startswith("/"):
        raise ModelError(f"model {model}: no such folder")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise ModelError(f"model {model}: not fetched from the hub ({_one_line(error)}); give a local folder") from None


def transformers_weights(folder: Path) -> list[Path]:
    """The weight files of a transformers folder. Only safetensors: nothing here unpickles."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"model {folder}: holds no *.safetensors")
    return files


def check_sha256(files: list[Path], expected: str | None) -> str:
    """The sha256 of the weights, refused if it is not `expected`.

    One file: its sha256. Several: the sha256 of their sha256 hex digests, in the order of their names, concatenated.
    """
    digests = [_sha256_of_file(file) for file in files]
    found = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    if expected is not None and found != expected:
        raise ModelError(f"weights {files[0]}: sha256 is {found}, the recipe says {expected}")
    return found


def resolve_device(device: str) -> torch.device:
    """`auto` is cuda where there is one, else cpu. Raises `ModelError` for a device that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ModelError(f"build.device: {device!r} is not a device; use auto, cpu, cuda or cuda:N") from None
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"build.device: {device} is not on this machine ({torch.cuda.device_count()} cuda devices)")
    return resolved


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The autocast type for `precision`, None for fp32. Refuses what the device lacks rather than substituting."""
    if precision == "fp32":
        return None
    supported = device.type == "cuda" and (
        precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    )
    if not supported:
        raise ModelError(f"precision {precision} is not available on {device.type}; set precision to fp32")
    return torch.bfloat16 if precision == "bf16" else torch.float16


def _open_clip_weights(model: str, checkpoint: str | None) -> Path:
    import open_clip
    from open_clip.factory import _find_checkpoint_in_dir

    schema, identifier = open_clip.factory.parse_model_name(model)
    if schema == "local-dir":
        if not (Path(identifier) / "open_clip_config.json").is_file():
            raise ModelError(f"model {model}: no open_clip_config.json in that folder")
        found = _find_checkpoint_in_dir(Path(identifier))
        if found is None:
            raise ModelError(f"model {model}: no weights in that folder")
        return Path(found)
    if schema == "hf-hub":
        return _from_hub(model, lambda: open_clip.download_pretrained_from_hf(identifier))
    architecture, _, tag = model.partition(":")
    if architecture not in open_clip.list_models():
        raise ModelError(f"model {model}: open_clip has no architecture {architecture!r}")
    if checkpoint:
        return fetch(checkpoint)
    tag_config = open_clip.get_pretrained_cfg(architecture, tag)
    if not tag_config:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise ModelError(f"model {model}: no such pretrained tag (known: {known}); or give checkpoint")
    return _from_hub(model, lambda: open_clip.download_pretrained(tag_config))


def _from_hub(model: str, download: Any) -> Path:
    try:
        return Path(download())
    except Exception as error:  # hub and URL downloads raise many unrelated types
        raise ModelError(f"model {model}: weights not fetched ({_one_line(error)})") from None


def fetch(uri: str) -> Path:
    """A local copy of a checkpoint given by path or URI; a remote one is downloaded once to the user's cache."""
    if "://" not in uri:
        if not Path(uri).is_file():
            raise ModelError(f"checkpoint {uri}: no such file")
        return Path(uri)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "reinforce" / "weights"
    try:
        store, name = storage.open_parent(uri)
        size = store.size(name)
        target = cache / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}-{name}"
        if not target.is_file() or target.stat().st_size != size:
            cache.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
            store.download(name, partial, size=size)
            partial.replace(target)
    except FileNotFoundError:
        raise ModelError(f"checkpoint {uri}: no such object") from None
    except storage.StorageError as error:
        raise ModelError(f"checkpoint {uri}: {error}") from None
    return target


def _sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _one_line(error: BaseException) -> str:
    lines: Iterable[str] = str(error).split()
    return " ".join(lines)[:300] or type(error).__name__
