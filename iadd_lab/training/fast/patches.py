"""The gradient of a 3×3 convolution's input by one matrix product, where the input has few channels.

A convolution of images has three input channels: direct ones use a small part of the machine for its input
gradient. As a product, every output pixel sends a 3×3 patch back (`send_patches`); `add_patches`, for
`torch.compile`, adds up where patches overlap.
"""

import functools
import operator

from torch import Tensor
from torch.nn import functional

MOST_CHANNELS = 4  # with more, direct convolutions are as fast


def suits(weight: Tensor, stride: int, padding: int) -> bool:
    """Whether the input gradient of a convolution with `weight` can be computed here, and gains by it."""
    _, inputs, rows, columns = weight.shape
    return (rows, columns, stride, padding) == (3, 3, 1, 1) and inputs <= MOST_CHANNELS


def send_patches(above: Tensor, weight: Tensor) -> Tensor:
    """What every output pixel sends to its 3×3 inputs: (batch * h * w, 9 * inputs).

    Args:
        above: the gradient of the outputs, (batch, outputs, h, w), with the channels last in memory.
        weight: (outputs, inputs, 3, 3).
    """
    pixels = above.permute(0, 2, 3, 1).flatten(0, 2)  # (batch * h * w, outputs)
    return pixels @ weight.permute(0, 2, 3, 1).flatten(1)


def add_patches(patches: Tensor, height: int, width: int) -> Tensor:
    """The sum of patches where they overlap: (batch, inputs, height, width)."""
    patches = patches.view(-1, height, width, 3, 3, patches.shape[1] // 9)
    padded = functional.pad(patches, (0, 0, 0, 0, 0, 0, 1, 1, 1, 1))
    # Row i of a patch lies i − 1 below the output pixel that sent it.
    shifted = (
        padded[:, 2 - i : 2 - i + height, 2 - j : 2 - j + width, i, j] for i in range(3) for j in range(3)
    )
    return functools.reduce(operator.add, shifted).permute(0, 3, 1, 2)
