"""What happens during a distillation, against its iterations and against the clock."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iadd_lab.data.distilled import displayable
from iadd_lab.data.parametrisation import Parametrisation, Pixels
from iadd_lab.data.preprocess import Preprocess
from iadd_lab.distillation.history import History
from iadd_lab.errors import check_number, check_whole, require
from iadd_lab.evaluation.protocol import spread
from iadd_lab.plots.style import DOUBLE, house_style, new_figure, plain_ticks
from iadd_lab.plots.tiles import show, tile

SERIES = {"loss": "matching loss", "alpha": "learning rate α", "importance_share": "effective share of W"}
_SHORT = 40  # iterations: a shorter run is drawn as it is, without a running mean


@dataclass(frozen=True)
class Curve:
    """One run: its history, and what its images were worth at some of its iterations.

    Raises `InputError` where iterations and accuracies do not go together.
    """

    history: History
    iterations: Sequence[int]  # 0 is before the first
    accuracies: torch.Tensor  # (points, networks) in [0, 1], at `iterations`

    def __post_init__(self) -> None:
        shape, points, last = tuple(self.accuracies.shape), len(self.iterations), len(self.history.loss)
        fits = len(shape) == 2 and shape[0] == points and shape[1] > 0
        require(fits, f"accuracies has the shape {shape}; it must be ({points} iterations, networks).")
        inside = all(0 <= iteration <= last for iteration in self.iterations)
        require(inside, f"iterations {list(self.iterations)} are not all within the {last} of the history.")

    @property
    def seconds(self) -> list[float]:
        """Wall-clock seconds of the distillation until each of `iterations`."""
        return np.cumsum([0.0, *self.history.seconds])[list(self.iterations)].tolist()


@house_style()
def history_plot(history: History, *, title: str = "") -> Figure:
    """The matching loss, the student's learning rate α and the spread of W against iterations."""
    figure = new_figure(DOUBLE, 2.0, title=title)
    for ax, name in zip(figure.subplots(1, 3), SERIES, strict=True):
        draw_panel(ax, history, name)
        # Where the run went back to its last good state and halved a rate.
        for number, iteration in enumerate(dict.fromkeys(history.back_off_iterations)):
            label = "rate halved" if number == 0 else None
            ax.axvline(iteration, color="tab:red", lw=0.8, ls=":", label=label)
            ax.legend()
    return figure


def draw_panel(ax: Axes, history: History, name: str) -> None:
    """One of `SERIES` against the iterations; the loss with W, and without where that is another."""
    values, is_loss = getattr(history, name), name == "loss"
    _draw_series(ax, values, label="weighted by W" if is_loss else "", smooth=is_loss)
    if is_loss and history.unweighted_loss not in ([], values):
        _draw_series(ax, history.unweighted_loss, label="without W", smooth=True)
        ax.legend()
    ax.set(xlabel="iteration", title=SERIES[name])
    ax.ticklabel_format(axis="y", useOffset=False)


def _draw_series(ax: Axes, values: Sequence[float], *, smooth: bool = False, **look: Any) -> None:
    """One value per iteration; with `smooth`, faint behind its running mean, since segments differ."""
    smooth = smooth and len(values) >= _SHORT
    own = {"lw": 0.7, "alpha": 0.25, "label": ""} if smooth else {"lw": 1.0}
    (line,) = ax.plot(np.arange(1, len(values) + 1), values, **look | own)
    if smooth:
        ax.plot(*_running_mean(values), **look | {"color": line.get_color()})


