"""A picture that a notebook redraws while a distillation runs."""

from __future__ import annotations

from matplotlib.figure import Figure

from iadd_lab.distilled import displayable
from iadd_lab.history import History
from iadd_lab.plots.curves import draw_series
from iadd_lab.plots.style import DOUBLE, house_style, new_figure
from iadd_lab.plots.tiles import show, tile
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

    @house_style()
    def draw(self, history: History) -> Figure:
        """The picture at this moment."""
        pictures = displayable(self.preprocess.invert(history.snapshot_images[-1][:: self.ipc][:10]))
        figure = new_figure(DOUBLE, 1.6)
        loss, images = figure.subplots(1, 2, width_ratios=(1, 2))
        draw_series(loss, history.loss)
        loss.set(xlabel="iteration", title="matching loss")
        columns = min(len(pictures), 5)
        show(images, tile(pictures, columns=columns, rows=-(-len(pictures) // columns)))
        images.set_title(f"distilled images, iteration {history.snapshot_iterations[-1]}")
        return figure
