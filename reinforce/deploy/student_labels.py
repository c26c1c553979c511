"""What a student's folder says of it: the bank that its exported file carries, its teachers, what it was trained on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reinforce.config import ConfigError, ModalityConfig
from reinforce.deploy.model_file import ModelLabels
from reinforce.image_tower import STUDENT_NAME, banks_in, head_of, name_of_teacher
from reinforce.sample import RGB_MODALITY
from reinforce.shards.banks import Bank, bank_in_space, read_bank, teachers_of_bank
from reinforce.student.models import Student
from reinforce.weights import ModelError


@dataclass(frozen=True)
class StudentLabels:
    """The labels that go with a student, and the part of its embedding that compares with them."""

    labels: ModelLabels
    head: slice | None
    """None: all of it."""


def labels_for_student(folder: Path, student: Student, bank_uri: str | None) -> StudentLabels | None:
    """None if the student's folder has no bank and none is named. Raises ConfigError or FormatError, in one line.

    A student is scored by the labels of its teacher, of several by those of the first by name that the bank has: by the
    weights, as `evaluate` chooses. A bank of other weights is refused, and any bank for a student with a text tower,
    which embeds labels itself.
    """
    if bank_uri is None:
        bank_uri = _bank_of_folder(folder)
    if bank_uri is None:
        return None
    if student.has_text:
        raise ConfigError(f"--bank: {folder} has a text tower of its own; a bank is of the space of its teacher")
    teachers = recorded_teachers(folder)
    bank = _bank_of_teachers(bank_uri, teachers) if teachers else read_bank(bank_uri)
    head = None
    if student.heads:
        head = head_of(student.heads, name_of_teacher(teachers, bank.teacher, bank.weights_sha256))
    dim = student.embed_dim if head is None else head.stop - head.start
    if bank.embeddings.shape[1] != dim:
        sizes = f"{bank.embeddings.shape[1]} values a label, the student {dim} an image"
        raise ConfigError(f"--bank {bank_uri}: has {sizes}; name a bank of its teacher")
    labels = ModelLabels(
        bank=bank.name,
        teacher=bank.teacher,
        labels=bank.labels,
        embeddings=bank.embeddings,
        logit_scale=bank.logit_scale,
        logit_bias=bank.logit_bias,
        fingerprint=bank.fingerprint,
    )
    return StudentLabels(labels, head)


def _bank_of_teachers(uri: str, teachers: dict[str, str | None]) -> Bank:
    """The one of the student's weights."""
    banks = [read_bank(uri, name) for name in teachers_of_bank(uri)] or [read_bank(uri)]
    found = bank_in_space(banks, teachers.values())
    if found is None:
        names = ", ".join(bank.teacher for bank in banks)
        whose = f"its teacher {names} has" if len(banks) == 1 else f"its teachers {names} have"
        raise ConfigError(f"--bank {uri}: {whose} other weights than the student's")
    return found


def _bank_of_folder(folder: Path) -> str | None:
    found = banks_in(folder)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConfigError(f"{folder} has the banks {names}: name one with --bank {found[0]}")
    return str(found[0]) if found else None


def recorded_teachers(folder: Path) -> dict[str, str | None]:
    """Name -> sha256 of the weights, as training noted them; none for a student saved by other means."""
    return dict(_read(folder, "teachers", default={}))


def modalities_to_check(folder: Path, student: Student) -> dict[str, ModalityConfig | None]:
    """What a student takes, by name: `rgb`, unless its recipe left that out, and its modalities."""
    names = _read(folder, "recipe", "student", "data", "modalities", default=[RGB_MODALITY])
    of_rgb = {RGB_MODALITY: None} if RGB_MODALITY in names or not student.modalities else {}
    return of_rgb | student.modalities


def _read(folder: Path, *path: str, default: Any) -> Any:
    """What stands there in student.json, if anything does."""
    file = folder / STUDENT_NAME
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        for name in path:
            found = found.get(name, {})
        if not isinstance(found, type(default) | dict):
            raise TypeError
    except (ValueError, AttributeError, TypeError):
        raise ModelError(f"student {folder}: {STUDENT_NAME} is damaged") from None
    return found or default
