"""The whole story in one picture."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from iadd_lab.distillation.result import DistillResult
from iadd_lab.evaluation.protocol import Evaluation
from iadd_lab.plots.accuracy import draw_accuracies
from iadd_lab.plots.images import draw_before_after
from iadd_lab.plots.style import DOUBLE, house_style, new_figure


@house_style()
def overview(result: DistillResult, evaluations: Sequence[Evaluation], *, title: str = "") -> Figure:
    """Images before and after, and what they are worth."""
    figure = new_figure(DOUBLE, 1.5 + (0.2 if title else 0), title=title)
    left, right = figure.subfigures(1, 2, width_ratios=(2.9, 1), frameon=False)
    draw_before_after(left, result)
    draw_accuracies(right.subplots(), evaluations)
    return figure
