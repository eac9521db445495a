"""One iteration as a diagram, with the shapes and numbers of a real run."""

from __future__ import annotations

import math
import textwrap
from collections import Counter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from iadd_lab.plots.style import DOUBLE, LARGE, MEDIUM, SMALL, house_style, new_figure, signed
from iadd_lab.plots.tiles import tile
from iadd_lab.study.replay import Iteration

# Inches from the lower left corner. Two rows, the teacher's and the student's, of four columns.
_HEIGHT = 3.25
_TEACHER, _STUDENT = 2.72, 1.32  # the middle of each row
_DATA = (0.06, 1.34)  # left and right edge of each column
_PATHS = (1.78, 4.02)
_WEIGHTS = (4.50, 5.56)
_LOSS = (5.94, 6.94)
_TOP, _BOTTOM = 3.18, 0.76  # of what spans both rows
_BACK = 0.22  # the height at which gradients run back

_REAL, _MADE, _BLAME = "C7", "C0", "C3"  # the teacher's side, the student's, the gradients


@house_style()
def iteration_diagram(iteration: Iteration, *, title: str = "") -> Figure:
    """How one iteration goes, from left to right, and how its gradients come back.

    Above, what is real: the training set, and the piece of a teacher's trajectory. Below, what is distilled:
    the images, and the student's steps on them. W weighs both ends, and the loss compares them.

    Args:
        iteration: as from `paths.one_iteration`.
        title: above the figure.
    """
    headroom = 0.24 if title else 0.0
    figure = new_figure(DOUBLE, _HEIGHT + headroom, layout=None)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, DOUBLE), ylim=(0, _HEIGHT + headroom))
    ax.axis("off")
    ax.text(DOUBLE / 2, _HEIGHT + headroom - 0.06, title, ha="center", va="top", fontsize=LARGE)
    _draw_real(ax, iteration)
    _draw_images(ax, iteration)
    _draw_teacher(ax, iteration)
    _draw_student(ax, iteration)
    _draw_weights(figure, ax, iteration)
    _draw_loss(ax, iteration)
    _draw_gradients(ax, iteration)
    return figure


def _box(ax: Axes, edges: tuple[float, float], bottom: float, top: float, color: str) -> None:
    left, right = edges
    box = FancyBboxPatch((left, bottom), right - left, top - bottom, facecolor="white", edgecolor=color,
                         boxstyle="round,pad=0,rounding_size=0.06", linewidth=1.0)  # fmt: skip
    ax.add_patch(box)


def _arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str = "0.3",
    **more: object,
) -> None:
    arrow = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, shrinkA=0, shrinkB=0,
                            color=color, linewidth=1.1, **more)  # fmt: skip
    ax.add_patch(arrow)


def _text(ax: Axes, x: float, y: float, words: str, **more: object) -> None:
    ax.text(x, y, words, **({"ha": "center", "va": "center", "fontsize": SMALL} | more))


def _draw_real(ax: Axes, iteration: Iteration) -> None:
    middle = sum(_DATA) / 2
    _box(ax, _DATA, _TEACHER - 0.3, _TEACHER + 0.3, _REAL)
    _text(ax, middle, _TEACHER + 0.09, f"{iteration.real_images:,} real images", fontsize=MEDIUM)
    _text(ax, middle, _TEACHER - 0.09, f"of {len(iteration.classes)} classes", color="0.3")
    _arrow(ax, (_DATA[1], _TEACHER), (_PATHS[0], _TEACHER))
    _text(ax, (_DATA[1] + _PATHS[0]) / 2, _TEACHER + 0.08, "trained")


def _draw_images(ax: Axes, iteration: Iteration) -> None:
    """The first distilled image of each class, ten at most."""
    count, channels, height, width = iteration.pictures.shape
    ipc = count // len(iteration.classes)
    _box(ax, _DATA, _BOTTOM, 1.96, _MADE)
    middle = sum(_DATA) / 2
    _text(ax, middle, 1.83, f"{count:,} distilled images", fontsize=MEDIUM)
    _text(ax, middle, 1.67, f"IPC {ipc}, {channels} × {height} × {width}", color="0.3")
    shown = iteration.pictures[::ipc][:10]
    columns = min(len(shown), 5)
    rows = math.ceil(len(shown) / columns)
    cell = min(1.14 / columns, 0.76 / rows)
    left, bottom = middle - columns * cell / 2, 1.18 - rows * cell / 2
    image = tile(shown, columns=columns, rows=rows, most_pixels=200 * cell)
    extent = (left, left + columns * cell, bottom, bottom + rows * cell)
    ax.imshow(image, interpolation="none", aspect="auto", extent=extent, zorder=2)  # above its box
    _arrow(ax, (_DATA[1], _STUDENT), (_PATHS[0], _STUDENT))
    _text(ax, (_DATA[1] + _PATHS[0]) / 2, _STUDENT + 0.08, "trained")


