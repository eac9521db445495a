"""The numerical difference of student and teacher in corresponding dimensions, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from iadd_lab.errors import require
from iadd_lab.plots.layers import Layer, layers
from iadd_lab.plots.style import DOUBLE, SMALL, house_style, new_figure
from iadd_lab.study.replay import SegmentPath
from iadd_lab.training.networks import ParameterLayout


@house_style()
def parameter_difference(
    paths_by_method: Mapping[str, Sequence[SegmentPath]], layout: ParameterLayout, *, title: str = ""
) -> Figure:
    """θ̃_{i,J} − θ_{i+K}, dimension by dimension: a row of panels per method, a column per layer.

    The points are the first segment's signed differences. The numbers below them, and the bars, are of all
    segments: the root mean square, and its share of what the teacher itself moved.

    Args:
        paths_by_method: {method: its segments, as from `paths.replay`}, the same segments for each.
        layout: of the network.
        title: above the figure.

    Raises:
        InputError: there is no method or no segment, or the layout is another network's.
    """
    _check(paths_by_method, layout)
    parts, count = layers(layout), len(paths_by_method)
    exponent = round(math.log10(_typical(paths_by_method)))
    heights = (0.4 + 1.1 * count, 1.55)
    figure = new_figure(DOUBLE, sum(heights) + (0.2 if title else 0), title=title)
    # No frames: the layout's solver ends at 0 or at -0 by chance, which a PDF would show as other bytes.
    upper, lower = figure.subfigures(2, 1, height_ratios=heights, frameon=False)
    axes = upper.subplots(count, len(parts), sharex="col", sharey="col", squeeze=False)
    for number, (row, (method, paths)) in enumerate(zip(axes, paths_by_method.items(), strict=True)):
        for ax, part in zip(row, parts, strict=True):
            _draw_points(ax, paths, part, unit=10.0**exponent, color=f"C{number % 10}")
            name = f"{part.name}\n" if number == 0 else ""
            ax.set_title(f"{name}RMS {_rms(paths, part, 'difference') / 10.0**exponent:.2f}", fontsize=SMALL)
        row[0].set_ylabel(method)
    for column, part in zip(axes.T, parts, strict=True):
        _limit(
            column, [paths[0].difference[part.place] / 10.0**exponent for paths in paths_by_method.values()]
        )
    upper.supxlabel("dimension within the layer", fontsize=SMALL)
    upper.supylabel(rf"difference, first segment, in $10^{{{exponent}}}$", fontsize=SMALL)
    _draw_shares(lower.subplots(), paths_by_method, parts)
    lower.legend(loc="outside lower center", ncols=count, frameon=False)
    return figure


def _check(paths_by_method: Mapping[str, Sequence[SegmentPath]], layout: ParameterLayout) -> None:
    require(bool(paths_by_method), "there is no method to show: give {method: its segments}.")
    for method, paths in paths_by_method.items():
        require(len(paths) > 0, f"{method} has no segment: replay at least one.")
        for path in paths:
            require(
                path.end.shape == (layout.count,),
                f"a segment of {method} has {len(path.end)} parameters, the layout {layout.count}: give the "
                "layout of the network that was replayed.",
            )


def _typical(paths_by_method: Mapping[str, Sequence[SegmentPath]]) -> float:
    """The root mean square of all differences shown; never 0."""
    squares = [paths[0].difference.double().square().mean().item() for paths in paths_by_method.values()]
    return math.sqrt(sum(squares) / len(squares)) or 1.0


def _rms(paths: Sequence[SegmentPath], part: Layer, what: str) -> float:
    """The root mean square of "difference" or "movement" in a layer, over all segments."""
    return (
        torch.cat([getattr(path, what)[part.place] for path in paths]).double().square().mean().sqrt().item()
    )


def _draw_points(ax: Axes, paths: Sequence[SegmentPath], part: Layer, *, unit: float, color: str) -> None:
    values = paths[0].difference[part.place].double().numpy() / unit
    # Thousands of points: an image in the PDF.
    ax.plot(np.arange(part.count), values, ".", color=color, ms=1.6 if part.count < 3000 else 0.9, mew=0,
            rasterized=True)  # fmt: skip
    ax.axhline(0, color="0.4", lw=0.5)
    ax.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(4, symmetric=True))


def _limit(axes: Sequence[Axes], shown: Sequence[torch.Tensor]) -> None:
    """One scale for a column, wide enough for all but outliers; what lies beyond is counted."""
    sizes = torch.stack(list(shown)).abs().double()  # (methods, parameters of the layer)
    # Fifteen medians are ten standard deviations of a normal distribution.
    limit = 1.08 * min(sizes.max().item(), 15 * sizes.median().item() or math.inf) or 1.0
    for ax, values in zip(axes, sizes, strict=True):
        ax.set_ylim(-limit, limit)
        beyond = int((values > limit).sum())
        if beyond:
            ax.text(0.97, 0.03, f"{beyond} beyond", transform=ax.transAxes, ha="right", va="bottom",
                    fontsize=SMALL)  # fmt: skip


def _draw_shares(
    ax: Axes, paths_by_method: Mapping[str, Sequence[SegmentPath]], parts: Sequence[Layer]
) -> None:
    """Bars: the RMS difference over all segments in per cent of the teacher's own RMS movement."""
    width = 0.8 / len(paths_by_method)
    for number, (method, paths) in enumerate(paths_by_method.items()):
        places = np.arange(len(parts)) + (number - (len(paths_by_method) - 1) / 2) * width
        moved = [_rms(paths, part, "movement") for part in parts]
        shares = [
            100 * _rms(paths, part, "difference") / length if length else 0.0
            for part, length in zip(parts, moved, strict=True)
        ]
        bars = ax.bar(places, shares, width * 0.92, color=f"C{number % 10}", label=method)
        ax.bar_label(bars, fmt="%.0f" if len(paths_by_method) > 2 else "%.1f", fontsize=SMALL, padding=1)
    ax.set_xticks(range(len(parts)), [part.name for part in parts])
    ax.margins(y=0.15)
    ax.grid(axis="x", visible=False)
    segments = len(next(iter(paths_by_method.values())))
    ax.set(ylabel="RMS (%)")
    ax.set_title(f"RMS difference over all {segments} segments, in % of how far the teacher itself moved")
