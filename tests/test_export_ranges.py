"""What int8 makes of graphs that a trained network rarely is: one odd image, NaN, channels that are dead."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from reinforce.deploy.calibration import activation_ranges
from reinforce.deploy.model_file import ModelCard, ModelFileError
from reinforce.deploy.quantize import Target, quantize_tower
from tests.labelling import colour_card
from tests.test_export import in_onnxruntime


def graph_of(weights: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """A stem, then a convolution of `weights` and `bias`, pooled to one value a channel."""
    stem = np.eye(3, dtype=np.float32)[:, :, None, None]
    nodes = [
        helper.make_node("Conv", ["pixels", "stem"], ["stemmed"]),
        helper.make_node("Conv", ["stemmed", "weights", "bias"], ["mapped"]),
        helper.make_node("GlobalAveragePool", ["mapped"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["embedding"]),
    ]
    constants = {"stem": stem, "weights": weights, "bias": bias}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", len(bias)])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_one_odd_image_does_not_decide_a_range() -> None:
    model = graph_of(np.ones((2, 3, 1, 1), np.float32), np.zeros(2, np.float32))
    pixels: Any = torch.rand(200, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels[17] *= 1000
    (least, most) = activation_ranges(model, ("stemmed",), pixels)["stemmed"]
    assert -0.1 < least <= 0.1
    assert 0.9 < most < 1.1


@pytest.mark.parametrize("place", [0, 5, 15])
def test_nan_is_found_wherever_it_is(place: int) -> None:
    model = graph_of(np.ones((2, 3, 1, 1), np.float32), np.zeros(2, np.float32))
    pixels: Any = torch.rand(4, 3, 4, 4)
    pixels[2, 0].view(-1)[place] = float("nan")
    assert np.isnan(activation_ranges(model, ("stemmed",), pixels)["stemmed"]).all()


@pytest.mark.parametrize("target", ["x86", "arm", "tensorrt"])
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_a_dead_channel_keeps_its_bias(target: Target, scale: float) -> None:
    """Of weights that are nothing, and of an input that is nothing throughout."""
    weights = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    weights[0], weights[1] = 0, 1e-9
    model = graph_of(weights, np.array([1.5, -2.0, 0.5, -0.25], np.float32))
    pixels: Any = scale * torch.rand(32, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = quantize_tower(model, pixels, target)
    expected, given = (np.asarray(run(m, pixels)) for m in (model, found))
    np.testing.assert_allclose(given, expected, atol=0.05)


def run(model: onnx.ModelProto, pixels: torch.Tensor) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        return in_onnxruntime(path, pixels)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("mean", [0, 0], "mean and std must be three numbers"),
        ("mean", "abc", "mean and std must be three numbers"),
        ("std", [1, 1, 0], "std must be above 0"),
        ("image_size", "16", "image_size and embed_dim must be whole numbers"),
    ],
)
def test_a_card_that_is_damaged(field: str, value: object, says: str) -> None:
    metadata = colour_card().to_metadata()
    card = json.loads(metadata["reinforce.model"]) | {field: value}
    with pytest.raises(ModelFileError, match=says):
        ModelCard.from_metadata(metadata | {"reinforce.model": json.dumps(card)})


@pytest.mark.parametrize(("field", "value"), [("logit_scale", None), ("logit_scale", "x"), ("logit_bias", "x")])
def test_labels_whose_scale_is_damaged(field: str, value: object) -> None:
    metadata = colour_card().to_metadata()
    labels = json.loads(metadata["reinforce.labels"]) | {field: value}
    with pytest.raises(ModelFileError, match="logit_scale must be a number above 0"):
        ModelCard.from_metadata(metadata | {"reinforce.labels": json.dumps(labels)})
