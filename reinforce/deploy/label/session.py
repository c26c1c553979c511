"""An exported model, loaded by onnxruntime: its card, and from pixels to an embedding.

On the CPU, with as many threads as are asked for and no more, in as little memory as costs no time: measured for an
EfficientNet-B3 of 288 px in fp32, the planned memory of whole runs (`mem_pattern`) takes 33 MB and gains nothing, while
without its arena onnxruntime takes 30 % more time, and no less memory.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reinforce.deploy.label.errors import LabelError
from reinforce.deploy.model_file import ModelCard, ModelFileError

if TYPE_CHECKING:
    from jaxtyping import Float32

_FATAL = 4
"""onnxruntime's own log lines would come before ours; what goes wrong is an exception as well."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A loaded model. `num_bytes` is the size of its file."""

    path: Path
    card: ModelCard
    num_bytes: int
    num_threads: int
    session: Any

    def embed(self, pixels: Float32[np.ndarray, "1 3 size size"]) -> Float32[np.ndarray, " dim"]:
        """The unit-norm embedding of one image."""
        embedding: Float32[np.ndarray, " dim"] = self.session.run(["embedding"], {"pixels": pixels})[0][0]
        return embedding


def load_model(path: Path, num_threads: int) -> Model:
    """Raises LabelError if the file is none of ours, or none that this onnxruntime reads."""
    session = open_session(path, num_threads)
    try:
        card = ModelCard.from_metadata(session.get_modelmeta().custom_metadata_map)
        _check_shapes(session, card)
    except ModelFileError as error:
        raise LabelError(f"model {path}: {error}") from None
    _give_back_memory()
    return Model(path=path, card=card, num_bytes=path.stat().st_size, num_threads=num_threads, session=session)


def open_session(path: Path, num_threads: int, *, exact_int8: bool = False) -> Any:
    """Any ONNX file in onnxruntime; raises LabelError.

    x86 without VNNI adds pairs of 8-bit products in 16 bits, which overflow with weights that use all of theirs. There
    it is avoided always, elsewhere with `exact_int8`, which nearly doubles the time of int8 on every x86.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise LabelError(f"label needs onnxruntime: pip install onnxruntime ({' '.join(str(error).split())})") from None
    if not path.is_file():
        raise LabelError(f"model {path}: no such file")
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.log_severity_level = _FATAL
    if exact_int8 or _lacks_vnni():
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen classes of its own, below Exception
        raise LabelError(f"model {path}: {_reason(error, onnxruntime.__version__)}") from None


def _lacks_vnni() -> bool:
    """Whether this is an x86 processor of before those that sum 8-bit products in 32 bits. False where nothing says."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and "vnni" not in flags[1]


def _give_back_memory() -> None:
    """What loading took and freed, to the system; glibc would keep it: 8 MB (int8) to 55 MB (fp32) for a B3."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _check_shapes(session: Any, card: ModelCard) -> None:
    inputs = {value.name: value.shape[1:] for value in session.get_inputs()}
    outputs = {value.name: value.shape[1:] for value in session.get_outputs()}
    size, dim = card.image_size, card.embed_dim
    if inputs != {"pixels": [3, size, size]} or outputs.get("embedding") != [dim]:
        raise ModelFileError(f"it does not take [batch, 3, {size}, {size}] and give [batch, {dim}], as its card says")


def _reason(error: Exception, version: str) -> str:
    text = " ".join(str(error).split())
    if "opset" in text.lower() or "ir_version" in text.lower() or "ir version" in text.lower():
        return f"written for a newer onnxruntime than {version}: update it (pip install --upgrade onnxruntime)"
    if type(error).__name__ in ("InvalidProtobuf", "InvalidGraph") or "No graph was found" in text:
        return "not an ONNX file, or a damaged one"
    return f"onnxruntime {version} does not load it ({text[:200]})"
