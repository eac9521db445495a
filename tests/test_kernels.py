"""The fused norms against torch's own norm, ReLU and pooling, and against autograd and forward mode."""

import itertools

import pytest
import torch
from torch.nn import functional

from iadd_lab.training.fast import kernels

BATCH, CHANNELS, HEIGHT, WIDTH = 3, 4, 6, 8
EPSILON = 0.01
TOLERANCE = 1e-12
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}

layers = pytest.mark.parametrize(("relu", "pool"), list(itertools.product((False, True), repeat=2)))
layouts = pytest.mark.parametrize("layout", LAYOUTS)
parameters = pytest.mark.parametrize("rows", [1, BATCH], ids=["shared", "per image"])


def assert_near(found, expected, tolerance=TOLERANCE):
    """The same shape and dtype, and no value further off than `tolerance` times the largest one."""
    atol = tolerance * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def draw(*shapes):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def draw_maps(layout, *, pool):
    """Maps y and ẏ away from mean 0 and variance 1, and what a loss might send back to each output."""
    planes = (BATCH, CHANNELS, HEIGHT, WIDTH)
    outputs = (BATCH, CHANNELS, HEIGHT // 2, WIDTH // 2) if pool else planes
    y, dy, above, dabove = draw(planes, planes, outputs, outputs)
    maps = (2 * y + 3, dy - 1, above, dabove)
    return [part.contiguous(memory_format=LAYOUTS[layout]) for part in maps]


def draw_parameters(rows):
    """γ, β, γ̇ and β̇, (rows, channels)."""
    gamma, *others = draw(*[(rows, CHANNELS)] * 4)
    return [gamma + 1, *others]


def composite(y, gamma, beta, relu, pool):
    """What the kernels fuse, of torch's own functions."""
    maps = functional.group_norm(y, y.shape[1], eps=EPSILON)
    maps = maps * gamma[:, :, None, None] + beta[:, :, None, None]
    maps = functional.relu(maps) if relu else maps
    return functional.avg_pool2d(maps, 2) if pool else maps


def as_leaves(*tensors):
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def per_image(parameter):
    return parameter.expand(BATCH, CHANNELS)


@layers
@layouts
@parameters
def test_norm_and_its_gradients_equal_autograd(rows, layout, relu, pool):
    y, _, above, _ = draw_maps(layout, pool=pool)
    gamma, beta, *_ = draw_parameters(rows)
    leaves = as_leaves(y, per_image(gamma), per_image(beta))
    expected = composite(*leaves, relu, pool)
    output, *statistics = kernels.norm(y, gamma, beta, EPSILON, relu, pool)
    assert_near(output, expected.detach())
    found = kernels.norm_backward(above, y, *statistics, gamma, beta, relu, pool)
    for part, gradient in zip(found, torch.autograd.grad(expected, leaves, above), strict=True):
        assert_near(part, gradient)


@layers
@layouts
@parameters
def test_dual_norm_equals_forward_mode_and_its_gradients_autograd_through_that(rows, layout, relu, pool):
    y, dy, above, dabove = draw_maps(layout, pool=pool)
    gamma, beta, dgamma, dbeta = draw_parameters(rows)
    leaves = as_leaves(y, dy, per_image(gamma), per_image(beta))
    pair = torch.func.jvp(
        lambda *values: composite(*values, relu, pool),
        (leaves[0], leaves[2], leaves[3]),
        (leaves[1], per_image(dgamma), per_image(dbeta)),
    )
    value, tangent, *statistics = kernels.dual_norm(y, dy, gamma, beta, dgamma, dbeta, EPSILON, relu, pool)
    gradients = kernels.dual_norm_backward(above, dabove, y, dy, *statistics, gamma, beta, dgamma, relu, pool)
    expected = (*pair, *torch.autograd.grad(pair, leaves, (above, dabove)))
    for part, exact in zip((value, tangent, *gradients), expected, strict=True):
        assert_near(part, exact.detach())
    assert_near(value, kernels.norm(y, gamma, beta, EPSILON, relu, pool)[0])


@layers
def test_blank_images_give_the_bias_and_finite_gradients(relu, pool):
    """Chunks of a batch are filled up with them: their planes have no variance at all."""
    _, dy, above, dabove = draw_maps("contiguous", pool=pool)
    gamma, beta, dgamma, dbeta = draw_parameters(1)
    blank = torch.full_like(dy, 0.7)
    given = (blank, dy, gamma, beta, dgamma, dbeta)
    value, tangent, *statistics = kernels.dual_norm(*given, EPSILON, relu, pool)
    level = beta.relu() if relu else beta
    assert_near(value, level[:, :, None, None].expand_as(value))
    found = kernels.dual_norm_backward(above, dabove, blank, dy, *statistics, gamma, beta, dgamma, relu, pool)
    assert all(part.isfinite().all() for part in (tangent, *found))
    zero = torch.zeros_like(dy), 0 * beta
    _, *statistics = kernels.norm(zero[0], gamma, zero[1], EPSILON, relu, pool)
    found = kernels.norm_backward(above, zero[0], *statistics, gamma, zero[1], relu, pool)
    assert bool(found[2].any()) is not relu  # at 0 a ReLU passes nothing back, as torch's own
