"""DC and DSA: the distance of gradients, its gradient in the images, one step of it, and the two loops."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from iadd_lab.baselines import gradients as gradient_matching
from iadd_lab.baselines.descent import Pair
from iadd_lab.baselines.gradients import GradientMatchingConfig, gradient_distance, match_gradients
from iadd_lab.data.augment import AugmentConfig
from iadd_lab.data.sets import load_data
from iadd_lab.errors import InputError
from iadd_lab.training.networks import NetworkConfig, build_network
from tests.conftest import AUGMENT
from tests.samples import randn

NETWORK = NetworkConfig(width=4, depth=2)
OFF = AugmentConfig(operations=())
CONFIG = GradientMatchingConfig(iterations=1, matches_per_network=1, augment=OFF, real_batch=10_000)


def build(seed: int = 0) -> torch.nn.Module:
    return build_network(NETWORK, channels=1, size=8, classes=2, seed=seed).double()


def by_the_formula(first, second) -> float:
    """Row by row, from the paper: 1 − a·b / (‖a‖ ‖b‖), summed over rows and layers."""
    total = 0.0
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one.numpy(), other.numpy(), strict=True):
            a, b = a.ravel(), b.ravel()
            total += 1.0 - np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b))
    return total


def layers(seed: int) -> list[torch.Tensor]:
    return [randn(4, 3, 3, 3, seed=seed), randn(5, 7, seed=seed + 1)]


def test_equal_gradients_are_no_distance_apart_and_opposite_ones_two_per_row():
    first = layers(0)
    assert gradient_distance(first, first) == 0
    assert gradient_distance(first, [3.0 * layer for layer in first]) < 1e-28
    opposite = [-0.1 * layer for layer in first]
    assert gradient_distance(first, opposite).item() == pytest.approx(2 * (4 + 5), rel=1e-12)
    distances = [gradient_distance(first, layers(seed + 100)) for seed in range(20)]
    assert 0 < min(distances) < max(distances) <= 2 * (4 + 5)
    # Rows count one by one, not the layer as a whole.
    turned = [torch.tensor([[one, 1 - one], [0.0, 100.0]]) for one in (1.0, 0.0)]
    assert gradient_distance(turned[:1], turned[1:]).item() == pytest.approx(1.0)


def test_the_distance_is_the_papers_where_small_gradients_count_like_large_ones_and_zero_ones_stay_finite():
    first, second = layers(0), layers(10)
    expected = by_the_formula(first, second)
    assert gradient_distance(first, second).item() == pytest.approx(expected, rel=1e-12)
    small = [1e-4 * layer for layer in first]
    assert gradient_distance(small, second).item() == pytest.approx(expected, rel=1e-9)
    rounding = [1e-12 * layer for layer in first]  # has no direction: each row counts as if it were zero
    assert gradient_distance(rounding, second).item() == pytest.approx(0.5 * (4 + 5), rel=1e-4)
    nothing = torch.zeros(2, 3, requires_grad=True)
    gradient_distance([nothing], [torch.zeros(2, 3)]).backward()
    assert torch.equal(nothing.grad, torch.zeros(2, 3))


def test_gradients_are_those_of_the_weights_alone():
    network, images = build(), randn(3, 1, 8, 8)
    found = gradient_matching.weight_gradients(network, images, 1)
    assert [tuple(gradient.shape) for gradient in found] == [(4, 1, 3, 3), (4, 4, 3, 3), (2, 16)]
    functional.cross_entropy(network(images), torch.ones(3, dtype=torch.int64)).backward()
    convolutions = [network.features[0], network.features[4], network.classifier]
    for layer, gradient in zip(convolutions, found, strict=True):
        assert torch.allclose(layer.weight.grad, gradient, rtol=1e-12, atol=0)


def test_the_gradient_in_the_images_is_that_of_finite_differences():
    network, real, images = build(), randn(5, 1, 8, 8, seed=1), randn(2, 1, 8, 8, seed=2)
    images.requires_grad_()
    CONFIG.distance(network, Pair(0, real, images)).backward()
    for seed in range(3):
        direction, step = randn(2, 1, 8, 8, seed=10 + seed), 1e-6
        moved = [Pair(0, real, (images + sign * step * direction).detach()) for sign in (1, -1)]
        ahead, behind = (CONFIG.distance(network, pair).item() for pair in moved)
        expected = (ahead - behind) / (2 * step)
        assert (images.grad * direction).sum().item() == pytest.approx(expected, rel=1e-6)


def test_the_network_is_trained_on_the_distilled_images_between_two_matches(
    toy_data, toy_teachers, networks, monkeypatch
):
    seen, original = [], gradient_matching.train

    def spy(network, images, labels, **options):
        seen.append((images.clone(), options))
        before = network.classifier.weight.clone()
        original(network, images, labels, **options)
        assert not torch.equal(before, network.classifier.weight)

    monkeypatch.setattr(gradient_matching, "train", spy)
    config = replace(CONFIG, ipc=3, iterations=2, matches_per_network=3, network_steps=4, network_rate=0.02)
    match_gradients(toy_data, toy_teachers.preprocess, NETWORK, config, progress=False)
    assert len(seen) == 2 * (3 - 1)
    assert {(options["epochs"], *options["rates"], options["batch"]) for _, options in seen} == {
        (4, 0.02, 256)
    }
    assert all(not torch.equal(a, b) for (a, _), (b, _) in itertools.pairwise(seen))
    assert len(networks) == 1 + 2  # one to check, one per iteration


def test_the_loops_are_the_papers_by_ipc_unless_they_are_given():
    data = load_data("digits", progress=False)
    papers = {1: (1, 1), 2: (2, 50), 10: (10, 50), 20: (20, 25), 50: (50, 10), 100: (50, 10)}
    for ipc, loops in papers.items():
        resolved = GradientMatchingConfig(ipc=ipc).resolved(data)
        assert (resolved.matches_per_network, resolved.network_steps) == loops
    config = GradientMatchingConfig(ipc=10, matches_per_network=3, network_steps=2, augment=OFF)
    assert config.resolved(data) == config


def test_with_augmentation_it_is_dsa_and_without_dc(toy_data, toy_teachers):
    siamese, preprocess = "gradient matching, siamese", toy_teachers.preprocess
    for augment, method in {None: siamese, AUGMENT: siamese, OFF: "gradient matching"}.items():
        config = replace(CONFIG, augment=augment)
        assert match_gradients(toy_data, preprocess, NETWORK, config, progress=False).method == method


@pytest.mark.parametrize("field", ["matches_per_network", "network_steps", "network_batch", "network_rate"])
def test_configs_name_the_bad_value(field):
    kind = "finite number above 0" if field == "network_rate" else "whole number of at least 1"
    with pytest.raises(InputError, match=f"{field} is 0; it must be a {kind}"):
        replace(CONFIG, **{field: 0})
