"""A student that is trained as `reinforce export --int8` will round it: weights and the inputs of layers in 8 bits.

What export rounds are weights after the scale of a BatchNorm was folded into them. Rounding them before gives the same:
a channel has one scale, symmetric about 0, so both are multiplied by one factor. As in export, the layer that reads the
pixels stays in float. Gradients pass the rounding unchanged, but for inputs beyond their range (straight through). On
a CPU a step takes 1.7 times as long (mobilenetv4_conv_small).
"""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int64
from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn
from torch.nn.utils import parametrize

from reinforce.config import ConfigError

_LEAST_SCALE = 1e-12
_MOST_WEIGHT = 127
_MOST_INPUT = 255
_NEW_BATCH_SHARE = 0.01
"""Of a batch in the ranges of inputs: they are those of the last hundreds of batches."""

_ROUNDING = "input_rounding"


class WeightRounding(nn.Module):
    """Weights as int8 holds them, with a scale for each output channel, the first axis; symmetric, without -128."""

    def forward(self, weights: Float[Tensor, "channels ..."]) -> Float[Tensor, "channels ..."]:
        scale = (weights.detach().abs().flatten(1).amax(1).float() / _MOST_WEIGHT).clamp_min(_LEAST_SCALE)
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            weights.float(), scale, zero_point, 0, -_MOST_WEIGHT, _MOST_WEIGHT
        )


class InputRounding(nn.Module):
    """A tensor as 8 bits hold it between the moving averages of the batches' least and greatest values, 0 among them.

    The ranges move while the module is in training mode. Before the first such batch a tensor passes as it is.
    """

    least: Float[Tensor, ""]
    most: Float[Tensor, ""]
    num_batches: Int64[Tensor, ""]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("least", torch.zeros(()))
        self.register_buffer("most", torch.zeros(()))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    def forward(self, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if self.training:
            self._observe(values.detach().float())
        elif not self.num_batches:
            return values
        scale, zero_point = self.parameters_of_range()
        return torch.fake_quantize_per_tensor_affine(values.float(), scale, zero_point, 0, _MOST_INPUT)

    def parameters_of_range(self) -> tuple[Float[Tensor, ""], Tensor]:
        """Scale and zero point (int32), as export computes them for a range."""
        # In float64 like export, so that both round alike.
        least, most = self.least.clamp_max(0).double(), self.most.clamp_min(0).double()
        scale = ((most - least) / _MOST_INPUT).clamp_min(_LEAST_SCALE).float()
        zero_point = (-least / scale.double()).round().clamp(0, _MOST_INPUT)
        return scale, zero_point.to(torch.int32)

    def before_layer(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """A forward pre-hook. A bound method, so that a copy of the layer has a copy of its own."""
        return (self(inputs[0]), *inputs[1:])

    @torch.no_grad()
    def _observe(self, values: Float[Tensor, "..."]) -> None:
        share = torch.where(self.num_batches == 0, 1.0, _NEW_BATCH_SHARE)
        for average, found in zip((self.least, self.most), torch.aminmax(values), strict=True):
            average.lerp_(found, share)
        self.num_batches += 1


def add_rounding(tower: nn.Module, image_size: int) -> int:
    """Puts rounding before every convolution and matrix of an image tower, in place; how many got it.

    Raises `ConfigError` for a tower that export would not round layer by layer: one whose branches it folds first, that
    standardises weights, or that uses weights otherwise than by calling their layer.
    """
    for name, module in tower.named_modules():
        if any(hasattr(module, method) for method in ("fuse", "reparameterize", "switch_to_deploy")):
            raise ConfigError(
                f"student.quantization: int8 needs a network without branches that export folds ({name} has them); "
                "name another student.model.backbone"
            )
        if isinstance(module, nn.MultiheadAttention):
            raise ConfigError("student.quantization: int8 needs an image tower of timm; give student.model.backbone")
        if isinstance(module, StdConv2d | StdConv2dSame | ScaledStdConv2d | ScaledStdConv2dSame):
            raise ConfigError(
                f"student.quantization: int8 rounds weights as they are, and those of {name} are standardised first; "
                "name another student.model.backbone"
            )
    layers = _layers_behind_pixels(tower, image_size)
    for layer in layers:
        # Not checked by a forward pass of its own: the rounding keeps shape and type.
        parametrize.register_parametrization(layer, "weight", WeightRounding(), unsafe=True)
        rounding = InputRounding().train(layer.training)
        layer.add_module(_ROUNDING, rounding)
        layer.register_forward_pre_hook(rounding.before_layer)
    return len(layers)


def without_rounding(model: Any) -> Any:
    """A copy of a model with its weights in full, under their plain names; the model itself if nothing is rounded."""
    if not any(parametrize.is_parametrized(module) for module in model.modules()):
        return model
    plain = copy.deepcopy(model)
    for module in plain.modules():
        rounding = getattr(module, _ROUNDING, None)
        if rounding is not None:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            delattr(module, _ROUNDING)
            for key, hook in list(module._forward_pre_hooks.items()):
                if getattr(hook, "__self__", None) is rounding:
                    del module._forward_pre_hooks[key]
    return plain


@torch.no_grad()
def _layers_behind_pixels(tower: nn.Module, image_size: int) -> list[nn.Module]:
    """Convolutions and matrices in the order in which they compute, but for those that read the pixels."""
    pixels = torch.zeros(1, 3, image_size, image_size)
    found: dict[nn.Module, bool] = {}

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        found[layer] = found.get(layer, False) or inputs[0].data_ptr() != pixels.data_ptr()

    layers = {module: name for name, module in tower.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    was_training = [(module, module.training) for module in tower.modules()]
    tower.eval()(pixels)
    for module, training in was_training:
        module.training = training
    for handle in handles:
        handle.remove()
    for layer, name in layers.items():
        if layer not in found:
            raise ConfigError(
                f"student.quantization: int8 rounds what goes into a layer, and {name} is never called as one; name "
                "another student.model.backbone"
            )
    return [layer for layer, is_behind in found.items() if is_behind]
