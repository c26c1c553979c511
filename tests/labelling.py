"""Tiny models of the kind that `export` writes, put together node by node: no torch, a few kilobytes."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from reinforce.deploy.model_file import ModelCard, ModelLabels

SIZE = 16
COLOURS = ("red", "green", "blue")


def colour_card(
    *, labels: tuple[str, ...] | None = COLOURS, logit_scale: float = 10.0, logit_bias: float | None = None
) -> ModelCard:
    """The card of a model whose embedding is an image's mean colour; the labels are colours."""
    bank = labels and ModelLabels(
        bank="colours",
        teacher="painter",
        labels=labels,
        embeddings=np.eye(3, dtype=np.float32)[: len(labels)],
        logit_scale=logit_scale,
        logit_bias=logit_bias,
        fingerprint="0" * 64,
    )
    return ModelCard(
        image_size=SIZE,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        embed_dim=3,
        precision="fp32",
        target=None,
        student_sha256="0" * 64,
        software={},
        agreement={},
        labels=bank or None,
    )


def save_colour_model(path: Path, card: ModelCard | None = None, *, opset: int = 18) -> Path:
    """Mean of all pixels, a matrix, unit norm."""
    matrix = numpy_helper.from_array(np.eye(3, dtype=np.float32), "matrix")
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "sides"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "matrix"], ["projected"]),
        helper.make_node("ReduceL2", ["projected", "last"], ["norm"], keepdims=1),
        helper.make_node("Div", ["projected", "norm"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colour",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 3])],
        [matrix, numpy_helper.from_array(np.array([2, 3]), "sides"), numpy_helper.from_array(np.array([1]), "last")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    helper.set_model_props(model, (card or colour_card()).to_metadata())
    onnx.save(model, path)
    return path
