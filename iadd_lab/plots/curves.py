"""What happened over the iterations of a run, or of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iadd_lab.errors import require
from iadd_lab.history import History
from iadd_lab.plots.style import COLORS, WIDTH, new_figure, style


@dataclass(frozen=True, eq=False)
class Curve:
    """A run, and the accuracy of its snapshots.

    Args:
        history: of the run.
        iterations: at which snapshots were evaluated.
        accuracies: (snapshots, networks) in [0, 1].

    Raises:
        InputError: there is not one row of accuracies for each snapshot.
    """

    history: History
    iterations: Sequence[int]
    accuracies: torch.Tensor

    def __post_init__(self):
        require(
            self.accuracies.ndim == 2 and len(self.accuracies) == len(self.iterations),
            f"accuracies have shape {tuple(self.accuracies.shape)}; expected "
            f"({len(self.iterations)}, networks).",
        )

    @property
    def seconds(self) -> np.ndarray:
        """Wall-clock seconds of distilling before each snapshot: (snapshots,)."""
        return np.concatenate([[0.0], np.cumsum(self.history.seconds)])[list(self.iterations)]


def convergence(curves: Mapping[str, Curve], *, title: str = "") -> Figure:
    """Loss, α and accuracy against iterations, and accuracy against time, a colour for each run.

    The loss is the one without W, so that runs compare; a dashed line is what a run minimised itself, where
    that is another. The band is one standard deviation over the networks.
    """
    with style():
        figure = new_figure(WIDTH, 4.3, title)
        (loss, alpha), (accuracy, clock) = figure.subplots(2, 2)
        for place, (name, curve) in enumerate(curves.items()):
            color, history = COLORS[place % len(COLORS)], curve.history
            draw_series(loss, history.unweighted_loss, name, color=color)
            if history.loss != history.unweighted_loss:
                draw_series(loss, history.loss, color=color, dashed=True)
            alpha.plot(np.arange(1, len(history.alpha) + 1), history.alpha, color=color, lw=1.2)
            _draw_accuracy(accuracy, curve.iterations, curve.accuracies, color)
            _draw_accuracy(clock, curve.seconds, curve.accuracies, color)
        loss.plot([], [], color="0.4", ls="--", lw=1, label="weighted by W")
        loss.set(xlabel="iteration", ylabel="matching loss without W")
        loss.legend(fontsize=7)
        alpha.set(xlabel="iteration", ylabel="learning rate α")
        accuracy.set(xlabel="iteration", ylabel="accuracy (%)")
        clock.set(xlabel="seconds of distilling", ylabel="accuracy (%)")
    return figure


def _draw_accuracy(ax: Axes, places: Sequence[float], accuracies: torch.Tensor, color: str) -> None:
    mean = 100 * accuracies.mean(1).numpy()
    spread = 100 * accuracies.std(1).numpy() if accuracies.shape[1] > 1 else np.zeros_like(mean)
    ax.plot(places, mean, color=color, lw=1.2, marker="o", ms=2.5)
    ax.fill_between(places, mean - spread, mean + spread, color=color, alpha=0.15, lw=0)


def history_plot(history: History, *, title: str = "") -> Figure:
    """The matching loss, the student's learning rate α and the spread of W against iterations."""
    with style():
        figure = new_figure(WIDTH, 2.1, title)
        draw_history(figure, history)
    return figure


def draw_history(figure: Figure, history: History) -> None:
    """Draw what `history_plot` shows into an empty figure."""
    loss, alpha, share = figure.subplots(1, 3)
    draw_series(loss, history.loss, "weighted by W")
    if history.unweighted_loss != history.loss:
        draw_series(loss, history.unweighted_loss, "without W")
        loss.legend(fontsize=7)
    for ax, values in ((alpha, history.alpha), (share, history.importance_share)):
        ax.plot(np.arange(1, len(values) + 1), values, lw=1)
    for ax, title in ((loss, "matching loss"), (alpha, "learning rate α"), (share, "effective share of W")):
        ax.set(xlabel="iteration", title=title)
        ax.ticklabel_format(axis="y", useOffset=False)


def draw_series(
    ax: Axes, values: Sequence[float], label: str = "", *, color: str | None = None, dashed: bool = False
) -> None:
    """One value per iteration; a long series is faint behind its running mean, since segments differ."""
    iterations = np.arange(1, len(values) + 1)
    smooth = len(values) >= 40
    dashes = "--" if dashed else "-"
    if not (smooth and dashed):
        (line,) = ax.plot(iterations, values, color=color, lw=0.8, ls=dashes, alpha=0.2 if smooth else 1.0,
                          label="" if smooth else label)  # fmt: skip
        color = line.get_color()
    if smooth:
        span = max(len(values) // 20, 2)
        mean = np.convolve(values, np.ones(span) / span, mode="valid")
        ax.plot(iterations[span - 1 :], mean, color=color, lw=1.3, ls=dashes, label=label)
