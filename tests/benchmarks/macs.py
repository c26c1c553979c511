"""Multiply-accumulates of one image through a network: products of convolutions, linear layers and attention.

As papers count them: no activations, pooling, normalisation or biases. On torch's `meta` device it costs what running
Python through the layers costs, and no arithmetic.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_macs(network: torch.nn.Module, image_size: int) -> int:
    """Of a batch of one, 3 x `image_size` x `image_size`; the network is put into evaluation mode."""
    pixels = torch.zeros(1, 3, image_size, image_size, device=next(network.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(pixels)
    num_flops: int = counter.get_total_flops()
    return num_flops // 2
