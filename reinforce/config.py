"""What a user decides: the recipe, as frozen pydantic models, read from YAML with `--set` overrides.

A recipe names models and says how to use them; what a process discovers (device, paths of fetched weights) is not
here. Every error is a `ConfigError` of one line that names the field. Importing this loads neither torch nor ray.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

Precision = Literal["fp32", "bf16", "fp16"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ConfigError(ValueError):
    """A recipe or an option that cannot be used; the message is one line that names the field."""


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"name {name!r} must be of a-z, 0-9 and _ only")
    return name


def _check_captioner_name(name: str) -> str:
    if name == "original":
        raise ValueError("name 'original' is taken by the source's own captions")
    return _check_name(name)


def _check_caption_field(field: str) -> str:
    if field != "txt" and not re.fullmatch(r"json\.[^.].*", field):
        raise ValueError(f"caption field {field!r} must be 'txt' or 'json.FIELD'")
    return field


def _check_checkpoint(model: str | None, checkpoint: str | None) -> None:
    if checkpoint and ":" in (model or ""):
        raise ValueError(f"checkpoint needs a bare open_clip architecture as model, not {model!r}")


Name = Annotated[str, AfterValidator(_check_name)]
CaptionerName = Annotated[str, AfterValidator(_check_captioner_name)]
CaptionField = Annotated[str, AfterValidator(_check_caption_field)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceConfig(_Strict):
    """What is read from the source shards."""

    captions: tuple[CaptionField, ...] = ("txt",)
    """Where original captions are found, in order: `txt`, or `json.FIELD` (a string or a list of strings)."""
    max_captions: int = Field(5, ge=0, le=999)
    """At most this many original captions are kept a sample; the rest are counted."""
    modalities: dict[Name, str] = {}
    """Further members of a sample, name -> suffix: `thermal: ir.jpg`."""
    max_pixels: int = Field(178_956_970, gt=0)
    """Larger images are dropped before they are decoded. The default is Pillow's own limit."""

    @field_validator("modalities")
    @classmethod
    def _check_suffixes(cls, modalities: dict[str, str]) -> dict[str, str]:
        suffixes = [suffix.lower().lstrip(".") for suffix in modalities.values()]
        for suffix in suffixes:
            if suffix in ("jpg", "jpeg", "png", "webp", "txt", "json", "cls") or "/" in suffix or not suffix:
                raise ValueError(f"suffix {suffix!r} is not a modality's; use one such as 'ir.jpg'")
        if len(set(suffixes)) < len(suffixes):
            raise ValueError("two modalities have one suffix")
        return dict(zip(modalities, suffixes, strict=True))


class ViewPolicy(_Strict):
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


class TeacherConfig(_Strict):
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


