"""Teachers: models that embed images and texts into one space.

open_clip and transformers models look alike from here on: views of the teacher's own size in, unit-norm rows out. A
`Teacher` is loaded from a recipe by `load_teacher`; `FakeTeacher` stands in for one in tests.
"""

import torch

from reinforce.config import TeacherConfig
from reinforce.teachers.clip import ClipTeacher
from reinforce.teachers.fake import FakeTeacher
from reinforce.teachers.loading import load_clip
from reinforce.teachers.recorded import recorded_config
from reinforce.teachers.teacher import Teacher, TokenizedText
from reinforce.weights import ModelError

__all__ = ["ClipTeacher", "FakeTeacher", "Teacher", "TokenizedText", "load_teacher", "recorded_config"]


def load_teacher(
    name: str, config: TeacherConfig, *, device: torch.device, batch_size: int, compiled: bool = False
) -> Teacher:
    """Loads a teacher of a recipe; raises `ModelError` with its name in the recipe.

    `compiled`: its image tower is compiled before this returns, at the size of the micro-batch.
    """
    try:
        return ClipTeacher(name, config, load_clip(config), device=device, batch_size=batch_size, compiled=compiled)
    except ModelError as error:
        raise type(error)(f"build.teachers.{name}: {error}") from None
