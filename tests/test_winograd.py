"""Winograd convolutions and patches against torch's own convolution and its gradients."""

import functools

import pytest
import torch
from torch.nn import functional

from iadd_lab.training.fast import patches, winograd
from tests.samples import randn
from tests.test_kernels import assert_near

INPUTS, OUTPUTS = 5, 3
# (images of each network, height, width): one tile alone, and tiles with neighbours on each side.
SIZES = [(1, 4, 4), (3, 8, 4), (2, 4, 12), (2, 12, 8)]
sizes = pytest.mark.parametrize(("batch", "height", "width"), SIZES)
networks_counts = pytest.mark.parametrize("networks", [1, 3])


draw = functools.partial(randn, seed=0)


def transforms(dtype=torch.float64):
    return winograd.constants(dtype, torch.device("cpu"))


def convolve(maps, weight, bias=None):
    """The convolution of every network's share of the maps with its weight, of the module's parts."""
    constants = transforms(maps.dtype)
    tiles = winograd.input_tiles(maps, constants.b)
    filters = winograd.weight_tiles(weight, constants.g)
    products = winograd.multiply((tiles, filters.mT))
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
    maps, exact = maps.contiguous(memory_format=layout), convolve_directly(maps, weight)
    assert_near(convolve(maps, weight), exact)
    assert convolve(maps, weight).stride(1) == 1
    for rows in (1, len(maps)):  # a bias for all images, or one for each
        bias = draw(rows, OUTPUTS, seed=3)
        assert_near(convolve(maps, weight, bias), exact + bias[:, :, None, None])


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
    products = winograd.correlate((above_tiles, tiles), networks=networks)
    assert_near(winograd.weight_gradient(products, constants.g), exact_weight)
    products = winograd.multiply((above_tiles, filters))
    assert_near(winograd.input_maps(products, height, width, constants.b, constants.edges), exact_maps)


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


@pytest.mark.parametrize(("inputs", "outputs", "height", "width"), [(1, 4, 6, 6), (3, 8, 4, 7), (4, 2, 1, 3)])
@pytest.mark.parametrize("compiling", [False, True])
def test_patches_give_the_convolution_and_their_sum_its_input_gradient(
    inputs, outputs, height, width, compiling, monkeypatch
):
    images, weight = draw(5, inputs, height, width).requires_grad_(), draw(outputs, inputs, 3, 3, seed=1)
    maps = functional.conv2d(images, weight, padding=1)
    above = draw(*maps.shape, seed=2)
    (expected,) = torch.autograd.grad(maps, images, above)
    rows = weight.flatten(1)
    assert_near(patches.take(images) @ rows.T, patches.pixels(maps))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    assert_near(patches.add_patches(patches.pixels(above) @ rows, height, width), expected)


@pytest.mark.parametrize(
    ("expected", "weight", "stride", "padding"),
    [(True, (8, 3, 3, 3), 1, 1), (False, (8, 3, 3, 3), 2, 1), (False, (8, 3, 3, 3), 1, 0),
     (False, (8, 3, 5, 5), 1, 1), (False, (8, 64, 3, 3), 1, 1)],
)  # fmt: skip
def test_patches_suit_what_they_compute(expected, weight, stride, padding):
    assert patches.suits(torch.empty(2, weight[1], 4, 4), torch.empty(weight), stride, padding) is expected
