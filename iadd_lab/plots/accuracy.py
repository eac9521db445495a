"""What sets are worth: accuracies as bars, and which classes are taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iadd_lab.errors import require
from iadd_lab.evaluation.protocol import Evaluation, spread
from iadd_lab.plots.style import DOUBLE, SINGLE, SMALL, house_style, new_figure
from iadd_lab.plots.tiles import shorten

_HATCHES = (None, "///", "...")  # after ten methods, colours come again
_LETTER, _HANDLE = 0.05, 0.55  # inches in a legend: of a letter, and of the coloured mark with its gaps


@house_style()
def accuracy_bars(evaluations: Sequence[Evaluation], *, title: str = "") -> Figure:
    """Mean accuracy of each evaluation with its standard deviation, and one dot per network."""
    figure = new_figure(SINGLE, 2.4, title=title)
    draw_accuracies(figure.subplots(), evaluations)
    return figure


def draw_accuracies(ax: Axes, evaluations: Sequence[Evaluation]) -> None:
    """Draw what `accuracy_bars` shows into `ax`."""
    for place, evaluation in enumerate(evaluations):
        values = 100 * evaluation.accuracies
        mean = values.mean().item()
        ax.bar(place, mean, yerr=spread(values), color=f"C{place % 10}", alpha=0.75, width=0.65, capsize=3)
        ax.scatter(np.full(len(values), place + 0.2), values, s=6, color="black", linewidths=0, zorder=3)
        ax.annotate(f"{mean:.1f}", (place, 1), ha="center", va="bottom", fontsize="medium")
    ax.set_xticks(range(len(evaluations)), [evaluation.method for evaluation in evaluations])
    ax.set(ylabel=f"{evaluations[0].config.split} accuracy (%)", ylim=(0, None))
    ax.grid(axis="x", visible=False)


@house_style()
def accuracy_groups(
    rows: Mapping[str, Mapping[str, tuple[float, float]]], *, ylabel: str, title: str = ""
) -> Figure:
    """Bars side by side, a group for each column and a colour for each row, with their standard deviations.

    Args:
        rows: {method: {group, as an architecture or "IPC 10": (mean, standard deviation)}}, in per cent; a
            method may miss in a group.
        ylabel: what the numbers are.
        title: above the figure.

    Raises:
        InputError: there is no number at all.
    """
    groups = list(dict.fromkeys(name for values in rows.values() for name in values))
    require(bool(groups), "there is no accuracy to show: give {method: {group: (mean, standard deviation)}}.")
    bars = len(rows) * len(groups)
    across = max(DOUBLE, 0.12 * bars) if bars > 6 else SINGLE
    entry = max(map(len, rows)) * _LETTER + _HANDLE  # inches in the legend, as wide as the widest
    beside = min(len(rows), max(int(across / entry), 1), 5)
    figure = new_figure(across, 2.3 + 0.15 * -(-len(rows) // beside), title=title)
    ax = figure.subplots()
    width, upright = 0.84 / len(rows), len(rows) * len(groups) <= 10
    for number, (method, values) in enumerate(rows.items()):
        places = [groups.index(name) + (number - (len(rows) - 1) / 2) * width for name in values]
        means, spreads = zip(*values.values(), strict=True) if values else ((), ())
        ax.bar(places, means, width * 0.92, color=f"C{number % 10}", label=method, yerr=spreads,
               hatch=_HATCHES[number // 10 % len(_HATCHES)],
               error_kw={"elinewidth": 0.8, "capsize": 1.5, "capthick": 0.8})  # fmt: skip
        _write_values(ax, places, means, spreads, upright=upright)
    # Four headings and more would run into each other on one line.
    ax.set_xticks(range(len(groups)), [g.replace(", ", "\n") if len(groups) > 3 else g for g in groups])
    ax.set(ylabel=ylabel, xlim=(-0.5, len(groups) - 0.5))
    room = 1.16 if upright else 1.3  # for the numbers above the bars
    ax.set_ylim(0, room * max(mean + std for values in rows.values() for mean, std in values.values()))
    ax.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=beside, frameon=False)
    return figure


def _write_values(
    ax: Axes,
    places: Sequence[float],
    means: Sequence[float],
    spreads: Sequence[float],
    *,
    upright: bool,
) -> None:
    """Each mean above its bar."""
    for place, mean, std in zip(places, means, spreads, strict=True):
        ax.annotate(f"{mean:.1f}", (place, mean + std), xytext=(0, 2.5), textcoords="offset points",
                    ha="center", va="bottom", rotation=0 if upright else 90, fontsize=SMALL,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4})  # fmt: skip


@house_style()
def confusion_matrix(evaluation: Evaluation, *, title: str = "") -> Figure:
    """The share of each true class that went to each predicted one, summed over the networks."""
    counts = evaluation.confusion.sum(0).double()
    shares = counts / counts.sum(1, keepdim=True)
    names = [shorten(name) for name in evaluation.classes]
    side = min(max(1.1 + 0.28 * len(names), SINGLE - 0.8), DOUBLE - 0.8)
    figure = new_figure(side + 0.8, side + (0.25 if title else 0), title=title)
    ax = figure.subplots()
    sns.heatmap(100 * shares.numpy(), ax=ax, cmap="Blues", vmin=0, vmax=100, square=True,
                annot=len(names) <= 12, fmt=".0f", annot_kws={"fontsize": SMALL},
                xticklabels=_sparse(names), yticklabels=_sparse(names),
                cbar_kws={"label": "% of the true class", "shrink": 0.8},
                rasterized=len(names) > 12)  # fmt: skip
    ax.set(xlabel="predicted", ylabel="true")
    ax.tick_params(axis="x", rotation=90 if max(map(len, names)) > 4 else 0)
    ax.tick_params(axis="y", rotation=0)
    return figure


def _sparse(names: Sequence[str]) -> list[str]:
    """Every n-th name where all would overlap."""
    step = -(-len(names) // 40)
    return [name if place % step == 0 else "" for place, name in enumerate(names)]
