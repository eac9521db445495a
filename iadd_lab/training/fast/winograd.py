"""3×3 convolutions in a quarter of the multiplications, by Winograd's minimal filtering F(4×4, 3×3).

After Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016). Maps are cut into tiles
of 4×4 outputs; with d a tile's 6×6 inputs and g a filter, its outputs are Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A. The
products ⊙, summed over channels, are 36 matrix products: all the arithmetic that counts. The transforms of
maps are for `torch.compile`, which makes two loops of each; uncompiled, they cost more than they save.

Exact but for rounding: in float32 the error is some four times a direct convolution's (2.4e-6 relative).

Feature maps are (batch, channels, height, width) with the channels last in memory and sides that 4 divides;
their tiles are (36, batch * height/4 * width/4, channels). Weights are those of one or more networks,
(networks, outputs, inputs, 3, 3), which have equal shares of the batch, one after the other.
"""

import functools
import operator
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_B = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
      (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))  # Bᵀ  # fmt: skip
_G = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
      (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip
_A = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))  # Aᵀ

FEWEST_CHANNELS = 64  # with fewer, the transforms cost more than the products


def suits(maps: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether a convolution of `maps` with `weight` can be computed here, and gains by it."""
    usual = (*weight.shape[-2:], stride, padding) == (3, 3, 1, 1)
    wide = min(weight.shape[-4:-2]) >= FEWEST_CHANNELS
    return usual and wide and not any(side % 4 for side in maps.shape[2:])


class Constants(NamedTuple):
    """The matrices of the transforms."""

    b: Tensor  # Bᵀ, (6, 6)
    a: Tensor  # Aᵀ, (4, 6)
    g: Tensor  # G ⊗ G, (36, 9): of a filter as nine numbers
    edges: Tensor  # (2, 4): the first and the last of a tile's four rows, times Bᵀ[5, 5] and Bᵀ[0, 0]


@functools.cache
def constants(dtype: torch.dtype, device: torch.device) -> Constants:
    """The transforms' matrices for maps of this dtype on this device."""
    b, a, g = (torch.tensor(matrix, dtype=dtype, device=device) for matrix in (_B, _A, _G))
    edges = torch.zeros(2, 4, dtype=dtype, device=device)
    edges[0, 0], edges[1, 3] = b[5, 5], b[0, 0]
    return Constants(b, a, torch.kron(g, g), edges)


def input_tiles(maps: Tensor, b: Tensor) -> Tensor:
    """Bᵀ d B of every tile of the inputs: (36, tiles, channels)."""
    _, _, height, width = maps.shape
    padded = functional.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (batch, h + 2, w + 2, channels)
    rows = _sum(b[:, k, None, None, None, None] * padded[None, :, k : k + height - 3 : 4] for k in range(6))
    tiles = _sum(
        b[None, :, k, None, None, None, None] * rows[:, None, :, :, k : k + width - 3 : 4] for k in range(6)
    )  # (6, 6, batch, h/4, w/4, channels)
    return tiles.flatten(2, 4).flatten(0, 1)


def input_maps(tiles: Tensor, height: int, width: int, b: Tensor, edges: Tensor) -> Tensor:
    """The transpose of `input_tiles`: B m Bᵀ of every tile m, summed where tiles overlap.

    Of the six rows that a tile covers, the inner four are its own. Its first, to which m[0] alone adds, is
    the last row of the tile above; its last, to which m[5] alone adds, is the first row of the tile below.
    Returns (batch, channels, height, width).
    """
    channels = tiles.shape[2]
    tiles = tiles.view(6, 6, -1, height // 4, width // 4, channels)
    first, last = edges[:, :, None, None, None, None, None]  # (4, 1, 1, 1, 1, 1) each
    rows = _sum(b[k, 1:5, None, None, None, None, None] * tiles[None, k] for k in range(6))
    rows = rows + first * functional.pad(tiles[5], (0, 0, 0, 0, 1, 0))[None, :, :, :-1]
    rows = rows + last * functional.pad(tiles[0], (0, 0, 0, 0, 0, 1))[None, :, :, 1:]
    rows = rows.permute(1, 2, 3, 0, 4, 5)  # (6, batch, h/4, 4, w/4, channels)
    first, last = edges[:, :, None]
    maps = _sum(b[k, 1:5, None] * rows[k][..., None, :] for k in range(6))
    maps = maps + first * functional.pad(rows[5], (0, 0, 1, 0))[..., :-1, None, :]
    maps = maps + last * functional.pad(rows[0], (0, 0, 0, 1))[..., 1:, None, :]
    return maps.reshape(-1, height, width, channels).permute(0, 3, 1, 2)


def output_maps(tiles: Tensor, bias: Tensor | None, height: int, width: int, a: Tensor) -> Tensor:
    """Aᵀ m A of every tile m of products, plus the bias of each image (batch or 1, channels).

    Returns (batch, channels, height, width).
    """
    channels = tiles.shape[2]
    tiles = tiles.view(6, 6, -1, height // 4, width // 4, channels)
    rows = _sum(a[:, k, None, None, None, None, None] * tiles[None, k] for k in range(6))
    rows = rows.permute(1, 2, 3, 0, 4, 5)  # (6, batch, h/4, 4, w/4, channels)
    maps = _sum(a[:, k, None] * rows[k][..., None, :] for k in range(6))  # (batch, h/4, 4, w/4, 4, channels)
    maps = maps if bias is None else maps + bias[:, None, None, None, None]
    return maps.reshape(-1, height, width, channels).permute(0, 3, 1, 2)


def output_tiles(maps: Tensor, a: Tensor) -> Tensor:
    """A y Aᵀ of every 4×4 tile y, the transpose of `output_maps`: (36, tiles, channels)."""
    _, channels, height, width = maps.shape
    cut = maps.permute(0, 2, 3, 1).reshape(-1, height // 4, 4, width // 4, 4, channels)
    rows = _sum(a[k, :, None, None, None, None, None] * cut[:, :, k] for k in range(4))
    tiles = _sum(a[k, None, :, None, None, None, None] * rows[:, None, :, :, :, k] for k in range(4))
    return tiles.flatten(2, 4).flatten(0, 1)


def multiply(*pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Every network's tiles (36, tiles, k) times its filters (36, networks, k, l), summed over the pairs.

    Returns (36, tiles, l).
    """
    apart = [(tiles.unflatten(1, (filters.shape[1], -1)), filters) for tiles, filters in pairs]
    return _products(apart).flatten(1, 2)


def correlate(*pairs: tuple[Tensor, Tensor], networks: int) -> Tensor:
    """The gradient of the filters, (36, networks, outputs, inputs), of pairs of outputs' and inputs'."""
    apart = [[tiles.unflatten(1, (networks, -1)) for tiles in pair] for pair in pairs]
    return _products([(above.mT, tiles) for above, tiles in apart])


def _products(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The sum of matrix products, of pairs (36, networks, m, k) and (36, networks, k, l)."""
    total = None
    for first, second in pairs:
        joint = first.flatten(0, 1), second.flatten(0, 1)
        total = torch.bmm(*joint) if total is None else total.baddbmm_(*joint)
    return total.unflatten(0, first.shape[:2])


def weight_tiles(weight: Tensor, g: Tensor) -> Tensor:
    """G w Gᵀ of every filter w: (36, networks, outputs, inputs)."""
    return (g @ weight.reshape(-1, 9).T).view(36, *weight.shape[:3])


def weight_gradient(tiles: Tensor, g: Tensor) -> Tensor:
    """Gᵀ m G of every tile m (36, networks, outputs, inputs), the transpose of `weight_tiles`."""
    return (g.T @ tiles.flatten(1)).T.view(*tiles.shape[1:], 3, 3)


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, terms)
