"""A tower as an ONNX graph in fp32: `pixels` or `tokens` in, unit-norm `embedding` out, batches of any size.

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
_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir", "root")


class UnitNorm(torch.nn.Module):
    """An image tower whose embeddings have unit norm; with a `head`, of that part of them."""

    def __init__(self, visual: torch.nn.Module, head: slice | None = None) -> None:
        super().__init__()
        self.visual = visual
        self.head = head

    def forward(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        embeddings = self.visual(pixels)
        if self.head is not None:
            embeddings = embeddings[:, self.head]
        return torch.nn.functional.normalize(embeddings, dim=-1)


def check_packages() -> None:
    """Raises ModelError that says what to install."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ModelError(f"export needs {', '.join(missing)}: pip install {' '.join(missing)}")


def tower_to_onnx(tower: torch.nn.Module, image_size: int, opset: int) -> Any:
    """The `onnx.ModelProto` of an image tower in evaluation mode; the same tower gives the same bytes.

    Raises ModelError if it has an operation that ONNX lacks.
    """
    example = torch.zeros(2, 3, image_size, image_size)
    model = to_onnx(tower, "pixels", example, {0: torch.export.Dim("batch")}, opset)
    _pool_means(model.graph)
    return model


def to_onnx(tower: torch.nn.Module, name: str, example: Tensor, dynamic: dict[int, Any], opset: int) -> Any:
    """The same of any tower whose one input is `name`, like `example` but for the `dynamic` axes."""
    try:
        with quiet():
            program = torch.onnx.export(
                tower,
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=[name],
                output_names=["embedding"],
                dynamic_shapes={name: dynamic},
            )
            assert program is not None
            _forget_origin(program.model)
            _keep_names_apart(program.model)
            return program.model_proto
    except Exception as error:  # the exporter raises whatever its passes met; its own text runs over pages
        cause = next(iter(str(error.__cause__ or error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"export: this model does not go into ONNX with opset {opset} ({cause[:300]})") from None


def _forget_origin(model: Any) -> None:
    """Drops what the exporter notes of every node: stack traces with this machine's paths, a fifth of a small file."""
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    assert not model.functions, "an exported tower with functions of its own, whose nodes have origins too"


def _keep_names_apart(model: Any) -> None:
    """The exporter names what torch's embedding gives `embedding` too, and then no runtime loads the file."""
    outputs = {id(value) for value in model.graph.outputs}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name == "embedding" and id(value) not in outputs:
                value.name = "token_embedding"


def _pool_means(graph: Any) -> None:
    """A mean over height and width as the GlobalAveragePool that it is: faster, and there are kernels in integers."""
    from onnx import numpy_helper

    constants = {constant.name: constant for constant in graph.initializer}
    for node in graph.node:
        if node.op_type == "ReduceMean" and len(node.input) == 2 and node.input[1] in constants:
            axes = sorted(numpy_helper.to_array(constants[node.input[1]]).tolist())
            keeps = all(attribute.i == 1 for attribute in node.attribute if attribute.name == "keepdims")
            if axes == [2, 3] and keeps:
                node.op_type = "GlobalAveragePool"
                del node.attribute[:], node.input[1:]
    read = {name for node in graph.node for name in node.input}
    kept = [constant for constant in graph.initializer if constant.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


@contextmanager
def quiet() -> Iterator[None]:
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
