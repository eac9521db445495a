"""What happens during a distillation, against its iterations and against the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iadd_lab.distillation.history import History
from iadd_lab.errors import require
from iadd_lab.evaluation.protocol import spread
from iadd_lab.plots.style import DOUBLE, house_style, new_figure, plain_ticks

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
        shape = tuple(self.accuracies.shape)
        require(
            len(shape) == 2 and shape[0] == len(self.iterations) and shape[1] > 0,
            f"accuracies has the shape {shape}; it must be ({len(self.iterations)}, networks), one row for "
            "each of the iterations.",
        )
        require(
            all(0 <= iteration <= len(self.history.loss) for iteration in self.iterations),
            f"iterations {list(self.iterations)} are not all within the {len(self.history.loss)} of the "
            "history.",
        )

    @property
    def seconds(self) -> list[float]:
        """Wall-clock seconds of the distillation until each of `iterations`."""
        passed = np.concatenate(([0.0], np.cumsum(self.history.seconds)))
        return [float(passed[iteration]) for iteration in self.iterations]


@house_style()
def history_plot(history: History, *, title: str = "") -> Figure:
    """The matching loss, the student's learning rate α and the spread of W against iterations."""
    figure = new_figure(DOUBLE, 2.0 + (0.2 if title else 0), title=title)
    draw_history(figure, history)
    return figure


def draw_history(figure: Figure, history: History) -> None:
    """Draw what `history_plot` shows into an empty figure."""
    loss, alpha, share = figure.subplots(1, 3)
    draw_series(loss, history.loss, label="weighted by W", smooth=True)
    if history.unweighted_loss != history.loss:
        draw_series(loss, history.unweighted_loss, label="without W", smooth=True)
        loss.legend()
    draw_series(alpha, history.alpha)
    draw_series(share, history.importance_share)
    for ax, name in ((loss, "matching loss"), (alpha, "learning rate α"), (share, "effective share of W")):
        ax.set(xlabel="iteration", title=name)
        ax.ticklabel_format(axis="y", useOffset=False)
        _mark_back_offs(ax, history)


def _mark_back_offs(ax: Axes, history: History) -> None:
    """A line where the run went back to its last good state and halved a rate."""
    for number, iteration in enumerate(dict.fromkeys(history.back_off_iterations)):
        label = "rate halved" if number == 0 else None
        ax.axvline(iteration, color="tab:red", lw=0.8, ls=":", label=label)
    if history.back_off_iterations:
        ax.legend()


def draw_series(
    ax: Axes,
    values: Sequence[float],
    *,
    label: str = "",
    smooth: bool = False,
    color: str | None = None,
) -> None:
    """One value per iteration; with `smooth`, faint behind its running mean, since segments differ."""
    iterations = np.arange(1, len(values) + 1)
    if not smooth or len(values) < _SHORT:
        ax.plot(iterations, values, lw=1.0, label=label, color=color)
        return
    (line,) = ax.plot(iterations, values, lw=0.7, alpha=0.25, color=color)
    ax.plot(*_running_mean(values), color=line.get_color(), label=label)


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
    figure = new_figure(DOUBLE, 4.1, title=title)
    (loss, alpha), (accuracy, clock) = figure.subplots(2, 2)
    weighted = False
    for number, (method, curve) in enumerate(curves.items()):
        color, history = f"C{number % 10}", curve.history
        draw_series(loss, history.unweighted_loss, label=method, smooth=True, color=color)
        if history.unweighted_loss != history.loss:
            loss.plot(*_running_mean(history.loss), color=color, lw=0.9, ls="--")
            weighted = True
        draw_series(alpha, history.alpha, color=color)
        _draw_accuracy(accuracy, curve.iterations, curve.accuracies, color)
        _draw_accuracy(clock, curve.seconds, curve.accuracies, color)
    loss.set(xlabel="iteration", ylabel="matching loss without W", yscale="log")
    plain_ticks(loss.yaxis)
    alpha.set(xlabel="iteration", ylabel="learning rate α")
    accuracy.set(xlabel="iteration", ylabel="accuracy (%)")
    clock.set(xlabel="seconds of distillation", ylabel="accuracy (%)")
    handles, labels = loss.get_legend_handles_labels()
    if weighted:
        handles.append(loss.plot([], [], color="0.3", ls="--", lw=0.9)[0])
        labels.append("dashed: loss weighted by W")
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False)
    return figure


def _draw_accuracy(ax: Axes, places: Sequence[float], accuracies: torch.Tensor, color: str) -> None:
    """Means over the networks, in per cent, with a band of ± one standard deviation."""
    means = 100 * accuracies.double().mean(1).numpy()  # (points,)
    spreads = np.array([100 * spread(values) for values in accuracies.double()])
    ax.plot(places, means, color=color, marker="o", ms=2.5)
    ax.fill_between(places, means - spreads, means + spreads, color=color, alpha=0.18, lw=0)
