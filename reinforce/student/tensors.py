"""Tensors to a safetensors file, with the errors of the file system as they are."""

import errno
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from reinforce.storage import StorageError


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes the file; raises `StorageError` where safetensors would raise an error of its own."""
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        path.unlink(missing_ok=True)
        text = " ".join(str(error).split())
        full = errno.ENOSPC if "os error 28" in text or "No space left" in text else None
        raise StorageError(f"cannot write {path}: {text}", full) from None
