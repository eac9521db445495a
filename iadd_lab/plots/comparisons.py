"""What one method gains over another, as points with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from iadd_lab.comparisons import PairedDifference
from iadd_lab.errors import require
from iadd_lab.plots.style import DOUBLE, house_style, new_figure


@house_style()
def paired_intervals(differences: Sequence[PairedDifference], *, title: str = "") -> Figure:
    """Each mean difference with its 95 % interval, over a dot for every seed; zero is no difference.

    Raises:
        InputError: there is no difference at all.
    """
    require(bool(differences), "there is no difference to show: give those of `paired_differences`.")
    figure = new_figure(DOUBLE, 0.9 + 0.24 * len(differences), title=title)
    ax = figure.subplots()
    ax.axvline(0, color="0.4", linewidth=0.8)
    for height, found in enumerate(differences):
        ax.plot(found.each, [height] * found.seeds, "o", color="C0", alpha=0.35, markersize=3)
        if not math.isnan(found.low95):
            ax.plot([found.low95, found.high95], [height, height], color="C0", linewidth=1.6)
        ax.plot(found.difference, height, "D", color="C0" if found.is_sure else "white", markersize=5,
                markeredgecolor="C0")  # fmt: skip
    ax.set_yticks(range(len(differences)), [each.heading for each in differences])
    ax.set_ylim(len(differences) - 0.5, -0.5)
    ax.set_xlabel("difference of accuracies (percentage points)")
    ax.grid(axis="y", visible=False)
    return figure
