"""The `student:` section: the student, what it reads, what it learns from, and how it is trained."""

from typing import Literal, Self

from pydantic import Field, model_validator

from reinforce.config.base import CaptionerName, ModalityName, Name, Strict
from reinforce.config.loss import LOSSES_OF_IMAGE_TOWERS, LossConfig
from reinforce.config.modality import ValueRange

Policy = Literal["error", "skip"]


class TextTowerConfig(Strict):
    """The text transformer beside a timm backbone."""

    context_length: int = Field(77, ge=4)
    width: int = Field(512, ge=8)
    heads: int = Field(8, ge=1)
    layers: int = Field(12, ge=1)


class StudentModelConfig(Strict):
    """The student: any open_clip architecture, or any timm backbone with a projection and a text transformer."""

    architecture: str | None = None
    """The name of an open_clip configuration, such as `MobileCLIP-S1`."""
    backbone: str | None = None
    """The name of a timm model, such as `fastvit_t8`, instead."""
    projection: Literal["linear", "mlp"] = "linear"
    """From the backbone's pooled features to the embedding."""
    embed_dim: int = Field(512, ge=1)
    """Of a backbone, or of an architecture's image tower alone."""
    image_size: int | None = Field(None, ge=16)
    """Side of the student's images in pixels; default: the architecture's, or the backbone's own."""
    drop_path: float | None = Field(None, ge=0, lt=1)
    """Stochastic depth of a backbone, of its last block; default: as timm has it, which is 0 for most, 0.1 for Swin."""
    text: TextTowerConfig | None = TextTowerConfig()
    """The text transformer of a backbone. null: an image tower alone, of either, in its teacher's space."""
    tokenizer: str | None = None
    """A transformers tokenizer: a folder or a hub id; default: the architecture's, or CLIP's byte-pair encoding."""
    checkpoint: str | None = None
    """Weights to start from: a tag of the architecture that open_clip knows, a file or URI, or the folder of a student
    that is as described here. `imagenet`: the backbone's own from timm. Default: from scratch."""
    mean: tuple[float, float, float] | None = None
    """Normalisation of the images; default: the checkpoint's, the architecture's, or CLIP's."""
    std: tuple[float, float, float] | None = None

    @model_validator(mode="after")
    def _check_fields_of_kind(self) -> Self:
        if (self.architecture is None) == (self.backbone is None):
            raise ValueError("give either architecture (of open_clip) or backbone (of timm)")
        of_backbones = {"projection", "embed_dim", "text"} & self.model_fields_set
        if self.text is None:
            # Its image tower alone, with a projection of our own; by value, as a recipe that was written out whole.
            of_backbones = {"projection"} if self.projection != "linear" else set()
        of_backbones |= {"drop_path"} if self.drop_path is not None else set()
        if self.architecture and of_backbones:
            raise ValueError(f"{sorted(of_backbones)[0]} belongs to a backbone; an architecture has its own")
        if self.architecture and self.checkpoint == "imagenet":
            raise ValueError("checkpoint imagenet belongs to a backbone")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")
        return self


class SentencesConfig(Strict):
    """The second stream of loss dime_fm: sentences without images, shuffled for themselves."""

    corpora: tuple[Name, ...] | None = None
    """Corpora of the dataset; default: all."""
    batch_size: int = Field(1024, ge=1)
    """Sentences a step, over all processes."""
    select: str | None = None
    """A Parquet of (stem, key), as `reinforce select --corpus` writes it: only these sentences."""
    open_files: int = Field(4, ge=1)
    """Files of sentences that are shuffled together. Their embeddings are in memory."""


class DataConfig(Strict):
    """What is read of a reinforced dataset, in which order, and what happens to what cannot be used."""

    teachers: tuple[Name, ...] | None = None
    """Teachers to learn from; default: all of the dataset."""
    captioners: tuple[CaptionerName, ...] | None = None
    """Captioners whose captions are read; default: all of the dataset. []: none."""
    original_captions: bool = True
    """Whether the source's own captions are read."""
    modalities: tuple[Name, ...] = ("rgb",)
    """What the student sees of a sample, the same view of each: `rgb`, its image, and modalities of the dataset. A
    sample without one of them is unusable. More than one, or another than `rgb`: with loss edgevl or triplet."""
    modality_ranges: dict[ModalityName, ValueRange] = {}
    """What becomes black and white in a modality, by name; default: as the dataset says (`build.modalities`)."""
    sentences: SentencesConfig | None = None
    """What loss dime_fm reads beside images. Default with that loss: every corpus of the dataset."""
    views: int | None = Field(None, ge=0)
    """Use only the views 1..N; default: all that are stored. 0: the clean view. With loss clip any number is drawn."""
    views_per_decode: int = Field(1, ge=1)
    """Views of an image that are rendered each time it is read and decoded, each with captions of its own."""
    views_placement: Literal["apart", "together"] = "apart"
    """Where these views go: `apart`, into as many batches, one after another; `together`, into the same batch."""
    open_shards: int = Field(4, ge=1)
    """Shards that are shuffled together, by each worker."""
    workers: int = Field(1, ge=0)
    """Processes that read, decode and render, for each training process. 0: the training process itself."""
    missing: Policy = "error"
    """A shard that is not there, or without one of the signals."""
    damaged: Policy = "error"
    """A shard whose files are damaged or are not of this dataset and source."""
    unusable: Policy = "skip"
    """A sample without a caption, with a null cell, or whose image does not decode."""
    verify_images: bool = True
    """Refuse an image whose sha256 is not the recorded one. false: only another aspect ratio is refused, as for images
    that were resized since."""


