"""What a labelling student is trained on: its teacher's embedding of the very view, and how that scores a bank.

In the style of Clip4Retrofit (arXiv 2505.18039), whose own loss is not published; the direction of the divergence is
DIME-FM's (arXiv 2303.18232). Every row stands for itself: nothing is gathered, and parts and processes are exact. Costs
one product of rows x labels x dim for the student and one for the teacher, and memory of rows x labels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from reinforce.config import LossConfig
from reinforce.shards.banks import Bank
from reinforce.student.batch import Batch
from reinforce.student.compare import unit_norm
from reinforce.student.losses import StudentOutputs, the_one_teacher


class LabelLoss:
    """`(1 - cos(s, u)) + bank_weight * KL(softmax(bank_scale * u V) || softmax(bank_scale * s V))`, mean over rows.

    s is the student's embedding of a view, u the teacher's, V the bank's, if there is one. Raises `ConfigError` unless
    there is one teacher, of the student's dim. Holds no parameters; the bank is on the device where it was used last.
    """

    def __init__(self, config: LossConfig, teachers: dict[str, int], embed_dim: int, bank: Bank | None) -> None:
        """`teachers`: the dims of those that are read, by name."""
        self.teacher = the_one_teacher("clip4retrofit", teachers, embed_dim)
        self.bank_scale = config.bank_scale
        self.signals = self.teacher
        if config.bank_weight and bank is not None:
            self.signals += f", {len(bank.labels):,} labels of its bank {bank.name} at scale {config.bank_scale:.4g}"
        self._weights = {"cosine": 1.0} | ({"bank": config.bank_weight} if config.bank_weight else {})
        assert bank is not None or "bank" not in self._weights
        self._labels: Float[Tensor, "dim labels"] | None = (
            torch.from_numpy(bank.embeddings).T.contiguous() if bank is not None else None
        )

    def __call__(self, outputs: StudentOutputs, batch: Batch) -> dict[str, Tensor]:
        """`loss`, and detached its terms, each before its weight. `batch` is what `outputs` were computed from."""
        with torch.autocast(outputs.image.device.type, enabled=False):
            student, teacher = outputs.image.float(), unit_norm(batch.teacher_images[self.teacher])
            terms = {"cosine": 1 - (student * teacher).sum(1).mean()}
            if "bank" in self._weights:
                terms["bank"] = self._divergence(student, teacher)
        loss = torch.stack([weight * terms[name] for name, weight in self._weights.items()]).sum()
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def _divergence(self, student: Float[Tensor, "batch dim"], teacher: Float[Tensor, "batch dim"]) -> Tensor:
        assert self._labels is not None
        self._labels = self._labels.to(student.device)
        found, wanted = (F.log_softmax(self.bank_scale * rows @ self._labels, dim=1) for rows in (student, teacher))
        return F.kl_div(found, wanted, reduction="batchmean", log_target=True)
