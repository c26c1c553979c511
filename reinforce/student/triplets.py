"""What a student is trained on in EdgeVL's second stage (arXiv 2403.04908): its own triplets, without a teacher.

Costs next to nothing beside the tower, through which go `2 + num_negatives` views of every modality an anchor.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from reinforce.config import LossConfig
from reinforce.student.batch import Batch
from reinforce.student.losses import StudentOutputs, the_one_teacher


class TripletLoss:
    """`max(0, |a - p| - |a - n| + margin)`, mean over an anchor's negatives and over anchors, summed over modalities.

    a, p and n are unit-norm embeddings of the same samples in every modality. A batch's rows are in this order: all
    anchors, their positives, then the first negative of every anchor, the second of every anchor, and so on. Raises
    `ConfigError` unless there is one teacher, of the student's dim. Holds no parameters.
    """

    def __init__(self, config: LossConfig, teachers: dict[str, int], embed_dim: int, modalities: Sequence[str]) -> None:
        """`teachers`: the dims of those that are read, by name. `modalities`: those of the run, in its order."""
        self._margin = config.margin
        self._num_negatives = config.num_negatives
        self._first = modalities[0]
        teacher = the_one_teacher("triplet", teachers, embed_dim)
        self.signals = f"{teacher}, as labels of bank {config.bank}, for {', '.join(modalities)}"

    def __call__(self, outputs: StudentOutputs, batch: Batch) -> dict[str, Tensor]:
        """`loss`, and detached its terms, by modality."""
        with torch.autocast(outputs.image.device.type, enabled=False):
            embeddings = {self._first: outputs.image, **outputs.modalities}
            terms = {name: self._of_modality(rows.float()) for name, rows in embeddings.items()}
        loss = torch.stack(list(terms.values())).sum()
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def _of_modality(self, rows: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        anchors, positives, *negatives = rows.chunk(2 + self._num_negatives)
        to_positives = torch.linalg.vector_norm(anchors - positives, dim=1)
        to_negatives = torch.linalg.vector_norm(anchors - torch.stack(negatives), dim=2)
        excess: Tensor = to_positives - to_negatives + self._margin
        return excess.clamp_min(0).mean()
