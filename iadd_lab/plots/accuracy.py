"""How many images networks got right, and which they took for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iadd_lab.distill import DistillResult
from iadd_lab.errors import require
from iadd_lab.evaluate import Evaluation, spread
from iadd_lab.plots.images import draw_before_after, short
from iadd_lab.plots.style import COLORS, WIDTH, new_figure, style


def accuracy_bars(evaluations: Sequence[Evaluation], *, title: str = "") -> Figure:
    """Mean accuracy of each evaluation with its standard deviation, and one dot per network."""
    with style():
        figure = new_figure(0.5 * WIDTH, 2.6, title)
        draw_accuracies(figure.subplots(), evaluations)
    return figure


def draw_accuracies(ax: Axes, evaluations: Sequence[Evaluation]) -> None:
    """Draw what `accuracy_bars` shows into `ax`."""
    for place, evaluation in enumerate(evaluations):
        values = 100 * evaluation.accuracies
        mean = values.mean().item()
        color = COLORS[place % len(COLORS)]
        ax.bar(place, mean, yerr=spread(values), color=color, alpha=0.75, width=0.65, capsize=4)
        ax.scatter(np.full(len(values), place + 0.2), values, s=8, color="black", zorder=3)
        ax.annotate(f"{mean:.1f}", (place, 1), ha="center", va="bottom", fontsize=9)
    ax.set_xticks(range(len(evaluations)), [evaluation.method for evaluation in evaluations])
    ax.set(ylabel=f"{evaluations[0].config.split} accuracy (%)", ylim=(0, None))
    ax.grid(axis="x", visible=False)


def accuracy_groups(
    rows: Mapping[str, Mapping[str, tuple[float, float]]], *, ylabel: str, title: str = ""
) -> Figure:
    """A group of bars for each column of a table, a bar with its standard deviation for each row.

    Args:
        rows: {method: {column: (mean, standard deviation)}} in per cent; a method may lack a column, or all.
        ylabel: what is measured.
        title: above all.

    Raises:
        InputError: there is nothing to draw.
    """
    rows = {name: row for name, row in rows.items() if row}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    require(bool(columns), "there are no values to draw: pass a row with a column at least.")
    width = 0.84 / len(rows)
    with style():
        figure = new_figure(WIDTH, 2.9, title)
        ax = figure.subplots()
        for place, (name, row) in enumerate(rows.items()):
            found = [index for index, column in enumerate(columns) if column in row]
            means, deviations = zip(*(row[columns[index]] for index in found), strict=True)
            centres = np.array(found) + (place - (len(rows) - 1) / 2) * width
            color = COLORS[place % len(COLORS)]
            ax.bar(centres, means, 0.92 * width, yerr=deviations, label=name, color=color, alpha=0.8,
                   hatch="//" if place >= len(COLORS) else None,
                   error_kw={"lw": 0.8, "capsize": 1.5})  # fmt: skip
            _write_means(ax, centres, means, upright=width * WIDTH / len(columns) > 0.3)
        ax.set_xticks(range(len(columns)), columns)
        ax.set(ylabel=ylabel, ylim=(0, None))
        ax.grid(axis="x", visible=False)
        figure.legend(loc="outside lower center", ncols=min(len(rows), 6 if len(rows) > 9 else 9), fontsize=7,
                      columnspacing=1.0, handlelength=1.2)  # fmt: skip
    return figure


def _write_means(ax: Axes, centres: np.ndarray, means: Sequence[float], *, upright: bool) -> None:
    """Each mean at the foot of its bar."""
    for centre, mean in zip(centres, means, strict=True):
        ax.annotate(f"{mean:.1f}", (centre, 1), ha="center", va="bottom", fontsize=6.5,
                    rotation=0 if upright else 90)  # fmt: skip


def confusion_matrix(evaluation: Evaluation, *, title: str = "") -> Figure:
    """The share of each true class that went to each predicted one, summed over the networks."""
    counts = evaluation.confusion.sum(0).double()
    shares = counts / counts.sum(1, keepdim=True)
    side = min(1.4 + 0.45 * len(evaluation.classes), WIDTH)
    names = [short(name) for name in evaluation.classes]
    with style():
        figure = new_figure(side + 0.6, side, title)
        ax = figure.subplots()
        sns.heatmap(100 * shares.numpy(), ax=ax, cmap="Blues", vmin=0, vmax=100, square=True,
                    annot=len(names) <= 12, fmt=".0f", annot_kws={"fontsize": 7},
                    xticklabels=names, yticklabels=names,
                    cbar_kws={"label": "% of the true class"})  # fmt: skip
        ax.set(xlabel="predicted", ylabel="true")
    return figure


def overview(result: DistillResult, evaluations: Sequence[Evaluation]) -> Figure:
    """The whole story in one picture: images before and after, and what they are worth."""
    with style():
        figure = new_figure(10.0, 1.95)
        left, right = figure.subfigures(1, 2, width_ratios=(3.4, 1))
        draw_before_after(left, result)
        draw_accuracies(right.subplots(), evaluations)
    return figure
