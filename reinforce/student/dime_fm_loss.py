"""DIME-FM's loss (arXiv 2303.18232): images and sentences that have nothing to do with one another.

The student's image tower learns to score the batch's sentences as its teacher scores them, and the batch's images as
the teacher's own embeddings of them do; the text tower is the teacher's, whose embeddings of sentences are stored.
Costs products of rows x columns x dim, gradients included: vl six of images x sentences, pvl three and udist four of
images x images. Similarities are formed a few rows at a time (`compare`), and memory grows with columns x dim.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from reinforce.config import ConfigError, LossConfig
from reinforce.image_tower import head_of
from reinforce.student.batch import Batch
from reinforce.student.compare import Gathered, compare_rows, gather, unit_norm
from reinforce.student.losses import StudentOutputs, divergence_from


class DimeFmLoss:
    """`vl_weight * L_vl + pvl_weight * L_pvl + udist_weight * L_udist + cosine_weight * (1 - cos(s, u))`.

    Of images u are the teacher's embeddings and s the student's, of sentences v the teacher's; a is `similarity_scale`.

        L_vl    = KL_1(a u v^T || a s v^T) + KL_1(a v u^T || a v s^T)
        L_pvl   = 2 KL_3(a u u^T || a s u^T)
        L_udist = 2 KL_7(a u u^T || a s s^T)

    KL_T(P || Q) is the mean over rows of KL(softmax(P / T) || softmax(Q / T)), without a factor T^2. Of several
    teachers the mean, each compared with its own head: its slice of the student's embedding. Without `gather` a process
    compares only with its own images and sentences. Holds no parameters. Raises `ConfigError` unless the student's
    embedding is as wide as all heads.
    """

    def __init__(self, config: LossConfig, teachers: dict[str, int], embed_dim: int) -> None:
        """`teachers`: the dims of those that are read, by name."""
        if sum(teachers.values()) != embed_dim:
            dims = " + ".join(f"{dim} of {name}" for name, dim in teachers.items())
            raise ConfigError(
                f"student.model.embed_dim: must be {sum(teachers.values())} for loss.kind dime_fm: {dims}"
            )
        self.teachers = tuple(teachers)
        self.signals = ", ".join(teachers)
        self._heads = teachers if len(teachers) > 1 else {}
        self._scale = config.similarity_scale
        self._gather = gather if config.gather else _own
        self._temperatures = {name: getattr(config, f"{name}_temperature") for name in ("vl", "pvl", "udist")}
        weights = {name: getattr(config, f"{name}_weight") for name in ("vl", "pvl", "udist", "cosine")}
        self._weights = {name: weight for name, weight in weights.items() if weight}

    def __call__(self, outputs: StudentOutputs, batch: Batch) -> dict[str, Tensor]:
        """`loss`, and detached its terms, each before its weight. `batch` is what `outputs` were computed from."""
        terms = {name: torch.zeros((), device=outputs.image.device) for name in self._weights}
        for teacher in self.teachers:
            student = self._gather(unit_norm(outputs.image[:, head_of(self._heads, teacher)]))
            images = self._gather(batch.teacher_images[teacher]).normalized()
            if "vl" in terms:
                terms["vl"] += self._vl(student, images, self._gather(batch.sentences[teacher]).normalized())
            if "pvl" in terms:
                terms["pvl"] += 2 * self._divergence("pvl", student.local, images.all, images, images)
            if "udist" in terms:
                terms["udist"] += 2 * self._divergence("udist", student.local, student.all, images, images)
            if "cosine" in terms:
                terms["cosine"] += 1 - (student.local * images.local).sum(1).mean()
        terms = {name: term / len(self.teachers) for name, term in terms.items()}
        loss = torch.stack([weight * terms[name] for name, weight in self._weights.items()]).sum()
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def _vl(self, student: Gathered, images: Gathered, sentences: Gathered) -> Float[Tensor, ""]:
        of_images = self._divergence("vl", student.local, sentences.all, images, sentences)
        return of_images + self._divergence("vl", sentences.local, student.all, sentences, images)

    def _divergence(
        self, term: str, rows: Tensor, columns: Tensor, teacher_rows: Gathered, teacher_columns: Gathered
    ) -> Float[Tensor, ""]:
        """KL_T of this process's rows against columns, where the teacher has its own in the places of the student's."""
        scale = self._scale / self._temperatures[term]
        compare = divergence_from([(teacher_rows.local, teacher_columns.all, scale)])
        return compare_rows(rows, columns, torch.tensor(scale, device=rows.device), compare)


def _own(local: Tensor) -> Gathered:
    """As if this process were the only one."""
    return Gathered(local, local)
