"""Many pictures in one array, with thin white gaps: drawing thousands costs no more than drawing one."""

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from torch.nn import functional

_FINE = 28  # pixels: smaller pictures are enlarged, or a gap of one pixel would be a broad one


def as_bytes(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures in [0, 1], or bytes already, as bytes: (count, 3, height, width) uint8.

    Of more than three channels the first three stand for red, green and blue, of two the first is grey.
    """
    if pictures.dtype != torch.uint8:
        pictures = (pictures.clamp(0, 1) * 255).round().to(torch.uint8)
    return pictures[:, : 3 if pictures.shape[1] > 2 else 1].expand(-1, 3, -1, -1)


def shown_channels(pictures: torch.Tensor) -> str:
    """What must be said of pictures (count, channels, height, width) of which not all channels are seen."""
    channels = pictures.shape[1]
    seen = "channel 1 as grey" if channels == 2 else "channels 1, 2, 3 as red, green, blue"
    return "" if channels in (1, 3) else f"{seen}, of {channels}"


def tile(
    pictures: torch.Tensor, *, columns: int, rows: int | None = None, most_pixels: float = math.inf
) -> np.ndarray:
    """Pictures side by side, row after row, as one image; places without a picture stay white.

    Args:
        pictures: (count, channels, height, width), at most columns × rows of them.
        columns: of the image.
        rows: of the image; None: as many as there are pictures for.
        most_pixels: wider pictures are averaged down to so many pixels, finer than which nothing is seen.

    Returns:
        (rows * (height + gap) − gap, columns * (width + gap) − gap, 3) uint8.
    """
    height, width = pictures.shape[2:]
    factor = most_pixels / width if width > most_pixels else max(1, round(_FINE / width))
    height, width = (max(1, round(side * factor)) for side in (height, width))
    mode, rows = "area" if factor < 1 else "nearest", rows or math.ceil(len(pictures) / columns)
    pictures = functional.interpolate(as_bytes(pictures).float(), size=(height, width), mode=mode).round()
    gap = max(1, round(width / 32))
    # Not torchvision's `make_grid`, which takes two seconds to import, in every kernel and worker.
    white = pictures.new_full((rows * columns - len(pictures), 3, height, width), 255)
    framed = functional.pad(torch.cat((pictures, white)), (0, gap, 0, gap), value=255)
    grid = framed.view(rows, columns, *framed.shape[1:]).permute(0, 3, 1, 4, 2)  # channels last
    return grid.reshape(rows * (height + gap), -1, 3)[:-gap, :-gap].byte().numpy()


def show(ax: Axes, image: np.ndarray, extent: tuple[float, float, float, float] | None = None) -> None:
    """Draw an image as it is, unframed: in `extent` (left, right, bottom, top) of `ax` or all of it."""
    # "none" keeps the pixels in a PDF; "nearest" would sample them again. Above boxes, which are patches.
    ax.imshow(image, interpolation="none", extent=extent, aspect="auto" if extent else "equal", zorder=2)
    ax.axis("off")


def show_rows(ax: Axes, rows: dict[str, torch.Tensor], *, columns: list[str]) -> None:
    """Draw rows of equally many pictures, each with its caption, and a name above each column."""
    show(ax, tile(torch.cat([as_bytes(row) for row in rows.values()]), columns=len(columns)))
    small = {"fontsize": "small", "transform": ax.transAxes}
    for place, name in enumerate(columns):
        ax.text((place + 0.5) / len(columns), 1.01, name, ha="center", va="bottom", **small)
    for place, caption in enumerate(rows):
        height = 1 - (place + 0.5) / len(rows)
        ax.text(-0.01, height, caption, ha="right", va="center", rotation=90, **small)
