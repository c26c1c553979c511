"""A student's image tower as one ONNX file that says all that is needed to use it, checked before it is there.

The file is there only if onnxruntime gave PyTorch's embeddings with it, to the bounds below. Three seconds for a tiny
network, about twenty for a MobileCLIP, on one core; int8 takes a pass of the calibration images besides. Needs the
extra `edge`.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils.model import reparameterize_model

from reinforce.config import ConfigError
from reinforce.deploy.agreement import Agreement, compare
from reinforce.deploy.graph import MIN_OPSET, UnitNorm, check_packages, tower_to_onnx
from reinforce.deploy.images import ChosenImages, NormalisedImages, choose_images, noise_images
from reinforce.deploy.model_file import ModelCard, ModelLabels, ModelModality
from reinforce.deploy.quantize import Target, quantize_tower
from reinforce.deploy.structure import check_structure
from reinforce.deploy.student_labels import labels_for_student, modalities_to_check
from reinforce.image_tower import WEIGHTS_NAME
from reinforce.sample import RGB_MODALITY
from reinforce.software import versions
from reinforce.student.models import Student, load_student
from reinforce.weights import ModelError, check_sha256

MIN_COSINE = 0.9999
"""Least agreement of any embedding of an fp32 file with PyTorch's."""
MIN_MEAN_COSINE_INT8 = 0.98
"""Least agreement of the embeddings of an int8 file with PyTorch's, on average."""
MIN_TOP1_INT8 = 0.8
"""Least part of the images to which an int8 file gives PyTorch's label; for a file with labels."""

