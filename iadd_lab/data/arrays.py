"""Pictures in memory, arrays or PIL's, as bytes: where their channels are, and what is black and white."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from iadd_lab.data.pixels import GREY_MODES, LARGEST_SIZE, planes_of, resize_arrays
from iadd_lab.errors import choose, require

LAYOUTS = ("channels_first", "channels_last")
MOST_CHANNELS = 16
USUAL_SIZE = 32  # side of pictures of several sizes
_CHUNK = 1024  # pictures of which there are copies in floating point at a time
_SLACK = 1e-5  # by how much rounding may leave a range


def is_array(value: Any) -> bool:
    """Whether it is a NumPy array or a PyTorch tensor."""
    return isinstance(value, (np.ndarray, torch.Tensor))


def as_array(value: Any) -> np.ndarray:
    """An array or tensor, wherever it lies, as NumPy's; of NumPy's unknown half precisions as float32."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def check_shape(shape: Sequence[int]) -> None:
    """Require the shape of pictures, (count, height, width) or with channels, and at least one of them."""
    told = f"images have the shape {tuple(shape)}"
    require(len(shape) < 5, f"{told}, as videos have; give one picture each.")
    needs = "(count, height, width), (count, channels, height, width) or (count, height, width, channels)"
    require(len(shape) in (3, 4) and min(shape) > 0, f"{told}; they must be {needs}.")


def find_layout(shape: Sequence[int], given: str | None) -> str | None:
    """Where the channels of pictures (count, …) are; None if they have none. Of two readings, a square wins.

    Raises:
        InputError: both readings fit, or none.
    """
    check_shape(shape)
    if len(shape) == 3:
        return None
    if given is not None:
        return given
    readings = {"channels_first": (shape[1], *shape[2:]), "channels_last": (shape[3], *shape[1:3])}
    fitting = {name: sides for name, sides in readings.items() if sides[0] <= MOST_CHANNELS}
    square = [name for name, (_, height, width) in fitting.items() if height == width]
    told, most = f"images have the shape {tuple(shape)}", f"at most {MOST_CHANNELS} channels"
    require(bool(fitting), f"{told}, of which no axis can be that of {most}.")
    only = square if len(square) == 1 else [*fitting]
    named = " or ".join(f"layout={name!r}" for name in LAYOUTS)
    require(len(only) == 1, f"{told}, which may have its channels first or last: say {named}.")
    return only[0]


def find_range(blocks: Iterable[np.ndarray], given: tuple[float, float] | None) -> tuple[float, float]:
    """Which values are black and white in arrays: `given`, or the only usual range that fits them.

    Raises:
        InputError: several ranges fit, or none; or values are not finite, or outside of `given`.
    """
    kinds, lows, highs = zip(*((each.dtype, each.min(), each.max()) for each in blocks), strict=True)
    require(all(kind.kind in "biuf" for kind in kinds), f"images are of {kinds[0]}; they must be numbers.")
    finite = bool(np.isfinite(lows).all() and np.isfinite(highs).all())
    require(finite, "images have values that are not finite (NaN or infinity): leave these out.")
    low, high = float(min(lows)), float(max(highs))
    told = f"images of {kinds[0]} reach from {low:g} to {high:g}"
    if given is not None:
        inside = given[0] - _SLACK <= low and high <= given[1] + _SLACK
        require(inside, f"{told}, outside of range={given}: give their own.")
        return given
    floating = all(kind.kind == "f" for kind in kinds)
    if all(kind.kind == "b" for kind in kinds) or (floating and low >= -_SLACK and high <= 1 + _SLACK):
        return 0.0, 1.0
    if floating and low < 0 and low >= -1 - _SLACK and high <= 1 + _SLACK:
        return -1.0, 1.0
    # Bytes may be dark; of other numbers it is unlikely that all of them are in the lower half.
    bright = high > 1 if all(kind == np.uint8 for kind in kinds) else 127 < high <= 255
    say = "say which values are black and white, as in range=(0, 16)"
    fits = low >= 0 and bright
    require(fits, f"{told}, which is none of 0 to 1, −1 to 1 and 0 to 255 for sure: {say}.")
    return 0.0, 255.0


