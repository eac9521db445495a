"""Pictures: every function returns a Figure, and `save_figure` is the one place that writes them."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from iadd_lab.distill import DistillResult
from iadd_lab.distilled import displayable
from iadd_lab.evaluate import Evaluation, spread
from iadd_lab.history import History
from iadd_lab.networks import ParameterLayout
from iadd_lab.preprocess import Preprocess
from iadd_lab.store import atomic_path

_WIDTH = 7.0  # inches: a two-column paper's text width


@contextmanager
def _style():
    """One look for all figures: seaborn's paper style, colour-blind palette, legible at column width."""
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"), sns.color_palette("colorblind"):
        yield


class _NotebookFigure(Figure):
    """A figure that a notebook shows once, where it is returned; pyplot knows nothing of it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, dpi=110)
        return buffer.getvalue()


def _figure(width: float, height: float) -> Figure:
    return _NotebookFigure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, folder: Path | str, name: str) -> Figure:
    """Write `figure` to `folder`/`name`.png and .pdf, atomically, and return it for the notebook to show.

    An empty `folder` writes nothing.
    """
    if folder:
        for suffix, more in ((".png", {"dpi": 200}), (".pdf", {"metadata": {"CreationDate": None}})):
            with atomic_path(Path(folder) / f"{name}{suffix}") as temporary:
                figure.savefig(temporary, **more)
    return figure


def image_grid(
    pictures: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], *, title: str = ""
) -> Figure:
    """Pictures in a grid, one column per class, in rows of ten classes where there are many.

    Args:
        pictures: (classes * ipc, channels, height, width) in [0, 1], class after class.
        labels: (classes * ipc,).
        classes: the names above the columns.
    """
    columns = min(len(classes), 10)
    ipc = len(pictures) // len(classes)
    bands = math.ceil(len(classes) / columns)
    figure = _figure(_WIDTH, 0.45 + _WIDTH / columns * ipc * bands * 1.12)
    axes = figure.subplots(bands * ipc, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    seen = [0] * len(classes)
    for picture, label in zip(pictures, labels.tolist(), strict=True):
        row, column = label // columns * ipc + seen[label], label % columns
        _show(axes[row, column], picture)
        if seen[label] == 0:
            axes[row, column].set_title(_short(classes[label]), fontsize=8)
        seen[label] += 1
    figure.suptitle(title, fontsize=10)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 12 else f"{name[:11]}…"


def _show(ax: Axes, picture: torch.Tensor) -> None:
    ax.imshow(picture.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.axis("off")


def before_after(result: DistillResult) -> Figure:
    """The first image of each class (ten at most): where it started, and where it arrived."""
    columns = min(len(result.distilled.classes), 10)
    figure = _figure(_WIDTH, 0.3 + 2 * _WIDTH / max(columns, 5))
    draw_before_after(figure, result)
    return figure


def draw_before_after(figure: Figure | SubFigure, result: DistillResult) -> None:
    """Draw what `before_after` shows into an empty figure."""
    count = min(len(result.distilled.classes), 10)
    rows = torch.arange(count) * result.distilled.ipc
    first = result.distilled.pictures(result.history.snapshot_images[0])[rows]
    axes = figure.subplots(2, count, squeeze=False)
    for line, pictures in enumerate((first, result.distilled.pictures()[rows])):
        for ax, picture in zip(axes[line], pictures, strict=True):
            _show(ax, picture)
    for ax, name in zip(axes[0], result.distilled.classes, strict=False):
        ax.set_title(_short(name), fontsize=8)
    for ax, caption in zip(axes[:, 0], (result.config.initial_images, "distilled"), strict=True):
        ax.text(-0.12, 0.5, caption, rotation=90, va="center", ha="right", fontsize=8, transform=ax.transAxes)


def history_plot(history: History) -> Figure:
    """The matching loss, the student's learning rate α and the spread of W against iterations."""
    with _style():
        figure = _figure(_WIDTH, 2.1)
        draw_history(figure, history)
    return figure


def draw_history(figure: Figure, history: History) -> None:
    """Draw what `history_plot` shows into an empty figure."""
    loss, alpha, share = figure.subplots(1, 3)
    _draw_series(loss, history.loss, "weighted by W", smooth=True)
    if history.unweighted_loss != history.loss:
        _draw_series(loss, history.unweighted_loss, "without W", smooth=True)
        loss.legend(fontsize=7)
    _draw_series(alpha, history.alpha)
    _draw_series(share, history.importance_share)
    for ax, title in ((loss, "matching loss"), (alpha, "learning rate α"), (share, "effective share of W")):
        ax.set(xlabel="iteration", title=title)
        ax.ticklabel_format(axis="y", useOffset=False)


