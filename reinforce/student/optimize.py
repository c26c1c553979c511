"""AdamW as CLIP is trained with: decay for matrices only, a linear warm-up, a cosine, and by request an average."""

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from reinforce.config import OptimizerConfig


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; gains, biases and the logit scale do not decay."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps)


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """The learning rate of step 1..num_steps."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    low, high = min(config.min_learning_rate, config.learning_rate), config.learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * progress)) / 2


def make_average(module: nn.Module, config: OptimizerConfig) -> AveragedModel | None:
    """The moving average of a module's weights and running statistics, if the recipe asks for one."""
    if config.ema is None:
        return None
    step = get_ema_multi_avg_fn(config.ema)  # type: ignore[no-untyped-call]
    return AveragedModel(module, multi_avg_fn=step, use_buffers=True)
