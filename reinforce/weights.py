"""Finds, fetches and hashes model weights, for teachers and captioners alike.

Weights come from a hub, a folder, a file or a URI; what a URI names is fetched once per machine, into the user's cache,
however many processes ask for it at once. Whatever the way, the sha256 of the weight files is what a dataset
records, so that the same model under another name is the same model and another model under the same name is refused.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from reinforce import storage
from reinforce.config import Precision


class ModelError(ValueError):
    """A model that cannot be loaded as the recipe asks; the message is one line that says what to change."""


class WeightsChangedError(ModelError):
    """Weights that are not those asked for by their sha256."""


@dataclass(frozen=True)
class OpenClipModel:
    """A loaded open_clip model with all that belongs to it. `preprocess` has `size`, `mean`, `std` and more."""

    model: Any
    tokenizer: Any
    preprocess: dict[str, Any]
    weights_sha256: str


def load_open_clip(model: str, *, checkpoint: str | None = None, sha256: str | None = None) -> OpenClipModel:
    """Loads `MODEL:PRETRAINED`, `hf-hub:ORG/NAME`, `local-dir:PATH` or a bare MODEL with `checkpoint`, in fp32 on CPU.

    The PATH of a `local-dir:` may be a URI. Raises `ModelError` if there are no weights: open_clip itself would go on
    with random ones.
    """
    import open_clip

    name = f"local-dir:{fetch_folder(model)}" if remote_folder(model) else model
    weights = _open_clip_weights(model, name, checkpoint)
    found = check_sha256([weights], sha256)
    schema, _ = open_clip.factory.parse_model_name(name)
    architecture, _, tag = (name, "", "") if schema else name.partition(":")
    try:
        loaded = open_clip.create_model(architecture, tag or (str(weights) if checkpoint else None)).eval()
        tokenizer = open_clip.get_tokenizer(architecture)
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"model {model}: {_one_line(error)}") from None
    return OpenClipModel(loaded, tokenizer, dict(open_clip.get_model_preprocess_cfg(loaded)), found)


def transformers_folder(model: str, revision: str | None) -> Path:
    """The local folder of a transformers model: itself, a copy of a URI's, or the hub's snapshot at `revision`."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for each file of weights says nothing a build's own progress does not
    if remote_folder(model):
        folder = fetch_folder(model)
        if not any(folder.glob("*.safetensors")):
            raise ModelError(f"model {model}: holds no *.safetensors")
        return folder
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
        raise WeightsChangedError(f"weights {files[0]}: sha256 is {found}, expected {expected}")
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


def _open_clip_weights(model: str, name: str, checkpoint: str | None) -> Path:
    """The file of weights of open_clip's `name`, which is the user's `model` or its local copy."""
    import open_clip
    from open_clip.factory import _find_checkpoint_in_dir

    schema, identifier = open_clip.factory.parse_model_name(name)
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
    with _refused_as(f"checkpoint {uri}", "no such object"):
        store, name = storage.open_parent(uri)
        size = store.size(name)
        target = _cached(uri, name)
        if not _is_copy(target, size):
            with _locked(target) as partial:
                _download(store, name, size, target, partial)
    return target


def remote_folder(model: str) -> str | None:
    """The URI of a model that is a folder elsewhere, `URI` or `local-dir:URI`; None for every other model."""
    uri = model.removeprefix("local-dir:")
    return uri if "://" in uri else None


def fetch_folder(model: str) -> Path:
    """A local copy of the folder of a model given as `URI` or `local-dir:URI`, with exactly the files it has there.

    Files that are in the user's cache already, with the same size, are not downloaded again.
    """
    uri = remote_folder(model)
    assert uri is not None
    with _refused_as(f"model {model}", "a file was removed while the folder was copied"):
        store = storage.open_store(uri)
        files = _without_folders(list(store.list()))
        if not files:
            raise ModelError(f"model {model}: no such folder")
        first = store.local_path(files[0].path)
        if first is not None:
            return Path(str(first).removesuffix(files[0].path))
        folder = _cached(store.uri, store.uri.partition("?")[0].rpartition("/")[2])
        with _locked(folder) as partial:
            for file in files:
                _download(store, file.path, file.size, folder / file.path, partial)
            _keep_only(folder, {folder / file.path for file in files})
    return folder


def _without_folders(files: list[storage.ObjectInfo]) -> list[storage.ObjectInfo]:
    """S3 consoles make an empty object of a folder."""
    folders = {str(folder) for file in files for folder in PurePosixPath(file.path).parents}
    return [file for file in files if file.path not in folders]


@contextmanager
def _refused_as(what: str, if_missing: str) -> Iterator[None]:
    """Turns what storage and the cache's file system raise into one line that begins with `what`."""
    try:
        yield
    except FileNotFoundError:
        raise ModelError(f"{what}: {if_missing}") from None
    except storage.StorageError as error:
        raise ModelError(f"{what}: {error}") from None
    except OSError as error:
        raise ModelError(f"{what}: cannot write its copy {error.filename}: {error.strerror}") from None


def _cached(uri: str, name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "reinforce" / "weights"
    return cache / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}-{name}"


@contextmanager
def _locked(target: Path) -> Iterator[Path]:
    """Held by one process of the machine at a time, so that the others find what it has fetched.

    Yields the name of a file to download to.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as file:
        # Where the file system has no locks, the same is downloaded more than once, and still arrives whole.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield target.with_name(f"{target.name}.{os.getpid()}.partial")


def _download(store: storage.Store, path: str, size: int, target: Path, partial: Path) -> None:
    if _is_copy(target, size):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    store.download(path, partial, size=size)
    partial.replace(target)


def _is_copy(target: Path, size: int) -> bool:
    return target.is_file() and target.stat().st_size == size


def _keep_only(folder: Path, files: set[Path]) -> None:
    """Removes what the folder held before: weights under another name would be taken for a part of these."""
    for path in folder.rglob("*"):
        if path.is_file() and path not in files:
            path.unlink()


def _sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _one_line(error: BaseException) -> str:
    lines: Iterable[str] = str(error).split()
    return " ".join(lines)[:300] or type(error).__name__
