"""Which loss a recipe asks for, and the logit scale that its student begins with."""

from reinforce.config import LOSSES_OF_IMAGE_TOWERS, StudentConfig
from reinforce.student.dime_fm_loss import DimeFmLoss
from reinforce.student.label_loss import LabelLoss
from reinforce.student.losses import StudentLoss
from reinforce.student.modality_loss import ModalityLoss
from reinforce.student.plan import ReadPlan
from reinforce.student.taken_bank import TakenBank
from reinforce.student.triplets import TripletLoss


def make_loss(
    config: StudentConfig, plan: ReadPlan, dims: dict[str, int], bank: TakenBank | None
) -> StudentLoss | LabelLoss | ModalityLoss | TripletLoss | DimeFmLoss:
    """The loss; `dims` are those of the teachers that are read. Raises `ConfigError` if it cannot be had of these."""
    if config.loss.kind == "dime_fm":
        return DimeFmLoss(config.loss, dims, config.model.embed_dim)
    if config.loss.kind == "edgevl":
        return ModalityLoss(dims, config.model.embed_dim, config.data.modalities)
    if config.loss.kind == "triplet":
        return TripletLoss(config.loss, dims, config.model.embed_dim, config.data.modalities)
    if config.loss.kind == "clip4retrofit":
        return LabelLoss(config.loss, dims, config.model.embed_dim, bank.bank if bank else None)
    return StudentLoss(config.loss, plan.logit_scales)


def initial_logit_scale(config: StudentConfig, plan: ReadPlan) -> float | None:
    """What the student starts with; None: its checkpoint's. In a teacher's space it is the teacher's, and stays so."""
    if config.loss.kind in LOSSES_OF_IMAGE_TOWERS:
        return next(iter(plan.logit_scales.values()))
    return None if config.model.checkpoint else config.loss.initial_logit_scale
