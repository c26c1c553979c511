"""Weights in the type that autocast computes in, and in the layout that a device reads fastest."""

from typing import Any

import torch
from torch import nn

_OF_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Casts in place, once, what autocast would cast at every pass: the weights of linear, convolution and attention.

    Under autocast the results stay the same bit by bit, but for layers that compute on their own weights first (timm's
    standardised convolutions). Everything else, as the weights of normalisations, stays fp32.
    """
    part: Any
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            _cast(part, ("weight", "bias"), dtype)
        _cast(part, _OF_ATTENTION, dtype)
        # open_clip's text towers would else take the type of a weight for that of their activations.
        if hasattr(part, "get_cast_dtype"):
            part.get_cast_dtype = _fp32


def lay_out_for_cuda(module: nn.Module) -> None:
    """Weights of convolutions as cuDNN reads them fastest; the views come in that layout anyway."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)


def _cast(part: nn.Module, names: tuple[str, ...], dtype: torch.dtype) -> None:
    for name in names:
        weight = getattr(part, name, None)
        if isinstance(weight, nn.Parameter):
            weight.data = weight.data.to(dtype)


def _fp32() -> torch.dtype:
    return torch.float32
