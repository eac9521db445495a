"""Figure 1: how far student and teacher end from each other, dimension by dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iadd_lab.errors import require
from iadd_lab.networks import ParameterLayout
from iadd_lab.paths import SegmentPath
from iadd_lab.plots.layers import Layer, layers_of
from iadd_lab.plots.style import COLORS, WIDTH, new_figure, style

_MOST = 7  # columns that are legible side by side


def parameter_difference(
    paths_by_method: Mapping[str, Sequence[SegmentPath]], layout: ParameterLayout, *, title: str = ""
) -> Figure:
    """θ̃_{i,J} − θ_{i+K} in corresponding dimensions: a row per method, a column per layer.

    Dots are the differences on the first segment. The line is their root mean square over all segments, in
    windows of neighbouring dimensions, and so is the number above each panel, which stands beside what it is
    as a share of the teacher's own movement: 100 % would be a student that comes no nearer. All methods share
    a column's scale, which leaves out the largest 0.2 % of the dots.

    Args:
        paths_by_method: {method: paths on the same segments}.
        layout: of the parameters.
        title: above all.

    Raises:
        InputError: a method has no paths.
    """
    for name, paths in paths_by_method.items():
        require(len(paths) > 0, f"{name} has no paths: replay one segment at least.")
    layers = _shown(layers_of(layout))
    with style():
        figure = new_figure(WIDTH, 0.5 + 1.45 * len(paths_by_method), title)
        axes = figure.subplots(len(paths_by_method), len(layers), squeeze=False, sharex="col", sharey="col")
        for row, (name, paths) in enumerate(paths_by_method.items()):
            for column, layer in enumerate(layers):
                _draw(axes[row, column], layer, paths, color=COLORS[row % len(COLORS)])
            axes[row, 0].set_ylabel(f"{name}\nθ̃ − θ")
        for column, layer in enumerate(layers):
            first = [layer.of(paths[0].difference) for paths in paths_by_method.values()]
            limit = torch.cat(first).abs().double().quantile(0.998).item() or 1.0
            axes[0, column].set_ylim(-1.15 * limit, 1.15 * limit)
        figure.supxlabel(
            "dimension (above: root mean square over all segments · share of the teacher's own movement)",
            fontsize=8,
        )
    return figure


def _shown(layers: Sequence[Layer]) -> list[Layer]:
    """Layers with enough dimensions to see something; of deep networks some at equal distances."""
    wide = [layer for layer in layers if not layer.name.startswith("norm")]
    shown = list(layers) if len(layers) <= _MOST else wide
    if len(shown) > _MOST:
        shown = [shown[round(place)] for place in np.linspace(0, len(shown) - 1, _MOST)]
    return shown


def _draw(ax: Axes, layer: Layer, paths: Sequence[SegmentPath], *, color: str) -> None:
    differences = layer.of(torch.stack([path.difference for path in paths]))  # (segments, dimensions)
    movements = layer.of(torch.stack([path.movement for path in paths]))
    dimensions = np.arange(differences.shape[1])
    ax.scatter(dimensions, differences[0], s=2.5 if len(dimensions) < 2000 else 0.6, color=color, alpha=0.5,
               lw=0, rasterized=True)  # fmt: skip
    window = max(len(dimensions) // 40, 1)
    square = differences.square().mean(0).double().numpy()
    kernel = np.ones(window)
    inside = np.convolve(np.ones_like(square), kernel, mode="same")  # a window is cut off at either end
    smooth = np.sqrt(np.convolve(square, kernel, mode="same") / inside)
    for sign in (1, -1):
        ax.plot(dimensions, sign * smooth, color="0.15", lw=0.7)
    size = differences.square().mean().sqrt()
    share = size / movements.square().mean().sqrt()
    ax.set_title(f"{layer.name}\n{size:.1e} · {100 * share:.0f} %", fontsize=7.5)
    ax.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    ax.yaxis.get_offset_text().set_fontsize(6.5)
    ax.tick_params(labelsize=6.5)
    ax.locator_params(axis="x", nbins=3)
    ax.locator_params(axis="y", nbins=4)
