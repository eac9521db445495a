"""Pictures in memory, arrays or PIL's, as bytes: where their channels are, and what is black and white."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from iadd_lab.data.pixels import GREY_MODES, LARGEST_SIZE, MOST_CHANNELS, WHITE, planes_of, resize_arrays
from iadd_lab.errors import require

LAYOUTS = ("channels_first", "channels_last")
USUAL_SIZE = 32  # side of pictures of several sizes
_SLACK = 1e-5  # by how much rounding may leave a range


def as_array(value: Any) -> np.ndarray:
    """An array or tensor, wherever it lies, as NumPy's, which does not know bfloat16."""
    if isinstance(value, torch.Tensor):
        return (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy()
    return np.asarray(value)


def find_layout(shape: Sequence[int], given: str | None) -> str | None:
    """Where the channels of pictures (count, …) are; None if they have none. Of two readings, a square wins.

    Raises:
        InputError: both readings fit, or none.
    """
    told = f"images have the shape {tuple(shape)}"
    require(len(shape) < 5, f"{told}, as videos have: give one picture each.")
    needs = "(count, height, width), (count, channels, height, width) or (count, height, width, channels)"
    require(len(shape) > 2 and min(shape) > 0, f"{told}: give {needs}.")
    if len(shape) == 3 or given is not None:
        return given if len(shape) == 4 else None
    readings = {LAYOUTS[0]: (shape[1], *shape[2:]), LAYOUTS[1]: (shape[3], *shape[1:3])}
    fitting = [name for name, (channels, _, _) in readings.items() if channels <= MOST_CHANNELS]
    square = [name for name in fitting if readings[name][1] == readings[name][2]]
    only = square if len(square) == 1 else fitting
    named = " or ".join(f"layout={name!r}" for name in LAYOUTS)
    require(len(only) == 1, f"{told}: of up to {MOST_CHANNELS} channels, first or last? Say {named}.")
    return only[0]


def find_range(blocks: Sequence[np.ndarray], given: tuple[float, float] | None) -> tuple[float, float]:
    """Which values are black and white in arrays: `given`, or the only usual range that fits them.

    Raises:
        InputError: several ranges fit, or none; or values are not finite, or outside of `given`.
    """
    kind, (low, high) = blocks[0].dtype, ends_of(blocks)
    told = f"images of {kind} reach from {low:g} to {high:g}"
    if given is not None:
        inside = given[0] - _SLACK <= low and high <= given[1] + _SLACK
        require(inside, f"{told}, which leaves range={given}: give black and white of all.")
        return given
    if kind.kind == "b" or (kind.kind == "f" and low >= -1 - _SLACK and high <= 1 + _SLACK):
        return (-1.0, 1.0) if low < -_SLACK else (0.0, 1.0)
    # Bytes may be dark; of other numbers it is unlikely that all of them are in the lower half.
    fits = low >= 0 and (high > 1 if kind == np.uint8 else 127 < high <= 255)
    say = "say which values are black and white, as in range=(0, 16)"
    require(fits, f"{told}, which is none of 0 to 1, −1 to 1 and 0 to 255 for sure: {say}.")
    return 0.0, 255.0


def ends_of(blocks: Sequence[np.ndarray]) -> tuple[float, float]:
    """The lowest and the highest value of all; InputError if they are no finite numbers."""
    numbers = all(each.dtype.kind in "biuf" for each in blocks)
    require(numbers, f"images are of {blocks[0].dtype}: give real numbers.")
    low, high = float(min(each.min() for each in blocks)), float(max(each.max() for each in blocks))
    require(bool(np.isfinite([low, high]).all()), "images have NaN or infinite values: leave these out.")
    return low, high


@dataclass(frozen=True)
class Reading:
    """How pictures are read, and what they become.

    `layout` is None for arrays without channels, `ends` (black and white) for pictures of PIL.
    """

    layout: str | None
    ends: tuple[float, float] | None
    size: int
    channels: int
    white: int

    @classmethod
    def of(cls, samples: Sequence[Any], config: Any) -> Reading:
        """The reading that fits all samples: arrays (count, …), or pictures of PIL.

        Raises:
            InputError: there are several readings, or none.
        """
        kinds = {isinstance(each, Image.Image) for each in samples}
        require(len(kinds) == 1, "images are arrays as well as pictures of PIL: give one kind.")
        if kinds == {True}:
            deep = any(each.mode.startswith(("I", "F")) for each in samples) and config.white is None
            require(not deep, "pictures have more than 8 bits: say which value is white, as in white=4095.")
            layout, ends, sides = None, None, {(each.height, each.width) for each in samples}
            channels = {1 if all(each.mode in GREY_MODES for each in samples) else 3}
        else:
            layout = find_layout(samples[0].shape, config.layout)
            require(len({each.ndim for each in samples}) == 1, "some images have channels: give them all.")
            ends, shapes = find_range(samples, config.range), [_last(each, layout).shape for each in samples]
            sides, channels = {shape[1:3] for shape in shapes}, {shape[3] for shape in shapes}
        most = f"{sorted(channels)} channels: give the same to all, at most {MOST_CHANNELS}, or layout="
        require(len(channels) == 1 and max(channels) <= MOST_CHANNELS, f"images have {most}.")
        own = min(*sides.pop(), LARGEST_SIZE) if len(sides) == 1 else USUAL_SIZE
        return cls(layout, ends, config.size or own, config.channels or channels.pop(), config.white or WHITE)

    def planes(self, image: Any, number: int) -> np.ndarray:
        """A picture as bytes (channels, size, size); `number` names it if it is unlike the samples."""
        told = f"image {number} is unlike the others, for which it was looked at some"
        require(isinstance(image, Image.Image) == (self.ends is None), f"{told}: give one kind.")
        if self.ends is None:
            return planes_of(image, self.size, self.channels, self.white)
        alike = image.ndim == (2 if self.layout is None else 3)
        require(alike, f"{told}: its shape is {image.shape}.")
        (low, high), last = self.ends, _last(image[None], self.layout)
        if (last.dtype, low, high) != (np.uint8, 0, 255):
            inside = low - _SLACK <= last.min() and last.max() <= high + _SLACK
            require(bool(inside), f"{told}: it leaves {low:g} to {high:g}; say the range of all by range=.")
            scaled = (last.astype(np.float64) - low) * (255 / (high - low))
            last = np.rint(scaled).clip(0, 255).astype(np.uint8)
        return resize_arrays(last[..., 0] if last.shape[-1] == 1 else last, self.size, self.channels)[0]


def _last(images: np.ndarray, layout: str | None) -> np.ndarray:
    """Images (count, …) as (count, height, width, channels), in the same memory."""
    if layout is None:
        return images[..., None]
    return np.moveaxis(images, 1, -1) if layout == LAYOUTS[0] else images
