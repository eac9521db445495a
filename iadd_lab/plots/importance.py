"""What W became: in each layer, over the iterations, and against how hard parameters are to match."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iadd_lab.distillation.result import DistillResult
from iadd_lab.errors import require
from iadd_lab.plots.layers import Layer, layers, tensors
from iadd_lab.plots.style import DOUBLE, SMALL, house_style, new_figure, plain_ticks, signed
from iadd_lab.training.networks import ParameterLayout

_BINS = 20  # of equally many parameters each
_PER_BIN = 5  # parameters at least: quartiles of fewer say nothing


@house_style()
def importance_by_layer(importance: torch.Tensor, layout: ParameterLayout, *, title: str = "") -> Figure:
    """How W is distributed in each of the network's tensors: median, quartiles, 1st to 99th percentile."""
    _check_count("importance", importance, layout)
    parts = tensors(layout)
    figure = new_figure(DOUBLE, 0.6 + 0.2 * len(parts), title=title)
    _draw_boxes(figure.subplots(), importance, parts)
    return figure


@house_style()
def learned_weights(
    result: DistillResult,
    layout: ParameterLayout,
    hardness: torch.Tensor,
    *,
    relative_hardness: torch.Tensor | None = None,
    title: str = "",
) -> Figure:
    """W in each layer, over the iterations, and against how hard each parameter is to match.

    Args:
        result: of a matching whose W is not always 1.
        layout: of the network.
        hardness: the root mean square of each parameter's difference, (P,), as from `paths.hardness`.
        relative_hardness: the same, divided by how far the teacher moved; it gets a panel of its own.
        title: above the figure.

    Raises:
        InputError: W never varied, or the shapes do not fit together.
    """
    _check_count("importance", result.importance, layout)
    require(
        bool(result.history.snapshot_importance),
        f"W is always 1 in {result.config.matching.name} matching: there is nothing to show; choose a "
        "distillation with learned importance.",
    )
    panels = {"difference": hardness}
    if relative_hardness is not None:
        panels["relative difference"] = relative_hardness
    for name, values in panels.items():
        _check_count(name, values, layout)
    figure = new_figure(DOUBLE, 5.2, title=title)
    places = [["layers", "course"], list(panels) if len(panels) == 2 else [*panels, *panels]]
    axes = figure.subplot_mosaic(places)
    _draw_layers(axes["layers"], result.importance, layout)
    _draw_course(axes["course"], result, layers(layout))
    for name, values in panels.items():
        _draw_against(axes[name], values, result.importance, name)
    return figure


def _check_count(name: str, values: torch.Tensor, layout: ParameterLayout) -> None:
    require(
        values.shape == (layout.count,),
        f"{name} has the shape {tuple(values.shape)}, but the network has {layout.count} parameters: give "
        "one value for each.",
    )


def _draw_boxes(ax: Axes, importance: torch.Tensor, parts: Sequence[Layer]) -> None:
    boxes = [_box(importance[part.place].double().numpy(), part.name) for part in parts]
    ax.bxp(boxes, orientation="horizontal", showfliers=False, patch_artist=True, widths=0.6,
           boxprops={"facecolor": "C0", "alpha": 0.6}, medianprops={"color": "black"})  # fmt: skip
    ax.axvline(1, color="0.4", lw=0.8, ls="--")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="importance W (dashed: uniform)")


def _box(values: np.ndarray, name: str) -> dict[str, object]:
    low, first, middle, third, high = np.percentile(values, (1, 25, 50, 75, 99))
    return {"whislo": low, "q1": first, "med": middle, "q3": third, "whishi": high, "label": name}


def _draw_layers(ax: Axes, importance: torch.Tensor, layout: ParameterLayout) -> None:
    """Boxes for the tensors, or for the layers of networks with many."""
    single = len(layout.names) <= 14
    _draw_boxes(ax, importance, tensors(layout) if single else layers(layout))
    ax.set_title(f"in each {'tensor' if single else 'layer'}: median, quartiles, 1–99 %")