def _running_mean(values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and the means over the twentieth of the run that ends there; short runs as they are."""
    span = max(len(values) // 20, 2) if len(values) >= _SHORT else 1
    return np.arange(span, len(values) + 1), np.convolve(values, np.ones(span) / span, mode="valid")


@house_style()
def convergence(curves: Mapping[str, Curve], *, title: str = "") -> Figure:
    """Loss, α and accuracy of several runs against iterations, and accuracy against the clock.

    The loss is the one without W, by which methods compare; where W changes it, the weighted one is dashed.

    Args:
        curves: {method: its run}.
        title: above the figure.

    Raises:
        InputError: there is no curve.
    """
    require(bool(curves), "there is no run to show: give {method: Curve(history, iterations, accuracies)}.")
    figure = new_figure(DOUBLE, 3.9, title=title)
    (loss, alpha), (accuracy, clock) = figure.subplots(2, 2)
    for number, (method, curve) in enumerate(curves.items()):
        color, history = f"C{number % 10}", curve.history
        _draw_series(loss, history.unweighted_loss, label=method, smooth=True, color=color)
        if history.unweighted_loss != history.loss:
            loss.plot(*_running_mean(history.loss), color=color, lw=0.9, ls="--")
        _draw_series(alpha, history.alpha, color=color)
        means = 100 * curve.accuracies.double().mean(1).numpy()  # over the networks, in per cent: (points,)
        spreads = np.array([100 * spread(values) for values in curve.accuracies.double()])
        for ax, places in ((accuracy, curve.iterations), (clock, curve.seconds)):
            ax.plot(places, means, color=color, marker="o", ms=2.5)
            ax.fill_between(places, means - spreads, means + spreads, color=color, alpha=0.18, lw=0)
    if any(curve.history.unweighted_loss != curve.history.loss for curve in curves.values()):
        loss.plot([], [], color="0.3", ls="--", lw=0.9, label="dashed: loss weighted by W")
    loss.set(xlabel="iteration", ylabel="matching loss without W", yscale="log")
    plain_ticks(loss.yaxis)
    alpha.set(xlabel="iteration", ylabel="learning rate α")
    accuracy.set(xlabel="iteration", ylabel="accuracy (%)")
    clock.set(xlabel="seconds of distillation", ylabel="accuracy (%)")
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


@dataclass(eq=False)
class LivePlot:
    """A callback, as in `distill(..., on_iteration=LivePlot(preprocess))`: one output, redrawn in place.

    It shows the matching loss so far and the latest snapshot of the first image of each class (ten at most).
    The last picture stays in the notebook.

    Args:
        preprocess: of the teachers, to show images as pictures.
        ipc: distilled images per class.
        parametrisation: of the run, by which images are stored.
        iterations: of the run: its last one is drawn in any case. None draws the last one when it is due.
        seconds: between two drawings, at least.
        most: drawings at most, the last one beside; from half of them on, each waits a tenth longer than the
            one before. What executes a notebook keeps every message of a cell, and loses some of too many.

    Raises:
        InputError: a value outside its range.
    """

    preprocess: Preprocess
    _: KW_ONLY
    ipc: int = 1
    parametrisation: Parametrisation = Pixels()
    iterations: int | None = None
    seconds: float = 2.0
    most: int = 200

    def __post_init__(self) -> None:
        check_whole("ipc", self.ipc, minimum=1)
        check_whole("iterations", 1 if self.iterations is None else self.iterations, minimum=1)
        check_number("seconds", self.seconds)
        check_whole("most", self.most, minimum=1, maximum=1000)
        from IPython.display import DisplayHandle  # only a notebook has it, and only a notebook needs it

        # How often; when, on the monotonic clock, the next time; the one output.
        self.drawn, self._due, self._handle = 0, -math.inf, DisplayHandle()

    def __call__(self, iteration: int, history: History) -> None:
        """Redraw if it is time to, and after the last iteration."""
        due = self.drawn < self.most and time.monotonic() >= self._due
        if not (due or iteration == self.iterations) or not history.loss:
            return
        show = self._handle.update if self.drawn else self._handle.display
        show(self.draw(history))
        self.drawn += 1
        longer = 1.1 ** max(self.drawn - self.most // 2, 0)  # at 200 drawings, days fit in
        self._due = time.monotonic() + self.seconds * longer

    @house_style()
    def draw(self, history: History) -> Figure:
        """The picture at this moment."""
        pictures = displayable(
            self.parametrisation.pixels(history.snapshot_images[-1][:: self.ipc][:10], self.preprocess)
        )
        figure = new_figure(DOUBLE, 1.6)
        loss, images = figure.subplots(1, 2, width_ratios=(1, 2))
        _draw_series(loss, history.loss)
        loss.set(xlabel="iteration", title="matching loss")
        show(images, tile(pictures, columns=min(len(pictures), 5)))
        images.set_title(f"distilled images, iteration {history.snapshot_iterations[-1]}")
        return figure
