"""What a student is trained on: contrastive, affinity and feature losses over the global batch.

A process compares only its own rows with the columns of all processes, so the mean of the processes' losses is that of
the global batch. Similarities are formed a few rows at a time, in fp32, and their gradients in the same pass: nothing
of size rows x columns is kept for backward (`compare`). A direction costs three products of rows x columns x dim, and
one more for each teacher; memory grows with columns x dim.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from reinforce.config import ConfigError, LossConfig
from reinforce.student.batch import Batch
from reinforce.student.compare import BLOCK_ROWS, Compare, Gathered, compare_rows, gather, unit_norm

_HASH_BASE = 6364136223846793005  # odd and 5 modulo 8: its powers repeat as late as they can modulo 2**64


def contrastive_loss(
    image: Gathered,
    text: Gathered,
    logit_scale: Float[Tensor, ""],
    *,
    caption_ids: Gathered | None = None,
    image_ids: Gathered | None = None,
    block_rows: int = BLOCK_ROWS,
) -> Float[Tensor, ""]:
    """InfoNCE, the mean of both directions, of unit-norm pairs.

    With `caption_ids` or `image_ids`, Int64 one a pair, pairs that share one of them are no negatives of one another.
    """
    all_ids = [ids for ids in (caption_ids, image_ids) if ids is not None]

    def direction(rows: Gathered, columns: Gathered) -> Tensor:
        def compare(block: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
            index = torch.arange(len(logits), device=logits.device)
            own = index + (rows.first + block.start)
            for ids in all_ids:
                same: Bool[Tensor, "rows global"] = ids.local[block, None] == ids.all
                same[index, own] = False
                logits.masked_fill_(same, -math.inf)
            log_probs = logits.sub_(logits.logsumexp(1, keepdim=True))
            loss = -log_probs[index, own].sum()
            grad = log_probs.exp_()
            grad[index, own] -= 1
            return loss, grad

        return compare_rows(rows.local, columns.all, logit_scale, compare, block_rows)

    return (direction(image, text) + direction(text, image)) / 2


@dataclass(frozen=True)
class TeacherPair:
    """A teacher's unit-norm embeddings of the same pairs, and the logit scale to match it at."""

    image: Gathered
    text: Gathered
    logit_scale: float


def affinity_loss(
    image: Gathered,
    text: Gathered,
    logit_scale: Float[Tensor, ""],
    teachers: Sequence[TeacherPair],
    *,
    block_rows: int = BLOCK_ROWS,
) -> Float[Tensor, ""]:
    """Mean over teachers of 1/2 [KL(S(u,v) || S(s,t)) + KL(S(v,u) || S(t,s))] (arXiv 2311.17049, eq. 1 to 3).

    S is the softmax of a row's similarities to all columns; u, v are the teacher's image and text, s, t the student's.
    The divergence is whole, entropy of the teacher included: 0 where the student agrees.
    """
    to_texts = [(pair.image.local, pair.text.all, pair.logit_scale) for pair in teachers]
    to_images = [(pair.text.local, pair.image.all, pair.logit_scale) for pair in teachers]
    image_to_text = compare_rows(image.local, text.all, logit_scale, divergence_from(to_texts), block_rows)
    text_to_image = compare_rows(text.local, image.all, logit_scale, divergence_from(to_images), block_rows)
    return (image_to_text + text_to_image) / 2


