"""Recipe files: found by name or path, overridden by `--set`, their paths made absolute, validated in one line."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from reinforce.config.base import ConfigError, Strict
from reinforce.config.build import BuildConfig
from reinforce.config.student import StudentConfig

TEMPLATE_SETS = ("openai", "simple")
"""Sets of prompt templates that open_clip has; any other text is a file of them."""


class Recipe(Strict):
    """A recipe file."""

    build: BuildConfig = BuildConfig()
    student: StudentConfig | None = None


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
        raise ConfigError(f"recipe {path}: must be a mapping with a 'build:' or a 'student:' section")
    _resolve_paths(content, path.parent.resolve())
    _spell_out_modalities(content)
    for override in overrides or []:
        _apply_override(content, override)
    _resolve_paths(content, Path.cwd())
    return parse_recipe(content, where=f"recipe {path}")


def parse_recipe(content: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validates a recipe given as plain data; raises `ConfigError` with the first problem."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first, *others = error.errors()
        if first["type"] == "missing":
            # A field that is unknown beside one that is missing is that one, misspelt.
            unknown = (other for other in others if other["type"] == "extra_forbidden")
            first = next((other for other in unknown if other["loc"][:-1] == first["loc"][:-1]), first)
        field = ".".join(str(part) for part in first["loc"] if part != "[key]")
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "no such field"
        raise ConfigError(f"{where}: {field}: {message}") from None


def builtin_recipes() -> dict[str, Path]:
    """The recipes that come with the package, name -> file."""
    package = Path(__file__).parents[1]
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
    """Makes local paths of models, checkpoints, files of captions and labels and evaluation shards absolute, in place.

    `{reinforce}` in one stands for the installed package's folder.
    """
    build = _section(content, "build")
    for section in ("teachers", "captioners"):
        for model in _section(build, section).values():
            if isinstance(model, dict):
                for key in ("model", "checkpoint", "path"):
                    if isinstance(model.get(key), str):
                        model[key] = _resolve_path(model[key], folder, is_model=key == "model")
    for bank in _section(build, "banks").values():
        if isinstance(bank, dict):
            for key in ("labels", "templates"):
                if isinstance(bank.get(key), str) and bank[key] not in TEMPLATE_SETS:
                    bank[key] = _resolve_path(bank[key], folder, is_model=False)
    for corpus in _section(build, "corpora").values():
        if isinstance(corpus, dict):
            for key in ("files", "root"):
                if key in corpus:
                    corpus[key] = _resolve_uris(corpus[key], folder)
    student = _section(content, "student")
    sentences = _section(_section(student, "data"), "sentences")
    if isinstance(sentences.get("select"), str):
        sentences["select"] = _resolve_path(sentences["select"], folder, is_model=False)
    model, evaluation = _section(student, "model"), _section(student, "evaluation")
    for key in ("checkpoint", "tokenizer"):
        if isinstance(model.get(key), str):
            model[key] = _resolve_path(model[key], folder, is_model=True)
    for key in ("select", "templates"):
        if isinstance(evaluation.get(key), str):
            evaluation[key] = _resolve_path(evaluation[key], folder, is_model=False)
    if isinstance(evaluation.get("shards"), list):
        evaluation["shards"] = _resolve_uris(evaluation["shards"], folder)


def _resolve_uris(value: Any, folder: Path) -> Any:
    """One URI or a list of them; `@list.txt` stays a list."""
    if isinstance(value, list):
        return [_resolve_uris(uri, folder) for uri in value]
    if not isinstance(value, str):
        return value
    mark = "@" if value.startswith("@") else ""
    return mark + _resolve_path(value.removeprefix(mark), folder, is_model=False)


def _spell_out_modalities(content: dict[str, Any]) -> None:
    """Gives a modality that is a suffix alone its fields, so that `--set` can change one of them, in place."""
    modalities = _section(_section(content, "build"), "modalities")
    for name, value in modalities.items():
        modalities[name] = {"suffix": value} if isinstance(value, str) else value


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    """A mapping inside a recipe that is not validated yet; an empty one if it is missing or something else."""
    value = content.get(name)
    return value if isinstance(value, dict) else {}


def _resolve_path(value: str, folder: Path, *, is_model: bool) -> str:
    prefix = "local-dir:" if value.startswith("local-dir:") else ""
    path = value.removeprefix(prefix).replace("{reinforce}", str(Path(__file__).parents[1]))
    # A bare model name may look like a relative path (`org/name`); it is one only if written as one.
    is_path = "://" not in path and (bool(prefix) or path.startswith((".", "/", "~")) or not is_model)
    return prefix + str((folder / Path(path).expanduser()).resolve()) if is_path else value
