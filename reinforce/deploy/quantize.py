"""An fp32 graph as one in int8, for one kind of runtime: QuantizeLinear and DequantizeLinear (QDQ) where it matters.

Weights are int8 with a scale for each output channel, activations 8 bits with a scale for each tensor, from what they
were over calibration images. Nothing is approximated besides: no activation function is exchanged for a cheaper one.
Runtimes fuse what stands between the pairs into integer kernels. Takes a pass of the calibration images, or two.
"""

from typing import Any, Literal

import numpy as np

from reinforce.deploy.calibration import activation_ranges, clipped_ranges
from reinforce.deploy.images import NormalisedImages
from reinforce.deploy.points import INPUT, Points, find_points
from reinforce.deploy.qdq import QdqWriter, Scheme

Target = Literal["x86", "arm", "tensorrt"]

SCHEMES: dict[Target, Scheme] = {
    "x86": Scheme(np.dtype(np.uint8), is_symmetric=False, quantizes_elementwise=True, quantizes_bias=True),
    "arm": Scheme(np.dtype(np.int8), is_symmetric=False, quantizes_elementwise=True, quantizes_bias=True),
    "tensorrt": Scheme(np.dtype(np.int8), is_symmetric=True, quantizes_elementwise=False, quantizes_bias=False),
}
"""Unsigned activations are what x86's integer instructions multiply with signed weights; TensorRT wants zero points of
0, biases in float and no pairs around what it runs in float anyway."""


def quantize_tower(model: Any, pixels: NormalisedImages, target: Target) -> Any:
    """A new `onnx.ModelProto`, calibrated on `pixels`; the same model and pixels give the same bytes."""
    import onnx

    scheme = SCHEMES[target]
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    points = find_points(quantized.graph, quantizes_elementwise=scheme.quantizes_elementwise)
    ranges = activation_ranges(quantized, points.tensors, pixels)
    if scheme.is_symmetric:
        ranges = clipped_ranges(quantized, ranges, pixels)
    _insert_pairs(quantized.graph, points, QdqWriter(quantized.graph, ranges, scheme))
    return quantized


def _insert_pairs(graph: Any, points: Points, writer: QdqWriter) -> None:
    nodes = list(graph.node)
    del graph.node[:]
    if INPUT in points.tensors:
        writer.quantize_activation(INPUT)
    for index, node in enumerate(nodes):
        if index in points.weighted:
            writer.quantize_weights(node)
        for position, name in enumerate(node.input):
            node.input[position] = writer.read(name)
        graph.node.append(node)
        for name in node.output:
            if name in points.tensors:
                writer.quantize_activation(name)
    writer.finish()
