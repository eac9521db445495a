"""What sets are worth: accuracies as bars, which classes are taken for which, and gains with intervals."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iadd_lab.errors import require
from iadd_lab.evaluation.protocol import Evaluation, spread
from iadd_lab.plots.names import readable, shorten
from iadd_lab.plots.style import DOUBLE, SINGLE, SMALL, grouped_bars, house_style, new_figure
from iadd_lab.study.comparisons import PairedDifference


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
        ax.bar(place, mean, yerr=spread(values), color=f"C{place}", alpha=0.75, width=0.65, capsize=3)
        ax.scatter([place + 0.2] * len(values), values, s=6, color="black", linewidths=0, zorder=3)
        ax.annotate(f"{mean:.1f}", (place, 1), ha="center", va="bottom", fontsize="medium")
    ax.set_xticks(range(len(evaluations)), [evaluation.method for evaluation in evaluations])
    ax.set(ylabel=f"{evaluations[0].config.split} accuracy (%)", ylim=(0, None))
    ax.grid(axis="x", visible=False)


@house_style()
def accuracy_groups(rows: Mapping[str, Mapping], *, ylabel: str, title: str = "") -> Figure:
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
    # Inches in the legend: of the longest name's letters, and of the coloured mark with its gaps.
    entry = max(map(len, rows)) * 0.05 + 0.55
    beside = min(len(rows), max(int(across / entry), 1), 5)
    figure = new_figure(across, 2.1 + 0.15 * math.ceil(len(rows) / beside), title=title)
    ax = figure.subplots()
    means = {method: {name: mean for name, (mean, _) in values.items()} for method, values in rows.items()}
    thin = {"elinewidth": 0.8, "capsize": 1.5, "capthick": 0.8, "fmt": "none", "ecolor": "black"}
    for container, values in zip(grouped_bars(ax, means, groups), rows.values(), strict=True):
        tops = [bar.get_x() + bar.get_width() / 2 for bar in container]
        if values:
            container.errorbar = ax.errorbar(tops, *zip(*values.values(), strict=True), **thin)
        ax.bar_label(container, fmt="%.1f", padding=2.5, rotation=90 * (bars > 10), fontsize=SMALL,
                     bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4})  # fmt: skip
    # Four headings and more would run into each other on one line.
    ax.set_xticks(range(len(groups)), [g.replace(", ", "\n") if len(groups) > 3 else g for g in groups])
    ax.margins(y=0.16 if bars <= 10 else 0.3)  # for the numbers above the bars
    ax.set(ylabel=ylabel, xlim=(-0.5, len(groups) - 0.5), ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=beside, frameon=False)
    return figure


@house_style()
def confusion_matrix(evaluation: Evaluation, *, title: str = "") -> Figure:
    """The share of each true class that went to each predicted one, summed over the networks."""
    counts = evaluation.confusion.sum(0).double()
    shares = 100 * counts / counts.sum(1, keepdim=True)
    names, few = list(map(shorten, readable(evaluation.classes))), len(evaluation.classes) <= 12
    side = min(max(1.1 + 0.28 * len(names), SINGLE - 0.8), DOUBLE - 0.8)
    figure = new_figure(side + 0.8, side, title=title)
    ax = figure.subplots()
    step = math.ceil(len(names) / 40)  # every n-th name where all would overlap
    sns.heatmap(pd.DataFrame(shares, names, names), ax=ax, cmap="Blues", vmin=0, vmax=100, square=True,
                xticklabels=step, yticklabels=step, annot=few, fmt=".0f", annot_kws={"fontsize": SMALL},
                rasterized=not few, cbar_kws={"label": "% of the true class", "shrink": 0.8})  # fmt: skip
    ax.set(xlabel="predicted", ylabel="true")
    ax.tick_params(axis="x", rotation=90 if max(map(len, names)) > 4 else 0)
    ax.tick_params(axis="y", rotation=0)
    return figure


@house_style()
def paired_intervals(differences: Sequence[PairedDifference], *, title: str = "") -> Figure:
    """Each mean difference with its 95 % interval, and above it a dot for every seed; zero is no difference.

    A single seed has no interval: its dot stands alone.

    What all of them share, the setting or the method compared with, is said once: in the title, on the axis.

    Raises:
        InputError: there is no difference at all.
    """
    require(bool(differences), "there is no difference to show: give those of `paired_differences`.")
    varies = (pd.DataFrame(differences)[["title", "network", "method_b", "measure"]].nunique() > 1).to_dict()
    if not varies["title"]:
        shared = differences[0].title if varies["network"] else differences[0].place
        title = f"{shared}: {title[:1].lower()}{title[1:]}".removesuffix(": ")
    figure = new_figure(DOUBLE, 0.95 + 0.26 * len(differences), title=title)
    ax = figure.subplots()
    ax.axvline(0, color="0.4", linewidth=0.8)
    dot = {"marker": "o", "ls": "", "color": "C0", "alpha": 0.5, "markersize": 3, "mew": 0}
    mean = {"marker": "D", "color": "C0", "markersize": 5, "lw": 1.6, "mec": "C0"}
    for height, found in enumerate(differences):
        several = found.seeds > 1
        # Above the interval, which they would hide.
        ax.plot(found.each, [height - 0.24 * several] * found.seeds, **dot)
        if several:
            ax.plot([found.low95, found.high95], [height, height], color="C0", lw=1.6)
            ax.plot(found.difference, height, **mean, mfc="C0" if found.is_sure else "white")
    ax.set_yticks(range(len(differences)), [_label(each, varies) for each in differences])
    what = "difference of accuracies" if varies["method_b"] else f"accuracy minus that of {found.titles[1]}"
    ax.set(xlabel=f"{what} (percentage points)", ylim=(len(differences) - 0.5, -0.6))
    ax.grid(axis="y", visible=False)
    many = any(found.seeds > 1 for found in differences)
    ax.plot([], [], **dot, label="a seed" if many else "one seed, which has no interval: it may be luck")
    if many:
        ax.plot([], [], **mean, label="mean and 95 % interval, without zero")
        ax.plot([], [], **mean, mfc="white", label="the same, with zero in it")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _label(found: PairedDifference, varies: Mapping[str, bool]) -> str:
    """The method, and the parts in which a difference differs from the others."""
    place = [found.title if varies["network"] else found.place] * varies["title"]
    place += [found.network_title] * varies["network"]
    method = " − ".join(found.titles[: 1 + varies["method_b"]])
    balanced = ", balanced" * (varies["measure"] and found.measure != "accuracy")
    return ": ".join(filter(None, (", ".join(place), method))) + balanced