def divergence_from(teachers: Sequence[tuple[Tensor, Tensor, float]]) -> Compare:
    """For `compare_rows`: the mean over teachers of KL(softmax of the teacher's row || softmax of the student's).

    A teacher is (rows, columns, logit scale); rows and columns are normalised, in copies in fp32.
    """
    exact = [(unit_norm(rows) * scale, unit_norm(columns)) for rows, columns, scale in teachers]

    def compare(block: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = logits.sub_(logits.logsumexp(1, keepdim=True))
        loss, mean_target = logits.new_zeros(()), torch.zeros_like(logits)
        for rows, columns in exact:
            log_target = rows[block] @ columns.T
            log_target -= log_target.logsumexp(1, keepdim=True)
            target = log_target.exp()
            mean_target.add_(target, alpha=1 / len(teachers))
            # The difference first: the sums of its two terms would cancel where student and teacher agree.
            loss += log_target.sub_(log_probs).mul_(target).sum() / len(teachers)
        return loss, log_probs.exp_().sub_(mean_target)

    return compare


def feature_loss(mapped: Float[Tensor, "batch dim"], target: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """CLIP-KD's feature distillation (arXiv 2307.12732) of one modality, without its weight of 2000.

    The squared error, mean over rows and dims, of the student's embeddings, mapped linearly into the teacher's space
    and then normalised, against the teacher's. Normalises both.
    """
    return F.mse_loss(unit_norm(mapped), unit_norm(target))


def caption_ids(tokens: Int64[Tensor, "batch context"]) -> Int64[Tensor, " batch"]:
    """A 64-bit hash of each row, the same on every machine: equal rows have equal ids."""
    powers = torch.full((tokens.shape[1],), _HASH_BASE, dtype=torch.int64, device=tokens.device).cumprod(0)
    return (tokens * powers).sum(1)


@dataclass(frozen=True)
class StudentOutputs:
    """What a student says of a batch, or of this process's rows of it; embeddings are unit-norm."""

    image: Float[Tensor, "batch dim"]
    texts: dict[str, Float[Tensor, "batch dim"]]
    """By role; empty for a student without a text tower."""
    logit_scale: Float[Tensor, ""]
    """The factor itself, not its logarithm."""
    mapped_image: dict[str, Float[Tensor, "batch teacher_dim"]] = field(default_factory=dict)
    """By teacher, of the linear map into its space; empty unless the feature loss is used. Not normalised."""
    mapped_texts: dict[str, dict[str, Float[Tensor, "batch teacher_dim"]]] = field(default_factory=dict)
    """By role, then by teacher."""
    modalities: dict[str, Float[Tensor, "batch dim"]] = field(default_factory=dict)
    """Of the same views of further modalities, by name."""


def the_one_teacher(kind: str, teachers: dict[str, int], embed_dim: int) -> str:
    """The teacher whose space a student of `embed_dim` is trained in; `teachers` are the dims of those read, by name.

    Raises `ConfigError` unless there is one, of the student's dim.
    """
    if len(teachers) != 1:
        names = ", ".join(teachers) or "none"
        raise ConfigError(f"student.data.teachers: loss.kind {kind} needs one teacher, not {names}; name it")
    ((teacher, dim),) = teachers.items()
    if dim != embed_dim:
        raise ConfigError(f"student.model.embed_dim: must be {dim}, that of teacher {teacher}, for loss.kind {kind}")
    return teacher


class StudentLoss:
    """The recipe's loss, summed over the roles of a batch. Holds no parameters and no state.

    `teacher_scales` are the logit scales that the dataset records, by teacher; the recipe may override them. A student
    without a text tower learns in the space of its one teacher, whose text embeddings stand for its own.
    """

    def __init__(self, config: LossConfig, teacher_scales: dict[str, float]) -> None:
        known = ", ".join(sorted(teacher_scales)) or "none"
        unknown = sorted(config.teacher_scales.keys() - teacher_scales.keys())
        if unknown:
            raise ConfigError(f"student.loss.teacher_scales: no teacher {unknown[0]!r} is read; those read: {known}")
        if config.kind == "mobileclip" and not teacher_scales:
            raise ConfigError("student.loss.kind: mobileclip needs a teacher, and none is read; use clip")
        self.teacher_scales = {**teacher_scales, **config.teacher_scales}
        self._mask_same_captions = config.mask_same_captions
        distillation = config.distillation if config.kind == "mobileclip" else 0.0
        weights = {"contrastive": 1 - distillation, "distillation": distillation, "feature": config.feature_weight}
        self._weights = {name: weight for name, weight in weights.items() if weight}

    @property
    def signals(self) -> str:
        """What of the dataset it is computed from, for a line on the screen."""
        scales = self.teacher_scales.items()
        return ", ".join(f"{name} at scale {scale:.4g}" for name, scale in scales) or "no teacher"

    def __call__(self, outputs: StudentOutputs, batch: Batch) -> dict[str, Tensor]:
        """`loss`, and detached its terms, each before its weight. `batch` is what `outputs` were computed from."""
        image = gather(outputs.image.float())
        terms = {name: torch.zeros((), device=outputs.image.device) for name in self._weights}
        used = self.teacher_scales if "distillation" in terms else ()
        # An image that has several rows is no negative of itself; distillation asks the teachers.
        image_ids = None if batch.images_of is None or "contrastive" not in terms else gather(batch.images_of)
        teacher_images = {name: gather(batch.teacher_images[name]).normalized() for name in used}
        for role, local_text in (outputs.texts or self._teacher_texts(outputs, batch)).items():
            text = gather(local_text.float())
            if "contrastive" in terms:
                ids = self._caption_ids(batch, role)
                terms["contrastive"] += contrastive_loss(
                    image, text, outputs.logit_scale, caption_ids=ids, image_ids=image_ids
                )
            if "distillation" in terms:
                teachers = [
                    TeacherPair(teacher_images[name], gather(batch.teacher_texts[role][name]).normalized(), scale)
                    for name, scale in self.teacher_scales.items()
                ]
                terms["distillation"] += affinity_loss(image, text, outputs.logit_scale, teachers)
            if "feature" in terms:
                terms["feature"] += self._feature_loss(outputs, batch, role)
        loss = torch.stack([weight * terms[name] for name, weight in self._weights.items()]).sum()
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def _teacher_texts(self, outputs: StudentOutputs, batch: Batch) -> dict[str, Tensor]:
        if len(self.teacher_scales) != 1:
            names = ", ".join(self.teacher_scales) or "none"
            raise ConfigError(f"student.data.teachers: a student without text needs one teacher, not {names}")
        (teacher,) = self.teacher_scales
        texts = {role: unit_norm(rows[teacher]) for role, rows in batch.teacher_texts.items()}
        for text in texts.values():
            if text.shape[1] != outputs.image.shape[1]:
                raise ConfigError(
                    f"student.model.embed_dim: must be {text.shape[1]}, that of teacher {teacher}, for a student "
                    "without text"
                )
        return texts

    def _caption_ids(self, batch: Batch, role: str) -> Gathered | None:
        return gather(caption_ids(batch.texts[role])) if self._mask_same_captions else None

    def _feature_loss(self, outputs: StudentOutputs, batch: Batch, role: str) -> Tensor:
        """Mean over teachers of the errors of image and text; like every term of a role, with its image."""
        total = torch.zeros((), device=outputs.image.device)
        for name in self.teacher_scales:
            total += feature_loss(outputs.mapped_image[name], batch.teacher_images[name])
            if outputs.texts:
                total += feature_loss(outputs.mapped_texts[role][name], batch.teacher_texts[role][name])
        return total / len(self.teacher_scales)
