"""DM: the distance of mean features, its steps against a computation by hand, and that it falls."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from iadd_lab.baselines.descent import Pair
from iadd_lab.baselines.features import DistributionMatchingConfig, match_distributions, pair_distance
from iadd_lab.data.augment import AugmentConfig
from iadd_lab.training.networks import NetworkConfig, build_network

NETWORK = NetworkConfig(width=4, depth=2)
OFF = AugmentConfig(operations=())


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


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_distance_is_that_of_the_mean_features():
    network = build_network(NETWORK, channels=1, size=8, classes=2, seed=0).double()
    real, distilled = noise(5, 1, 8, 8), noise(2, 1, 8, 8, seed=1)
    found = pair_distance(network, Pair(0, real, distilled)).item()
    gap = features_by_hand(network, real).mean(0) - features_by_hand(network, distilled).mean(0)
    assert found == pytest.approx((gap**2).sum().item(), rel=1e-10)
    assert pair_distance(network, Pair(0, real, real)) == 0
    real, distilled = real.requires_grad_(), distilled.requires_grad_()
    pair_distance(network, Pair(0, real, distilled)).backward()
    assert real.grad is None
    assert distilled.grad.abs().max() > 0


def test_two_iterations_by_hand(toy_data, toy_teachers, networks):
    preprocess, losses, states = toy_teachers.preprocess, [], []
    options = {"progress": False, "on_iteration": lambda iteration, history: losses.append(history.loss[-1])}
    plain = DistributionMatchingConfig(ipc=2, momentum=0.5, real_batch=10_000, augment=OFF)
    for rate, iterations in ((1e-30, 1), (0.5, 1), (0.5, 2)):
        config = replace(plain, iterations=iterations, image_rate=rate)
        made = match_distributions(toy_data, preprocess, NETWORK, config, **options)
        states.append(made.images.double())
    first, second = networks[-2:]  # those of the last run; the one before only checked that it fits
    assert not torch.equal(first.features[0].weight, second.features[0].weight)
    real = preprocess.apply(toy_data.train.images).double()
    images, velocity = states[0], torch.zeros_like(states[0])
    for network, state, loss in ((first, states[1], losses[-2]), (second, states[2], losses[-1])):
        images = images.detach().requires_grad_()
        total = 0.0
        for label in range(2):
            mean = features_by_hand(network, real[toy_data.train.labels == label]).mean(0)
            own = features_by_hand(network, images[2 * label : 2 * label + 2]).mean(0)
            total = total + (mean - own).square().sum()
        velocity = 0.5 * velocity + torch.autograd.grad(total, images)[0]
        images = images - 0.5 * velocity
        assert (0.5 * velocity).abs().max() > 1e-2  # else the next line says nothing
        assert torch.allclose(state, images, rtol=0, atol=1e-5)
        assert loss == pytest.approx(total.item(), rel=1e-4)
