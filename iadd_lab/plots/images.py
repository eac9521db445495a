"""Distilled images: all of them, before and after, and beside real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure, SubFigure

from iadd_lab.distillation.result import DistillResult
from iadd_lab.errors import require
from iadd_lab.plots.sheet import LARGEST, best, plan
from iadd_lab.plots.style import DOUBLE, SINGLE, house_style, new_figure
from iadd_lab.plots.tiles import check_pictures, fit_name, show_rows, stack_by_class


@house_style()
def image_grid(
    pictures: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], *, title: str = ""
) -> Figure:
    """Pictures in a block per class, its name above them; ten classes side by side, rows below each other.

    The pictures of a class stand below each other, or in several columns where that makes them larger: the
    whole has the width of a paper's page and no more than its height.

    Args:
        pictures: (classes * ipc, channels, height, width) in [0, 1] or bytes, in any order.
        labels: (classes * ipc,).
        classes: the names.
        title: above the figure.

    Raises:
        InputError: the shapes do not fit together.
    """
    _check_labelled("pictures", pictures, labels, classes)
    ipc = int(torch.bincount(labels, minlength=len(classes)).max())
    sheet = best(
        plan(pictures, classes, blocks=blocks, columns=columns, rows=math.ceil(ipc / columns))
        for columns in range(1, ipc + 1)
        for blocks in (10, 20)
    )
    figure, ax = sheet.figure(title)
    for number, own in enumerate(stack_by_class(pictures, labels, len(classes))):
        sheet.draw(ax, number, own)
    return figure


@house_style()
def real_and_distilled(
    result: DistillResult, real: torch.Tensor, real_labels: torch.Tensor, *, title: str = ""
) -> Figure:
    """For each class a column of real images and, to its right, one of distilled ones.

    Args:
        result: a finished distillation.
        real: (count, channels, height, width), bytes or in [0, 1]; a few of each class, in any order.
        real_labels: (count,).
        title: above the figure.

    Raises:
        InputError: the shapes do not fit together, or to the distilled images.
    """
    classes = result.distilled.classes
    _check_labelled("real", real, real_labels, classes)
    made = result.distilled.pictures()
    require(
        real.shape[1:] == made.shape[1:],
        f"a real image has the shape {tuple(real.shape[1:])}, a distilled one {tuple(made.shape[1:])}: "
        "give real images of the set that was distilled.",
    )
    rows = max(int(torch.bincount(real_labels).max()), result.distilled.ipc)
    sheet = best(
        plan(made, classes, blocks=blocks, columns=2, rows=rows, captions=("real", "distilled"))
        for blocks in range(min(len(classes), 10), 0, -1)
    )
    if not sheet.captions:
        title = f"{title} (left: real, right: distilled)".strip()
    figure, ax = sheet.figure(title)
    pairs = zip(
        stack_by_class(real, real_labels, len(classes)),
        stack_by_class(made, result.labels, len(classes)),
        strict=True,
    )
    for number, pair in enumerate(pairs):
        sheet.draw(ax, number, _beside(*pair, rows))
    return figure


@house_style()
def before_after(result: DistillResult, *, title: str = "") -> Figure:
    """The first image of each class (ten at most): where it started, and where it arrived."""
    columns = min(len(result.distilled.classes), 10)
    width = DOUBLE if columns > 3 else SINGLE
    height = 0.35 + 2 * min((width - 0.3) / columns, LARGEST) + (0.25 if title else 0)
    figure = new_figure(width, height, title=title)
    draw_before_after(figure, result)
    return figure


def draw_before_after(figure: Figure | SubFigure, result: DistillResult) -> None:
    """Draw what `before_after` shows into an empty figure."""
    count = min(len(result.distilled.classes), 10)
    rows = torch.arange(count) * result.distilled.ipc
    first = result.distilled.pictures(result.history.snapshot_images[0])[rows]
    show_rows(
        figure.subplots(),
        [first, result.distilled.pictures()[rows]],
        columns=[fit_name(name, DOUBLE / 10, lines=1) for name in result.distilled.classes[:count]],
        captions=[result.config.initial_images, "distilled"],
    )


def _check_labelled(name: str, pictures: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]) -> None:
    check_pictures(name, pictures)
    require(
        labels.shape == pictures.shape[:1],
        f"there are {len(pictures)} pictures, but labels of shape {tuple(labels.shape)}: give one for each.",
    )
    require(
        bool((labels >= 0).all()) and int(labels.max()) < len(classes),
        f"the labels go from {int(labels.min())} to {int(labels.max())}, but there are {len(classes)} "
        "classes: name them all.",
    )


def _beside(real: torch.Tensor, made: torch.Tensor, rows: int) -> torch.Tensor:
    """Real and distilled pictures in turn, as `tile` wants two columns; white where one has fewer."""
    pair = torch.ones(rows, 2, *made.shape[1:])
    pair[: len(real), 0] = real / 255 if real.dtype == torch.uint8 else real
    pair[: len(made), 1] = made
    return pair.flatten(0, 1)
