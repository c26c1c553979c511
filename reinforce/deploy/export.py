"""A student's image tower as an ONNX file: normalised pixels in, unit-norm embeddings out, batches of any size.

Branches that only training needs are folded first where the backbone has them (FastViT, MobileOne, RepVGG). The file
is there only if onnxruntime gave PyTorch's embeddings with it. Three seconds for a tiny network, about twenty for a
MobileCLIP, on one core. Needs the extra `edge`.
"""

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from timm.utils.model import reparameterize_model
from torch import Tensor

from reinforce.student.models import Student, load_student
from reinforce.weights import ModelError

MIN_COSINE = 0.9999
"""Least agreement of an exported file's embeddings with PyTorch's."""

_MIN_OPSET = 18
"""The exporter writes this where less is asked for."""
_NUM_NOISE_IMAGES = 8
_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written, and how well it agrees with PyTorch over `num_images` images, each also in a batch of one.

    `num_folded_parameters` are those that went with training's branches; 0 where the backbone has none.
    """

    output: Path
    num_bytes: int
    opset: int
    image_size: int
    embed_dim: int
    num_parameters: int
    num_folded_parameters: int
    num_images: int
    min_cosine: float


class _UnitNorm(torch.nn.Module):
    def __init__(self, visual: torch.nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        return torch.nn.functional.normalize(self.visual(pixels), dim=-1)


def export_onnx(
    student_folder: Path | str,
    output: Path | str,
    *,
    opset: int = 18,
    images: UInt8[np.ndarray, "images size size 3"] | None = None,
) -> ExportReport:
    """Writes `output`, replacing an earlier one; `images` are clean views to check it with, by default smooth noise.

    Its input `pixels` is float32 [batch, 3, size, size], normalised with the `mean` and `std` that the file's metadata
    record; its output `embedding` is float32 [batch, dim]. Raises ModelError, with nothing written, if the student is
    none or has an operation that ONNX lacks, or if any embedding's cosine to PyTorch's is below 0.9999.
    """
    output = Path(output)
    _check_request(output, opset)
    student = load_student(student_folder)
    tower, folded = _UnitNorm(student.model.visual).eval(), _UnitNorm(reparameterize_model(student.model.visual)).eval()
    pixels = _normalised(_noise_images(student.image_size) if images is None else images, student)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        _write_onnx(folded, student, temporary, opset)
        min_cosine = _min_cosine(tower, temporary, pixels)
        if not min_cosine >= MIN_COSINE:  # NaN too
            raise ModelError(
                f"export {student_folder}: the ONNX file and PyTorch agree to a cosine of {min_cosine:.6f} at worst, "
                f"less than {MIN_COSINE}; nothing was written"
            )
        _sync(temporary)
        num_bytes = temporary.stat().st_size
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    return ExportReport(
        output=output,
        num_bytes=num_bytes,
        opset=opset,
        image_size=student.image_size,
        embed_dim=student.embed_dim,
        num_parameters=_num_parameters(folded),
        num_folded_parameters=_num_parameters(tower) - _num_parameters(folded),
        num_images=len(pixels),
        min_cosine=min_cosine,
    )


def _check_request(output: Path, opset: int) -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ModelError(f"export needs {', '.join(missing)}: pip install {' '.join(missing)}")
    if opset < _MIN_OPSET:
        raise ModelError(f"export: opset must be at least {_MIN_OPSET}, not {opset}")
    if output.is_dir() or not output.parent.is_dir():
        raise ModelError(f"export: {output} is a folder or in none; name a file in a folder that exists")


def _write_onnx(tower: torch.nn.Module, student: Student, path: Path, opset: int) -> None:
    example = torch.zeros(2, 3, student.image_size, student.image_size)
    try:
        with _quiet():
            program = torch.onnx.export(
                tower,
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=["pixels"],
                output_names=["embedding"],
                dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            )
            assert program is not None
            _forget_origin(program.model)
            program.model.metadata_props.update(_metadata(student))
            program.save(path, external_data=False)
    except Exception as error:  # the exporter raises whatever its passes met; its own text runs over pages
        cause = next(iter(str(error.__cause__ or error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"export: this backbone does not go into ONNX with opset {opset} ({cause[:300]})") from None


def _forget_origin(model: Any) -> None:
    """Drops what the exporter notes of every node: stack traces with this machine's paths, a fifth of a small file."""
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    assert not model.functions, "an exported tower with functions of its own, whose nodes have origins too"


def _metadata(student: Student) -> dict[str, str]:
    """What whoever feeds the file has to know."""
    return {
        "mean": json.dumps(student.mean),
        "std": json.dumps(student.std),
        "resize": "shortest side to the size, bicubic and antialiased, then the centre",
    }


def _min_cosine(tower: torch.nn.Module, path: Path, pixels: Float32[Tensor, "images 3 size size"]) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = tower(pixels).double().numpy()
    together = session.run(["embedding"], {"pixels": pixels.numpy()})[0]
    alone = [session.run(["embedding"], {"pixels": image[None].numpy()})[0] for image in pixels]
    cosines = [(expected * found).sum(axis=1).min() for found in (together, np.concatenate(alone))]
    return float(np.min(cosines))


def _noise_images(size: int) -> UInt8[np.ndarray, "images size size 3"]:
    """Smooth coloured noise of several grains: as bright and as contrasted as photographs, and the same every time."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for index in range(_NUM_NOISE_IMAGES):
        side = min(size, 4 << (index % 4))
        coarse = torch.rand(1, 3, side, side, generator=generator) * 255
        smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
        images.append(smooth + 8 * torch.randn(1, 3, size, size, generator=generator))
    return np.asarray(torch.cat(images).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


def _normalised(
    images: UInt8[np.ndarray, "images size size 3"], student: Student
) -> Float32[Tensor, "images 3 size size"]:
    size = student.image_size
    if images.shape[1:] != (size, size, 3) or not len(images):
        raise ValueError(f"images to check with must be [n, {size}, {size}, 3], not {list(images.shape)}")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (student.mean, student.std))
    return ((torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std).contiguous()


def _num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes and warnings: what it got wrong, the comparison shows."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