@dataclass(frozen=True)
class Reading:
    """How pictures are read: where arrays have their channels, what is black and white there, and the result.

    `layout` is None for arrays without channels, `ends` is None for pictures of PIL.
    """

    layout: str | None
    ends: tuple[float, float] | None
    size: int
    channels: int
    white: int

    @classmethod
    def of(cls, samples: Sequence[Any], config: Any) -> "Reading":
        """The reading that fits all samples: arrays (count, …), or pictures of PIL.

        Raises:
            InputError: there are several readings, or none.
        """
        photographs = [each for each in samples if isinstance(each, Image.Image)]
        if photographs:
            require(len(photographs) == len(samples), "images are arrays and pictures of PIL: give one kind.")
            deep = any(each.mode.startswith(("I", "F")) for each in photographs) and config.white is None
            require(not deep, "pictures have more than 8 bits: say which value is white, as in white=4095.")
            sides = {(each.height, each.width) for each in photographs}
            layout, ends = None, None
            channels = {1 if all(each.mode in GREY_MODES for each in photographs) else 3}
        else:
            layouts = {find_layout(each.shape, config.layout) for each in samples}
            require(len(layouts) == 1, f"images have the layouts {layouts}: give one to all.")
            (layout,), ends = layouts, find_range(samples, config.range)
            shapes = [_last(each[:1], layout).shape[1:] for each in samples]
            sides, channels = {shape[:2] for shape in shapes}, {shape[2] for shape in shapes}
        require(len(channels) == 1, f"images have {sorted(channels)} channels: give as many to all.")
        own = min(*min(sides), LARGEST_SIZE) if len(sides) == 1 else USUAL_SIZE
        number = config.channels or channels.pop()
        told = f"images have {number} channels; at most {MOST_CHANNELS} are read"
        require(number <= MOST_CHANNELS, f"{told}: choose among them, or say where they are by layout=.")
        return cls(layout, ends, config.size or own, number, config.white or 65_535)

    def planes(self, count: int, get: Callable[[int], Any], advance: Callable[[int], Any]) -> np.ndarray:
        """Pictures get(0), … as bytes (count, channels, size, size); `advance` is told of each."""
        planes = np.empty((count, self.channels, self.size, self.size), dtype=np.uint8)
        for number in range(count):
            each = get(number)
            photograph = isinstance(each, Image.Image)
            require(photograph == (self.ends is None), f"image {number} is {type(each)}, unlike the others.")
            if photograph:
                planes[number] = planes_of(each, self.size, self.channels, self.white)
            else:
                check_shape((1, *each.shape))
                planes[number] = self._bytes(each[None], number)[0]
            advance(1)
        return planes

    def array(self, images: np.ndarray, advance: Callable[[int], Any]) -> np.ndarray:
        """Arrays (count, …) as bytes (count, channels, size, size), never the same memory."""
        planes = np.empty((len(images), self.channels, self.size, self.size), dtype=np.uint8)
        for start in range(0, len(images), _CHUNK):
            chunk = images[start : start + _CHUNK]
            planes[start : start + _CHUNK] = self._bytes(chunk, start)
            advance(len(chunk))
        return planes

    def _bytes(self, chunk: np.ndarray, start: int) -> np.ndarray:
        (low, high), last = self.ends, _last(chunk, self.layout)
        if (last.dtype, low, high) != (np.uint8, 0, 255):
            inside = low - _SLACK <= last.min() and last.max() <= high + _SLACK
            told = f"an image from number {start} on leaves the range {low:g} to {high:g} of the others"
            require(bool(inside), f"{told}: say the range of all by range=.")
            last = (
                np.rint((last.astype(np.float64) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
            )
        return resize_arrays(last[..., 0] if last.shape[-1] == 1 else last, self.size, self.channels)


def _last(images: np.ndarray, layout: str | None) -> np.ndarray:
    """Images (count, …) as (count, height, width, channels), in the same memory."""
    if layout is None:
        return images[..., None]
    return np.moveaxis(images, 1, -1) if layout == LAYOUTS[0] else images


def check_layout(layout: str | None) -> None:
    """Require a layout, or None."""
    if layout is not None:
        choose("layout", layout, dict.fromkeys(LAYOUTS))