class CaptionerConfig(_Strict):
    """A model that writes captions of the clean view, or a place where captions already are."""

    kind: Literal["transformers", "open_clip", "files"]
    model: str | None = None
    """As a teacher's `model`."""
    checkpoint: str | None = None
    sha256: Sha256 | None = None
    revision: str | None = None
    precision: Precision = "fp32"
    prompt: str = ""
    """Text the caption continues (open_clip, image-to-text), or the user's turn (chat-template models)."""
    num_captions: int = Field(2, ge=1, le=99)
    max_new_tokens: int = Field(30, ge=1, le=1024)
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus sampling: the smallest set of tokens whose probability reaches this."""
    temperature: float = Field(1.0, gt=0)
    path: str | None = None
    """files: Parquet files with columns `key`, `captions` and, if keys repeat across shards, `stem`."""
    field: str | None = None
    """files: `json.FIELD` of the source sample, instead of `path`."""

    @model_validator(mode="after")
    def _check_fields_of_kind(self) -> Self:
        if self.kind == "files" and (self.path is None) == (self.field is None):
            raise ValueError("kind files needs either path or field")
        if self.kind != "files" and self.model is None:
            raise ValueError(f"kind {self.kind} needs model")
        if self.kind == "open_clip":
            _check_checkpoint(self.model, self.checkpoint)
        if self.field is not None:
            _check_caption_field(self.field)
        for field in self.model_fields_set - _FIELDS_OF_CAPTIONERS[self.kind]:
            raise ValueError(f"{field} is no field of kind {self.kind}")
        return self


_OF_MODELS = {"model", "sha256", "precision", "prompt", "num_captions", "max_new_tokens", "top_p", "temperature"}
_FIELDS_OF_CAPTIONERS = {
    "transformers": {"kind", "revision", *_OF_MODELS},
    "open_clip": {"kind", "checkpoint", *_OF_MODELS},
    "files": {"kind", "path", "field", "sha256", "num_captions"},
}


class BuildConfig(_Strict):
    """The `build:` section of a recipe."""

    seed: int = Field(0, ge=0, lt=2**64)
    """The dataset seed, of which every view and every sampled caption is a function."""
    source: SourceConfig = SourceConfig()
    views: ViewsConfig = ViewsConfig()
    teachers: dict[Name, TeacherConfig] = {}
    captioners: dict[CaptionerName, CaptionerConfig] = {}
    batch_size: int = Field(64, ge=1)
    """Micro-batch of every model: rows of one shard in order, the tail padded."""
    threads: int = Field(1, ge=1)
    """torch threads of the models. Part of what fixes the bytes on a CPU, so never taken from the machine."""
    workers: int | None = Field(None, ge=1)
    """Decode and render threads; default: the cores that the models leave, at least one."""
    device: str = "auto"
    """`auto` (cuda, else cpu), `cpu`, `cuda`, `cuda:N`."""


class Recipe(_Strict):
    """A recipe file."""

    build: BuildConfig = BuildConfig()


def load_recipe(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """Reads a recipe by NAME (one that comes with the package) or FILE and applies `field.path=YAML` overrides.

    Relative paths in the file resolve against its folder, those in overrides against the working directory.
    Raises `ConfigError`.
    """
    path = _find_recipe(name_or_path)
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"recipe {path}: must be a mapping with a 'build:' section")
    _resolve_paths(content, path.parent.resolve())
    for override in overrides or []:
        _apply_override(content, override)
    _resolve_paths(content, Path.cwd())
    return parse_recipe(content, where=f"recipe {path}")


def parse_recipe(content: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validates a recipe given as plain data; raises `ConfigError` with the first problem."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "[key]")
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "no such field"
        raise ConfigError(f"{where}: {field}: {message}") from None


def builtin_recipes() -> dict[str, Path]:
    """The recipes that come with the package, name -> file."""
    package = Path(__file__).parent
    folder = package / "pipelines" if (package / "pipelines").is_dir() else package.parent / "pipelines"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _find_recipe(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path
    known = builtin_recipes()
    if name_or_path in known:
        return known[name_or_path]
    raise ConfigError(f"--recipe {name_or_path}: no such file, nor one of the recipes {', '.join(known)}")


def _apply_override(content: dict[str, Any], override: str) -> None:
    field, equals, value = override.partition("=")
    if not equals or not field:
        raise ConfigError(f"--set {override}: must be FIELD=VALUE, such as build.views.count=3")
    *parents, last = field.split(".")
    node = content
    for part in parents:
        child = node.get(part)
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {part} has no fields")
        node = child
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not YAML") from None


def _resolve_paths(content: dict[str, Any], folder: Path) -> None:
    """Makes local paths of models, checkpoints and caption files absolute, in place.

    `{reinforce}` in one stands for the installed package's folder.
    """
    build = content.get("build")
    for section in ("teachers", "captioners"):
        models = build.get(section) if isinstance(build, dict) else None
        for model in models.values() if isinstance(models, dict) else []:
            if isinstance(model, dict):
                for key in ("model", "checkpoint", "path"):
                    if isinstance(model.get(key), str):
                        model[key] = _resolve_path(model[key], folder, is_model=key == "model")


def _resolve_path(value: str, folder: Path, *, is_model: bool) -> str:
    prefix = "local-dir:" if value.startswith("local-dir:") else ""
    path = value.removeprefix(prefix).replace("{reinforce}", str(Path(__file__).parent))
    # A bare model name may look like a relative path (`org/name`); it is one only if written as one.
    is_path = bool(prefix) or path.startswith((".", "/", "~")) or not (is_model or "://" in path)
    return prefix + str((folder / Path(path).expanduser()).resolve()) if is_path else value
