"""3×3 convolutions of images as matrix products of patches.

Images have one or three channels: direct convolutions use a small part of the machine for them, above all for
their gradients. Here every output pixel sees a row of 9 * channels numbers.
"""

import functools
import operator

import torch
from torch import Tensor
from torch.nn import functional

MOST_CHANNELS = 4  # with more, direct convolutions are as fast


def suits(maps: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether a convolution of `maps` with `weight` can be computed here, and gains by it."""
    _, inputs, rows, columns = weight.shape
    usual = (rows, columns, stride, padding) == (3, 3, 1, 1) and inputs <= MOST_CHANNELS
    return usual and maps.device.type == "cpu"


def take(images: Tensor) -> Tensor:
    """The patch around every pixel of images (batch, channels, h, w): (batch * h * w, channels * 9)."""
    return functional.unfold(images, 3, padding=1).mT.reshape(-1, images.shape[1] * 9)


def pixels(maps: Tensor) -> Tensor:
    """Maps (batch, channels, h, w) as rows, (batch * h * w, channels)."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def add_patches(patches: Tensor, height: int, width: int) -> Tensor:
    """The transpose of `take`, the sum of patches where they overlap: (batch, channels, height, width)."""
    if not torch.compiler.is_compiling():
        columns = patches.view(-1, height * width, patches.shape[1]).mT
        return functional.fold(columns, (height, width), 3, padding=1)
    patches = patches.view(-1, height, width, patches.shape[1] // 9, 3, 3)
    padded = functional.pad(patches, (0, 0, 0, 0, 0, 0, 1, 1, 1, 1))
    # Row i of a patch lies i − 1 below the output pixel that sent it.
    shifted = (
        padded[:, 2 - i : 2 - i + height, 2 - j : 2 - j + width, :, i, j] for i in range(3) for j in range(3)
    )
    return functools.reduce(operator.add, shifted).permute(0, 3, 1, 2)
