"""Figure 2: matching with importance, drawn from a real run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from iadd_lab.errors import require
from iadd_lab.paths import SegmentPath
from iadd_lab.plots.style import COLORS, WIDTH, new_figure, style
from iadd_lab.plots.symbols import END, START, TARGET

_MOST = 20000  # dots that a reader can tell apart
_THOUSANDTHS = 1000


def concept(paths: Sequence[SegmentPath], importance: torch.Tensor, *, title: str = "") -> Figure:
    """Left: teachers' and students' paths in a plane. Right: what is matched, parameter by parameter.

    The plane is that of the first two principal components of all points, each path counted from its
    teacher's initialisation, since teachers lie far from each other.

    Args:
        paths: of one result, on segments of one or more teachers.
        importance: W, (P,).
        title: above all.

    Raises:
        InputError: there are no paths.
    """
    require(len(paths) > 0, "there are no paths: replay one segment at least.")
    with style():
        figure = new_figure(WIDTH, 3.3, title)
        plane, pairs = figure.subplots(1, 2, width_ratios=(1, 1.05))
        _draw_plane(plane, paths)
        _draw_pairs(figure, pairs, paths[0], importance)
    return figure


def _draw_plane(ax: Axes, paths: Sequence[SegmentPath]) -> None:
    relative = [(path.trajectory - path.trajectory[0], path.student - path.trajectory[0]) for path in paths]
    fitted = PCA(2, svd_solver="full").fit(torch.cat([torch.cat(pair) for pair in relative]).double().numpy())
    drawn = set()
    for place, (path, (trajectory, student)) in enumerate(zip(paths, relative, strict=True)):
        color = COLORS[place % len(COLORS)]
        teacher, own = (fitted.transform(points.double().numpy()) for points in (trajectory, student))
        if path.teacher not in drawn:
            ax.plot(*teacher.T, color="0.7", lw=1, marker="o", ms=2.5, zorder=1)
            ax.annotate(f"teacher {path.teacher + 1}", teacher[-1], fontsize=7, color="0.35", ha="center",
                        xytext=(0, 5), textcoords="offset points")  # fmt: skip
            drawn.add(path.teacher)
        ax.plot(*own.T, color=color, lw=1.3, zorder=3)
        ax.scatter(*own[0], color=color, s=22, marker="o", zorder=4, edgecolor="white", lw=0.6)
        ax.scatter(*own[-1], color=color, s=26, marker="^", zorder=4, edgecolor="white", lw=0.6)
        target = teacher[path.target_epoch]
        ax.scatter(*target, color=color, s=48, marker="*", zorder=4, edgecolor="white", lw=0.6)
        ax.plot(*zip(own[-1], target, strict=True), color=color, lw=1, ls=":", zorder=2)
    for marker, meaning in (("o", f"start {START}"), ("^", f"student {END}"), ("*", f"teacher {TARGET}")):
        ax.scatter([], [], color="0.3", marker=marker, s=26, label=meaning)
    ax.legend(fontsize=7, loc="best")
    first, second = 100 * fitted.explained_variance_ratio_
    ax.set(xlabel=f"1st component ({first:.0f} %)", ylabel=f"2nd component ({second:.0f} %)")
    ax.tick_params(labelsize=7)
    ax.margins(0.12)


def _draw_pairs(figure: Figure, ax: Axes, path: SegmentPath, importance: torch.Tensor) -> None:
    start = path.trajectory[path.start_epoch]
    moved = _THOUSANDTHS * path.movement.numpy()
    came = _THOUSANDTHS * (path.end - start).numpy()
    shown = np.linspace(0, len(moved) - 1, min(len(moved), _MOST)).round().astype(int)
    weights = importance.numpy()[shown]
    norm = TwoSlopeNorm(1.0, *_around_one(weights))
    # The most unusual weights last, so that they are not hidden.
    order = shown[np.argsort(np.abs(np.log(np.maximum(weights, 1e-6))))]
    dots = ax.scatter(moved[order], came[order], c=importance.numpy()[order], cmap="coolwarm", norm=norm, s=4,
                      lw=0, alpha=0.8, rasterized=True)  # fmt: skip
    reach = np.quantile(np.abs(np.concatenate([moved, came])), 0.999)
    ax.plot([-reach, reach], [-reach, reach], color="0.3", lw=0.8, ls="--", label="perfect match")
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.set(
        xlabel=f"teacher moved, 1000 ({TARGET} − {START})", ylabel=f"student moved, 1000 ({END} − {START})"
    )
    ax.tick_params(labelsize=7)
    ax.locator_params(nbins=5)
    ax.legend(fontsize=7, loc="upper left")
    figure.colorbar(dots, ax=ax, label="importance W", shrink=0.85)


def _around_one(weights: np.ndarray) -> tuple[float, float]:
    """Limits of a colour scale with 1 inside, leaving out the most extreme weights."""
    low, high = np.quantile(weights, (0.005, 0.995))
    return min(low, 1 - 1e-3), max(high, 1 + 1e-3)
