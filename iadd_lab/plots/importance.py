"""Figure 6 and its parts: the importance weights W."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy.stats import spearmanr

from iadd_lab.distill import DistillResult
from iadd_lab.errors import require
from iadd_lab.networks import ParameterLayout
from iadd_lab.plots.layers import layers_of, tensor_titles
from iadd_lab.plots.style import COLORS, WIDTH, new_figure, style

_BINS = 24


def learned_weights(
    result: DistillResult,
    layout: ParameterLayout,
    hardness: torch.Tensor,
    *,
    relative_hardness: torch.Tensor | None = None,
    title: str = "",
) -> Figure:
    """W by layer, over the iterations, and against how hard a parameter is to match.

    Args:
        result: whose W is shown.
        layout: of its network's parameters.
        hardness: root mean square difference of student and teacher, (P,); see `paths.hardness`.
        relative_hardness: the same relative to the teacher's movement, (P,).
        title: above all.

    Raises:
        InputError: the run kept no W, or a vector has another length than W.
    """
    history = result.history
    require(len(history.snapshot_importance) > 0, f"{result.config.matching.name} matching has no W to show.")
    hard = {"how hard to match": hardness, "relative to the teacher's movement": relative_hardness}
    hard = {name: values for name, values in hard.items() if values is not None}
    for name, values in hard.items():
        require(
            values.shape == result.importance.shape,
            f"{name} has shape {tuple(values.shape)}; expected that of W, {tuple(result.importance.shape)}.",
        )
    with style():
        figure = new_figure(WIDTH, 4.8, title)
        upper, lower = figure.subfigures(2, 1, height_ratios=(1.1, 1))
        layers, course = upper.subplots(1, 2, width_ratios=(1, 1.1))
        draw_by_layer(layers, result.importance, layout)
        _draw_course(course, result, layout)
        for ax, (name, values) in zip(
            lower.subplots(1, len(hard), squeeze=False).flat, hard.items(), strict=True
        ):
            _draw_against(ax, values.numpy(), result.importance.numpy(), name)
    return figure


def importance_by_layer(importance: torch.Tensor, layout: ParameterLayout, *, title: str = "") -> Figure:
    """How W is distributed in each of the network's tensors: median, quartiles, 1st to 99th percentile."""
    with style():
        figure = new_figure(WIDTH, 0.6 + 0.22 * len(layout.names), title)
        draw_by_layer(figure.subplots(), importance, layout)
    return figure


def draw_by_layer(ax: Axes, importance: torch.Tensor, layout: ParameterLayout) -> None:
    """Draw what `importance_by_layer` shows into `ax`."""
    boxes = [
        _box(values.double().numpy(), name)
        for name, values in zip(tensor_titles(layout), importance.split(list(layout.sizes)), strict=True)
    ]
    ax.bxp(boxes, orientation="horizontal", showfliers=False, patch_artist=True,
           boxprops={"facecolor": COLORS[0], "alpha": 0.6}, medianprops={"color": "black"})  # fmt: skip
    ax.axvline(1, color="0.4", lw=0.8, ls="--")
    ax.invert_yaxis()
    ax.tick_params(axis="y", labelsize=7)
    ax.set(xlabel="importance W (dashed: uniform)")


def _box(values: np.ndarray, name: str) -> dict[str, object]:
    low, first, middle, third, high = np.percentile(values, (1, 25, 50, 75, 99))
    return {"whislo": low, "q1": first, "med": middle, "q3": third, "whishi": high, "label": name}


def _draw_course(ax: Axes, result: DistillResult, layout: ParameterLayout) -> None:
    """The median of W in each layer over the iterations, and how far all of W is spread."""
    weights = torch.stack(result.history.snapshot_importance).double()  # (snapshots, P)
    iterations = result.history.snapshot_iterations
    low, high = weights.quantile(torch.tensor([0.01, 0.99], dtype=torch.float64), dim=1)
    ax.fill_between(iterations, low, high, color="0.5", alpha=0.2, lw=0, label="98 % of all")
    for place, layer in enumerate(layers_of(layout)):
        ax.plot(iterations, layer.of(weights).median(1).values, color=COLORS[place % len(COLORS)],
                ls="-" if place < len(COLORS) else "--", lw=1.2, label=layer.name)  # fmt: skip
    ax.axhline(1, color="0.4", lw=0.8, ls="--")
    ax.set(xlabel="iteration", ylabel="median W of each layer")
    ax.legend(fontsize=6.5, ncols=2, loc="upper left")


def _draw_against(ax: Axes, hardness: np.ndarray, weights: np.ndarray, name: str) -> None:
    """Medians, quartiles and density of W in bins of equal log-width of `hardness`."""
    # Biases ahead of a norm never move; what is left of them is rounding.
    moving = hardness > 1e-6 * hardness.max()
    low, high = np.quantile(hardness[moving], (0.001, 0.999))
    inside = moving & (hardness >= low) & (hardness <= high)
    ax.hexbin(hardness[inside], weights[inside], gridsize=(50, 30), xscale="log", cmap="Blues", bins="log",
              mincnt=1, lw=0, rasterized=True)  # fmt: skip
    edges = np.geomspace(low, high, _BINS + 1)
    place = np.clip(np.digitize(hardness[inside], edges) - 1, 0, _BINS - 1)
    filled = [index for index in range(_BINS) if (place == index).sum() >= 10]
    quartiles = np.array([np.percentile(weights[inside][place == index], (25, 50, 75)) for index in filled])
    centres = np.sqrt(edges[:-1] * edges[1:])[filled]
    if len(filled):
        ax.plot(centres, quartiles[:, 1], color=COLORS[1], lw=1.5, label="median")
        ax.fill_between(
            centres, quartiles[:, 0], quartiles[:, 2], color=COLORS[1], alpha=0.3, lw=0, label="quartiles"
        )
    ax.axhline(1, color="0.4", lw=0.8, ls="--")
    ax.set_xlim(low, high)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(_plain))
    ax.xaxis.set_minor_formatter(NullFormatter())
    correlation = spearmanr(hardness[moving], weights[moving]).statistic
    still = f"; {(~moving).sum()} never move" if (~moving).any() else ""
    ax.set_title(f"rank correlation {correlation:+.2f}{still}", fontsize=8)
    ax.set(xlabel=name, ylabel="importance W")
    ax.legend(fontsize=7, loc="lower left")
    ax.tick_params(axis="x", labelsize=7)


def _plain(value: float, _place: int) -> str:
    return f"{value:g}"
