"""The `build:` section: the source, the views, the teachers, the captioners, the banks and the corpora."""

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from reinforce.config.base import CaptionerName, ModalityName, Name, Precision, Sha256, Strict
from reinforce.config.corpus import CorpusConfig
from reinforce.config.modality import ModalityConfig, check_suffix


def _check_caption_field(field: str) -> str:
    if field != "txt" and not re.fullmatch(r"json\.[^.].*", field):
        raise ValueError(f"caption field {field!r} must be 'txt' or 'json.FIELD'")
    return field


def _check_checkpoint(model: str | None, checkpoint: str | None) -> None:
    if checkpoint and ":" in (model or ""):
        raise ValueError(f"checkpoint needs a bare open_clip architecture as model, not {model!r}")


def _check_endpoint(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a base URL such as http://host:8000/v1")
    # Not shown: what is here and should not be is a secret.
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("must hold no user, password, query or fragment; a key goes into the variable of api_key_env")
    return endpoint.rstrip("/")


def _check_variable(name: str) -> str:
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise ValueError("must be the NAME of an environment variable, in capitals, that holds the key")
    return name


CaptionField = Annotated[str, AfterValidator(_check_caption_field)]


class SourceConfig(Strict):
    """What is read from the source shards."""

    captions: tuple[CaptionField, ...] = ("txt",)
    """Where original captions are found, in order: `txt`, or `json.FIELD` (a string or a list of strings)."""
    max_captions: int = Field(5, ge=0, le=999)
    """At most this many original captions are kept a sample; the rest are counted."""
    modalities: dict[ModalityName, str] = {}
    """Further members of a sample, name -> suffix. A recipe declares them in `build.modalities`."""
    max_pixels: int = Field(178_956_970, gt=0)
    """Larger images are dropped before they are decoded. The default is Pillow's own limit."""

    @field_validator("modalities")
    @classmethod
    def _check_suffixes(cls, modalities: dict[str, str]) -> dict[str, str]:
        suffixes = [check_suffix(suffix) for suffix in modalities.values()]
        if len(set(suffixes)) < len(suffixes):
            raise ValueError("two modalities have one suffix")
        return dict(zip(modalities, suffixes, strict=True))


class ViewPolicy(Strict):
    """How the augmented views 1..K are drawn. The defaults are the preset `mobileclip-v1` (arXiv 2311.17049)."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Bounds of the crop's area, as a fraction of the image's."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Bounds of the crop's width over its height."""
    num_ops: int = Field(2, ge=0, le=8)
    """RandAugment operations a view."""
    magnitude: int = Field(9, ge=0, le=30)
    """RandAugment's magnitude bin, 0..30."""
    hflip: float = Field(0.0, ge=0, le=1)
    """Probability of a horizontal flip."""
    photometric: bool = True
    """Whether the operations that change colours are among those drawn."""

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {list(self.scale)} must satisfy 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {list(self.ratio)} must satisfy 0 < low <= high")
        return self


class ViewsConfig(ViewPolicy):
    """The view policy and how many augmented views are stored beside the clean one."""

    count: int = Field(5, ge=0, le=999)
    """K: augmented views a sample. View 0, the clean one, is always stored."""

    def policy(self) -> ViewPolicy:
        return ViewPolicy(**self.model_dump(exclude={"count"}))


class TeacherConfig(Strict):
    """A model that embeds images and texts."""

    kind: Literal["open_clip", "transformers"] = "open_clip"
    model: str
    """open_clip: `MODEL:PRETRAINED`, `hf-hub:ORG/NAME`, `local-dir:PATH`, or a bare MODEL with `checkpoint`.
    transformers: a folder or a hub id."""
    checkpoint: str | None = None
    """open_clip: weights for a bare MODEL, a path or a URI, fetched once."""
    sha256: Sha256 | None = None
    """What the weights must hash to; refused otherwise."""
    revision: str | None = None
    """transformers: the hub revision (a commit, not a branch, for a build that can be repeated)."""
    precision: Precision = "fp32"
    """fp32, or autocast to bf16 / fp16 on an accelerator. A device that lacks it is refused."""
    mantissa_bits: int = Field(7, ge=1, le=10)
    """Bits of significand that the stored float16 keep: 10 exact, 7 as bfloat16, 4 as exact as int8 rows."""
    logit_scale: float | None = Field(None, gt=0)
    """The scale students shall distil at, if not the teacher's own learned one."""

    @model_validator(mode="after")
    def _check_fields_of_kind(self) -> Self:
        if self.kind == "transformers" and self.checkpoint:
            raise ValueError("checkpoint belongs to kind open_clip; for transformers give the folder as model")
        if self.kind == "open_clip" and self.revision:
            raise ValueError("revision belongs to kind transformers; for open_clip give sha256")
        _check_checkpoint(self.model, self.checkpoint)
        return self


class CaptionerConfig(Strict):
    """A model that writes captions of the clean view, or a place where captions already are."""

    kind: Literal["transformers", "open_clip", "files", "openai"]
    model: str | None = None
    """As a teacher's `model`; openai: the name that the server knows it by."""
    checkpoint: str | None = None
    sha256: Sha256 | None = None
    revision: str | None = None
    precision: Precision = "fp32"
    prompt: str = ""
    """Text the caption continues (open_clip, image-to-text), or the user's turn (chat-template models, openai)."""
    num_captions: int = Field(2, ge=1, le=99)
    max_new_tokens: int = Field(30, ge=1, le=1024)
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus sampling: the smallest set of tokens whose probability reaches this."""
    temperature: float = Field(1.0, gt=0)
    path: str | None = None
    """files: Parquet files with columns `key`, `captions` and, if keys repeat across shards, `stem`."""
    field: str | None = None
    """files: `json.FIELD` of the source sample, instead of `path`."""
    endpoint: Annotated[str, AfterValidator(_check_endpoint)] | None = None
    """openai: the base URL of the API, such as `http://host:8000/v1`."""
    api_key_env: Annotated[str, AfterValidator(_check_variable)] = "OPENAI_API_KEY"
    """openai: the environment variable that holds the key; if it is not set none is sent."""
    image_size: int = Field(384, ge=1, le=4096)
    """openai: the side of the clean view that is sent."""
    concurrency: int = Field(16, ge=1, le=1024)
    """openai: requests in flight, of each worker."""
    timeout_s: float = Field(60, gt=0)
    """openai: how long one request may take."""
    retries: int = Field(5, ge=0, le=100)
    """openai: further attempts at a request that failed in a way that may pass."""

    @model_validator(mode="after")
    def _check_fields_of_kind(self) -> Self:
        if self.kind == "files" and (self.path is None) == (self.field is None):
            raise ValueError("kind files needs either path or field")
        if self.kind != "files" and self.model is None:
            raise ValueError(f"kind {self.kind} needs model")
        if self.kind == "openai" and (self.endpoint is None or not self.prompt):
            raise ValueError(f"kind openai needs {'endpoint' if self.endpoint is None else 'prompt'}")
        if self.kind == "open_clip":
            _check_checkpoint(self.model, self.checkpoint)
        if self.field is not None:
            _check_caption_field(self.field)
        for field in self.model_fields_set - _FIELDS_OF_CAPTIONERS[self.kind]:
            raise ValueError(f"{field} is no field of kind {self.kind}")
        return self


_SAMPLING = {"kind", "model", "prompt", "num_captions", "max_new_tokens", "top_p", "temperature"}
_FIELDS_OF_CAPTIONERS = {
    "transformers": {"sha256", "precision", "revision", *_SAMPLING},
    "open_clip": {"sha256", "precision", "checkpoint", *_SAMPLING},
    "openai": {"endpoint", "api_key_env", "image_size", "concurrency", "timeout_s", "retries", *_SAMPLING},
    "files": {"kind", "path", "field", "sha256", "num_captions"},
}


class BankConfig(Strict):
    """A fixed list of labels that every teacher embeds once, each in a set of prompts."""

    labels: str | tuple[str, ...]
    """A file of labels, one a line (a path or a URI), or the labels themselves. Of those that differ in case or spaces
    alone, the first is kept and the others are counted."""
    templates: str | tuple[str, ...] = ("a photo of a {}.",)
    """Prompts with {} where the label goes: `openai` or `simple` (open_clip's sets), a file of them, or themselves.
    A label's embedding is the normalised mean of its normalised prompts."""

    @model_validator(mode="after")
    def _check_lists(self) -> Self:
        if isinstance(self.labels, tuple) and not all(label.strip() for label in self.labels):
            raise ValueError("labels: one is empty")
        for template in self.templates if isinstance(self.templates, tuple) else ():
            if "{}" not in template:
                raise ValueError(f"templates: {template!r} has no {{}} where the label goes")
        if not self.labels or not self.templates:
            raise ValueError(f"{'templates' if self.labels else 'labels'}: empty")
        return self


class RayConfig(Strict):
    """What one worker of a build on a Ray cluster reserves, and when it is given up."""

    num_gpus: float | None = Field(None, ge=0)
    """GPUs of a worker, or a fraction of one. Default: 1 where the cluster has any and the device is not cpu."""
    num_cpus: float | None = Field(None, gt=0)
    """Cores of a worker. Default: a node's cores shared by its GPUs; without GPUs `threads` and `workers` together."""
    memory: int | None = Field(None, gt=0)
    """Bytes of main memory that Ray sets aside for a worker."""
    accelerator_type: str | None = None
    """Only nodes with this accelerator, by Ray's name for it: A100, H100, L4, ..."""
    stall_timeout_s: float = Field(600, gt=0)
    """A worker that makes no progress for so long is replaced. Longer than its slowest batch takes."""
    start_timeout_s: float = Field(1800, gt=0)
    """Likewise while it fetches and loads its models."""


class BuildConfig(Strict):
    """The `build:` section of a recipe."""

    seed: int = Field(0, ge=0, lt=2**64)
    """The dataset seed, of which every view and every sampled caption is a function."""
    source: SourceConfig = SourceConfig()
    modalities: dict[ModalityName, ModalityConfig] = {}
    """Images of another kind beside the RGB one, such as `thermal: ir.jpg`. Teachers see none of them."""
    views: ViewsConfig = ViewsConfig()
    teachers: dict[Name, TeacherConfig] = {}
    captioners: dict[CaptionerName, CaptionerConfig] = {}
    banks: dict[Name, BankConfig] = {}
    """Lists of labels, each embedded by every teacher."""
    corpora: dict[Name, CorpusConfig] = {}
    """Sentences without images, each embedded by every teacher."""
    batch_size: int = Field(64, ge=1)
    """Micro-batch of every model: rows of one shard in order, the tail padded."""
    threads: int = Field(1, ge=1)
    """torch threads of the models. Part of what fixes the bytes on a CPU, so never taken from the machine."""
    workers: int | None = Field(None, ge=1)
    """Decode and render threads; default: the cores that the models leave, at least one."""
    device: str = "auto"
    """`auto` (cuda, else cpu), `cpu`, `cuda`, `cuda:N`."""
    compile: bool = False
    """Whether the image towers of teachers are compiled when they are loaded: minutes of start for shorter passes."""
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _declare_modalities(self) -> Self:
        suffixes = {name: modality.suffix for name, modality in self.modalities.items()}
        if self.source.modalities not in ({}, suffixes):
            raise ValueError("source.modalities: declare them in build.modalities instead")
        source = {**self.source.model_dump(), "modalities": suffixes}
        object.__setattr__(self, "source", SourceConfig.model_validate(source))
        return self