_PACKAGES = ("torch", "open_clip_torch", "timm", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written, and how well it agrees with PyTorch.

    `num_folded_parameters` are those that went with training's branches; 0 where the backbone has none. `drops` counts
    by reason the samples that were chosen and could not be used. Numbers are of images of each modality.
    """

    output: Path
    num_bytes: int
    opset: int
    card: ModelCard
    num_parameters: int
    num_folded_parameters: int
    agreements: dict[str, Agreement]
    """By modality; of noise under the name of the first."""
    num_calibration_images: int
    num_wanted: int
    """Samples to check and calibrate with; the shards may hold fewer that can be used."""
    is_checked_with_noise: bool
    drops: Counter[str]


def export_onnx(
    student_folder: Path | str,
    output: Path | str,
    *,
    target: Target | None = None,
    shards: Sequence[str] = (),
    bank: str | None = None,
    num_images: int = 256,
    num_calibration_images: int = 512,
    seed: int = 0,
    opset: int = 18,
) -> ExportReport:
    """Writes `output`, replacing an earlier one; the same student and images give the same bytes.

    In int8 for a `target`, else in fp32. Checked with `num_images` images of `shards`, by default with smooth noise;
    int8 is calibrated with `num_calibration_images` others, and needs `shards`. A student of several modalities is
    checked and calibrated with as many images of each. The labels of `bank`, by default of the bank in the student's
    folder, go with it; of a student of several teachers the embedding is then the head of the bank's. Its input, output
    and metadata are those of `ModelCard`. Raises ModelError, with nothing written, if the student is none or has an
    operation that ONNX lacks, or if it disagrees with PyTorch on images of any modality; ConfigError or FormatError for
    shards or a bank that do not serve.
    """
    student_folder, output = Path(student_folder), Path(output)
    check_request(output, opset)
    if target is not None and not shards:
        raise ConfigError("export --int8: pass --shards with images like those to come; noise calibrates nothing")
    student = load_student(student_folder)
    found = labels_for_student(student_folder, student, bank)
    labels, head = (found.labels, found.head) if found else (None, None)
    modalities = modalities_to_check(student_folder, student)
    num_others = num_calibration_images if target else 0
    chosen = ChosenImages({next(iter(modalities)): noise_images(student.image_size)})
    if shards:
        chosen = choose_images(shards, student.image_size, num_images + num_others, seed, modalities)
    num_checked = chosen.num_samples * num_images // (num_images + num_others) if shards else chosen.num_samples
    calibration = _calibration_images(student, chosen, num_checked) if target else None
    visual = student.model.visual
    tower, folded = UnitNorm(visual, head).eval(), UnitNorm(reparameterize_model(visual), head).eval()
    model = tower_to_onnx(folded, student.image_size, opset)
    if target is not None and calibration is not None:
        model = quantize_tower(model, calibration, target)
        check_structure(model, target)
    checked = {name: NormalisedImages(images[:num_checked], student) for name, images in chosen.images.items()}
    agreements = {name: compare(tower, model.SerializeToString(), pixels, labels) for name, pixels in checked.items()}
    _check_agreements(agreements, labels, target, f"export {student_folder}")
    about = {"takes_rgb": RGB_MODALITY in modalities, "is_checked_with_noise": not shards}
    card = _card(student_folder, student, target, labels, agreements, **about)
    return ExportReport(
        output=output,
        num_bytes=write_file(model, card.to_metadata(), output),
        opset=opset,
        card=card,
        num_parameters=_num_parameters(folded),
        num_folded_parameters=_num_parameters(tower) - _num_parameters(folded),
        agreements=agreements,
        num_calibration_images=chosen.num_samples - num_checked,
        num_wanted=num_images + num_others,
        is_checked_with_noise=not shards,
        drops=chosen.drops,
    )


def _calibration_images(student: Student, chosen: ChosenImages, num_checked: int) -> NormalisedImages:
    """Those of all modalities that are not checked with."""
    if not 0 < num_checked < chosen.num_samples:
        few = f"{chosen.num_samples} images, too few to calibrate and to check with"
        raise ConfigError(f"export --int8: --shards give {few}")
    others = [images[num_checked:] for images in chosen.images.values()]
    # As many bytes again, which a student of one modality need not have.
    return NormalisedImages(np.concatenate(others) if len(others) > 1 else others[0], student)


def check_request(output: Path, opset: int) -> None:
    """Raises ModelError, before anything is loaded, for what cannot be written."""
    check_packages()
    if opset < MIN_OPSET:
        raise ModelError(f"export: opset must be at least {MIN_OPSET}, not {opset}")
    if output.is_dir() or not output.parent.is_dir():
        raise ModelError(f"export: {output} is a folder or in none; name a file in a folder that exists")


def _check_agreements(
    agreements: dict[str, Agreement], labels: ModelLabels | None, target: Target | None, where: str
) -> None:
    """Raises ModelError if one is too little; NaN is."""
    for modality, agreement in agreements.items():
        if target is None:
            checks = [("cosine at worst", agreement.min_cosine, MIN_COSINE)]
        else:
            checks = [("cosine on average", agreement.mean_cosine, MIN_MEAN_COSINE_INT8)]
            checks += [("part of images with the same nearest label", agreement.top1, MIN_TOP1_INT8)] if labels else []
        for name, found, least in checks:
            if not found >= least:
                kind = f"the int8 file for {target}" if target else "the ONNX file"
                on = f" on {modality} images" if len(agreements) > 1 else ""
                raise ModelError(
                    f"{where}: {kind} and PyTorch agree{on} to a {name} of {found:.6f}, less than {least}; "
                    "nothing was written"
                )


def _card(
    folder: Path,
    student: Student,
    target: Target | None,
    labels: ModelLabels | None,
    agreements: dict[str, Agreement],
    *,
    takes_rgb: bool,
    is_checked_with_noise: bool,
) -> ModelCard:
    of_images = {name: asdict(agreement) for name, agreement in agreements.items()}
    of_modalities = {} if is_checked_with_noise else of_images
    modalities = {
        name: ModelModality(suffix=modality.suffix, range=modality.range, agreement=of_modalities.get(name, {}))
        for name, modality in student.modalities.items()
    }
    return ModelCard(
        image_size=student.image_size,
        mean=student.mean,
        std=student.std,
        embed_dim=labels.embeddings.shape[1] if labels else student.embed_dim,
        precision="int8" if target else "fp32",
        target=target,
        student_sha256=check_sha256([folder / WEIGHTS_NAME], None),
        software=versions(*_PACKAGES),
        agreement=next(iter(of_images.values())),
        labels=labels,
        modalities=modalities,
        takes_rgb=takes_rgb,
    )


def write_file(model: Any, metadata: dict[str, str], output: Path) -> int:
    """Puts the file there whole or not at all; its size in bytes."""
    del model.metadata_props[:]
    for key, value in metadata.items():
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
