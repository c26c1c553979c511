"""The weights of a run's best evaluation, in a file beside its checkpoint until there is a better one.

A checkpoint says which file is its best, and no file is removed before a later checkpoint is whole: whoever kills the
process at any moment leaves a run that goes on to the same choice.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from reinforce.config import ConfigError
from reinforce.student.models import Student
from reinforce.student.tensors import save_tensors


@dataclass(frozen=True)
class Best:
    """An evaluation: after which step, what it found (`top1` and more), and on what."""

    step: int
    figures: dict[str, float]
    evaluation: dict[str, Any]
    """What must be the same for its figures to be compared with."""

    @property
    def path(self) -> str:
        return f"best-{self.step}.safetensors"

    def headline(self) -> str:
        """The step and the figure it was chosen by, with that of each modality if they are several."""
        each = {name.removeprefix("top1_"): top1 for name, top1 in self.figures.items() if name.startswith("top1_")}
        names = ", ".join(f"{name} {top1:.3f}" for name, top1 in each.items())
        return f"step {self.step:,}, top1 {self.figures['top1']:.3f}" + (f" ({names})" if len(each) > 1 else "")

    def describe(self) -> dict[str, Any]:
        """For the student's provenance."""
        return {"step": self.step, "by": "top1", **self.figures}


class BestWeights:
    """Keeps the better of what it is offered, in `folder`; the first process of a run has one that does."""

    def __init__(self, folder: Path, kept: Best | None = None) -> None:
        """`kept` is what a checkpoint says; raises `ConfigError` if its file is gone."""
        if kept is not None and not (folder / kept.path).is_file():
            raise ConfigError(f"--resume: {folder / kept.path} is gone, the best weights so far; begin anew without it")
        self.folder = folder
        self.kept = kept
        self._of_checkpoint = kept

    def offer(self, found: Best, student: Student) -> None:
        """Keeps the student's weights as they are now if `found` is better; of equal ones the earlier stays."""
        kept = self.kept
        if kept is not None and kept.evaluation == found.evaluation and kept.figures["top1"] >= found.figures["top1"]:
            return
        weights = {
            name: tensor.detach().cpu().clone().contiguous() for name, tensor in student.model.state_dict().items()
        }
        path = self.folder / found.path
        partial = path.with_name(f"{path.name}.partial")
        save_tensors(weights, partial, metadata={"step": str(found.step)})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        if kept is not None and kept != self._of_checkpoint:
            (self.folder / kept.path).unlink(missing_ok=True)
        self.kept = found

    def sweep(self) -> None:
        """Removes the files of others, once a checkpoint names the one that is kept."""
        self._of_checkpoint = self.kept
        for path in self.folder.iterdir():
            is_kept = self.kept is not None and path.name == self.kept.path
            if re.fullmatch(r"best-\d+\.safetensors(\.partial)?", path.name) and not is_kept:
                path.unlink()

    def put_into(self, student: Student) -> None:
        """Gives the student the weights that were kept; raises `ConfigError` if there are none."""
        if self.kept is None:
            raise ConfigError(
                "student.evaluation.choose: the steps were taken without best, and no weights were kept; set it to last"
            )
        path = self.folder / self.kept.path
        try:
            student.model.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError, OSError) as error:
            raise ConfigError(
                f"{path}: not the weights of this student ({' '.join(str(error).split())[:100]})"
            ) from None
