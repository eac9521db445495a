"""One moment of one run, or of two side by side: images, curves, W, and the nearest real images."""

from collections.abc import Iterable, Sequence
from itertools import chain

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from iadd_lab.distillation.history import History
from iadd_lab.errors import check_whole, require
from iadd_lab.plots.curves import SERIES, draw_panel
from iadd_lab.plots.importance import draw_boxes
from iadd_lab.plots.layers import tensors_or_layers
from iadd_lab.plots.names import fit_name, readable
from iadd_lab.plots.style import DOUBLE, LARGE, SMALL, house_style, new_figure
from iadd_lab.plots.tiles import show_rows, shown_channels
from iadd_lab.study.neighbours import SPACES
from iadd_lab.study.views import View

_WIDTH = 5.2  # inches of a run that another one stands beside
_COLUMNS = 10  # classes whose images are shown at once
_PANELS = [["images"] * 2, ["loss", "alpha"], ["importance"] * 2, *([space] * 2 for space in SPACES)]
_PICKED = "#d55e00"  # the colour of what is picked


@house_style()
def exploration(
    views: Sequence[View], *, iteration: int | None = None, image: int = 0, count: int = 8
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
    check_views(views, image=image, count=count)
    iteration = views[0].iterations[-1] if iteration is None else iteration
    label, number = views[0].number(image)
    width = DOUBLE if len(views) == 1 else _WIDTH
    size = (width - 0.4) / _COLUMNS  # of a picture, in inches
    boxes = [len(tensors_or_layers(view.layout)) for view in views if view.history.snapshot_importance]
    heights = (3 * size, 1.1, 0.15 + 0.16 * max(boxes, default=1), size, size)
    figure = new_figure(width * len(views), sum(heights) + 2.3)
    # One grid for all runs, so that what stands beside each other is level and equally wide.
    mosaic = [[f"{name} {run}" for run in range(len(views)) for name in row] for row in _PANELS]
    drawn = figure.subplot_mosaic(mosaic, height_ratios=heights)
    for run, view in enumerate(views):
        place, panels = view.place(iteration), {name: drawn[f"{name} {run}"] for name in chain(*_PANELS)}
        # The other run may have fewer classes.
        picked = view.row(min(label, len(view.distilled.classes) - 1), number)
        heading = f"{view.title}: iteration {view.iterations[place]}"
        heading = "; ".join(filter(None, (heading, shown_channels(view.distilled.images))))
        panels["images"].set_title(heading, fontsize=LARGE, weight="bold", pad=16)
        _draw_images(panels["images"], view, place, picked)
        for name in ("loss", "alpha"):
            _draw_curve(panels[name], view.history, view.iterations[place], name)
        _draw_importance(panels["importance"], view, place)
        for space in SPACES:
            _draw_nearest(panels[space], view, place, picked, space, count)
    return figure


def check_views(views: Sequence[View], *, image: int, count: int) -> None:
    """Require one or two runs, an image that the first one has, and a number of neighbours."""
    require(0 < len(views) <= 2, f"there are {len(views)} runs to show: give one, or two side by side.")
    check_whole("image", image, minimum=0, maximum=len(views[0].distilled.labels) - 1)
    check_whole("count", count, minimum=1)


def _draw_images(ax: Axes, view: View, place: int, picked: int) -> None:
    """The start, the moment and their difference, of one image for each of ten classes."""
    made, (label, number) = view.distilled, view.number(picked)
    page = label // _COLUMNS * _COLUMNS
    shown = range(len(made.classes))[page : page + _COLUMNS]
    rows = torch.tensor([view.row(other, number) for other in shown])
    moments = [view.images(moment) for moment in (0, place, -1)]
    first, now, last = (made.preprocess.invert(images).mean(1) for images in moments)  # grey
    largest = np.quantile((last - first).abs().numpy(), 0.995)  # one pixel of 200 exceeds it
    shades = 0.5 + 0.5 * ((now - first)[rows] / max(largest, 1e-12)).clamp(-1, 1)
    colours = matplotlib.colormaps["RdBu_r"](shades.numpy(), bytes=True)[..., :3]  # channels last
    pictures = {name: made.pictures(moments[n])[rows] for n, name in enumerate(("start", "now"))}
    pictures["change"] = torch.tensor(colours).movedim(3, 1)
    if len(view.iterations) == 1:
        pictures = {"now": pictures["now"]}
        sentence = "No snapshots were stored: only the last images can be shown."
        ax.text(0, -0.15, sentence, transform=ax.transAxes, fontsize=SMALL, va="top")
    show_rows(ax, pictures, columns=_names(view, shown))
    frame = ((label - page) / len(shown), 0), 1 / len(shown), 1
    look = {"fill": False, "ec": _PICKED, "lw": 1.6, "clip_on": False, "zorder": 3}
    ax.add_patch(Rectangle(*frame, transform=ax.transAxes, **look))


def _draw_curve(ax: Axes, history: History, iteration: int, name: str) -> None:
    """The loss or α over the whole run, with a line at the iteration."""
    values = getattr(history, name)
    if not values:
        return _say(ax, f"No {SERIES[name]} was stored.")
    draw_panel(ax, history, name)
    ax.axvline(iteration, color=_PICKED, lw=1.2)
    if iteration:
        ax.plot(iteration, values[iteration - 1], color=_PICKED, marker="o", ms=4)


def _draw_importance(ax: Axes, view: View, place: int) -> None:
    """W in each tensor, or layer of a large network."""
    snapshots, method = view.history.snapshot_importance, view.distilled.method
    if not snapshots:
        return _say(ax, f"W is always 1 in {method} matching." if view.made else f"{method} has no W.")
    parts = tensors_or_layers(view.layout)
    draw_boxes(ax, snapshots[place], parts)
    # The same for all iterations, or one could not see it move.
    ends = [np.percentile(weights[part.place].numpy(), (1, 99)) for weights in snapshots for part in parts]
    low, high = min(1.0, np.min(ends)), max(1.0, np.max(ends))
    margin = 0.05 * max(high - low, 0.01)
    xlabel = "importance W: median, quartiles, 1–99 % (dashed: uniform)"
    ax.set(xlim=(low - margin, high + margin), xlabel=xlabel)


def _draw_nearest(ax: Axes, view: View, place: int, picked: int, space: str, count: int) -> None:
    """The nearest real images in a space, with their classes and distances."""
    search, (label, number) = view.neighbours, view.number(picked)
    if space == SPACES[0]:
        name = fit_name(readable(view.distilled.classes)[label], 2, lines=1)
        which = f"“{name}”" + f", image {number + 1}" * (view.distilled.ipc > 1)
        ax.set_title(f"real images nearest to {which}, their classes and distances", loc="left", pad=19)
    if search is None or space not in search.spaces:
        return _say(ax, f"{view.remark or 'they were not given'}.".capitalize())
    real, images = search.data.train, view.images(place)[picked : picked + 1]
    rows, distances = (found[0] for found in search.of(images, by=space, count=count))
    labels = real.labels[rows].tolist()
    named = zip(_names(view, labels), distances.tolist(), strict=True)
    ax.set_anchor("W")  # below what stands above it
    show_rows(ax, {space: real.images[rows]}, columns=[f"{name}\n{distance:.3g}" for name, distance in named])
    for text, other in zip(ax.texts, labels, strict=False):
        text.set_color("0.15" if other == label else _PICKED)


def _names(view: View, labels: Iterable[int]) -> list[str]:
    """The names of classes, as they fit above pictures."""
    names = readable(view.distilled.classes)
    return [fit_name(names[label], _WIDTH / _COLUMNS, lines=1) for label in labels]


def _say(ax: Axes, sentence: str) -> None:
    """A sentence in place of a panel."""
    ax.axis("off")
    ax.text(0, 0.5, sentence, ha="left", va="center", transform=ax.transAxes, fontsize=SMALL)
