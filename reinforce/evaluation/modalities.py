"""Which modality models are evaluated on, and how its images are read: as a student records it, or as one says."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reinforce.config import ConfigError, ModalityConfig, ValueRange
from reinforce.config.modality import check_suffix
from reinforce.image_tower import recorded_modalities
from reinforce.sample import RGB_MODALITY


@dataclass(frozen=True)
class EvaluatedModality:
    """The images that are evaluated: RGB, which needs no config, or a modality's. `name` is what results call it."""

    name: str = RGB_MODALITY
    config: ModalityConfig | None = None


def choose_modality(models: Sequence[str], given: str | None, value_range: str | None) -> EvaluatedModality:
    """`given` is `rgb` (as is None), the name of a modality that one of the models records, or, with a dot in it, the
    suffix of its images; then `value_range` says how they are read: `type` (as does None), `image` or LOW:HIGH.

    Models that do not record it read it as the others do. Raises ConfigError, or ModelError for a damaged student.json.
    """
    if value_range is not None and (given is None or "." not in given):
        raise ConfigError(f"--modality-range {value_range}: goes with --modality SUFFIX, such as ir.jpg")
    if given in (None, RGB_MODALITY):
        return EvaluatedModality()
    if "." in given:
        try:
            suffix = check_suffix(given)
        except ValueError as error:
            raise ConfigError(f"--modality {given}: {error}") from None
        return EvaluatedModality(suffix, ModalityConfig(suffix=suffix, range=_parse_range(value_range or "type")))
    recorded = {model: recorded_modalities(model.removeprefix("local-dir:")) for model in models}
    found = {model: modalities[given] for model, modalities in recorded.items() if given in modalities}
    if not found:
        known = sorted({RGB_MODALITY}.union(*recorded.values()))
        raise ConfigError(
            f"--modality {given}: no model here records it ({', '.join(known)}); "
            "give the suffix of its images instead, such as ir.jpg, with --modality-range"
        )
    (first, config), *others = found.items()
    for model, other in others:
        if other != config:
            raise ConfigError(
                f"--modality {given}: {first} reads it as {_words(config)}, {model} as {_words(other)}; "
                "evaluate them one by one, or give the suffix and --modality-range"
            )
    return EvaluatedModality(given, config)


def _parse_range(text: str) -> ValueRange:
    if text == "type":
        return "type"
    if text == "image":
        return "image"
    try:
        low, high = (float(bound) for bound in text.split(":"))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"--modality-range {text}: must be type, image or LOW:HIGH, two numbers")
    return low, high


def _words(config: ModalityConfig) -> str:
    value_range = config.range if isinstance(config.range, str) else f"{config.range[0]:g}:{config.range[1]:g}"
    return f".{config.suffix}, range {value_range}"
