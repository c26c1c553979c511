"""How good a student is while it is trained: zero-shot classification by its own texts, or by a bank of its teacher."""

from dataclasses import dataclass

import torch

from reinforce.config import ConfigError, StudentConfig
from reinforce.evaluation import EmbeddingModel, ZeroShotResult, ZeroShotTask
from reinforce.shards.banks import Bank
from reinforce.student.models import Student


@dataclass(frozen=True)
class Examination:
    """What the recipe's `evaluation` asks for; its files are read once."""

    task: ZeroShotTask
    bank: Bank | None

    def of(self, student: Student, device: torch.device) -> ZeroShotResult:
        """One pass over the images by a student that is on `device`; it is left as it was."""
        return self.task.evaluate(embedding_model(student, device), self.bank)


def prepare_examination(config: StudentConfig, bank: Bank | None) -> Examination | None:
    """None if the recipe asks for none; `bank` is what it names. Raises `ConfigError`."""
    evaluation = config.evaluation
    if evaluation is None:
        return None
    if config.model.backbone and config.model.text is None and bank is None:
        raise ConfigError("student.evaluation.bank: a student without a text tower is evaluated by a bank; name one")
    task = ZeroShotTask(list(evaluation.shards), select=evaluation.select, templates=evaluation.templates)
    if bank is not None:
        task.check(bank)
    return Examination(task, bank)


def embedding_model(student: Student, device: torch.device) -> EmbeddingModel:
    """The student, which is on `device`, as evaluation sees it."""
    return EmbeddingModel(
        name="student",
        module=student.model,
        encode_image=student.model.encode_image,
        encode_text=student.model.encode_text if student.has_text else None,
        tokenize=student.tokenizer,
        image_size=student.image_size,
        mean=student.mean,
        std=student.std,
        device=device,
    )
