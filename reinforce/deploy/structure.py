"""Whether an int8 graph is what its target's runtime takes, node by node: what no run on this machine would show."""

from typing import Any

import numpy as np

from reinforce.deploy.quantize import SCHEMES, Target
from reinforce.weights import ModelError


def check_structure(model: Any, target: Target) -> int:
    """The number of quantised activations. Raises ModelError that names the first node that is not as it has to be.

    Of every QuantizeLinear: one scale, a zero point of the target's type, 0 where the target wants symmetry. Of every
    DequantizeLinear: what it reads is of its zero point's type, and that of weights is int8 and 0.
    """
    from onnx import numpy_helper

    scheme = SCHEMES[target]
    constants: dict[str, Any] = {constant.name: numpy_helper.to_array(constant) for constant in model.graph.initializer}
    num_activations = 0
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        values = constants.get(node.input[0])
        scale, zero_point = constants[node.input[1]], constants[node.input[2]]
        is_right = scale.shape == zero_point.shape and bool((scale > 0).all())
        if values is None:
            is_right = is_right and zero_point.shape == () and zero_point.dtype == scheme.dtype
            is_right = is_right and not (scheme.is_symmetric and zero_point.any())
            num_activations += node.op_type == "QuantizeLinear"
        else:
            allowed = (np.int8, np.int32) if scheme.quantizes_bias else (np.int8,)
            is_right = is_right and values.dtype == zero_point.dtype and values.dtype in allowed
            is_right = is_right and not zero_point.any()
        if not is_right:
            raise ModelError(f"export: node {node.name} does not suit {target}; nothing was written")
    return num_activations
