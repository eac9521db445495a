"""A picture that a notebook redraws while a distillation runs."""

from __future__ import annotations

import math
import time

from matplotlib.figure import Figure

from iadd_lab.data.distilled import displayable
from iadd_lab.data.preprocess import Preprocess
from iadd_lab.distillation.history import History
from iadd_lab.errors import check_number, check_whole
from iadd_lab.plots.curves import draw_series
from iadd_lab.plots.style import DOUBLE, house_style, new_figure
from iadd_lab.plots.tiles import show, tile


class LivePlot:
    """A callback, as in `distill(..., on_iteration=LivePlot(preprocess))`: one output, redrawn in place.

    It shows the matching loss so far and the latest snapshot of the first image of each class (ten at most).
    The last picture stays in the notebook.

    Args:
        preprocess: of the teachers, to show images as pictures.
        ipc: distilled images per class.
        iterations: of the run: its last one is drawn in any case. None draws the last one when it is due.
        seconds: between two drawings, at least.
        most: drawings at most, the last one beside; from half of them on, each waits a tenth longer than the
            one before. What executes a notebook keeps every message of a cell, and loses some of too many.

    Raises:
        InputError: a value outside its range.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        *,
        ipc: int = 1,
        iterations: int | None = None,
        seconds: float = 2.0,
        most: int = 200,
    ):
        check_whole("ipc", ipc, minimum=1)
        if iterations is not None:
            check_whole("iterations", iterations, minimum=1)
        check_number("seconds", seconds)
        check_whole("most", most, minimum=1, maximum=1000)
        self.preprocess, self.ipc, self.iterations = preprocess, ipc, iterations
        self.seconds, self.most = seconds, most
        self.drawn = 0  # how often
        self._handle = None
        self._due = -math.inf  # on the monotonic clock

    def __call__(self, iteration: int, history: History) -> None:
        """Redraw if it is time to, and after the last iteration."""
        due = self.drawn < self.most and time.monotonic() >= self._due
        if not (due or iteration == self.iterations) or not history.loss:
            return
        from IPython.display import display  # only a notebook has it, and only a notebook needs it

        figure = self.draw(history)
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)
        self.drawn += 1
        longer = 1.1 ** max(self.drawn - self.most // 2, 0)  # at 200 drawings, days fit in
        self._due = time.monotonic() + self.seconds * longer

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
