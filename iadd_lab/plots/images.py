"""Distilled images: all of them, before and after, and beside real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from matplotlib.figure import Figure, SubFigure

from iadd_lab.distillation.result import DistillResult
from iadd_lab.errors import require
from iadd_lab.evaluation.protocol import Evaluation
from iadd_lab.plots.accuracy import draw_accuracies
from iadd_lab.plots.style import DOUBLE, PAGE, SINGLE, SMALL, house_style, new_figure
from iadd_lab.plots.tiles import as_bytes, fit_name, show, show_rows, tile

# All in inches.
_LARGEST, _ENOUGH = 1.12, 0.6  # the side of a picture, however few there are, and in which one sees enough
_GAP, _LINE, _NAME = 0.08, 0.13, 0.5  # between blocks; a line of small letters; the least width for a name
_FINEST = 200  # pixels to an inch, as in the PNG: what is finer is averaged


@house_style()
def image_grid(
    pictures: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], *, title: str = ""
) -> Figure:
    """Pictures in a block per class, its name above them; blocks side by side, in rows below each other.

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
    blocks = _by_class("pictures", pictures, labels, classes)
    ipc = max(map(len, blocks))
    shapes = [(beside, columns) for columns in range(1, min(ipc, 10) + 1) for beside in (10, 13, 17, 20)]
    sheets = [_Sheet.of(classes, pictures, *shape, math.ceil(ipc / shape[1])) for shape in shapes]
    return _best(sheets).draw(blocks, title)


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
    classes, made = result.distilled.classes, result.distilled.pictures()
    left, right = _by_class("real", real, real_labels, classes), _by_class("", made, result.labels, classes)
    require(
        real.shape[1:] == made.shape[1:],
        f"a real image has the shape {tuple(real.shape[1:])}, a distilled one {tuple(made.shape[1:])}: "
        "give real images of the set that was distilled.",
    )
    rows = max(map(len, left + right))
    blocks = []
    for pair in zip(left, right, strict=True):
        block = torch.full((rows, 2, 3, *made.shape[2:]), 255, dtype=torch.uint8)  # white where one has fewer
        for column, own in enumerate(pair):
            block[: len(own), column] = as_bytes(own)
        blocks.append(block.flatten(0, 1))
    besides = range(min(len(classes), 10), 0, -1)
    sheet = _best([_Sheet.of(classes, made, beside, 2, rows, ("real", "distilled")) for beside in besides])
    return sheet.draw(blocks, title if sheet.captions else f"{title} (left: real, right: distilled)".strip())


