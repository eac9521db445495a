"""Winograd convolutions against torch's direct ones, and every transform against its transpose."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from iadd_lab.training.fast import winograd
from tests.test_kernels import assert_near

INPUTS, OUTPUTS = 5, 3
# (images of each network, height, width): one tile alone, and tiles with neighbours on each side.
SIZES = [(1, 4, 4), (3, 8, 4), (2, 4, 12), (2, 12, 8)]
sizes = pytest.mark.parametrize(("batch", "height", "width"), SIZES)
networks_counts = pytest.mark.parametrize("networks", [1, 3])


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def transforms(dtype=torch.float64):
    return winograd.constants(dtype, torch.device("cpu"))


def convolve(maps, weight, bias=None):
    """The convolution of every network's share of the maps with its weight, of the module's parts."""
    constants = transforms(maps.dtype)
    tiles = winograd.input_tiles(maps, constants.b)
    filters = winograd.weight_tiles(weight, constants.g)
    products = winograd.multiply(tiles, filters.mT)
    return winograd.output_maps(products, bias, *maps.shape[2:], constants.a)


def convolve_directly(maps, weight):
    shares = zip(maps.chunk(len(weight)), weight, strict=True)
    return torch.cat([functional.conv2d(*share, padding=1) for share in shares])


def problem(networks, batch, height, width):
    """Maps of all networks, their weights, and what a loss might send back to the outputs."""
    maps = draw(networks * batch, INPUTS, height, width)
    weight = draw(networks, OUTPUTS, INPUTS, 3, 3, seed=1)
    return maps, weight, draw(networks * batch, OUTPUTS, height, width, seed=2)


@sizes
@networks_counts
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_convolution_equals_the_direct_one(networks, batch, height, width, layout):
    maps, weight, _ = problem(networks, batch, height, width)
    found = convolve(maps.contiguous(memory_format=layout), weight)
    assert_near(found, convolve_directly(maps, weight))
    assert found.stride(1) == 1


@pytest.mark.parametrize("rows", [1, 2])
def test_bias_is_added_to_every_image_or_to_its_own(rows):
    maps, weight, _ = problem(1, 2, 8, 8)
    bias = draw(rows, OUTPUTS, seed=3)
    expected = convolve_directly(maps, weight) + bias[:, :, None, None]
    assert_near(convolve(maps, weight, bias), expected)


@sizes
@networks_counts
def test_gradients_equal_those_of_the_direct_convolution(networks, batch, height, width):
    maps, weight, above = problem(networks, batch, height, width)
    leaves = maps.requires_grad_(), weight.requires_grad_()
    exact_maps, exact_weight = torch.autograd.grad(convolve_directly(*leaves), leaves, above)
    constants = transforms()
    tiles = winograd.input_tiles(maps.detach(), constants.b)
    filters = winograd.weight_tiles(weight.detach(), constants.g)
    above_tiles = winograd.output_tiles(above, constants.a)
    products = winograd.correlate(above_tiles, tiles, networks)
    assert_near(winograd.weight_gradient(products, constants.g), exact_weight)
    products = winograd.multiply(above_tiles, filters)
    assert_near(winograd.input_maps(products, height, width, constants.b, constants.edges), exact_maps)


@sizes
def test_maps_transforms_and_their_transposes(batch, height, width):
    """⟨T x, y⟩ = ⟨x, Tᵀ y⟩, for tiles that come from no convolution."""
    constants = transforms()
    maps = draw(batch, INPUTS, height, width)
    tiles = draw(36, batch * height * width // 16, INPUTS, seed=1)
    cut = winograd.input_tiles(maps, constants.b)
    joined = winograd.input_maps(tiles, height, width, constants.b, constants.edges)
    assert_near((cut * tiles).sum(), (maps * joined).sum())
    outputs = winograd.output_maps(tiles, None, height, width, constants.a)
    spread = winograd.output_tiles(maps, constants.a)
    assert_near((outputs * maps).sum(), (tiles * spread).sum())


def test_weight_transform_and_its_transpose():
    constants = transforms()
    weight, tiles = draw(2, OUTPUTS, INPUTS, 3, 3), draw(36, 2, OUTPUTS, INPUTS, seed=1)
    forward, back = winograd.weight_tiles(weight, constants.g), winograd.weight_gradient(tiles, constants.g)
    assert_near((forward * tiles).sum(), (weight * back).sum())


def test_single_precision_is_exact_to_a_hundred_thousandth():
    maps, weight = draw(2, 64, 16, 16), draw(1, 64, 64, 3, 3, seed=1)
    exact = convolve_directly(maps, weight)
    found = convolve(maps.float(), weight.float())
    assert found.dtype == torch.float32
    assert (found - exact).norm() / exact.norm() < 1e-5


WIDE = winograd.FEWEST_CHANNELS


@pytest.mark.parametrize(
    ("expected", "changed"),
    [
        (True, {}),
        (True, {"height": 4, "width": 32}),
        (True, {"outputs": 2 * WIDE, "inputs": 3 * WIDE}),
        *((False, {"stride": 2}), (False, {"padding": 0}), (False, {"padding": 2})),
        *((False, {"kernel": kernel}) for kernel in ((1, 1), (5, 5), (3, 1))),
        *((False, sides) for sides in ({"height": 14}, {"width": 6}, {"height": 10, "width": 10})),
        *((False, {channels: WIDE - 1}) for channels in ("inputs", "outputs")),
    ],
)
@pytest.mark.parametrize("leading", [(), (2,)], ids=["one network's", "several networks'"])
def test_suits(expected, changed, leading):
    case = {"height": 8, "width": 8, "inputs": WIDE, "outputs": WIDE, "kernel": (3, 3), "stride": 1}
    case = {**case, "padding": 1, **changed}
    maps = torch.empty(2, case["inputs"], case["height"], case["width"], device="meta")
    weight = torch.empty(*leading, case["outputs"], case["inputs"], *case["kernel"], device="meta")
    assert winograd.suits(maps, weight, case["stride"], case["padding"]) is expected
