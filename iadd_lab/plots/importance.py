"""What W became: in each layer, over the iterations, and against how hard parameters are to match."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from iadd_lab.distillation.result import DistillResult
from iadd_lab.errors import require
from iadd_lab.plots.layers import Layer, check_count, layers, tensors, tensors_or_layers
from iadd_lab.plots.style import DOUBLE, SMALL, house_style, new_figure, plain_ticks, signed
from iadd_lab.training.networks import ParameterLayout


@house_style()
def importance_by_layer(importance: torch.Tensor, layout: ParameterLayout, *, title: str = "") -> Figure:
    """How W is distributed in each of the network's tensors: median, quartiles, 1st to 99th percentile."""
    check_count("importance", importance, layout.count)
    parts = tensors(layout)
    figure = new_figure(DOUBLE, 0.4 + 0.2 * len(parts), title=title)
    draw_boxes(figure.subplots(), importance, parts)
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
        hardness: the root mean square of each parameter's difference, (P,), as from `replay.hardness`.
        relative_hardness: the same, divided by how far the teacher moved; it gets a panel of its own.
        title: above the figure.

    Raises:
        InputError: W never varied, or the shapes do not fit together.
    """
    given = {"difference": hardness, "relative difference": relative_hardness}
    panels = {name: values for name, values in given.items() if values is not None}
    for name, values in {"importance": result.importance, **panels}.items():
        check_count(name, values, layout.count)
    sentence = f"W is always 1 in {result.config.matching.name} matching: choose one with learned importance."
    require(bool(result.history.snapshot_importance), sentence)
    figure = new_figure(DOUBLE, 5.0, title=title)
    # The last panel is as wide as both where it is the only one of its row.
    axes = figure.subplot_mosaic([["parts", "course"], [min(panels), max(panels)]])
    parts = tensors_or_layers(layout)
    draw_boxes(axes["parts"], result.importance, parts)
    single = "tensor" if len(parts) == len(layout.names) else "layer"
    axes["parts"].set_title(f"in each {single}: median, quartiles, 1–99 %")
    _draw_course(axes["course"], result, layers(layout))
    for name, values in panels.items():
        _draw_against(axes[name], values.double().numpy(), result.importance.double().numpy(), name)
    return figure


def draw_boxes(ax: Axes, importance: torch.Tensor, parts: Sequence[Layer]) -> None:
    """W, (P,), in each part: its median, its quartiles, its 1st to 99th percentile."""
    names = ("label", "whislo", "q1", "med", "q3", "whishi")
    marks = [np.percentile(importance[part.place].double().numpy(), (1, 25, 50, 75, 99)) for part in parts]
    rows = [(part.name, *own) for part, own in zip(parts, marks, strict=True)]
    boxes = [dict(zip(names, row, strict=True)) for row in rows]
    ax.bxp(boxes, orientation="horizontal", showfliers=False, patch_artist=True, widths=0.6,
           boxprops={"facecolor": "C0", "alpha": 0.6}, medianprops={"color": "black"})  # fmt: skip
    ax.axvline(1, color="0.4", lw=0.8, ls="--")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="importance W (dashed: uniform)")


def _draw_course(ax: Axes, result: DistillResult, parts: Sequence[Layer]) -> None:
    """The median of each layer over the iterations, on bands of all parameters."""
    iterations = result.history.snapshot_iterations
    snapshots = torch.stack(result.history.snapshot_importance).double().numpy()  # (snapshots, P)
    low, first, third, high = np.percentile(snapshots, (1, 25, 75, 99), axis=1)
    ax.fill_between(iterations, low, high, color="0.88", lw=0, label="all: 1–99 %")
    ax.fill_between(iterations, first, third, color="0.74", lw=0, label="all: quartiles")
    for part in parts:
        ax.plot(iterations, np.median(snapshots[:, part.place], axis=1), label=part.name)
    ax.set(xlabel="iteration", ylabel="importance W", title="over the iterations: medians of the layers")
    # The bands open towards the right: both corners on the left are free.
    handles, labels = ax.get_legend_handles_labels()
    ax.add_artist(ax.legend(handles[:2], labels[:2], loc="upper left", handlelength=1.2))
    ax.legend(handles[2:], labels[2:], ncols=2, loc="lower left", handlelength=1.2, columnspacing=1.0)


def _draw_against(ax: Axes, hard: np.ndarray, weights: np.ndarray, title: str) -> None:
    """A cloud of (hardness, W) with the medians and quartiles of W in bins of equally many parameters."""
    positive = np.isfinite(hard) & (hard > 0)
    constant = np.ptp(hard) == 0 or np.ptp(weights) == 0
    rank = signed(np.nan if constant else stats.spearmanr(hard, weights).statistic, ".2f")
    scale = "of student and teacher" if title == "difference" else "/ RMS movement of the teacher"
    ax.set_xlabel(f"RMS difference {scale}")
    ax.set(ylabel="importance W", title=f"against {title}: Spearman’s ρ = {rank}")
    ax.axhline(1, color="0.4", lw=0.8, ls="--")
    if not positive.any():
        return
    # Parameters that hardly move at all (biases ahead of a norm) differ by rounding alone: decades off.
    low, high = np.quantile(hard[positive], (0.005, 0.995)) * (0.7, 1.4)
    inside = positive & (hard >= low) & (hard <= high)
    ax.hexbin(hard[inside], weights[inside], gridsize=(45, 25), xscale="log", bins="log", mincnt=1,
              cmap="Blues", linewidths=0.1, rasterized=True)  # fmt: skip
    # Twenty bins of equally many, or fewer: quartiles of less than five parameters say nothing.
    order = np.flatnonzero(inside)[np.argsort(hard[inside], kind="stable")]
    bins = np.array_split(order, np.clip(len(order) // 5, 1, 20))
    places = [np.median(hard[part]) for part in bins]
    first, middle, third = np.array([np.percentile(weights[part], (25, 50, 75)) for part in bins]).T
    ax.errorbar(places, middle, (middle - first, third - middle), color="C1", marker="o", ms=2.5, lw=1,
                elinewidth=0.8, label="median and quartiles\n(shade: number, log.)")  # fmt: skip
    ax.legend(loc="upper right")
    ax.set(xscale="log", xlim=(low, high))
    plain_ticks(ax.xaxis)
    # How many parameters the panel does not show.
    left_out = {"at 0": hard == 0, "beyond the axis": ~inside & (hard != 0)}
    notes = [
        f"{where.sum():,} of {len(hard):,} are {name} (median W {np.median(weights[where]):.2f})"
        for name, where in left_out.items()
        if where.any()
    ]
    ax.text(0.02, 0.02, "\n".join(notes), transform=ax.transAxes, fontsize=SMALL, va="bottom",
            bbox={"facecolor": "white", "alpha": 0.8, "pad": 1.5, "edgecolor": "none"})  # fmt: skip
