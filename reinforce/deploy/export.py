"""A student's image tower as one ONNX file that says all that is needed to use it, checked before it is there.

The file is there only if onnxruntime gave PyTorch's embeddings with it, to the bounds below. Three seconds for a tiny
network, about twenty for a MobileCLIP, on one core; int8 takes a pass of the calibration images besides. Needs the
extra `edge`.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from timm.utils.model import reparameterize_model
from torch import Tensor

from reinforce.deploy.agreement import Agreement, compare
from reinforce.deploy.graph import MIN_OPSET, UnitNorm, check_packages, tower_to_onnx
from reinforce.deploy.images import choose_images, noise_images, normalised
from reinforce.deploy.model_file import ModelCard, ModelLabels
from reinforce.deploy.student_labels import labels_for_student
from reinforce.student.blueprint import WEIGHTS_NAME
from reinforce.student.models import Student, load_student
from reinforce.weights import ModelError, check_sha256

MIN_COSINE = 0.9999
"""Least agreement of any embedding of an fp32 file with PyTorch's."""

_PACKAGES = ("reinforce-datasets", "torch", "open_clip_torch", "timm", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written, and how well it agrees with PyTorch.

    `num_folded_parameters` are those that went with training's branches; 0 where the backbone has none. `drops` counts
    by reason the images that were chosen and could not be used.
    """

    output: Path
    num_bytes: int
    opset: int
    card: ModelCard
    num_parameters: int
    num_folded_parameters: int
    agreement: Agreement
    is_checked_with_noise: bool
    drops: Counter[str]


def export_onnx(
    student_folder: Path | str,
    output: Path | str,
    *,
    shards: Sequence[str] = (),
    bank: str | None = None,
    num_images: int = 256,
    seed: int = 0,
    opset: int = 18,
) -> ExportReport:
    """Writes `output`, replacing an earlier one; the same student and images give the same bytes.

    Checked with `num_images` images of `shards`, by default with smooth noise. The labels of `bank`, by default of the
    bank in the student's folder, go with it. Its input, output and metadata are those of `ModelCard`. Raises
    ModelError, with nothing written, if the student is none or has an operation that ONNX lacks, or if it disagrees
    with PyTorch; ConfigError or FormatError for shards or a bank that do not serve.
    """
    student_folder, output = Path(student_folder), Path(output)
    _check_request(output, opset)
    student = load_student(student_folder)
    labels = labels_for_student(student_folder, student, bank)
    images, drops = noise_images(student.image_size), Counter[str]()
    if shards:
        chosen = choose_images(shards, student.image_size, num_images, seed)
        images, drops = chosen.images, chosen.drops
    pixels = normalised(images, student)
    tower, folded = UnitNorm(student.model.visual).eval(), UnitNorm(reparameterize_model(student.model.visual)).eval()
    model = tower_to_onnx(folded, student.image_size, opset)
    agreement = _checked(tower, model, pixels, labels, f"export {student_folder}")
    card = _card(student_folder, student, agreement, labels)
    num_bytes = _write(model, card, output)
    return ExportReport(
        output=output,
        num_bytes=num_bytes,
        opset=opset,
        card=card,
        num_parameters=_num_parameters(folded),
        num_folded_parameters=_num_parameters(tower) - _num_parameters(folded),
        agreement=agreement,
        is_checked_with_noise=not shards,
        drops=drops,
    )


def _check_request(output: Path, opset: int) -> None:
    check_packages()
    if opset < MIN_OPSET:
        raise ModelError(f"export: opset must be at least {MIN_OPSET}, not {opset}")
    if output.is_dir() or not output.parent.is_dir():
        raise ModelError(f"export: {output} is a folder or in none; name a file in a folder that exists")


def _checked(
    tower: torch.nn.Module,
    model: Any,
    pixels: Float32[Tensor, "images 3 size size"],
    labels: ModelLabels | None,
    where: str,
) -> Agreement:
    agreement = compare(tower, model.SerializeToString(), pixels, labels)
    if not agreement.min_cosine >= MIN_COSINE:  # NaN too
        raise ModelError(
            f"{where}: the ONNX file and PyTorch agree to a cosine of {agreement.min_cosine:.6f} at worst, "
            f"less than {MIN_COSINE}; nothing was written"
        )
    return agreement


def _card(folder: Path, student: Student, agreement: Agreement, labels: ModelLabels | None) -> ModelCard:
    return ModelCard(
        image_size=student.image_size,
        mean=student.mean,
        std=student.std,
        embed_dim=student.embed_dim,
        precision="fp32",
        target=None,
        student_sha256=check_sha256([folder / WEIGHTS_NAME], None),
        software={name: version(name) for name in _PACKAGES},
        agreement=asdict(agreement),
        labels=labels,
    )


def _write(model: Any, card: ModelCard, output: Path) -> int:
    """Puts the file there whole or not at all; its size in bytes."""
    del model.metadata_props[:]
    for key, value in card.to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    content: bytes = model.SerializeToString(deterministic=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    return len(content)


def _num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
