"""What a student leaves unmatched, beside what of a teacher's way is luck: layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from iadd_lab.errors import require
from iadd_lab.plots.layers import tensors
from iadd_lab.plots.style import DOUBLE, house_style, new_figure
from iadd_lab.training.networks import ParameterLayout


@house_style()
def movement_shares(
    shares: Mapping[str, Mapping[str, float]], layout: ParameterLayout, *, title: str = ""
) -> Figure:
    """Bars of the shares of a teacher's squared movement, in per cent: a group for each tensor, then for all.

    Args:
        shares: {what it is a share of: {name of a tensor, or "all": share}}, as `unmatched_shares` and
            `luck_shares` give them; a tensor that none has is left out.
        layout: of the teachers' network.
        title: above the figure.

    Raises:
        InputError: there is no share at all.
    """
    spoken = dict(zip(layout.names, (layer.name for layer in tensors(layout)), strict=True))
    spoken["all"] = "all parameters"
    names = [name for name in spoken if any(name in values for values in shares.values())]
    require(bool(names), "there is no share to show: give {what: {tensor: share}}.")
    figure = new_figure(DOUBLE, 2.6, title=title)
    ax = figure.subplots()
    width, places = 0.84 / len(shares), np.arange(len(names))
    for number, (what, values) in enumerate(shares.items()):
        heights = [100 * values.get(name, 0.0) for name in names]
        bars = ax.bar(places + (number - (len(shares) - 1) / 2) * width, heights, width, label=what)
        labels = [f"{height:.1f}" if height < 10 else f"{height:.0f}" for height in heights]
        ax.bar_label(bars, labels, fontsize="x-small", padding=1)
    ax.set_xticks(places, [spoken[name].replace(" ", "\n") for name in names], fontsize="small")
    ax.set(ylabel="share of the teacher's\nsquared movement (%)")
    ax.grid(axis="x", visible=False)
    ax.legend()
    return figure
