"""A picture that follows a distillation while it runs."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from iadd_lab.distilled import displayable
from iadd_lab.history import History
from iadd_lab.plots.images import show
from iadd_lab.plots.style import WIDTH, new_figure, style
from iadd_lab.preprocess import Preprocess


class LivePlot:
    """A callback, as in `distill(..., on_iteration=LivePlot(preprocess))`: one output, redrawn in place.

    It shows the matching loss so far and the latest snapshot of the first image of each class (ten at most).
    """

    def __init__(self, preprocess: Preprocess, *, ipc: int = 1, every: int = 25):
        self.preprocess = preprocess
        self.ipc = ipc
        self.every = every
        self.handle = None

    def __call__(self, iteration: int, history: History) -> None:
        """Redraw at every `every`-th iteration."""
        if iteration % self.every:
            return
        from IPython.display import display  # only a notebook has it, and only a notebook needs it

        figure = self.draw(history)
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)

    def draw(self, history: History) -> Figure:
        """The picture at this moment."""
        pictures = displayable(self.preprocess.invert(history.snapshot_images[-1][:: self.ipc][:10]))
        with style():
            figure = new_figure(WIDTH, 1.8)
            left, right = figure.subfigures(1, 2, width_ratios=(1, 2))
            ax = left.subplots()
            ax.plot(np.arange(1, len(history.loss) + 1), history.loss, lw=0.8)
            ax.set(xlabel="iteration", title="matching loss")
            for ax, picture in zip(
                right.subplots(1, len(pictures), squeeze=False).flat, pictures, strict=True
            ):
                show(ax, picture)
            right.suptitle(f"distilled images, iteration {history.snapshot_iterations[-1]}", fontsize=9)
        return figure