_START, _END = 2.58, 3.78  # where both paths begin and end
_TEACHER_PATH, _STUDENT_PATH = 2.80, 1.50  # their heights


def _draw_teacher(ax: Axes, iteration: Iteration) -> None:
    """The trajectory: from the initialisation to θ_i, and on to θ_{i+K}."""
    first, last = iteration.start_epoch, iteration.target_epoch
    _box(ax, _PATHS, 2.36, _TOP, _REAL)
    _text(ax, sum(_PATHS) / 2, _TOP - 0.13, f"teacher {iteration.teacher + 1} of {iteration.teachers}",
          fontsize=MEDIUM)  # fmt: skip
    if first > 0:
        ax.plot((2.02, _START), (_TEACHER_PATH,) * 2, color=_REAL, lw=1, ls=":", zorder=2)
        _point(ax, 2.02, _TEACHER_PATH, _REAL, r"$\theta_0$")
    places = np.linspace(_START, _END, last - first + 1)
    ax.plot(places, np.full(len(places), _TEACHER_PATH), color=_REAL, marker=".", ms=5, lw=1, zorder=2)
    _point(ax, _START, _TEACHER_PATH, _REAL, rf"$\theta_{{{first}}}$")
    _point(ax, _END, _TEACHER_PATH, _REAL, rf"$\theta_{{{last}}}$")
    middle = (_START + _END) / 2
    epochs = last - first
    _text(ax, middle, _TEACHER_PATH - 0.14, f"K = {epochs} epoch{'s' if epochs > 1 else ''}")
    _text(ax, middle, _TEACHER_PATH - 0.28, f"distance {iteration.start_distance:.3g}")
    _arrow(ax, (_PATHS[1], _TEACHER_PATH), (_WEIGHTS[0], _TEACHER_PATH))
    _text(ax, (_PATHS[1] + _WEIGHTS[0]) / 2, _TEACHER_PATH + 0.1, r"$\theta_{i+K}$", fontsize=MEDIUM)


def _draw_student(ax: Axes, iteration: Iteration) -> None:
    """J steps from the same start, and how far from the teacher they end."""
    steps = iteration.student_steps
    _box(ax, _PATHS, _BOTTOM, 1.96, _MADE)
    _text(ax, sum(_PATHS) / 2, 1.83, "student", fontsize=MEDIUM)
    places = np.linspace(_START, _END, min(steps, 20) + 1)
    ax.plot(places, np.full(len(places), _STUDENT_PATH), color=_MADE, marker=".", ms=4, lw=1, zorder=2)
    _point(ax, _START, _STUDENT_PATH, _MADE, "")
    _point(ax, _END, _STUDENT_PATH, _MADE, "")
    _arrow(ax, (_START, _TEACHER_PATH), (_START, _STUDENT_PATH + 0.03), linestyle=(0, (3, 2)))
    _text(ax, _START - 0.05, 2.16, "same start", ha="right")
    ax.plot((_END, _END), (_STUDENT_PATH, _TEACHER_PATH), color=_BLAME, lw=1.2, ls=":", zorder=1)
    _text(ax, _END - 0.05, 2.16, f"distance {iteration.end_distance:.3g}", ha="right", color=_BLAME)
    rate = f"J = {steps} step{'s' if steps > 1 else ''}, α = {iteration.alpha:.3g}"
    _text(ax, sum(_PATHS) / 2, _STUDENT_PATH - 0.17, rate)
    counts = ", ".join(f"{name} {count}" for name, count in Counter(iteration.augmentations).most_common())
    words = textwrap.fill(f"augmented: {counts}" if counts else "not augmented", 40)
    _text(ax, sum(_PATHS) / 2, _STUDENT_PATH - 0.30, words, va="top", color="0.3", linespacing=1.15)
    _arrow(ax, (_PATHS[1], _STUDENT_PATH), (_WEIGHTS[0], _STUDENT_PATH))
    _text(ax, (_PATHS[1] + _WEIGHTS[0]) / 2, _STUDENT_PATH + 0.1, r"$\tilde\theta_{i,J}$", fontsize=MEDIUM)


