"""The numerical difference of student and teacher in corresponding dimensions, layer by layer."""

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from iadd_lab.errors import require
from iadd_lab.plots.layers import Layer, check_count, layers, tensors
from iadd_lab.plots.style import DOUBLE, SMALL, Rows, grouped_bars, house_style, new_figure
from iadd_lab.study.replay import ReplayedSegment
from iadd_lab.training.networks import ParameterLayout

_Paths = Mapping[str, Sequence[ReplayedSegment]]


@house_style()
def parameter_difference(paths_by_method: _Paths, layout: ParameterLayout, *, title: str = "") -> Figure:
    """θ̃_{i,J} − θ_{i+K}, dimension by dimension: a row of panels per method, a column per layer.

    The points are the first segment's signed differences. The numbers above them, and the bars, are of all
    segments: the root mean square, and its share of what the teacher itself moved.

    Args:
        paths_by_method: {method: its segments, as from `replay.replay`}, the same segments for each.
        layout: of the network.
        title: above the figure.

    Raises:
        InputError: there is no method or no segment, or the layout is another network's.
    """
    require(bool(paths_by_method), "there is no method to show: give {method: its segments}.")
    for method, paths in paths_by_method.items():
        require(len(paths) > 0, f"{method} has no segment: replay at least one.")
        for path in paths:
            check_count(f"a segment of {method}", path.end, layout.count)
    parts, count = layers(layout), len(paths_by_method)
    shown = torch.stack([paths[0].difference for paths in paths_by_method.values()]).double()  # (methods, P)
    exponent = round(math.log10(shown.square().mean().sqrt().item() or 1.0))
    unit, heights = 10.0**exponent, (0.4 + 1.1 * count, 1.55)
    figure = new_figure(DOUBLE, sum(heights), title=title)
    # No frames: the layout's solver ends at 0 or at -0 by chance, which a PDF would show as other bytes.
    upper, lower = figure.subfigures(2, 1, height_ratios=heights, frameon=False)
    axes = upper.subplots(count, len(parts), sharex="col", sharey="col", squeeze=False)
    for column, part in zip(axes.T, parts, strict=True):
        _draw_points(column, shown[:, part.place] / unit)
        for ax, paths in zip(column, paths_by_method.values(), strict=True):
            ax.set_title(f"RMS {_rms(paths, part, 'difference') / unit:.2f}", fontsize=SMALL)
        column[0].set_title(f"{part.name}\n{column[0].get_title()}", fontsize=SMALL)
    for ax, method in zip(axes[:, 0], paths_by_method, strict=True):
        ax.set_ylabel(method)
    upper.supxlabel("dimension within the layer", fontsize=SMALL)
    upper.supylabel(rf"difference, first segment, in $10^{{{exponent}}}$", fontsize=SMALL)
    _draw_shares(lower.subplots(), paths_by_method, parts)
    lower.legend(loc="outside lower center", ncols=count, frameon=False)
    return figure


def _rms(paths: Sequence[ReplayedSegment], part: Layer, what: str) -> float:
    """The root mean square of "difference" or "movement" in a layer, over all segments."""
    values = torch.stack([getattr(path, what)[part.place] for path in paths])
    return values.double().square().mean().sqrt().item()


def _draw_points(axes: Sequence[Axes], shown: torch.Tensor) -> None:
    """A layer's differences (methods, parameters) on one scale that leaves out, but counts, outliers."""
    sizes, dot = shown.abs(), 1.6 if shown.shape[1] < 3000 else 0.9
    # Fifteen medians are ten standard deviations of a normal distribution.
    limit = 1.08 * min(sizes.max().item(), 15 * sizes.median().item() or math.inf) or 1.0
    for number, ax in enumerate(axes):
        # Thousands of points: an image in the PDF.
        ax.plot(shown[number].numpy(), ".", color=f"C{number % 10}", mew=0, ms=dot, rasterized=True)
        ax.axhline(0, color="0.4", lw=0.5)
        ax.xaxis.set_major_locator(MaxNLocator(2, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4, symmetric=True))
        ax.set_ylim(-limit, limit)
        if beyond := int((sizes[number] > limit).sum()):
            ax.text(0.97, 0.03, f"{beyond} beyond", transform=ax.transAxes, ha="right", va="bottom",
                    fontsize=SMALL)  # fmt: skip


def _draw_shares(ax: Axes, paths_by_method: _Paths, parts: Sequence[Layer]) -> None:
    """Bars: the RMS difference over all segments in per cent of the teacher's own RMS movement."""
    shares = {}
    for method, paths in paths_by_method.items():
        moved = {part.name: _rms(paths, part, "movement") or math.inf for part in parts}
        shares[method] = {p.name: 100 * _rms(paths, p, "difference") / moved[p.name] for p in parts}
    for bars in grouped_bars(ax, shares, [part.name for part in parts]):
        ax.bar_label(bars, fmt="%.0f" if len(shares) > 2 else "%.1f", fontsize=SMALL, padding=1)
    ax.margins(y=0.15)
    segments = len(next(iter(paths_by_method.values())))
    title = f"RMS difference over all {segments} segments, in % of how far the teacher itself moved"
    ax.set(ylabel="RMS (%)", title=title)


@house_style()
def movement_shares(shares: Rows, layout: ParameterLayout, *, title: str = "") -> Figure:
    """Bars of the shares of a teacher's squared movement, in per cent: a group for each tensor, then for all.

    Args:
        shares: {what it is a share of: {name of a tensor, or "all": share}}, as `unmatched_shares` and
            `luck_shares` give them; a tensor that none has is left out.
        layout: of the teachers' network.
        title: above the figure.

    Raises:
        InputError: there is no share at all.
    """
    spoken = {name: part.name for name, part in zip(layout.names, tensors(layout), strict=True)}
    spoken["all"] = "all parameters"
    names = [name for name in spoken if any(name in values for values in shares.values())]
    require(bool(names), "there is no share to show: give {what: {tensor: share}}.")
    figure = new_figure(DOUBLE, 2.6, title=title)
    ax = figure.subplots()
    rows = {what: {name: 100 * values.get(name, 0.0) for name in names} for what, values in shares.items()}
    for bars in grouped_bars(ax, rows, names):
        ax.bar_label(bars, fmt=lambda share: f"{share:.{int(share < 10)}f}", fontsize="x-small", padding=1)
    ax.set_xticks(range(len(names)), [spoken[name].replace(" ", "\n") for name in names], fontsize="small")
    ax.set_ylabel("share of the teacher's\nsquared movement (%)")
    ax.legend()
    return figure
