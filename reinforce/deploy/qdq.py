"""Pairs of QuantizeLinear and DequantizeLinear in an ONNX graph: scales, zero points, int8 weights, int32 biases."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from reinforce.deploy.calibration import Ranges
from reinforce.weights import ModelError

_LEAST_SCALE = np.float32(1e-12)
_MOST_BIAS = 2**31 - 1
_MOST_WEIGHT = 127
"""Weights are symmetric, so -128 is not used."""


@dataclass(frozen=True)
class Scheme:
    """How a kind of runtime wants its integers. `dtype` is of activations, uint8 or int8."""

    dtype: np.dtype[Any]
    is_symmetric: bool
    """Zero points of 0."""
    quantizes_elementwise: bool
    """Whether what is between the convolutions is in integers too."""
    quantizes_bias: bool

    def parameters(self, least: float, most: float) -> tuple[np.float32, int]:
        """Scale and zero point of a tensor, of whose range 0 is always a part."""
        least, most = min(least, 0.0), max(most, 0.0)
        limits = np.iinfo(self.dtype)
        if least == most:
            return np.float32(1), 0  # zero throughout: any scale holds it, and biases are in units of this one
        if self.is_symmetric:
            return max(np.float32(max(-least, most) / limits.max), _LEAST_SCALE), 0
        scale = max(np.float32((most - least) / (limits.max - limits.min)), _LEAST_SCALE)
        return scale, int(np.clip(round(limits.min - least / float(scale)), limits.min, limits.max))


class QdqWriter:
    """Appends pairs to a graph whose nodes are being appended in order, and knows what to read instead."""

    def __init__(self, graph: Any, ranges: Ranges, scheme: Scheme) -> None:
        from onnx import numpy_helper

        self._graph = graph
        self._ranges = ranges
        self._scheme = scheme
        self._scales: dict[str, np.float32] = {}
        self._dequantized: dict[str, str] = {}
        self._constants = {constant.name: constant for constant in graph.initializer}
        self._to_array, self._to_tensor = numpy_helper.to_array, numpy_helper.from_array

    def read(self, name: str) -> str:
        """What a node reads that read `name` before."""
        return self._dequantized.get(name, name)

    def quantize_activation(self, name: str) -> None:
        """A pair behind a tensor. Raises ModelError if calibration met a value that is not finite there."""
        least, most = self._ranges[name]
        if not np.isfinite([least, most]).all():
            raise ModelError(f"export: {name} is not finite for some calibration image; int8 cannot hold it")
        scale, zero_point = self._scheme.parameters(least, most)
        self._scales[name] = scale
        parameters = self._constant(name, scale, np.array(zero_point, self._scheme.dtype))
        self._add("QuantizeLinear", [name, *parameters], f"{name}.quantized")
        self._dequantize(name, f"{name}.quantized", parameters)

    def quantize_weights(self, node: Any) -> None:
        """A DequantizeLinear before the weights of a Conv, Gemm or MatMul, and before its bias if it has one."""
        weights = np.asarray(self._to_array(self._constants[node.input[1]]), np.float32)
        is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        axis = 0 if node.op_type == "Conv" or is_transposed else weights.ndim - 1
        others = tuple(index for index in range(weights.ndim) if index != axis)
        scale = np.maximum(np.abs(weights).max(axis=others) / np.float32(_MOST_WEIGHT), _LEAST_SCALE)
        has_bias = len(node.input) > 2 and self._scheme.quantizes_bias and node.input[0] in self._scales
        if has_bias:
            # Of a channel whose weights are next to nothing, all that is left is its bias, which must fit 32 bits.
            bias = np.abs(np.asarray(self._to_array(self._constants[node.input[2]]), np.float32))
            scale = np.maximum(scale, bias / self._scales[node.input[0]] / np.float32(_MOST_BIAS)).astype(np.float32)
        name = f"{node.input[1]}.{node.output[0]}" if node.input[1] in self._dequantized else node.input[1]
        quantized = np.rint(weights / np.expand_dims(scale, others)).astype(np.int8)
        self._dequantize_constant(name, quantized, scale, axis)
        node.input[1] = name
        if has_bias:
            node.input[2] = self._quantize_bias(node.input[2], self._scales[node.input[0]] * scale, node.output[0])

    def finish(self) -> None:
        """Drops the float constants that nothing reads any more."""
        read = {name for node in self._graph.node for name in node.input}
        kept = [constant for constant in self._graph.initializer if constant.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _quantize_bias(self, name: str, scale: Float32[np.ndarray, " channels"], output: str) -> str:
        """At the scale of the sums it is added to, in a copy for this node: another's sums have another scale."""
        limits = np.iinfo(np.int32)
        bias = np.asarray(self._to_array(self._constants[name]), np.float64)
        quantized = np.clip(np.rint(bias / scale), limits.min, limits.max).astype(np.int32)
        self._dequantize_constant(f"{output}.bias", quantized, scale.astype(np.float32), 0)
        return f"{output}.bias"

    def _dequantize_constant(self, name: str, values: Any, scale: Float32[np.ndarray, " channels"], axis: int) -> None:
        self._graph.initializer.append(self._to_tensor(values, f"{name}.quantized"))
        parameters = self._constant(name, scale, np.zeros(scale.shape, values.dtype))
        self._dequantize(name, f"{name}.quantized", parameters, axis=axis)

    def _dequantize(self, name: str, quantized: str, parameters: list[str], **attributes: int) -> None:
        self._add("DequantizeLinear", [quantized, *parameters], f"{name}.dequantized", **attributes)
        self._dequantized[name] = f"{name}.dequantized"

    def _constant(self, name: str, scale: Any, zero_point: Any) -> list[str]:
        names = [f"{name}.scale", f"{name}.zero_point"]
        values = (np.asarray(scale, np.float32), zero_point)
        self._graph.initializer.extend(self._to_tensor(value, name) for name, value in zip(names, values, strict=True))
        return names

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: int) -> None:
        from onnx import helper

        self._graph.node.append(helper.make_node(kind, inputs, [output], name=f"{kind}.{output}", **attributes))
