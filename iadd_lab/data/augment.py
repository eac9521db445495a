"""Differentiable siamese augmentation (DSA).

After Zhao & Bilen, "Dataset Condensation with Differentiable Siamese Augmentation" (ICML 2021): one operation
per call, its parameters per image. Drawing and applying are apart: `draw` takes the random numbers from a
generator that the caller owns, and the `Augmentation` it returns can be applied again, to the same images or
to others (the siamese part), with the same parameters. Every operation is affine in the images and can be
differentiated any number of times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from iadd_lab.device import to_device
from iadd_lab.errors import check_number, check_whole, choose, require

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class AugmentConfig:
    """Which operations, and how strong they are.

    Args:
        operations: keys of `OPERATIONS`, each at most once; none means no augmentation.
        flip: probability of a horizontal flip, in [0, 1].
        scale: largest ratio by which an axis is shrunk or stretched, at least 1.
        rotate: largest angle in degrees, in [0, 180].
        crop: largest shift as a share of the side, in [0, 1].
        cutout: side of the square that is blanked as a share of the image's, in [0, 1].
        brightness, saturation, contrast: DSA's strengths of the three steps of "color", at least 0;
            saturation is of three channels.

    Raises:
        InputError: anything else.
    """

    operations: tuple[str, ...] = ("color", "crop", "cutout", "flip", "scale", "rotate")
    flip: float = 0.5
    scale: float = 1.2
    rotate: float = 15.0
    crop: float = 0.125
    cutout: float = 0.5
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5

    def __post_init__(self) -> None:
        given, names = self.operations, ", ".join(OPERATIONS)
        listed = isinstance(given, (tuple, list)) and all(isinstance(name, str) for name in given)
        once = listed and len(set(given)) == len(given)
        require(once, f"operations is {given!r}; it must be a list of names, each once, such as {names}.")
        for name in given:
            choose("augmentation operation", name, OPERATIONS)
        object.__setattr__(self, "operations", tuple(given))  # a list, as JSON and YAML give it
        check_number("scale", self.scale, minimum=1.0)
        largest = {"flip": 1.0, "crop": 1.0, "cutout": 1.0, "rotate": 180.0}
        for strength in ("brightness", "saturation", "contrast", *largest):
            check_number(strength, getattr(self, strength), maximum=largest.get(strength, math.inf))


def usual_augmentation(operations: Iterable[str], channels: int) -> AugmentConfig:
    """Those operations, without "color" where the channels are no colours, nor the only one."""
    return AugmentConfig(tuple(each for each in operations if each != "color" or channels in (1, 3)))


@dataclass(frozen=True, eq=False)
class Augmentation:
    """One drawn operation, to be called on images.

    operation: a key of `OPERATIONS`, or "identity".
    parameters: what was drawn: one tensor of shape (batch,) per parameter of the operation, on any device.
    batch, height, width: the images it was drawn for.

    Calling it on images of shape (batch, channels, height, width), of any floating dtype and on any device,
    gives images of that shape, dtype and device; always the same for the same images. An augmentation drawn
    for a batch of one treats every image of a larger batch alike: what DSA's gradient matching needs, where a
    real and a distilled batch of different sizes share one augmentation.
    Raises `InputError` for images of another size than it was drawn for.
    """

    operation: str
    parameters: Parameters
    batch: int
    height: int
    width: int

    def __call__(self, images: Tensor) -> Tensor:
        sides = (self.height, self.width)
        fits = images.ndim == 4 and images.shape[2:] == sides and self.batch in (1, len(images))
        own = f"({self.batch}, channels, {self.height}, {self.width})"
        require(fits, f"the images have shape {tuple(images.shape)}; this augmentation was drawn for {own}.")
        if self.operation == "identity":
            return images
        here = {name: to_device(value, images.device) for name, value in self.parameters.items()}
        return OPERATIONS[self.operation].apply(images, **here)

    def tensors(self) -> tuple[Tensor, ...]:
        """The parameters without their names, for `with_tensors`."""
        return tuple(self.parameters.values())

    def with_tensors(self, tensors: Iterable[Tensor]) -> Augmentation:
        """The same augmentation with parameters that lie elsewhere, in the order of `tensors`."""
        return replace(self, parameters=dict(zip(self.parameters, tensors, strict=True)))


def draw_augmentation(
    config: AugmentConfig, *, batch: int, height: int, width: int, generator: torch.Generator
) -> Augmentation:
    """One of `config.operations`, each equally likely, with parameters for each of `batch` images.

    The draws are made on the CPU in double precision: a state of `generator`, which must be a CPU generator,
    gives the same augmentation for every device and dtype. Without operations nothing is drawn.
    Raises `InputError` for a generator elsewhere, or sizes below 1.
    """
    for name, value in (("batch", batch), ("height", height), ("width", width)):
        check_whole(name, value, minimum=1)
    place = generator.device
    require(place.type == "cpu", f"the augmentation's generator is on {place}; give it a CPU generator.")
    operation, parameters = "identity", {}
    if config.operations:
        chosen = torch.randint(len(config.operations), (), generator=generator)
        operation = config.operations[int(chosen)]
        parameters = OPERATIONS[operation].draw(config, _Draws(batch, height, width, generator))
    return Augmentation(operation, parameters, batch, height, width)


@dataclass(frozen=True)
class _Draws:
    """Random numbers for a batch of images of one size."""

    batch: int
    height: int
    width: int
    generator: torch.Generator

    def uniform(self, low: float, high: float) -> Tensor:
        """Uniform in [low, high): (batch,), float64."""
        numbers = torch.rand(self.batch, generator=self.generator, dtype=torch.float64)
        return low + (high - low) * numbers

    def whole(self, low: int, high: int) -> Tensor:
        """Whole numbers from low to high, both included: (batch,), int64."""
        return torch.randint(low, high + 1, (self.batch,), generator=self.generator)


@dataclass(frozen=True)
class Operation:
    """How an operation draws its parameters, (batch,) each, and how it applies them, by name, to images."""

    draw: Callable[[AugmentConfig, _Draws], Parameters]
    apply: Callable[..., Tensor]


def _draw_color(config: AugmentConfig, draws: _Draws) -> Parameters:
    return {
        "brightness": draws.uniform(-0.5 * config.brightness, 0.5 * config.brightness),
        "saturation": draws.uniform(0.0, config.saturation),
        "contrast": draws.uniform(config.contrast, 1.0 + config.contrast),
    }


def _apply_color(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    strengths = (brightness, saturation, contrast)
    brightness, saturation, contrast = (each.to(images.dtype)[:, None, None, None] for each in strengths)
    images = images + brightness
    if images.shape[1] in (1, 3):
        grey = images.mean(dim=1, keepdim=True)  # (batch, 1, height, width)
        images = (images - grey) * saturation + grey
    level = images.mean(dim=(1, 2, 3), keepdim=True)  # (batch, 1, 1, 1)
    return (images - level) * contrast + level


def _draw_crop(config: AugmentConfig, draws: _Draws) -> Parameters:
    rows, columns = _share(draws.height, config.crop), _share(draws.width, config.crop)
    return {"row_shift": draws.whole(-rows, rows), "column_shift": draws.whole(-columns, columns)}


def _apply_crop(images: Tensor, row_shift: Tensor, column_shift: Tensor) -> Tensor:
    height, width = images.shape[2:]
    rows, columns = _pixel_numbers(images)
    # Positions in the image with a border of one zero pixel, to which all that lies outside is mapped.
    row = (rows + row_shift[:, None] + 1).clamp(0, height + 1)  # (batch, height)
    column = (columns + column_shift[:, None] + 1).clamp(0, width + 1)  # (batch, width)
    return _gather(F.pad(images, (1, 1, 1, 1)), row[:, :, None] * (width + 2) + column[:, None])


def _draw_cutout(config: AugmentConfig, draws: _Draws) -> Parameters:
    """First index and the one after the last of what is cut out; it may reach over all borders."""
    spans: Parameters = {}
    for first, last, length in (("top", "bottom", draws.height), ("left", "right", draws.width)):
        side = _share(length, config.cutout)
        # An even side has its centre between two pixels: one position more.
        spans[first] = draws.whole(0, length - side % 2) - side // 2
        spans[last] = spans[first] + side
    return spans


def _apply_cutout(images: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    rows, columns = _pixel_numbers(images)
    within_rows = (rows >= top[:, None]) & (rows < bottom[:, None])  # (batch, height)
    within_columns = (columns >= left[:, None]) & (columns < right[:, None])  # (batch, width)
    return images.masked_fill((within_rows[:, :, None] & within_columns[:, None, :])[:, None], 0.0)


def _apply_flip(images: Tensor, flipped: Tensor) -> Tensor:
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def _draw_scale(config: AugmentConfig, draws: _Draws) -> Parameters:
    # Factors of the grid: below 1 enlarges what is seen.
    return {axis: draws.uniform(1.0 / config.scale, config.scale) for axis in ("horizontal", "vertical")}


def _apply_scale(images: Tensor, horizontal: Tensor, vertical: Tensor) -> Tensor:
    none = torch.zeros_like(horizontal)
    return _sample_affine(images, horizontal, none, none, vertical)


def _draw_rotate(config: AugmentConfig, draws: _Draws) -> Parameters:
    largest = math.radians(config.rotate)
    return {"angle": draws.uniform(-largest, largest)}


def _apply_rotate(images: Tensor, angle: Tensor) -> Tensor:
    cosine, sine = angle.cos(), angle.sin()
    return _sample_affine(images, cosine, -sine, sine, cosine)


OPERATIONS: dict[str, Operation] = {
    "color": Operation(_draw_color, _apply_color),
    "crop": Operation(_draw_crop, _apply_crop),
    "cutout": Operation(_draw_cutout, _apply_cutout),
    "flip": Operation(lambda config, draws: {"flipped": draws.uniform(0.0, 1.0) < config.flip}, _apply_flip),
    "scale": Operation(_draw_scale, _apply_scale),
    "rotate": Operation(_draw_rotate, _apply_rotate),
}


def _sample_affine(images: Tensor, *matrix: Tensor) -> Tensor:
    """Bilinear samples of the images, zero outside, at x' = a·x + b·y and y' = c·x + d·y.

    x and y run from -1 to 1 between the centres of the border pixels; `matrix` is (a, b, c, d), each of shape
    (batch,) in float64. It equals `grid_sample` on an `affine_grid` with align_corners=True, whose backward
    pass has no deterministic version on a GPU and, in older releases of PyTorch, can't be differentiated
    again (pytorch issue 34704).
    """
    height, width = images.shape[2:]
    rows, columns = _pixel_numbers(images)
    x = (2.0 * columns.double() - (width - 1)) / max(width - 1, 1)  # (width,)
    y = (2.0 * rows.double()[:, None] - (height - 1)) / max(height - 1, 1)  # (height, 1)
    a, b, c, d = (entry[:, None, None] for entry in matrix)
    column = ((a * x + b * y + 1.0) * (0.5 * (width - 1))).clamp(-1, width)  # (batch, height, width)
    row = ((c * x + d * y + 1.0) * (0.5 * (height - 1))).clamp(-1, height)  # (batch, height, width)
    # The four neighbours all lie in the image with a border of one zero pixel around it.
    top, left = row.floor().clamp(max=height - 1), column.floor().clamp(max=width - 1)
    down, across = (row - top).to(images.dtype)[:, None], (column - left).to(images.dtype)[:, None]
    bordered = F.pad(images, (1, 1, 1, 1))
    first = top.long() * (width + 2) + left.long() + width + 3  # (batch, height, width)
    upper = torch.lerp(_gather(bordered, first), _gather(bordered, first + 1), across)
    below = first + width + 2
    lower = torch.lerp(_gather(bordered, below), _gather(bordered, below + 1), across)
    return torch.lerp(upper, lower, down)


def _gather(images: Tensor, index: Tensor) -> Tensor:
    """Pixels by flat index (batch or 1, height', width'), the same in all channels."""
    index_everywhere = index.flatten(1)[:, None].expand(*images.shape[:2], -1)
    return images.flatten(2).gather(2, index_everywhere).unflatten(2, index.shape[1:])


def _pixel_numbers(images: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column numbers, (height,) and (width,), where the images are."""
    return tuple(torch.arange(side, device=images.device) for side in images.shape[2:])


def _share(length: int, share: float) -> int:
    # Rounded half up, as DSA does; round() would go to the even neighbour.
    return int(length * share + 0.5)
