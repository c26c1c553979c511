"""How good a student is while it is trained: zero-shot classification by its own texts, or by a bank of its teacher."""

from collections import Counter
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from reinforce.config import ConfigError, ModalityConfig, StudentConfig
from reinforce.evaluation import EmbeddingModel, ZeroShotResult, ZeroShotTask
from reinforce.evaluation.examples import Example
from reinforce.evaluation.images import CACHE_BYTES, ShardImages
from reinforce.formatting import format_counts
from reinforce.image_tower import head_of
from reinforce.sample import RGB_MODALITY, DropReason, NullReason
from reinforce.shards.banks import Bank
from reinforce.student.models import Student

_SIZE_OF_CHECK = 8
"""Pixels: images are looked at, not kept."""


@dataclass(frozen=True)
class Examination:
    """What the recipe's `evaluation` asks for, a task for each modality in use; its files are read once."""

    tasks: dict[str, ZeroShotTask]
    bank: Bank | None

    def of(self, student: Student, device: torch.device) -> dict[str, ZeroShotResult]:
        """One pass over the images of each modality by a student that is on `device`; it is left as it was."""
        model = embedding_model(student, device, self.bank.teacher if self.bank else None)
        return {name: task.evaluate(model, self.bank) for name, task in self.tasks.items()}


def figures_of(results: dict[str, ZeroShotResult]) -> dict[str, float]:
    """`top1` and `auroc`, the means over modalities; unless RGB is the only one, also `top1_NAME` and `auroc_NAME`."""
    figures = {}
    for figure in ("top1", "auroc"):
        values = {name: getattr(result, figure) for name, result in results.items()}
        known = {f"{figure}_{name}": value for name, value in values.items() if value is not None}
        if known:
            figures[figure] = sum(known.values()) / len(known)
            figures |= known if results.keys() != {RGB_MODALITY} else {}
    return figures


def prepare_examination(
    config: StudentConfig, bank: Bank | None, modalities: dict[str, ModalityConfig]
) -> Examination | None:
    """None if the recipe asks for none; `bank` is what it names, `modalities` those besides RGB.

    Raises `ConfigError`, also if a modality has no image that can be used: a run would end at its first evaluation.
    """
    evaluation = config.evaluation
    if evaluation is None:
        return None
    if config.model.text is None and bank is None:
        raise ConfigError("student.evaluation.bank: a student without a text tower is evaluated by a bank; name one")
    names = config.data.modalities
    tasks = {
        name: ZeroShotTask(
            list(evaluation.shards),
            select=evaluation.select,
            templates=evaluation.templates,
            cache_bytes=CACHE_BYTES // len(names),
            modality=modalities.get(name),
        )
        for name in names
    }
    if bank is not None:
        tasks[names[0]].check(bank)
    for name, task in tasks.items():
        _check_images(task.images, name, modalities.get(name))
    return Examination(tasks, bank)


def _check_images(images: ShardImages, name: str, modality: ModalityConfig | None) -> None:
    """Looks for the first image that can be used; raises `ConfigError` if there is none."""
    reasons = Counter[str]()
    with closing(images.examples(_SIZE_OF_CHECK)) as examples:
        for example in examples:
            if isinstance(example, Example):
                return
            reasons[example.reason] += 1
    if reasons.keys() == {DropReason.NOT_SELECTED}:
        raise ConfigError(f"student.evaluation.select: none of its keys is in the shards of {images.root}")
    reasons.pop(DropReason.NOT_SELECTED, None)
    if modality is not None and reasons.keys() == {NullReason.NO_MODALITY}:
        raise ConfigError(
            f"student.evaluation.shards: no sample of {images.root} has a {name} image (.{modality.suffix}); name "
            "shards that have them"
        )
    why = format_counts(reasons) or "they hold no sample"
    raise ConfigError(f"student.evaluation.shards: no {name} image of {images.root} can be used ({why}); name others")


def embedding_model(student: Student, device: torch.device, teacher: str | None = None) -> EmbeddingModel:
    """The student, which is on `device`, as evaluation sees it; of several heads that of `teacher`."""
    head = head_of(student.heads, teacher) if teacher else slice(None)

    def encode_image(pixels: Tensor) -> Tensor:
        embedded: Tensor = student.model.encode_image(pixels)
        return embedded[:, head]

    return EmbeddingModel(
        name="student",
        module=student.model,
        encode_image=encode_image,
        encode_text=student.model.encode_text if student.has_text else None,
        tokenize=student.tokenizer,
        image_size=student.image_size,
        mean=student.mean,
        std=student.std,
        device=device,
    )
