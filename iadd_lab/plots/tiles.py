"""Many pictures in one array, with thin white gaps: drawing thousands costs no more than drawing one."""

from __future__ import annotations

import textwrap

import numpy as np
import torch
from matplotlib.axes import Axes
from torch.nn import functional

from iadd_lab.errors import require

_FINE = 28  # pixels: smaller pictures are enlarged, or a gap of one pixel would be a broad one
_LETTER = 0.057  # inches: the width of a small letter


def check_pictures(name: str, pictures: torch.Tensor) -> None:
    """Require pictures of shape (count, 1 or 3, height, width), at least one."""
    right = pictures.ndim == 4 and len(pictures) > 0 and pictures.shape[1] in (1, 3)
    require(
        right,
        f"{name} has the shape {tuple(pictures.shape)}; it must be (count, channels, height, width) "
        "with 1 or 3 channels.",
    )


def as_bytes(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures in [0, 1], or bytes already, as bytes: (count, 3, height, width) uint8."""
    if pictures.dtype != torch.uint8:
        pictures = (pictures.clamp(0, 1) * 255).round().to(torch.uint8)
    return pictures.expand(-1, 3, -1, -1)


def stack_by_class(pictures: torch.Tensor, labels: torch.Tensor, classes: int) -> list[torch.Tensor]:
    """For each class its pictures, in their order: (count of that class, ...) each."""
    return [pictures[labels == number] for number in range(classes)]


def tile(pictures: torch.Tensor, *, columns: int, rows: int, most_pixels: float = float("inf")) -> np.ndarray:
    """Pictures side by side, row after row, as one image; places without a picture stay white.

    Args:
        pictures: (count, channels, height, width), at most columns × rows of them.
        columns: of the image.
        rows: of the image.
        most_pixels: wider pictures are averaged down to so many pixels, finer than which nothing is seen.

    Returns:
        (rows * (height + gap) − gap, columns * (width + gap) − gap, 3) uint8.
    """
    pictures = _resized(as_bytes(pictures), most_pixels)
    height, width = pictures.shape[2:]
    gap = max(1, round(width / 32))
    image = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for place, picture in enumerate(pictures):
        top, left = place // columns * (height + gap), place % columns * (width + gap)
        image[top : top + height, left : left + width] = picture.permute(1, 2, 0).numpy()
    return image


def enlargement(width: int) -> int:
    """How often `tile` repeats each pixel of pictures of `width` pixels."""
    return max(1, round(_FINE / width))


def _resized(pictures: torch.Tensor, most_pixels: float) -> torch.Tensor:
    height, width = pictures.shape[2:]
    if width > most_pixels:
        size = (max(1, round(height * most_pixels / width)), max(1, round(most_pixels)))
        return functional.interpolate(pictures.float(), size=size, mode="area").round().to(torch.uint8)
    times = enlargement(width)
    return pictures.repeat_interleave(times, 2).repeat_interleave(times, 3)


def show(ax: Axes, image: np.ndarray) -> None:
    """Draw an image as it is: square pixels, no frame."""
    # "none" keeps the pixels in a PDF; "nearest" would sample them again.
    ax.imshow(image, interpolation="none")
    ax.axis("off")


def show_rows(ax: Axes, rows: list[torch.Tensor], *, columns: list[str], captions: list[str]) -> None:
    """Draw rows of equally many pictures with a name above each column and a caption beside each row."""
    pictures = torch.cat([as_bytes(row) for row in rows])
    image = tile(pictures, columns=len(rows[0]), rows=len(rows))
    show(ax, image)
    height, width = image.shape[:2]
    for place, name in enumerate(columns):
        ax.text((place + 0.5) / len(columns) * width, -0.02 * width / len(columns) - 0.5, name,
                ha="center", va="bottom", fontsize="small")  # fmt: skip
    for place, caption in enumerate(captions):
        ax.text(-0.012 * width - 0.5, (place + 0.5) / len(rows) * height, caption,
                ha="right", va="center", rotation=90, fontsize="small")  # fmt: skip


def fit_name(name: str, width: float, *, lines: int = 2) -> str:
    """A class name in at most `lines` lines of small letters in `width` inches; … where it is longer."""
    letters = max(int(width / _LETTER), 3)
    words = textwrap.wrap(plain(name), letters, break_long_words=False)
    if len(words) > lines:
        words[lines - 1] += "…"
    return "\n".join(shorten(line, letters) for line in words[:lines])


def shorten(name: str, letters: int = 12) -> str:
    """A class name, or its first letters and … where it is longer than `letters`."""
    name = plain(name)
    return name if len(name) <= letters else f"{name[: letters - 1].rstrip()}…"


def plain(name: str) -> str:
    """A class name as one reads it: the first of WordNet's synonyms, blanks for underscores."""
    return name.partition(",")[0].replace("_", " ")