def _draw_course(ax: Axes, result: DistillResult, parts: Sequence[Layer]) -> None:
    """The median of each layer over the iterations, on bands of all parameters."""
    iterations = result.history.snapshot_iterations
    snapshots = torch.stack(result.history.snapshot_importance).double().numpy()  # (snapshots, P)
    low, first, third, high = np.percentile(snapshots, (1, 25, 75, 99), axis=1)
    ax.fill_between(iterations, low, high, color="0.88", lw=0, label="all: 1–99 %")
    ax.fill_between(iterations, first, third, color="0.74", lw=0, label="all: quartiles")
    for number, part in enumerate(parts):
        ax.plot(iterations, np.median(snapshots[:, part.place], axis=1), color=f"C{number}", label=part.name)
    ax.set(xlabel="iteration", ylabel="importance W", title="over the iterations: medians of the layers")
    # The bands open towards the right: both corners on the left are free.
    handles, labels = ax.get_legend_handles_labels()
    ax.add_artist(ax.legend(handles[:2], labels[:2], loc="upper left", handlelength=1.2))
    ax.legend(handles[2:], labels[2:], ncols=2, loc="lower left", handlelength=1.2, columnspacing=1.0)


_SCALES = {
    "difference": "RMS difference of student and teacher",
    "relative difference": "RMS difference / RMS movement of the teacher",
}


def _draw_against(ax: Axes, hardness: torch.Tensor, importance: torch.Tensor, title: str) -> None:
    """A cloud of (hardness, W) with the medians and quartiles of W in bins of equally many parameters."""
    hard, weights = hardness.double().numpy(), importance.double().numpy()
    positive = np.isfinite(hard) & (hard > 0)
    correlation = _rank_correlation(hard, weights)
    ax.set(
        xlabel=_SCALES[title],
        ylabel="importance W",
        title=f"against {title}: Spearman’s ρ = {signed(correlation, '.2f')}",
    )
    ax.axhline(1, color="0.4", lw=0.8, ls="--")
    if not positive.any():
        return
    # Parameters that hardly move at all (biases ahead of a norm) differ by rounding alone: decades off.
    low, high = np.quantile(hard[positive], (0.005, 0.995)) * (0.7, 1.4)
    inside = positive & (hard >= low) & (hard <= high)
    ax.set_xscale("log")
    ax.hexbin(hard[inside], weights[inside], gridsize=(45, 25), xscale="log", bins="log", mincnt=1,
              cmap="Blues", linewidths=0.1, rasterized=True)  # fmt: skip
    _draw_bins(ax, hard[inside], weights[inside])
    ax.set_xlim(low, high)
    plain_ticks(ax.xaxis)
    if not inside.all():
        _note_outside(ax, hard, weights, inside)


def _draw_bins(ax: Axes, hard: np.ndarray, weights: np.ndarray) -> None:
    order = np.argsort(hard, kind="stable")
    bins = np.array_split(order, max(min(_BINS, len(order) // _PER_BIN), 1))
    places = [np.median(hard[part]) for part in bins]
    first, middle, third = np.array([np.percentile(weights[part], (25, 50, 75)) for part in bins]).T
    ax.errorbar(places, middle, (middle - first, third - middle), color="C1", marker="o", ms=2.5, lw=1,
                elinewidth=0.8, label="median and quartiles\n(shade: number, log.)")  # fmt: skip
    ax.legend(loc="upper right")


def _note_outside(ax: Axes, hard: np.ndarray, weights: np.ndarray, inside: np.ndarray) -> None:
    """Say how many parameters the panel does not show."""
    zeros, rest = hard == 0, ~inside & (hard != 0)
    lines = []
    if zeros.any():
        lines.append(f"{zeros.sum():,} of {len(hard):,} are at 0 (median W {np.median(weights[zeros]):.2f})")
    if rest.any():
        lines.append(f"{rest.sum():,} beyond the axis (median W {np.median(weights[rest]):.2f})")
    ax.text(0.02, 0.02, "\n".join(lines), transform=ax.transAxes, fontsize=SMALL, va="bottom",
            bbox={"facecolor": "white", "alpha": 0.8, "pad": 1.5, "edgecolor": "none"})  # fmt: skip


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's ρ: the correlation of the ranks, equal values sharing theirs."""
    ranks = [pd.Series(values).rank().to_numpy() for values in (first, second)]
    return float(np.corrcoef(ranks)[0, 1]) if all(np.ptp(rank) > 0 for rank in ranks) else float("nan")
