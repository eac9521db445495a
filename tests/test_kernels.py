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
    """γ, β, γ̇ and β̇, (rows, channels, 1, 1)."""
    gamma, *others = draw(*[(rows, CHANNELS, 1, 1)] * 4)
    return [gamma + 1, *others]


def composite(y, gamma, beta, relu, pool):
    """What the kernels fuse, of torch's own functions."""
    maps = functional.group_norm(y, y.shape[1], eps=EPSILON)
    maps = maps * gamma + beta
    maps = functional.relu(maps) if relu else maps
    return functional.avg_pool2d(maps, 2) if pool else maps


def as_leaves(*tensors):
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def per_image(parameter):
    return parameter.expand(BATCH, CHANNELS, 1, 1)


@layers
@layouts
@parameters
def test_norm_and_its_gradients_equal_autograd(rows, layout, relu, pool):
    y, _, above, _ = draw_maps(layout, pool=pool)
    gamma, beta, *_ = draw_parameters(rows)
    leaves = as_leaves(y, per_image(gamma), per_image(beta))
    expected = composite(*leaves, relu, pool)
    output, *kept = kernels.norm(y, gamma, beta, EPSILON, relu, pool)
    assert_near(output, expected.detach())
    found = kernels.norm_backward(above, *kept, gamma, beta, relu, pool)
    for part, gradient in zip(found, torch.autograd.grad(expected, leaves, above), strict=True):
        assert_near(part, gradient)


@layers
@layouts
@parameters
def test_derivatives_along_a_direction_equal_those_of_autograd(rows, layout, relu, pool):
    """Of the output, and of the gradients of all that it depends on."""
    y, dy, more, above = draw_maps(layout, pool=pool)
    gamma, beta, dgamma, dbeta = draw_parameters(rows)
    leaves = as_leaves(y, per_image(gamma), per_image(beta))

    def gradients(above, *leaves):
        return torch.autograd.grad(composite(*leaves, relu, pool), leaves, above, create_graph=True)

    moved = dy, per_image(dgamma), per_image(dbeta)
    _, along = torch.func.jvp(lambda *values: composite(*values, relu, pool), tuple(leaves), moved)
    # The derivative of a gradient is the gradient of its product with the direction.
    scalar = sum((part * way).sum() for part, way in zip(gradients(above, *leaves), moved, strict=True))
    expected = torch.autograd.grad(scalar, leaves, allow_unused=True, materialize_grads=True)
    expected = [part + far for part, far in zip(expected, gradients(more, *leaves), strict=True)]

    _, n, inverse = kernels.norm(y, gamma, beta, EPSILON, relu, pool)
    _, *sums = kernels.norm_backward(above, n, inverse, gamma, beta, relu, pool)
    own = dy, n, inverse, gamma, beta, dgamma, dbeta
    output, *dplanes = kernels.norm_along(*own, relu, pool)
    given = more, above, n, dy, inverse, *sums, *dplanes, gamma, beta, dgamma
    found = kernels.norm_backward_along(*given, relu, pool)
    for part, exact in zip((output, *found), (along, *expected), strict=True):
        assert_near(part, exact.detach())


@layers
def test_blank_images_give_the_bias_and_finite_gradients(relu, pool):
    """Chunks of a batch are filled up with them: their planes have no variance at all."""
    _, dy, more, above = draw_maps("contiguous", pool=pool)
    gamma, beta, dgamma, dbeta = draw_parameters(1)
    value, *kept = kernels.norm(torch.full_like(dy, 0.7), gamma, beta, EPSILON, relu, pool)
    assert_near(value, (beta.relu() if relu else beta).expand_as(value))
    found, *sums = kernels.norm_backward(above, *kept, gamma, beta, relu, pool)
    tangent, *dplanes = kernels.norm_along(dy, *kept, gamma, beta, dgamma, dbeta, relu, pool)
    n, inverse = kept
    given = more, above, n, dy, inverse, *sums, *dplanes, gamma, beta, dgamma
    again = kernels.norm_backward_along(*given, relu, pool)
    assert all(part.isfinite().all() for part in (found, tangent, *again))
    zero = torch.zeros_like(dy), gamma, 0 * beta
    _, *kept = kernels.norm(*zero, EPSILON, relu, pool)
    found = kernels.norm_backward(above, *kept, *zero[1:], relu, pool)
    assert bool(found[2].any()) is not relu  # at 0 a ReLU passes nothing back, as torch's own


def test_a_variance_that_overflows_is_seen():
    y = torch.tensor([1e30, -1e30, 0, 0]).view(1, 1, 2, 2)
    output, *_ = kernels.norm(y, torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), EPSILON, False, False)
    assert output.isnan().all()
