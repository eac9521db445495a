"""Distilled images: all of them, before and after, and beside real ones."""

import math
from collections.abc import Iterable, Sequence
from itertools import product

import torch
from matplotlib.figure import Figure, SubFigure
from torch.nn.utils.rnn import pad_sequence

from iadd_lab.distillation.result import DistillResult
from iadd_lab.errors import require
from iadd_lab.evaluation.protocol import Evaluation
from iadd_lab.plots.accuracy import draw_accuracies
from iadd_lab.plots.names import fit_name, readable
from iadd_lab.plots.style import DOUBLE, PAGE, SINGLE, SMALL, house_style, new_figure
from iadd_lab.plots.tiles import as_bytes, show, show_rows, shown_channels, tile

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
        pictures: (classes * ipc, channels, height, width) in [0, 1] or bytes, in any order. Of more than
            three channels the first three are seen, and the title says so; take others by
            `pictures[:, [6, 3, 0]]`.
        labels: (classes * ipc,).
        classes: the names.
        title: above the figure.

    Raises:
        InputError: the shapes do not fit together.
    """
    blocks, classes = _by_class("pictures", pictures, labels, classes), readable(classes)
    ipc = max(map(len, blocks))
    # In rows of blocks, each of some columns of pictures.
    choices = product(range(1, min(ipc, 10) + 1), (10, 13, 17, 20))
    sheets = [_Sheet(classes, pictures, n, columns, math.ceil(ipc / columns)) for columns, n in choices]
    return _best(sheets).draw(blocks, _titled(title, pictures))


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
    shapes = [tuple(pictures.shape[1:]) for pictures in (real, made)]
    sentence = "a real image has the shape {}, a distilled one {}: give images of the set that was distilled."
    require(shapes[0] == shapes[1], sentence.format(*shapes))
    columns = [as_bytes(pictures) for pair in zip(left, right, strict=True) for pictures in pair]
    columns = pad_sequence(columns, padding_value=255)  # (rows, classes * 2, 3, height, width)
    besides, captions, classes = range(min(len(classes), 10), 0, -1), ("real", "distilled"), readable(classes)
    sheet = _best([_Sheet(classes, made, n, 2, len(columns), captions) for n in besides])
    title = _titled(title if sheet.captions else f"{title} (left: real, right: distilled)".strip(), made)
    return sheet.draw([pair.flatten(0, 1) for pair in columns.split(2, dim=1)], title)


class _Sheet:
    """A page of blocks of pictures, one block per class; lengths are in inches.

    Pictures are as large as a page allows, with at most `beside` blocks side by side, of `columns` × `rows`
    pictures each, and `captions` above their columns where these are wide enough.
    """

    def __init__(self, classes, pictures, beside, columns, rows, captions=()):
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
        self.beside, self.columns, self.rows = beside, columns, rows
        self.captions, self.names = captions, names  # as they are written
        # The width of a picture, and its height in widths; from one block to the next; for each row of
        # blocks, the height of what is written above it.
        self.cell, self.ratio, self.pitch, self.heads = cell, ratio, pitch, heads

    def draw(self, blocks: Iterable[torch.Tensor], title: str) -> Figure:
        """The figure: a name above each block, and its pictures (count, channels, height, width) in rows."""
        width, height = self.columns * self.cell, self.rows * self.cell * self.ratio  # of a block
        across = max(self.beside * self.pitch, SINGLE)
        down = sum(self.heads) + len(self.heads) * (height + _GAP)
        figure = new_figure(across, down, title=title, layout=None)
        # One for all pictures and names: axes for each of hundreds of blocks would take seconds.
        ax = figure.add_axes((0, 0, 1, down / figure.get_figheight()), xlim=(0, across), ylim=(down, 0))
        small = {"fontsize": SMALL, "ha": "center", "va": "baseline", "linespacing": 1.05}
        finest = max(_FINEST * self.cell, 8)
        for number, (name, pictures) in enumerate(zip(self.names, blocks, strict=True)):
            band, place = divmod(number, self.beside)
            left = across / 2 + (place - (self.beside - 1) / 2) * self.pitch - width / 2
            top = sum(self.heads[: band + 1]) + band * (height + _GAP)
            image = tile(pictures, columns=self.columns, rows=self.rows, most_pixels=finest)
            show(ax, image, extent=(left, left + width, top + height, top))
            ax.text(left + width / 2, top - 0.045 - _LINE * bool(self.captions), name, **small)
            for column, caption in enumerate(self.captions):
                ax.text(left + (column + 0.5) * self.cell, top - 0.045, caption, color="0.4", **small)
        return figure


def _best(sheets: Sequence[_Sheet]) -> _Sheet:
    """The first one with pictures of a good size, else the one with the largest pictures."""
    return max(sheets, key=lambda sheet: min(sheet.cell, _ENOUGH))  # the first of equals


@house_style()
def before_after(result: DistillResult, *, title: str = "") -> Figure:
    """The first image of each class (ten at most): where it started, and where it arrived."""
    columns = min(len(result.distilled.classes), 10)
    width = DOUBLE if columns > 3 else SINGLE
    figure = new_figure(
        width, 0.35 + 2 * min((width - 0.3) / columns, _LARGEST), title=_titled(title, result.images)
    )
    _draw_before_after(figure, result)
    return figure


@house_style()
def overview(result: DistillResult, evaluations: Sequence[Evaluation], *, title: str = "") -> Figure:
    """The whole story in one picture: images before and after, and what they are worth."""
    figure = new_figure(DOUBLE, 1.5, title=_titled(title, result.images))
    left, right = figure.subfigures(1, 2, width_ratios=(2.9, 1), frameon=False)
    _draw_before_after(left, result)
    draw_accuracies(right.subplots(), evaluations)
    return figure


def _titled(title: str, pictures: torch.Tensor) -> str:
    """The title, and which channels of such pictures are seen where that is not all."""
    return "; ".join(filter(None, (title, shown_channels(pictures))))


def _draw_before_after(figure: Figure | SubFigure, result: DistillResult) -> None:
    made, rows = result.distilled, slice(None, 10 * result.distilled.ipc, result.distilled.ipc)
    first = made.pictures(result.history.snapshot_images[0])
    shown = {result.config.initial_images: first[rows], "distilled": made.pictures()[rows]}
    names = [fit_name(name, DOUBLE / 10, lines=1) for name in readable(made.classes)[:10]]
    show_rows(figure.subplots(), shown, columns=names)


def _by_class(
    name: str, pictures: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]
) -> list[torch.Tensor]:
    """For each class its pictures, in their order: (count of that class, channels, height, width) each."""
    shape, count = tuple(pictures.shape), len(classes)
    sentence = f"{name} has the shape {shape}; it must be (count, channels, height, width)."
    require(len(shape) == 4 and len(pictures) > 0, sentence)
    sentence = f"{shape[0]} pictures need as many labels, not {tuple(labels.shape)}: give one for each."
    require(labels.shape == shape[:1], sentence)
    low, high = int(labels.min()), int(labels.max())
    require(0 <= low <= high < count, f"labels go from {low} to {high}, with {count} classes: name them all.")
    return [pictures[labels == number] for number in range(count)]
