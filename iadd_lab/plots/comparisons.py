"""What one method gains over another, as points with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from iadd_lab.errors import require
from iadd_lab.plots.style import DOUBLE, house_style, new_figure
from iadd_lab.study.comparisons import PairedDifference

_ABOVE = 0.24  # how far above its interval the dots of a difference stand, in rows


@house_style()
def paired_intervals(differences: Sequence[PairedDifference], *, title: str = "") -> Figure:
    """Each mean difference with its 95 % interval, and above it a dot for every seed; zero is no difference.

    What all of them share, the setting or the method compared with, is said once: in the title, on the axis.

    Raises:
        InputError: there is no difference at all.
    """
    require(bool(differences), "there is no difference to show: give those of `paired_differences`.")
    one_setting = len({each.title for each in differences}) == 1
    one_network = len({each.network for each in differences}) == 1
    rivals = {each.titles[1] for each in differences}
    if one_setting:
        shared = differences[0].place if one_network else differences[0].title
        title = f"{shared}: {title[:1].lower()}{title[1:]}".removesuffix(": ")
    figure = new_figure(DOUBLE, 1.15 + 0.26 * len(differences), title=title)
    ax = figure.subplots()
    ax.axvline(0, color="0.4", linewidth=0.8)
    for height, found in enumerate(differences):
        _draw(ax, found, height)
    parts = {"setting": not one_setting, "network": not one_network, "rival": len(rivals) > 1}
    parts["measure"] = len({each.measure for each in differences}) > 1
    labels = [_label(each, **parts) for each in differences]
    ax.set_yticks(range(len(differences)), labels)
    ax.set_ylim(len(differences) - 0.5, -0.6)
    above = f"accuracy minus that of {rivals.pop()}" if len(rivals) == 1 else "difference of accuracies"
    ax.set_xlabel(f"{above} (percentage points)")
    ax.grid(axis="y", visible=False)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _label(found: PairedDifference, *, setting: bool, network: bool, rival: bool, measure: bool) -> str:
    """The parts in which a difference differs from the others, and the method."""
    method = " − ".join(found.titles) if rival else found.titles[0]
    place = [found.title if network else found.place] * setting + [found.network_title] * network
    label = ": ".join([", ".join(place), method] if place else [method])
    return f"{label}, balanced" if measure and found.measure != "accuracy" else label


def _draw(ax: Axes, found: PairedDifference, height: int) -> None:
    ax.plot(found.each, [height - _ABOVE] * found.seeds, "o", color="C0", alpha=0.5, markersize=3, mew=0)
    if not math.isnan(found.low95):
        ax.plot([found.low95, found.high95], [height, height], color="C0", linewidth=1.6)
    ax.plot(found.difference, height, "D", color="C0" if found.is_sure else "white", markersize=5,
            markeredgecolor="C0")  # fmt: skip


def _legend() -> list[Line2D]:
    diamond = {"marker": "D", "markersize": 5, "color": "C0", "linewidth": 1.6, "markeredgecolor": "C0"}
    return [
        Line2D([], [], marker="o", ls="", color="C0", alpha=0.5, markersize=3, mew=0, label="a seed"),
        Line2D([], [], **diamond, label="mean and 95 % interval, without zero"),
        Line2D([], [], **diamond, markerfacecolor="white", label="the same, with zero in it"),
    ]
