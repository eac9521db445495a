"""One moment of one run, or of two side by side: images, curves, W, and the nearest real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from iadd_lab.errors import check_whole, require
from iadd_lab.plots.curves import draw_series
from iadd_lab.plots.layers import Layer, layers, tensors
from iadd_lab.plots.style import DOUBLE, LARGE, MEDIUM, SMALL, house_style, new_figure
from iadd_lab.plots.tiles import as_bytes, fit_name, show, show_rows, tile

if TYPE_CHECKING:
    from iadd_lab.study.views import View

_WIDTH = 5.2  # inches of a run that another one stands beside
_EDGE = 0.12  # inches left free at the right of a run
_COLUMNS = 10  # classes whose images are shown at once
_MANY = 14  # tensors: W of more is shown by layers
_PICKED = "#d55e00"  # the colour of what is picked


@house_style()
def exploration(
    views: Sequence[View],
    *,
    iteration: int | None = None,
    image: int = 0,
    count: int = 8,
) -> Figure:
    """Runs at one iteration, side by side: what the images are by then, and everything that goes with them.

    From top to bottom: an image of each class (ten classes at most, those about the one that is picked) at
    the start, at the iteration, and what has changed; loss and α; W in each layer; and the real images
    nearest to the picked one. What a run does not have is said in its place.

    Args:
        views: one or two of them.
        iteration: None is the last one of the first run. Each run shows its latest snapshot until then.
        image: which distilled image of the first run is picked; the other run shows one of the same class.
        count: nearest real images.

    Raises:
        InputError: there is no run, or more than two, or the first run has no such image.
    """
    require(
        0 < len(views) <= 2,
        f"there are {len(views)} runs to show; give one, or two to stand side by side.",
    )
    check_whole("image", image, minimum=0, maximum=len(views[0].distilled.labels) - 1)
    check_whole("count", count, minimum=1)
    iteration = views[0].iterations[-1] if iteration is None else iteration
    label, number = views[0].number(image)
    places = _Places.of(views)
    figure = new_figure(places.column * len(views), places.height, layout=None)
    for column, view in enumerate(views):
        panels = places.panels(figure, column)
        # The other run may have fewer classes.
        picked = view.row(min(label, len(view.distilled.classes) - 1), number)
        _draw_view(panels, view, view.place(iteration), picked, count)
    return figure


@dataclass(frozen=True)
class _Panels:
    """The axes of one run, and how large what stands in them may be."""

    images: Axes
    loss: Axes
    alpha: Axes
    importance: Axes
    neighbours: Sequence[Axes]
    cell: float  # inches: the width of a class's images


@dataclass(frozen=True)
class _Places:
    """Where everything is, in inches: placed by hand, so that nothing jumps when the iteration changes."""

    column: float  # the width of a run
    cell: float  # the width of a class's images
    ratio: float  # height of an image / its width
    importance: float  # the height of the panel of W
    spaces: int  # rows of nearest images

    @classmethod
    def of(cls, views: Sequence[View]) -> _Places:
        column = DOUBLE if len(views) == 1 else _WIDTH
        parts = max((len(_parts(view)) for view in views if view.has_importance), default=0)
        height, width = views[0].distilled.images.shape[2:]
        return cls(
            column=column,
            cell=(column - 0.3 - _EDGE) / _COLUMNS,
            ratio=height / width,
            importance=0.15 + 0.16 * parts if parts else 0.3,
            spaces=max(len(view.spaces) for view in views) or 1,
        )

    @property
    def tops(self) -> tuple[float, float, float, float]:
        """Of images, curves, W and nearest images, from above."""
        images = 0.48
        curves = images + 3 * self.cell * self.ratio + 0.4
        importance = curves + 1.1 + 0.55
        return images, curves, importance, importance + self.importance + 0.95

    @property
    def step(self) -> float:
        """From one row of nearest images to the next."""
        return self.cell * self.ratio + 0.25

    @property
    def height(self) -> float:
        """Of the figure."""
        return self.tops[3] + self.spaces * self.step - 0.1

    def panels(self, figure: Figure, column: int) -> _Panels:
        """Empty axes for the run in a column."""
        total, start = figure.get_figwidth(), column * self.column

        def add(left: float, top: float, width: float, height: float) -> Axes:
            bottom = 1 - (top + height) / self.height
            return figure.add_axes(((start + left) / total, bottom, width / total, height / self.height))

        images, curves, importance, neighbours = self.tops
        half, size = (self.column - 1.1 - _EDGE) / 2, self.cell * self.ratio
        return _Panels(
            images=add(0.3, images, _COLUMNS * self.cell, 3 * size),
            loss=add(0.4, curves, half, 1.1),
            alpha=add(self.column - _EDGE - half, curves, half, 1.1),
            importance=add(1.05, importance, self.column - 1.05 - _EDGE, self.importance),
            neighbours=[
                add(0.75, neighbours + place * self.step, self.column - 0.75 - _EDGE, size)
                for place in range(self.spaces)
            ],
            cell=self.cell,
        )


def _draw_view(panels: _Panels, view: View, place: int, picked: int, count: int) -> None:
    iteration = view.iterations[place]
    panels.images.set_title(f"{view.title}: iteration {iteration}", fontsize=LARGE, fontweight="bold", pad=16)
    _draw_images(panels.images, view, place, picked, panels.cell)
    _draw_curve(panels.loss, view, iteration, "loss")
    _draw_curve(panels.alpha, view, iteration, "alpha")
    _draw_importance(panels.importance, view, place)
    _draw_neighbours(panels, view, place, picked, count)


def _draw_images(ax: Axes, view: View, place: int, picked: int, cell: float) -> None:
    """The start, the moment and their difference, of one image for each of ten classes."""
    classes, (label, number) = view.distilled.classes, view.number(picked)
    page = label // _COLUMNS * _COLUMNS
    shown = range(page, min(page + _COLUMNS, len(classes)))
    rows = torch.tensor([view.row(other, number) for other in shown])
    pictures = {"now": view.pictures(place)[rows]}
    if len(view.iterations) > 1:
        change = _coloured(view.change(place)[rows], view.largest_change)
        pictures = {"start": view.pictures(0)[rows], **pictures, "change": change}
    names = [fit_name(classes[other], cell, lines=1) for other in shown]
    show_rows(ax, [as_bytes(part) for part in pictures.values()], columns=names, captions=list(pictures))
    ax.set_anchor("NW")
    _frame(ax, label - page, len(shown))
    if len(pictures) == 1:
        ax.text(0, -0.15, "No snapshots were stored: only the last images can be shown.",
                transform=ax.transAxes, fontsize=SMALL, va="top")  # fmt: skip


def _frame(ax: Axes, place: int, columns: int) -> None:
    """A frame around a column of the image that `ax` shows."""
    right, bottom = ax.get_xlim()[1], ax.get_ylim()[0]
    step = (right + 0.5) / columns
    ax.add_patch(Rectangle((place * step - 0.5, -0.5), step, bottom + 0.5, fill=False, ec=_PICKED, lw=1.6,
                           clip_on=False))  # fmt: skip


def _coloured(change: torch.Tensor, largest: float) -> torch.Tensor:
    """Differences (count, channels, height, width), their mean over channels from blue over white to red."""
    shade = 0.5 + 0.5 * (change.mean(1) / max(largest, 1e-12)).clamp(-1, 1)  # (count, height, width)
    colours = matplotlib.colormaps["RdBu_r"](shade.numpy(), bytes=True)[..., :3]  # (count, height, width, 3)
    return torch.from_numpy(np.ascontiguousarray(colours)).permute(0, 3, 1, 2)


def _draw_curve(ax: Axes, view: View, iteration: int, name: str) -> None:
    """The loss or α over the whole run, with a line at the iteration."""
    history, values = view.history, getattr(view.history, name)
    title = {"loss": "matching loss", "alpha": "learning rate α"}[name]
    if not values:
        _say(ax, f"No {title} was stored.")
        return
    draw_series(ax, values, label="weighted by W", smooth=name == "loss")
    if name == "loss" and history.unweighted_loss and history.unweighted_loss != values:
        draw_series(ax, history.unweighted_loss, label="without W", smooth=True)
        ax.legend(loc="upper right")
    ax.set(xlabel="iteration", title=title)
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.axvline(iteration, color=_PICKED, lw=1.2)
    if iteration:
        ax.plot(iteration, values[iteration - 1], color=_PICKED, marker="o", ms=4)


def _draw_importance(ax: Axes, view: View, place: int) -> None:
    """W in each tensor, or layer of a large network: 1st to 99th percentile, quartiles, median."""
    if not view.has_importance:
        method = view.distilled.method
        _say(ax, f"{method} has no W." if view.network is None else f"W is always 1 in {method} matching.")
        return
    parts, weights = _parts(view), view.importance(place).double().numpy()
    low, first, middle, third, high = np.array(
        [np.percentile(weights[part.place], (1, 25, 50, 75, 99)) for part in parts]
    ).T  # (parts,) each
    places = np.arange(len(parts))
    ax.hlines(places, low, high, color="C0", lw=1, alpha=0.6)
    ax.hlines(places, first, third, color="C0", lw=4)
    ax.plot(middle, places, "o", color="white", mec="C0", ms=4)
    ax.axvline(1, color="0.4", lw=0.8, ls="--")
    ax.set_yticks(places, [part.name for part in parts])
    ax.set(xlim=_limits(view, parts), ylim=(len(parts) - 0.4, -0.6))
    ax.set(xlabel="importance W: median, quartiles, 1–99 % (dashed: uniform)")
    ax.grid(axis="y", visible=False)


def _limits(view: View, parts: Sequence[Layer]) -> tuple[float, float]:
    """Of the axis of W: the same for all iterations, or one could not see it move."""
    snapshots = [view.importance(place).double().numpy() for place in range(len(view.iterations))]
    ends = [np.percentile(weights[part.place], (1, 99)) for weights in snapshots for part in parts]
    low, high = min(1.0, np.min(ends)), max(1.0, np.max(ends))
    margin = 0.05 * max(high - low, 0.01)
    return low - margin, high + margin


def _parts(view: View) -> list[Layer]:
    return tensors(view.layout) if len(view.layout.names) <= _MANY else layers(view.layout)


def _draw_neighbours(panels: _Panels, view: View, place: int, picked: int, count: int) -> None:
    """The nearest real images in each space, with their classes and distances."""
    label, number = view.number(picked)
    name = fit_name(view.distilled.classes[label], 2, lines=1)
    which = f"“{name}”" + (f", image {number + 1}" if view.distilled.ipc > 1 else "")
    first, *_ = panels.neighbours
    first.text(0, 1, f"real images nearest to {which}, their classes and distances", fontsize=MEDIUM,
               transform=first.transAxes + _up(first, 17), va="bottom")  # fmt: skip
    for ax, space in zip(panels.neighbours, view.spaces, strict=False):
        _draw_nearest(ax, view, place, picked, space, min(count, int(ax.bbox.width / ax.figure.dpi / 0.35)))
    for ax in panels.neighbours[len(view.spaces) :]:
        _say(ax, f"{view.remark}.".capitalize() if view.remark else "They were not given.")


def _up(ax: Axes, points: float) -> matplotlib.transforms.Affine2D:
    """So many points further up, after another transformation."""
    return matplotlib.transforms.ScaledTranslation(0, points / 72, ax.figure.dpi_scale_trans)


def _draw_nearest(ax: Axes, view: View, place: int, picked: int, space: str, count: int) -> None:
    found, real = view.nearest(place, picked, by=space, count=count), view.data.train
    rows, distances = found.rows[0].tolist(), found.distances[0].tolist()
    image = tile(real.images[found.rows[0]], columns=len(rows), rows=1)
    show(ax, image)
    ax.set_anchor("W")
    own, step = int(view.distilled.labels[picked]), image.shape[1] / len(rows)
    room = 0.75 * ax.bbox.width / ax.figure.dpi / len(rows)
    for number, (row, distance) in enumerate(zip(rows, distances, strict=True)):
        label = int(real.labels[row])
        digits = 1 if distance >= 10 else 2  # or neighbouring labels would touch
        ax.annotate(f"{fit_name(view.data.classes[label], room, lines=1)} {distance:.{digits}f}",
                    ((number + 0.5) * step - 0.5, -0.5), (0, 2), textcoords="offset points", ha="center",
                    fontsize=SMALL, color="0.15" if label == own else _PICKED)  # fmt: skip
    ax.annotate(f"by {space}", (0, 0.5), (-4, 0), xycoords="axes fraction", textcoords="offset points",
                ha="right", va="center", fontsize=SMALL)  # fmt: skip


def _say(ax: Axes, sentence: str) -> None:
    """A sentence in place of a panel."""
    ax.axis("off")
    ax.text(0, 0.5, sentence, ha="left", va="center", transform=ax.transAxes, fontsize=SMALL)
