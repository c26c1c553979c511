"""What a user decides: the recipe, as frozen pydantic models, read from YAML with `--set` overrides.

A recipe names models and says how to use them; what a process discovers (device, paths of fetched weights) is not
here. Every error is a `ConfigError` of one line that names the field. Importing this loads neither torch nor ray.
"""

from reinforce.config.base import ConfigError, Precision
from reinforce.config.build import (
    BankConfig,
    BuildConfig,
    CaptionerConfig,
    RayConfig,
    SourceConfig,
    TeacherConfig,
    ViewPolicy,
    ViewsConfig,
)
from reinforce.config.corpus import CorpusConfig
from reinforce.config.loss import FIELDS_OF_LOSSES, LOSSES_OF_IMAGE_TOWERS, LossConfig
from reinforce.config.modality import ModalityConfig, ValueRange
from reinforce.config.recipe import Recipe, builtin_recipes, load_recipe, parse_recipe
from reinforce.config.student import (
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    SentencesConfig,
    StudentConfig,
    StudentModelConfig,
    TextTowerConfig,
)

__all__ = [
    "FIELDS_OF_LOSSES",
    "LOSSES_OF_IMAGE_TOWERS",
    "BankConfig",
    "BuildConfig",
    "CaptionerConfig",
    "ConfigError",
    "CorpusConfig",
    "DataConfig",
    "EvaluationConfig",
    "LossConfig",
    "ModalityConfig",
    "OptimizerConfig",
    "Precision",
    "RayConfig",
    "Recipe",
    "SentencesConfig",
    "SourceConfig",
    "StudentConfig",
    "StudentModelConfig",
    "TeacherConfig",
    "TextTowerConfig",
    "ValueRange",
    "ViewPolicy",
    "ViewsConfig",
    "builtin_recipes",
    "load_recipe",
    "parse_recipe",
]
