"""What a student learns from: the loss, and which of its fields belong to which."""

from typing import Literal, Self

from pydantic import Field, model_validator

from reinforce.config.base import Name, Strict

_PAIRED = {
    "distillation",
    "teacher_scales",
    "feature_weight",
    "mask_same_captions",
    "initial_logit_scale",
    "max_logit_scale",
}
FIELDS_OF_LOSSES = {
    "clip": _PAIRED,
    "mobileclip": _PAIRED,
    "clip4retrofit": {"bank", "bank_weight", "bank_scale"},
    "edgevl": set[str](),
    "triplet": {"bank", "margin", "num_negatives"},
    "dime_fm": {
        "vl_weight",
        "pvl_weight",
        "udist_weight",
        "vl_temperature",
        "pvl_temperature",
        "udist_temperature",
        "similarity_scale",
        "cosine_weight",
        "gather",
    },
}
"""Of `LossConfig`, besides `kind`."""

LOSSES_OF_IMAGE_TOWERS = ("clip4retrofit", "edgevl", "triplet", "dime_fm")
"""Those that train an image tower in its teacher's space and read no caption."""


class LossConfig(Strict):
    """The loss: `clip`, `mobileclip` (arXiv 2311.17049, section 3), `clip4retrofit` (in the style of arXiv 2505.18039,
    whose own loss is not published), the two stages of EdgeVL (arXiv 2403.04908), `edgevl`, then `triplet`, or
    `dime_fm` (arXiv 2303.18232)."""

    kind: Literal["clip", "mobileclip", "clip4retrofit", "edgevl", "triplet", "dime_fm"] = "mobileclip"
    distillation: float = Field(1.0, ge=0, le=1)
    """mobileclip: the weight of distillation, against 1 - it of the contrastive loss. 0.7 favours retrieval."""
    teacher_scales: dict[Name, float] = {}
    """mobileclip: logit scales other than those the dataset records, by teacher."""
    bank: Name | None = None
    """A bank of the dataset. clip4retrofit: the student is to score its labels as its teacher does. triplet: samples
    whose clean views the teacher gives the same label of it belong together."""
    bank_weight: float = Field(1.0, ge=0)
    """clip4retrofit: the weight of that, beside 1 - the cosine of student and teacher."""
    bank_scale: float = Field(100.0, gt=0)
    """clip4retrofit: what cosines to the labels are multiplied by before the softmax."""
    margin: float = Field(0.3, gt=0)
    """triplet: how much farther away negatives are to be than the positive, in distance of unit-norm embeddings."""
    num_negatives: int = Field(3, ge=1, le=64)
    """triplet: semi-hard negatives an anchor."""
    vl_weight: float = Field(0.7, ge=0)
    """dime_fm: the weight of L_vl, images against sentences, in both directions."""
    pvl_weight: float = Field(0.3, ge=0)
    """dime_fm: of L_pvl, images against the teacher's embeddings of the batch's images."""
    udist_weight: float = Field(0.0, ge=0)
    """dime_fm: of L_udist, images against one another."""
    vl_temperature: float = Field(1.0, gt=0)
    pvl_temperature: float = Field(3.0, gt=0)
    udist_temperature: float = Field(7.0, gt=0)
    similarity_scale: float = Field(100.0, gt=0)
    """dime_fm: alpha, what cosines are multiplied by before they are divided by a temperature."""
    cosine_weight: float = Field(0.0, ge=0)
    """dime_fm: of 1 - the cosine of student and teacher, which the paper does not have."""
    gather: bool = True
    """dime_fm: compare with the images and sentences of all processes, or, as published, with a process's own."""
    feature_weight: float = Field(0.0, ge=0)
    """Weight of the squared error to each teacher's embeddings through a linear map; CLIP-KD's (arXiv 2307.12732) is
    2000."""
    mask_same_captions: bool = False
    """Whether samples with the very same caption are no negatives of one another in the contrastive loss."""
    initial_logit_scale: float = Field(1 / 0.07, gt=0)
    """Of the student; a checkpoint brings its own."""
    max_logit_scale: float = Field(100.0, gt=0)

    @model_validator(mode="after")
    def _check_fields_of_kind(self) -> Self:
        for field in sorted(set().union(*FIELDS_OF_LOSSES.values()) - FIELDS_OF_LOSSES[self.kind]):
            # By value: a recipe that was written out whole, defaults and all, is still a recipe.
            if getattr(self, field) != type(self).model_fields[field].get_default():
                raise ValueError(f"{field} is no field of kind {self.kind}")
        if self.kind == "clip4retrofit" and self.bank_weight and self.bank is None:
            raise ValueError("kind clip4retrofit needs bank, the name of a bank of the dataset; or bank_weight 0")
        if self.kind == "triplet" and self.bank is None:
            raise ValueError("kind triplet needs bank, the name of a bank of the dataset")
        if self.kind == "dime_fm" and not any((self.vl_weight, self.pvl_weight, self.udist_weight, self.cosine_weight)):
            raise ValueError("kind dime_fm needs a weight: vl_weight, pvl_weight, udist_weight or cosine_weight")
        return self
