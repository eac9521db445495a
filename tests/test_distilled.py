"""Distilled sets for the eye: real pictures stay, wild ones are brought into range with their structure."""

from __future__ import annotations

import torch

from iadd_lab.distilled import displayable


def test_real_pictures_stay_as_they_are():
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[1] = 0.0
    images[2] = 1.0
    assert torch.allclose(displayable(images), images, atol=1e-6)


def test_wild_pictures_come_into_range_and_keep_their_order():
    generator = torch.Generator().manual_seed(0)
    images = (
        50 * torch.randn(4, 1, 16, 16, generator=generator)
        + torch.tensor([0, 5, -300, 300.0])[:, None, None, None]
    )
    shown = displayable(images)
    assert shown.min() >= 0
    assert shown.max() <= 1
    for picture, image in zip(shown.flatten(1), images.flatten(1), strict=True):
        assert (picture.diff()[image.diff() > 0] >= 0).all()
        clipped = ((picture <= 0) | (picture >= 1)).double().mean()
        assert clipped <= 0.04
        assert picture.std() > 0.02