class _Sheet(NamedTuple):
    """A page of blocks of pictures, one block per class; lengths are in inches."""

    beside: int  # blocks in a row of them
    columns: int  # of pictures in a block
    rows: int  # of pictures in a block
    cell: tuple[float, float]  # width and height of a picture
    pitch: float  # from one block to the next
    names: list[str]  # as they are written
    heads: list[float]  # for each row of blocks, the height of what is written above it
    captions: tuple[str, ...]  # above a block's columns, where these are wide enough

    @classmethod
    def of(cls, classes, pictures, beside, columns, rows, captions=()) -> _Sheet:
        """With pictures as large as a page allows, and at most so many blocks side by side."""
        bands = math.ceil(len(classes) / beside)
        beside = math.ceil(len(classes) / bands)  # or the last row of blocks would be much shorter
        ratio, pitch = pictures.shape[2] / pictures.shape[3], (DOUBLE + _GAP) / beside
        for _ in range(2):  # once more, since names in less room may take more lines
            captions = captions if pitch > 2 * _NAME else ()
            names = [fit_name(name, pitch - _GAP / 2) for name in classes]
            lines = [max(name.count("\n") for name in names[n * beside :][:beside]) for n in range(bands)]
            heads = [_LINE * (1 + extra + bool(captions)) + 0.03 for extra in lines]
            room = (PAGE - sum(heads) - bands * _GAP) / (bands * rows * ratio)
            cell = max(min((pitch - _GAP) / columns, _LARGEST, room), 0.02)
            pitch = max(columns * cell + _GAP, min(pitch, _NAME))
        return cls(beside, columns, rows, (cell, cell * ratio), pitch, names, heads, captions)

    def draw(self, blocks: Sequence[torch.Tensor], title: str) -> Figure:
        """The figure: a name above each block, and its pictures (count, channels, height, width) in rows."""
        width, height = self.columns * self.cell[0], self.rows * self.cell[1]  # of a block
        across = max(self.beside * self.pitch, SINGLE)
        down = sum(self.heads) + len(self.heads) * (height + _GAP)
        figure = new_figure(across, down, title=title, layout=None)
        # One for all pictures and names: axes for each of hundreds of blocks would take seconds.
        ax = figure.add_axes((0, 0, 1, down / figure.get_figheight()), xlim=(0, across), ylim=(down, 0))
        small = {"fontsize": SMALL, "ha": "center", "va": "baseline", "linespacing": 1.05}
        for number, pictures in enumerate(blocks):
            band, place = divmod(number, self.beside)
            left = across / 2 + (place - (self.beside - 1) / 2) * self.pitch - width / 2
            top = sum(self.heads[: band + 1]) + band * (height + _GAP)
            most = max(_FINEST * self.cell[0], 8)
            image = tile(pictures, columns=self.columns, rows=self.rows, most_pixels=most)
            show(ax, image, extent=(left, left + width, top + height, top))
            above = top - 0.045 - _LINE * bool(self.captions)
            ax.text(left + width / 2, above, self.names[number], **small)
            for column, caption in enumerate(self.captions):
                ax.text(left + (column + 0.5) * self.cell[0], top - 0.045, caption, color="0.4", **small)
        return figure


def _best(sheets: Sequence[_Sheet]) -> _Sheet:
    """The first one with pictures of a good size, else the one with the largest pictures."""
    return max(sheets, key=lambda sheet: min(sheet.cell[0], _ENOUGH))  # the first of equals


@house_style()
def before_after(result: DistillResult, *, title: str = "") -> Figure:
    """The first image of each class (ten at most): where it started, and where it arrived."""
    columns = min(len(result.distilled.classes), 10)
    width = DOUBLE if columns > 3 else SINGLE
    figure = new_figure(width, 0.35 + 2 * min((width - 0.3) / columns, _LARGEST), title=title)
    _draw_before_after(figure, result)
    return figure


@house_style()
def overview(result: DistillResult, evaluations: Sequence[Evaluation], *, title: str = "") -> Figure:
    """The whole story in one picture: images before and after, and what they are worth."""
    figure = new_figure(DOUBLE, 1.5, title=title)
    left, right = figure.subfigures(1, 2, width_ratios=(2.9, 1), frameon=False)
    _draw_before_after(left, result)
    draw_accuracies(right.subplots(), evaluations)
    return figure


def _draw_before_after(figure: Figure | SubFigure, result: DistillResult) -> None:
    made, rows = result.distilled, slice(None, 10 * result.distilled.ipc, result.distilled.ipc)
    first = made.pictures(result.history.snapshot_images[0])
    shown = {result.config.initial_images: first[rows], "distilled": made.pictures()[rows]}
    names = [fit_name(name, DOUBLE / 10, lines=1) for name in made.classes[:10]]
    show_rows(figure.subplots(), shown, columns=names)


def _by_class(
    name: str, pictures: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]
) -> list[torch.Tensor]:
    """For each class its pictures, in their order: (count of that class, channels, height, width) each."""
    require(
        pictures.ndim == 4 and len(pictures) > 0 and pictures.shape[1] in (1, 3),
        f"{name} has the shape {tuple(pictures.shape)}; it must be (count, channels, height, width) "
        "with 1 or 3 channels.",
    )
    require(
        labels.shape == pictures.shape[:1],
        f"there are {len(pictures)} pictures, but labels of shape {tuple(labels.shape)}: give one for each.",
    )
    require(
        bool((labels >= 0).all()) and int(labels.max()) < len(classes),
        f"the labels go from {int(labels.min())} to {int(labels.max())}, but there are {len(classes)} "
        "classes: name them all.",
    )
    return [pictures[labels == number] for number in range(len(classes))]