def _draw_series(ax: Axes, values: Sequence[float], label: str = "", *, smooth: bool = False) -> None:
    """One value per iteration; with `smooth`, faint behind its running mean, since segments differ."""
    iterations = np.arange(1, len(values) + 1)
    smooth = smooth and len(values) >= 40
    (line,) = ax.plot(
        iterations, values, lw=0.8, alpha=0.25 if smooth else 1.0, label="" if smooth else label
    )
    if smooth:
        span = max(len(values) // 20, 2)
        mean = np.convolve(values, np.ones(span) / span, mode="valid")
        ax.plot(iterations[span - 1 :], mean, color=line.get_color(), lw=1.4, label=label)


def importance_by_layer(importance: torch.Tensor, layout: ParameterLayout) -> Figure:
    """How W is distributed in each of the network's tensors: median, quartiles, 1st to 99th percentile."""
    boxes = [
        _box(values.double().numpy(), name)
        for name, values in zip(layout.names, importance.split(list(layout.sizes)), strict=True)
    ]
    with _style():
        figure = _figure(_WIDTH, 0.6 + 0.22 * len(boxes))
        ax = figure.subplots()
        ax.bxp(boxes, orientation="horizontal", showfliers=False, patch_artist=True,
               boxprops={"facecolor": "C0", "alpha": 0.6}, medianprops={"color": "black"})  # fmt: skip
        ax.axvline(1, color="0.4", lw=0.8, ls="--")
        ax.invert_yaxis()
        ax.set(xlabel="importance W (dashed: uniform)")
    return figure


def _box(values: np.ndarray, name: str) -> dict[str, object]:
    low, first, middle, third, high = np.percentile(values, (1, 25, 50, 75, 99))
    return {"whislo": low, "q1": first, "med": middle, "q3": third, "whishi": high, "label": name}


def accuracy_bars(evaluations: Sequence[Evaluation]) -> Figure:
    """Mean accuracy of each evaluation with its standard deviation, and one dot per network."""
    with _style():
        figure = _figure(0.5 * _WIDTH, 2.6)
        draw_accuracies(figure.subplots(), evaluations)
    return figure


def draw_accuracies(ax: Axes, evaluations: Sequence[Evaluation]) -> None:
    """Draw what `accuracy_bars` shows into `ax`."""
    for place, evaluation in enumerate(evaluations):
        values = 100 * evaluation.accuracies
        mean = values.mean().item()
        ax.bar(place, mean, yerr=spread(values), color=f"C{place}", alpha=0.75, width=0.65, capsize=4)
        ax.scatter(np.full(len(values), place + 0.2), values, s=8, color="black", zorder=3)
        ax.annotate(f"{mean:.1f}", (place, 1), ha="center", va="bottom", fontsize=9)
    ax.set_xticks(range(len(evaluations)), [evaluation.method for evaluation in evaluations])
    ax.set(ylabel=f"{evaluations[0].config.split} accuracy (%)", ylim=(0, None))
    ax.grid(axis="x", visible=False)


def confusion_matrix(evaluation: Evaluation) -> Figure:
    """The share of each true class that went to each predicted one, summed over the networks."""
    counts = evaluation.confusion.sum(0).double()
    shares = counts / counts.sum(1, keepdim=True)
    side = min(1.4 + 0.45 * len(evaluation.classes), _WIDTH)
    names = [_short(name) for name in evaluation.classes]
    with _style():
        figure = _figure(side + 0.6, side)
        ax = figure.subplots()
        sns.heatmap(100 * shares.numpy(), ax=ax, cmap="Blues", vmin=0, vmax=100, square=True,
                    annot=len(names) <= 12, fmt=".0f", annot_kws={"fontsize": 7},
                    xticklabels=names, yticklabels=names,
                    cbar_kws={"label": "% of the true class"})  # fmt: skip
        ax.set(xlabel="predicted", ylabel="true")
    return figure


def overview(result: DistillResult, evaluations: Sequence[Evaluation]) -> Figure:
    """The whole story in one picture: images before and after, and what they are worth."""
    with _style():
        figure = _figure(10.0, 1.95)
        left, right = figure.subfigures(1, 2, width_ratios=(3.4, 1))
        draw_before_after(left, result)
        draw_accuracies(right.subplots(), evaluations)
    return figure


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
        with _style():
            figure = _figure(_WIDTH, 1.8)
            left, right = figure.subfigures(1, 2, width_ratios=(1, 2))
            ax = left.subplots()
            ax.plot(np.arange(1, len(history.loss) + 1), history.loss, lw=0.8)
            ax.set(xlabel="iteration", title="matching loss")
            for ax, picture in zip(
                right.subplots(1, len(pictures), squeeze=False).flat, pictures, strict=True
            ):
                _show(ax, picture)
            right.suptitle(f"distilled images, iteration {history.snapshot_iterations[-1]}", fontsize=9)
        return figure
