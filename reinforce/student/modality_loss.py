"""The loss of EdgeVL's first stage (arXiv 2403.04908): every modality is to embed as the teacher embedded the RGB one.

One student for all of them; the teacher's embedding is that of the very view, of its RGB image. Every row stands for
itself: nothing is gathered, and parts and processes are exact. Costs nothing beside the student's passes, one a
modality.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from reinforce.student.batch import Batch
from reinforce.student.compare import unit_norm
from reinforce.student.losses import StudentOutputs, the_one_teacher


class ModalityLoss:
    """The sum over modalities of |u - s|, mean over rows and dims.

    s is the student's embedding of a modality's view, u the teacher's of that view of the RGB image. Raises
    `ConfigError` unless there is one teacher, of the student's dim. Holds no parameters.
    """

    def __init__(self, teachers: dict[str, int], embed_dim: int, modalities: Sequence[str]) -> None:
        """`teachers`: the dims of those that are read, by name. `modalities`: those of the run, in its order."""
        self.teacher = the_one_teacher("edgevl", teachers, embed_dim)
        self.signals = f"{self.teacher} for {', '.join(modalities)}"
        self._first = modalities[0]

    def __call__(self, outputs: StudentOutputs, batch: Batch) -> dict[str, Tensor]:
        """`loss`, and detached its terms, one a modality. `batch` is what `outputs` were computed from."""
        with torch.autocast(outputs.image.device.type, enabled=False):
            teacher = unit_norm(batch.teacher_images[self.teacher])
            embedded = {self._first: outputs.image, **outputs.modalities}
            terms = {name: (teacher - rows.float()).abs().mean() for name, rows in embedded.items()}
        loss = torch.stack(list(terms.values())).sum()
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}
