"""A student's image tower as an ONNX graph in fp32: `pixels` in, unit-norm `embedding` out, batches of any size.

Branches that only training needs are folded first where the backbone has them (FastViT, MobileOne, RepVGG). Three
seconds for a tiny network, about twenty for a MobileCLIP, on one core. Needs the extra `edge`.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reinforce.weights import ModelError

MIN_OPSET = 18
"""The exporter writes this where less is asked for."""

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")


class UnitNorm(torch.nn.Module):
    """An image tower whose embeddings have unit norm."""

    def __init__(self, visual: torch.nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        return torch.nn.functional.normalize(self.visual(pixels), dim=-1)


def check_packages() -> None:
    """Raises ModelError that says what to install."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ModelError(f"export needs {', '.join(missing)}: pip install {' '.join(missing)}")


def tower_to_onnx(tower: torch.nn.Module, image_size: int, opset: int) -> Any:
    """The `onnx.ModelProto` of a tower in evaluation mode; the same tower gives the same bytes.

    Raises ModelError if it has an operation that ONNX lacks.
    """
    example = torch.zeros(2, 3, image_size, image_size)
    try:
        with _quiet():
            program = torch.onnx.export(
                tower,
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=["pixels"],
                output_names=["embedding"],
                dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            )
            assert program is not None
            _forget_origin(program.model)
            return program.model_proto
    except Exception as error:  # the exporter raises whatever its passes met; its own text runs over pages
        cause = next(iter(str(error.__cause__ or error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"export: this backbone does not go into ONNX with opset {opset} ({cause[:300]})") from None


def _forget_origin(model: Any) -> None:
    """Drops what the exporter notes of every node: stack traces with this machine's paths, a fifth of a small file."""
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    assert not model.functions, "an exported tower with functions of its own, whose nodes have origins too"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes and warnings: what it got wrong, the comparison shows."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
