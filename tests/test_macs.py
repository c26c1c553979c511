"""The counter of multiply-accumulates against what torchvision publishes of the same networks."""

import pytest
import timm
import torch
from torchvision.models import EfficientNet_B3_Weights, ResNet50_Weights, ViT_B_16_Weights, WeightsEnum

from tests.benchmarks.macs import count_macs

PUBLISHED = [
    ("efficientnet_b3", EfficientNet_B3_Weights.IMAGENET1K_V1, 300),
    ("resnet50", ResNet50_Weights.IMAGENET1K_V2, 224),
    ("vit_base_patch16_224", ViT_B_16_Weights.IMAGENET1K_V1, 224),  # of which attention is 0.7
]


@pytest.mark.parametrize(("name", "weights", "image_size"), PUBLISHED)
def test_counts_are_the_published_ones(name: str, weights: WeightsEnum, image_size: int) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    assert count_macs(network, image_size) / 1e9 == pytest.approx(weights.meta["_ops"], abs=0.0006)
