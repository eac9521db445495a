"""A page of blocks of pictures, one block per class: what goes where, and how large."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iadd_lab.plots.style import DOUBLE, LARGE, PAGE, SINGLE, SMALL, fill_title, new_figure
from iadd_lab.plots.tiles import fit_name, shorten, tile

LARGEST = 1.12  # inches: the side of a picture, however few there are
_ENOUGH = 0.6  # inches: the side of a picture in which a reader sees enough
_GAP = 0.08  # inches between the blocks of two classes
_LINE = 0.13  # inches: a line of small letters
_NARROW = 0.42  # inches: names above narrower blocks are turned
_TURNED = 0.56  # inches: the height of a turned name
_FINEST = 200  # pixels to an inch, as in the PNG: what is finer is averaged


@dataclass(frozen=True)
class Sheet:
    """A figure of blocks, each with a name above it; all lengths are in inches."""

    names: tuple[str, ...]  # one for each block, as they are written
    captions: tuple[str, ...]  # above a block's columns, below its name
    blocks: int  # side by side
    columns: int  # of pictures in a block
    rows: int  # of pictures in a block
    cell: tuple[float, float]  # width and height of a picture
    written: tuple[float, ...]  # for each row of blocks, the height of what is written above it

    @property
    def block(self) -> tuple[float, float]:
        """Width and height of the pictures of a block."""
        return self.columns * self.cell[0], self.rows * self.cell[1]

    @property
    def turned(self) -> bool:
        """Whether the names are turned."""
        return self.block[0] < _NARROW

    @property
    def inner(self) -> float:
        """The width of all blocks side by side."""
        return self.blocks * (self.block[0] + _GAP) - _GAP

    @property
    def width(self) -> float:
        """Of the figure; turned names reach beyond the last block."""
        return max(self.inner + (0.8 * _TURNED if self.turned else 0.04), SINGLE)

    @property
    def height(self) -> float:
        """Of the figure without its title."""
        return sum(self.written) + len(self.written) * (self.block[1] + _GAP)

    def figure(self, title: str) -> tuple[Figure, Axes]:
        """A figure with its title and nothing else, and axes in inches from the sheet's upper left corner."""
        lines = fill_title(title, self.width)
        headroom = 0.16 * (lines.count("\n") + 1) + 0.05 if title else 0.0
        figure = new_figure(self.width, headroom + self.height, layout=None)
        # One for all pictures and names: axes for each of hundreds of blocks would take seconds.
        ax = figure.add_axes((0, 0, 1, 1))
        ax.axis("off")
        ax.set(xlim=(0, self.width), ylim=(self.height, -headroom))
        ax.text(self.width / 2, 0.03 - headroom, lines, ha="center", va="top", fontsize=LARGE)
        return figure, ax

    def draw(self, ax: Axes, number: int, pictures: torch.Tensor) -> None:
        """Block `number`: its name, and its pictures (count, channels, height, width), row after row."""
        band, place = divmod(number, self.blocks)
        width, height = self.block
        left = (self.width - self.inner) / 2 + place * (width + _GAP)
        top = sum(self.written[: band + 1]) + band * (height + _GAP)
        if len(pictures):
            most = max(_FINEST * self.cell[0], 8)
            image = tile(pictures, columns=self.columns, rows=self.rows, most_pixels=most)
            # "none" keeps the pixels in a PDF; "nearest" would sample them again.
            ax.imshow(image, interpolation="none", aspect="auto",
                      extent=(left, left + width, top + height, top))  # fmt: skip
        self._write(ax, number, left, top)

    def _write(self, ax: Axes, number: int, left: float, top: float) -> None:
        if self.turned:
            ax.text(left, top - 0.03, self.names[number], fontsize=SMALL, rotation=45, va="bottom",
                    rotation_mode="anchor")  # fmt: skip
            return
        above = top - 0.045 - _LINE * bool(self.captions)
        ax.text(left + self.block[0] / 2, above, self.names[number], fontsize=SMALL, ha="center",
                va="baseline", linespacing=1.05)  # fmt: skip
        for place, caption in enumerate(self.captions):
            ax.text(left + (place + 0.5) * self.cell[0], top - 0.045, caption, fontsize=SMALL, color="0.4",
                    ha="center", va="baseline")  # fmt: skip


def plan(
    pictures: torch.Tensor,
    classes: Sequence[str],
    *,
    blocks: int,
    columns: int,
    rows: int,
    captions: tuple[str, ...] = (),
) -> Sheet:
    """The sheet whose pictures are as large as a page allows.

    Args:
        pictures: (count, channels, height, width), for their shape.
        classes: a block each.
        blocks: side by side at most; fewer where the last row of blocks would be shorter than the others.
        columns: of pictures in a block.
        rows: of pictures in a block.
        captions: above the columns; left out where these are too narrow.
    """
    ratio = pictures.shape[2] / pictures.shape[3]
    bands = math.ceil(len(classes) / blocks)
    blocks = math.ceil(len(classes) / bands)
    cell = min((DOUBLE - 0.04 - (blocks - 1) * _GAP) / (blocks * columns), LARGEST)
    for _ in range(2):  # once more, since the names above narrower pictures may take more lines
        kept = captions if cell >= 0.45 else ()
        names = _names(classes, columns * cell)
        written = tuple(
            _TURNED if columns * cell < _NARROW else _LINE * (lines + bool(kept)) + 0.03
            for lines in (_lines(names[band * blocks : (band + 1) * blocks]) for band in range(bands))
        )
        room = PAGE - sum(written) - bands * _GAP
        cell = max(min(cell, room / (bands * rows * ratio)), 0.02)
    return Sheet(names, kept, blocks, columns, rows, (cell, cell * ratio), written)


def best(sheets: Iterable[Sheet]) -> Sheet:
    """The first one with pictures of a good size, else the one with the largest pictures."""
    return max(sheets, key=lambda sheet: min(sheet.cell[0], _ENOUGH))  # the first of equals


def _names(classes: Sequence[str], width: float) -> tuple[str, ...]:
    if width < _NARROW:
        return tuple(shorten(name) for name in classes)
    return tuple(fit_name(name, width + 0.5 * _GAP) for name in classes)


def _lines(names: Sequence[str]) -> int:
    return max(name.count("\n") + 1 for name in names)
