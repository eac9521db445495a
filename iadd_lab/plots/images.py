"""Distilled and real images, side by side and in grids."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from iadd_lab.distill import DistillResult
from iadd_lab.errors import require
from iadd_lab.plots.style import WIDTH, new_figure
from iadd_lab.preprocess import as_float

_GAP = 0.08  # white between two images, as a share of their side


def image_grid(
    pictures: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], *, title: str = ""
) -> Figure:
    """Pictures in a grid, one column per class, in bands of ten classes where there are many.

    Args:
        pictures: (count, channels, height, width) in [0, 1].
        labels: (count,), each below the number of classes.
        classes: the names above the columns.
        title: above all.

    Raises:
        InputError: there is not one label for each picture.
    """
    _check(pictures, labels)
    columns = min(len(classes), 10)
    depth = int(torch.bincount(labels, minlength=len(classes)).max())
    bands = math.ceil(len(classes) / columns)
    cell = WIDTH / max(columns, 5)
    figure = new_figure(cell * columns, 0.3 + bands * (cell * depth + 0.22), title)
    for band, ax in enumerate(figure.subplots(bands, 1, squeeze=False).flat):
        names = classes[band * columns : (band + 1) * columns]
        inside = (labels >= band * columns) & (labels < band * columns + len(names))
        sheet = tile(pictures[inside], labels[inside] - band * columns, columns=columns, depth=depth)
        _show_sheet(ax, sheet, names, side=pictures.shape[-1])
    return figure


def tile(pictures: torch.Tensor, labels: torch.Tensor, *, columns: int, depth: int) -> np.ndarray:
    """One picture of many: (height, width, 3) in [0, 1], a column per label, white where nothing is.

    Args:
        pictures: (count, channels, height, width) in [0, 1].
        labels: (count,), the column of each.
        columns: how many there are.
        depth: how many pictures fit below each other.
    """
    side = pictures.shape[-1]
    pitch = side + gap_of(side)
    sheet = np.ones((depth * pitch, columns * pitch, 3), dtype=np.float32)
    seen = [0] * columns
    for picture, label in zip(pictures.float().numpy(), labels.tolist(), strict=True):
        top, left = seen[label] * pitch, label * pitch
        sheet[top : top + side, left : left + side] = picture.transpose(1, 2, 0)  # grey broadcasts to colour
        seen[label] += 1
    return sheet[: depth * pitch - gap_of(side), : columns * pitch - gap_of(side)]


def gap_of(side: int) -> int:
    """Pixels of white between two images of `side` pixels."""
    return max(round(_GAP * side), 1)


def _show_sheet(ax: Axes, sheet: np.ndarray, names: Sequence[str], *, side: int) -> None:
    ax.imshow(sheet, interpolation="nearest", vmin=0, vmax=1)
    pitch = side + gap_of(side)
    size = 8 if max(map(len, names), default=0) <= 8 else 7
    for column, name in enumerate(names):
        ax.text(
            column * pitch + side / 2 - 0.5,
            -0.5 - 0.06 * side,
            short(name),
            ha="center",
            va="bottom",
            fontsize=size,
        )
    ax.axis("off")


def short(name: str) -> str:
    """A class name of at most 12 characters."""
    return name if len(name) <= 12 else f"{name[:11]}…"


def real_and_distilled(
    result: DistillResult, real: torch.Tensor, real_labels: torch.Tensor, *, title: str = ""
) -> Figure:
    """Real images beside distilled ones: a row per class, or a column where images per class are few.

    Args:
        result: whose images are shown, at most ten per class, of ten classes at most.
        real: (count, channels, height, width), uint8 or in [0, 1].
        real_labels: (count,).
        title: above all.

    Raises:
        InputError: there is not one label for each real image.
    """
    _check(real, real_labels)
    made = result.distilled
    names, each = made.classes[:10], min(made.ipc, 10)
    sides = {
        "real": _by_class(real, real_labels, len(names), each),
        "distilled": _by_class(made.pictures(), made.labels, len(names), each),
    }
    draw = _side_by_side if 2 * each > len(names) else _stacked
    return draw(sides, names, each, title)


def _by_class(pictures: torch.Tensor, labels: torch.Tensor, count: int, each: int) -> list[torch.Tensor]:
    """The first `each` pictures of each of the first `count` classes, in [0, 1]."""
    return [as_float(pictures[(labels == label).nonzero()[:each, 0]]) for label in range(count)]


def _side_by_side(
    sides: dict[str, list[torch.Tensor]], names: Sequence[str], each: int, title: str
) -> Figure:
    """A row for each class."""
    cell = min(1.15, (WIDTH - 0.9) / (2 * each), 6.0 / len(names))
    figure = new_figure(0.9 + 2 * each * cell, 0.5 + len(names) * cell * 1.02, title)
    for place, (ax, (heading, rows)) in enumerate(zip(figure.subplots(1, 2), sides.items(), strict=True)):
        sheet = _sheet([row.transpose(2, 3) for row in rows], each).transpose(1, 0, 2)
        ax.imshow(sheet, interpolation="nearest", vmin=0, vmax=1)
        ax.set_title(heading, fontsize=9)
        ax.axis("off")
        side = rows[0].shape[-1]
        for label, name in enumerate(names if place == 0 else ()):
            height = label * (side + gap_of(side)) + side / 2 - 0.5
            ax.text(-0.1 * side, height, short(name), ha="right", va="center", fontsize=8)
    return figure


def _stacked(sides: dict[str, list[torch.Tensor]], names: Sequence[str], each: int, title: str) -> Figure:
    """A column for each class."""
    cell = WIDTH / max(len(names), 5)
    figure = new_figure(WIDTH, 0.6 + 2 * each * cell, title)
    for place, (ax, (heading, columns)) in enumerate(zip(figure.subplots(2, 1), sides.items(), strict=True)):
        side = columns[0].shape[-1]
        _show_sheet(ax, _sheet(columns, each), names if place == 0 else (), side=side)
        ax.text(-0.12 * side, each * side / 2, heading, rotation=90, ha="right", va="center", fontsize=9)
    return figure


def _sheet(columns: Sequence[torch.Tensor], each: int) -> np.ndarray:
    labels = torch.cat([torch.full((len(column),), place) for place, column in enumerate(columns)])
    return tile(torch.cat(list(columns)), labels, columns=len(columns), depth=each)


def show(ax: Axes, picture: torch.Tensor) -> None:
    """Draw one picture (channels, height, width) in [0, 1], without axes."""
    ax.imshow(picture.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.axis("off")


def before_after(result: DistillResult, *, title: str = "") -> Figure:
    """The first image of each class (ten at most): where it started, and where it arrived."""
    columns = min(len(result.distilled.classes), 10)
    figure = new_figure(WIDTH, 0.3 + 2 * WIDTH / max(columns, 5), title)
    draw_before_after(figure, result)
    return figure


def draw_before_after(figure: Figure | SubFigure, result: DistillResult) -> None:
    """Draw what `before_after` shows into an empty figure."""
    count = min(len(result.distilled.classes), 10)
    rows = torch.arange(count) * result.distilled.ipc
    first = result.distilled.pictures(result.history.snapshot_images[0])[rows]
    axes = figure.subplots(2, count, squeeze=False)
    for line, pictures in enumerate((first, result.distilled.pictures()[rows])):
        for ax, picture in zip(axes[line], pictures, strict=True):
            show(ax, picture)
    for ax, name in zip(axes[0], result.distilled.classes, strict=False):
        ax.set_title(short(name), fontsize=8)
    for ax, caption in zip(axes[:, 0], (result.config.initial_images, "distilled"), strict=True):
        ax.text(-0.12, 0.5, caption, rotation=90, va="center", ha="right", fontsize=8, transform=ax.transAxes)


def _check(pictures: torch.Tensor, labels: torch.Tensor) -> None:
    require(
        pictures.ndim == 4 and labels.shape == pictures.shape[:1],
        f"pictures have shape {tuple(pictures.shape)} and labels {tuple(labels.shape)}; expected "
        "(count, channels, height, width) and (count,).",
    )
