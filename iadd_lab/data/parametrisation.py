"""How distilled images are stored: as the pixels that networks see, or as less, from which these are decoded.

All are linear, in the space of preprocessed pixels. So a distillation decodes before it differentiates, and
sends the gradient back by the transpose. Sets are to be compared at equal storage: as many numbers each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from iadd_lab.data.preprocess import Preprocess
from iadd_lab.errors import check_whole, require

PARAMETRISATIONS: dict[str, type[Parametrisation]] = {}  # by name


@dataclass(frozen=True)
class Parametrisation:
    """What every parametrisation shares. Stored images are (count, channels, height, width)."""

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        """A parametrisation joins `PARAMETRISATIONS` where it is defined."""
        PARAMETRISATIONS[cls.name] = cls

    @property
    def views(self) -> int:
        """How many images networks see of each stored one."""
        return 1

    def decode(self, images: Tensor) -> Tensor:
        """What networks see, (count * views, channels, height, width): those of a stored image together."""
        raise NotImplementedError

    def encode(self, images: Tensor) -> Tensor:
        """The stored images that decode to about these `images`, as networks would see them."""
        raise NotImplementedError

    def transpose(self, gradient: Tensor, *, stored: Tensor) -> Tensor:
        """The gradient with respect to the `stored` images of a loss that has this `gradient` at `decode`."""
        point = stored.detach().to(gradient.dtype).requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.decode(point), point, gradient)[0]

    def pixels(self, images: Tensor, preprocess: Preprocess) -> Tensor:
        """Stored images for the eye: what they decode to, without `preprocess`, encoded again."""
        return self.encode(preprocess.invert(self.decode(images)))

    def check(self, size: int) -> None:
        """Raise an `InputError` unless images of so many pixels a side can be stored so."""


@dataclass(frozen=True)
class Pixels(Parametrisation):
    """Every pixel by itself: networks see what is stored."""

    name: ClassVar[str] = "pixels"

    def decode(self, images):
        """The images themselves."""
        return images

    encode = decode

    def transpose(self, gradient, *, stored):
        """The gradient itself."""
        return gradient


PIXELS = Pixels()


@dataclass(frozen=True)
class MultiFormation(Parametrisation):
    """factor × factor small images in the place of one (IDC; Kim et al., ICML 2022).

    Networks see each of them enlarged to the full size, bilinearly. First images are made small by averaging
    over squares of factor × factor pixels.

    Args:
        factor: small images along a side of a stored one, at least 2; the side must be a multiple of it.
    """

    factor: int = 2
    name: ClassVar[str] = "multi_formation"

    def __post_init__(self):
        check_whole("factor", self.factor, minimum=2)

    @property
    def views(self):
        """factor · factor."""
        return self.factor**2

    def decode(self, images):
        """Each small image enlarged, row by row of a stored one."""
        size, parts = images.shape[-1], (self.factor, images.shape[-1] // self.factor)
        small = images.unflatten(3, parts).unflatten(2, parts)  # (count, channels, factor, s, factor, s)
        small = small.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # (count * views, channels, s, s)
        basis = torch.eye(parts[1], dtype=images.dtype, device=images.device)
        # As a product of matrices: its transpose is one too, which adds in the same order on every device.
        weights = functional.interpolate(basis[None], size=size, mode="linear")[0]  # (s, size)
        return weights.T @ small @ weights

    def encode(self, images):
        """Each image made small by area, so many side by side."""
        small = functional.avg_pool2d(images, self.factor)  # (count * views, channels, s, s)
        grid = small.unflatten(0, (-1, self.factor, self.factor)).permute(0, 3, 1, 4, 2, 5)
        return grid.flatten(4, 5).flatten(2, 3).contiguous()  # (count, channels, height, width)

    def check(self, size):
        """Require that `size` is a multiple of the factor."""
        fits = size % self.factor == 0
        require(
            fits, f"factor is {self.factor}, but images have {size} pixels a side: choose a divisor of it."
        )
