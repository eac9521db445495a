"""The input gradient by patches against autograd's, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from iadd_lab.training.fast import patches
from tests.test_kernels import assert_near


@pytest.mark.parametrize(("inputs", "outputs", "height", "width"), [(1, 4, 6, 6), (3, 8, 4, 7), (4, 2, 1, 3)])
def test_the_input_gradient_equals_autograds(inputs, outputs, height, width):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, inputs, height, width, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(outputs, inputs, 3, 3, generator=generator, dtype=torch.float64)
    maps = functional.conv2d(images, weight, padding=1)
    above = torch.randn(maps.shape, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(maps, images, above)

    assert_near(patches.add_patches(patches.send_patches(above, weight), height, width), expected)


@pytest.mark.parametrize(
    ("expected", "weight", "stride", "padding"),
    [(True, (8, 3, 3, 3), 1, 1), (False, (8, 3, 3, 3), 2, 1), (False, (8, 3, 3, 3), 1, 0),
     (False, (8, 3, 5, 5), 1, 1), (False, (8, 64, 3, 3), 1, 1)],
)  # fmt: skip
def test_suits_what_it_computes(expected, weight, stride, padding):
    assert patches.suits(torch.empty(weight), stride, padding) is expected
