"""A teacher as a dataset records it in `signal.json`: how to load the very same one again."""

from typing import Any

from pydantic import ValidationError

from reinforce.config import Precision, TeacherConfig
from reinforce.weights import ModelError


def recorded_config(name: str, document: dict[str, Any], precision: Precision) -> TeacherConfig:
    """What loads the teacher of a signal, refusing other weights by their sha256.

    `document` is the `signal.json` of one of its signals. Raises `ModelError` if that does not say which model it is,
    as in imported datasets.
    """
    content, model = document["content"], document["model"]
    try:
        return TeacherConfig(
            kind=model["kind"],
            model=model["model"],
            checkpoint=model.get("checkpoint"),
            revision=model.get("revision"),
            precision=precision,
            mantissa_bits=content["mantissa_bits"],
            sha256=content["weights_sha256"],
        )
    except (KeyError, ValidationError):
        raise ModelError(f"teacher {name}: its signal.json does not say how to load it") from None
