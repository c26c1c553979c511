"""Where in a graph values are quantised: which nodes compute in integers, and which tensors are 8 bits for them.

Convolutions and matrices of weights do, but for the first, which reads the pixels: three channels suit no integer
kernel, so it would gain nothing and lose accuracy. What is computed elementwise does where all it reads is quantised.
So SiLU (a Sigmoid and a Mul) and squeeze-and-excitation do; GELU, for whose error function no runtime has an integer
kernel, stays in float with all its parts.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

INPUT = "pixels"

_WEIGHTED = ("Conv", "Gemm", "MatMul")
_ELEMENTWISE = ("Add", "Mul", "Sigmoid", "Relu", "Clip", "GlobalAveragePool")
_FUSED_BEHIND = ("Relu", "Clip")
"""Runtimes compute these in one with what is before them, so there is no pair between."""


@dataclass(frozen=True)
class Points:
    """`weighted` are the positions of nodes whose weights are quantised; `tensors` are activations, by name."""

    weighted: frozenset[int]
    tensors: tuple[str, ...]


def find_points(graph: Any, *, quantizes_elementwise: bool) -> Points:
    """The same graph gives the same points, in its order."""
    constants = {constant.name for constant in graph.initializer}
    quantized: dict[int, Any] = {}
    made: set[str] = set()
    for index, node in enumerate(graph.node):
        reads = [name for name in node.input if name and name not in constants]
        is_elementwise = node.op_type in _ELEMENTWISE and quantizes_elementwise and made.issuperset(reads)
        if _has_weights(node, constants) or (is_elementwise and not _has_constant(node, constants)):
            quantized[index] = node
            made.update(node.output)
    weighted = frozenset(index for index, node in quantized.items() if node.op_type in _WEIGHTED)
    return Points(weighted, _tensors(graph, quantized, constants, with_outputs=quantizes_elementwise))


def _has_weights(node: Any, constants: set[str]) -> bool:
    if node.op_type not in _WEIGHTED or node.input[0] == INPUT:
        return False
    return node.input[1] in constants and node.input[0] not in constants


def _has_constant(node: Any, constants: set[str]) -> bool:
    """Whether it adds or multiplies by weights: a scale for each tensor would be coarse for them."""
    return node.op_type in ("Add", "Mul") and any(name in constants for name in node.input)


def _tensors(graph: Any, quantized: dict[int, Any], constants: set[str], *, with_outputs: bool) -> tuple[str, ...]:
    readers: dict[str, list[int]] = defaultdict(list)
    for index, node in enumerate(graph.node):
        for name in node.input:
            readers[name].append(index)

    def is_fused(name: str) -> bool:
        only = readers[name][0] if len(readers[name]) == 1 else None
        return only in quantized and quantized[only].op_type in _FUSED_BEHIND

    found: dict[str, None] = {}
    for node in quantized.values():
        activations = node.input[:1] if node.op_type in _WEIGHTED else node.input
        if node.op_type not in _FUSED_BEHIND:
            found.update((name, None) for name in activations if name and name not in constants)
        # An integer matrix product may give floats; a convolution may not.
        stays_float = node.op_type in ("Gemm", "MatMul") and quantized.keys().isdisjoint(readers[node.output[0]])
        if with_outputs and not stays_float and not is_fused(node.output[0]):
            found[node.output[0]] = None
    return tuple(found)