class OptimizerConfig(Strict):
    """AdamW with a linear warm-up and a cosine; the defaults are MobileCLIP's."""

    learning_rate: float = Field(1e-3, gt=0)
    min_learning_rate: float = Field(1e-6, ge=0)
    warmup_steps: int = Field(1000, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.2, ge=0)
    """Of matrices and filters; gains, biases and the logit scale have none."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient; null: any."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then what is evaluated and saved."""


class EvaluationConfig(Strict):
    """Zero-shot accuracy while training, on labelled shards (`.cls` members and `classnames.txt`)."""

    shards: tuple[str, ...]
    """Shard URIs. Never the test set if anything is chosen by it."""
    select: str | None = None
    """A Parquet of (stem, key): only these samples."""
    every_steps: int = Field(1000, ge=1)
    templates: str | None = None
    """A file of prompt templates, one a line, with {}; default: as `reinforce evaluate`."""
    bank: Name | None = None
    """A bank of the dataset instead of prompts, for a student without a text tower. Default: `loss.bank`."""
    choose: Literal["last", "best"] = "last"
    """Which weights become the student: the last, or those of the best of these evaluations, by top-1 accuracy, of
    several modalities by its mean over them."""


class StudentConfig(Strict):
    """The `student:` section of a recipe."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Of the initial weights and of the order and choice of the data."""
    model: StudentModelConfig
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig | None = None
    steps: int | None = Field(None, ge=1)
    """Optimizer steps."""
    epochs: float | None = Field(None, gt=0)
    """Instead of steps: how often every kept sample is seen, on average."""
    batch_size: int = Field(1024, ge=2)
    """Samples a step, over all processes."""
    accumulate: int = Field(1, ge=1)
    """Parts in which a process goes through its share of the batch: less memory, the same gradient, more time."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast."""
    quantization: Literal["int8"] | None = None
    """int8: train with weights (by channel) and activations (by tensor) rounded to 8 bits, as `reinforce export --int8`
    will round them. The student that is saved has its weights in full."""
    compile: bool = False
    gradient_checkpointing: bool = False
    device: str = "auto"
    threads: int = Field(1, ge=1)
    """torch threads of the training process on a CPU."""
    checkpoint_every: int = Field(1000, ge=1)
    """Steps between checkpoints, of which the latest is kept."""
    log_every: int = Field(50, ge=1)
    """Steps between rows of `metrics.jsonl`."""
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where the same figures go besides."""

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.quantization is not None and (self.compile or self.gradient_checkpointing):
            raise ValueError("quantization int8 goes without compile and without gradient_checkpointing")
        if self.loss.kind == "clip" and self.loss.feature_weight:
            raise ValueError("loss.feature_weight belongs to loss.kind mobileclip")
        return self

    @model_validator(mode="after")
    def _check_space(self) -> Self:
        """What a student may be told only if it has no text tower, and is then in the space of its teacher."""
        is_image_tower = self.model.text is None
        kind = self.loss.kind
        if kind in LOSSES_OF_IMAGE_TOWERS and not is_image_tower:
            raise ValueError(f"loss.kind {kind} trains an image tower: give model.text null")
        if kind in LOSSES_OF_IMAGE_TOWERS and self.data.captioners:
            raise ValueError(f"loss.kind {kind} reads no captions; leave data.captioners out")
        if kind != "dime_fm" and self.data.sentences is not None:
            raise ValueError(f"data.sentences: loss.kind {kind} reads none; dime_fm does")
        if kind == "dime_fm" and not self.loss.vl_weight and self.data.sentences is not None:
            raise ValueError(
                "data.sentences: with loss.vl_weight 0 none is read; leave it out (--set student.data.sentences=null)"
            )
        if kind not in ("edgevl", "triplet") and self.data.modalities != ("rgb",):
            raise ValueError(f"data.modalities: loss.kind {kind} sees rgb alone; edgevl and triplet see several")
        if kind == "triplet" and self.data.views_per_decode > 1:
            raise ValueError("data.views_per_decode: loss.kind triplet decodes an image for every view; leave it at 1")
        if not self.data.modalities or len(set(self.data.modalities)) < len(self.data.modalities):
            raise ValueError("data.modalities: name each once, at least one")
        if self.evaluation is not None and self.evaluation.bank is not None and not is_image_tower:
            raise ValueError("evaluation.bank is for a student without a text tower (model.text null)")
        if self.evaluation is not None and self.evaluation.templates is not None and self.bank is not None:
            raise ValueError("evaluation.templates: a bank has its own; leave it out")
        return self

    @property
    def bank(self) -> str | None:
        """The bank that the student takes along: that of its loss, or the one it is evaluated with."""
        return self.loss.bank or (self.evaluation.bank if self.evaluation else None)