def _point(ax: Axes, x: float, y: float, color: str, name: str) -> None:
    ax.plot(x, y, "o", ms=5, color=color, zorder=3)
    _text(ax, x, y + 0.12, name, fontsize=MEDIUM)


def _draw_weights(figure: Figure, ax: Axes, iteration: Iteration) -> None:
    """W: how many values, their range, and how they are distributed."""
    importance = iteration.importance.double().numpy()
    middle = sum(_WEIGHTS) / 2
    _box(ax, _WEIGHTS, _BOTTOM, _TOP, "C2")
    _text(ax, middle, _TOP - 0.14, r"$W\;\odot$", fontsize=LARGE)
    _text(ax, middle, _TOP - 0.31, f"{len(importance):,} weights")
    low, high = importance.min(), importance.max()
    if low == high:
        _text(ax, middle, (_TOP + _BOTTOM) / 2, f"W = {low:g}\nfor every\nparameter", linespacing=1.3)
    else:
        _text(ax, middle, _BOTTOM + 0.15, f"from {low:.2f} to {high:.2f}")
        _draw_histogram(figure, importance)
    _arrow(ax, (_WEIGHTS[1], (_TOP + _BOTTOM) / 2), (_LOSS[0], (_TOP + _BOTTOM) / 2))


def _draw_histogram(figure: Figure, importance: np.ndarray) -> None:
    width, height = figure.get_size_inches()
    left, across = _WEIGHTS[0] + 0.1, _WEIGHTS[1] - _WEIGHTS[0] - 0.2
    place = (left / width, (_BOTTOM + 0.46) / height, across / width, 1.45 / height)
    inset = figure.add_axes(place)
    inset.hist(importance, bins=30, color="C2", alpha=0.8, linewidth=0)
    inset.axvline(1, color="0.3", lw=0.8, ls="--")
    low, high = importance.min(), importance.max()
    # Labels of ends near 1 would run into its own.
    ticks = [low, 1, high] if low < 1 - 0.35 * (high - low) and high > 1 + 0.2 * (high - low) else [1]
    inset.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
    inset.set_yticks([])
    inset.grid(visible=False)
    for side in ("left", "top", "right"):
        inset.spines[side].set_visible(False)


def _draw_loss(ax: Axes, iteration: Iteration) -> None:
    middle, height = sum(_LOSS) / 2, (_TOP + _BOTTOM) / 2
    _box(ax, _LOSS, height - 0.72, height + 0.72, "0.2")
    _text(ax, middle, height + 0.58, "loss L", fontsize=MEDIUM)
    formula = r"$\frac{\|W\odot(\tilde\theta_{i,J}-\theta_{i+K})\|^2}{\|\theta_i-\theta_{i+K}\|^2}$"
    _text(ax, middle, height + 0.31, formula, fontsize=LARGE)
    _text(ax, middle, height + 0.01, f"= {iteration.loss:.3g}", fontsize=LARGE + 1, weight="bold")
    ratio = f"({iteration.end_distance:.3g} / {iteration.start_distance:.3g})²"
    words = f"without W:\n{ratio}\n= {iteration.unweighted_loss:.3g}"
    _text(ax, middle, height - 0.40, words, linespacing=1.25)


def _draw_gradients(ax: Axes, iteration: Iteration) -> None:
    """From the loss back to all that is learned."""
    targets = [
        (sum(_DATA) / 2, rf"$\|\partial L/\partial$images$\|$ = {iteration.image_gradient:.3g}"),
        (2.2, rf"$\partial L/\partial\alpha$ = {signed(iteration.alpha_gradient, '.3g')}"),
    ]
    if iteration.importance_gradient > 0:
        norm = rf"$\|\partial L/\partial w\|$ = {iteration.importance_gradient:.3g}"
        targets.append((sum(_WEIGHTS) / 2, f"{norm}\n(w: W as it is learned)"))
    start = (_TOP + _BOTTOM) / 2 - 0.72
    corner = sum(_LOSS) / 2
    ax.plot((corner, corner, targets[0][0]), (start, _BACK, _BACK), color=_BLAME, lw=1.1)
    for place, words in targets:
        _arrow(ax, (place, _BACK), (place, _BOTTOM), _BLAME)
        _text(ax, place + 0.06, 0.48, words, ha="left", color=_BLAME, linespacing=1.2)
    _text(ax, corner, 0.1, "gradients", ha="center", color=_BLAME)
