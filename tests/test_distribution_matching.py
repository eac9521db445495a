"""DM: the distance of mean features, and its gradient."""

import pytest
import torch
from torch.nn import functional

from iadd_lab.baselines.descent import Pair
from iadd_lab.baselines.features import DistributionMatchingConfig
from iadd_lab.training.networks import NetworkConfig, build_network
from tests.samples import randn

NETWORK = NetworkConfig(width=4, depth=2)


def features_by_hand(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """A ConvNet of two blocks up to its linear layer, from the definition, in float64: (batch, features)."""
    values = [parameter.detach().double() for parameter in network.parameters()]
    maps = images
    for weight, bias, scale, shift in (values[:4], values[4:8]):
        maps = functional.conv2d(maps, weight, bias, padding=1)
        mean = maps.mean((2, 3), keepdim=True)
        variance = (maps - mean).square().mean((2, 3), keepdim=True)
        maps = (maps - mean) / (variance + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]
        maps = maps.clamp_min(0)
        top, bottom = maps[:, :, ::2], maps[:, :, 1::2]
        maps = (top[..., ::2] + top[..., 1::2] + bottom[..., ::2] + bottom[..., 1::2]) / 4
    return maps.flatten(1)


def test_the_distance_is_that_of_the_mean_features():
    network = build_network(NETWORK, channels=1, size=8, classes=2, seed=0).double()
    real, distilled = randn(5, 1, 8, 8), randn(2, 1, 8, 8, seed=2)
    distance = DistributionMatchingConfig().distance
    found = distance(network, Pair(0, real, distilled)).item()
    gap = features_by_hand(network, real).mean(0) - features_by_hand(network, distilled).mean(0)
    assert found == pytest.approx((gap**2).sum().item(), rel=1e-10)
    assert distance(network, Pair(0, real, real)) == 0
    real, distilled = real.requires_grad_(), distilled.requires_grad_()
    distance(network, Pair(0, real, distilled)).backward()
    assert real.grad is None
    assert distilled.grad.abs().max() > 0
