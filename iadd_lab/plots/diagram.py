"""One iteration as a diagram, with the shapes and numbers of a real run."""

import textwrap
from collections import Counter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from iadd_lab.plots.style import DOUBLE, LARGE, MEDIUM, SMALL, house_style, new_figure, signed
from iadd_lab.plots.tiles import show, tile
from iadd_lab.study.replay import Iteration

# Inches from the lower left corner. Two rows, the teacher's and the student's, of four columns.
_HEIGHT = 3.25
_TEACHER, _STUDENT = 2.80, 1.50  # the height of each path
_DATA, _PATHS = (0.06, 1.34), (1.78, 4.02)  # left and right edges
_WEIGHTS, _LOSS = (4.50, 5.56), (5.94, 6.94)
_TOP, _MIDDLE, _LOWER, _BOTTOM = 3.18, 1.97, 1.96, 0.76  # of what spans both rows, and of the lower one
_START, _END = 2.58, 3.78  # where both paths begin and end
_BACK = 0.22  # the height at which gradients run back

_REAL, _MADE, _BLAME = "C7", "C0", "C3"  # the teacher's side, the student's, the gradients
_BOXES = (
    (_DATA, 2.42, 3.02, _REAL),
    (_DATA, _BOTTOM, _LOWER, _MADE),
    (_PATHS, 2.36, _TOP, _REAL),
    (_PATHS, _BOTTOM, _LOWER, _MADE),
    (_WEIGHTS, _BOTTOM, _TOP, "C2"),
    (_LOSS, _MIDDLE - 0.72, _MIDDLE + 0.72, "0.2"),
)


@house_style()
def iteration_diagram(iteration: Iteration, *, title: str = "") -> Figure:
    """How one iteration goes, from left to right, and how its gradients come back.

    Above, what is real: the training set, and the piece of a teacher's trajectory. Below, what is distilled:
    the images, and the student's steps on them. W weighs both ends, and the loss compares them.

    Args:
        iteration: as from `replay.one_iteration`.
        title: above the figure.
    """
    figure = new_figure(DOUBLE, _HEIGHT, title=title, layout=None)
    place = (0, 0, 1, _HEIGHT / figure.get_figheight())
    ax = figure.add_axes(place, xlim=(0, DOUBLE), ylim=(0, _HEIGHT))
    ax.axis("off")
    for (left, right), bottom, top, color in _BOXES:
        look = {"facecolor": "white", "edgecolor": color, "boxstyle": "round,pad=0,rounding_size=0.06"}
        ax.add_patch(FancyBboxPatch((left, bottom), right - left, top - bottom, linewidth=1.0, **look))
    for draw in (_draw_data, _draw_teacher, _draw_student, _draw_weights, _draw_loss, _draw_gradients):
        draw(ax, iteration)
    return figure


def _arrow(ax: Axes, start: tuple, end: tuple, above: str = "", **look: object) -> None:
    """An arrow, with words above it."""
    arrow = {"arrowstyle": "-|>", "mutation_scale": 8, "shrinkA": 0, "shrinkB": 0, "color": "0.3", "lw": 1.1}
    ax.annotate("", end, start, arrowprops=arrow | look)
    _text(ax, (start[0] + end[0]) / 2, start[1] + 0.09, above)


def _text(ax: Axes, x: float, y: float, words: str, **more: object) -> None:
    ax.text(x, y, words, **({"ha": "center", "va": "center", "fontsize": SMALL, "parse_math": True} | more))


def _draw_data(ax: Axes, iteration: Iteration) -> None:
    """The real set, and the first distilled image of each class, ten at most."""
    made = iteration.result.distilled
    (count, channels, height, width), middle = made.images.shape, sum(_DATA) / 2
    _text(ax, middle, 2.81, f"{iteration.real_images:,} real images", fontsize=MEDIUM)
    _text(ax, middle, 2.63, f"of {len(made.classes)} classes", color="0.3")
    _text(ax, middle, 1.83, f"{count:,} distilled images", fontsize=MEDIUM)
    _text(ax, middle, 1.67, f"IPC {made.ipc}, {channels} × {height} × {width}", color="0.3")
    shown = made.pictures()[:: made.ipc][:10]
    columns = min(len(shown), 5)
    inset = ax.inset_axes((middle - 0.57, 0.80, 1.14, 0.76), transform=ax.transData)
    show(inset, tile(shown, columns=columns, most_pixels=200 * 1.14 / columns))
    for height in (2.72, 1.32):
        _arrow(ax, (_DATA[1], height), (_PATHS[0], height), "trained")


def _draw_path(ax: Axes, height: float, steps: int, color: str, end: str) -> None:
    """Points from the common start to the end of a path, and from there an arrow to the weights."""
    ax.plot(np.linspace(_START, _END, steps + 1), [height] * (steps + 1), color=color, marker=".", ms=5, lw=1)
    ax.plot((_START, _END), (height, height), "o", ms=5, color=color)
    _arrow(ax, (_PATHS[1], height), (_WEIGHTS[0], height), end)


def _draw_teacher(ax: Axes, iteration: Iteration) -> None:
    """The trajectory: from the initialisation to θ_i, and on to θ_{i+K}."""
    first, epochs = iteration.start_epoch, iteration.target_epoch - iteration.start_epoch
    title = f"teacher {iteration.teacher + 1} of {iteration.teachers}"
    _text(ax, sum(_PATHS) / 2, _TOP - 0.13, title, fontsize=MEDIUM)
    named = {_START: first, _END: iteration.target_epoch}
    if first > 0:
        named[2.02] = 0
        dotted = {"color": _REAL, "lw": 1, "ls": ":", "marker": "o", "ms": 5, "markevery": [0]}
        ax.plot((2.02, _START), (_TEACHER, _TEACHER), **dotted)
    _draw_path(ax, _TEACHER, epochs, _REAL, r"$\theta_{i+K}$")
    for x, epoch in named.items():
        _text(ax, x, _TEACHER + 0.12, rf"$\theta_{{{epoch}}}$", fontsize=MEDIUM)
    words = f"K = {epochs} epoch{'s' * (epochs > 1)}\ndistance {iteration.start_distance:.3g}"
    _text(ax, (_START + _END) / 2, _TEACHER - 0.21, words, linespacing=1.25)


def _draw_student(ax: Axes, iteration: Iteration) -> None:
    """J steps from the same start, and how far from the teacher they end."""
    steps, middle = iteration.result.config.student_steps, sum(_PATHS) / 2
    _text(ax, middle, 1.83, "student", fontsize=MEDIUM)
    _arrow(ax, (_START, _TEACHER), (_START, _STUDENT + 0.03), linestyle=(0, (3, 2)))
    _text(ax, _START - 0.05, 2.16, "same start", ha="right")
    ax.plot((_END, _END), (_STUDENT, _TEACHER), color=_BLAME, lw=1.2, ls=":")
    _text(ax, _END - 0.05, 2.16, f"distance {iteration.end_distance:.3g}", ha="right", color=_BLAME)
    _draw_path(ax, _STUDENT, min(steps, 20), _MADE, r"$\tilde\theta_{i,J}$")
    rate = f"J = {steps} step{'s' * (steps > 1)}, α = {iteration.result.alpha:.3g}"
    _text(ax, middle, _STUDENT - 0.17, rate)
    counts = ", ".join(f"{name} {count}" for name, count in Counter(iteration.augmentations).most_common())
    words = textwrap.fill(f"augmented: {counts}" if counts else "not augmented", 40)
    _text(ax, middle, _STUDENT - 0.30, words, va="top", color="0.3", linespacing=1.15)


def _draw_weights(ax: Axes, iteration: Iteration) -> None:
    """W: how many values, their range, and how they are distributed."""
    importance = iteration.result.importance.double().numpy()
    low, high, middle = importance.min(), importance.max(), sum(_WEIGHTS) / 2
    _text(ax, middle, _TOP - 0.14, r"$W\;\odot$", fontsize=LARGE)
    _text(ax, middle, _TOP - 0.31, f"{len(importance):,} weights")
    _arrow(ax, (_WEIGHTS[1], _MIDDLE), (_LOSS[0], _MIDDLE))
    if low == high:
        _text(ax, middle, _MIDDLE, f"W = {low:g}\nfor every\nparameter", linespacing=1.3)
        return
    _text(ax, middle, _BOTTOM + 0.15, f"from {low:.2f} to {high:.2f}")
    inset = ax.inset_axes((_WEIGHTS[0] + 0.1, 1.22, 0.86, 1.45), transform=ax.transData)
    inset.hist(importance, bins=30, color="C2", alpha=0.8, linewidth=0)
    inset.axvline(1, color="0.3", lw=0.8, ls="--")
    # Labels of ends near 1 would run into its own.
    ticks = [low, 1, high] if low < 1 - 0.35 * (high - low) and high > 1 + 0.2 * (high - low) else [1]
    inset.set(xticks=ticks, xticklabels=[f"{tick:.2g}" for tick in ticks], yticks=[])
    inset.grid(visible=False)
    inset.spines[["left", "top", "right"]].set_visible(False)


def _draw_loss(ax: Axes, iteration: Iteration) -> None:
    """L, with W and without."""
    middle = sum(_LOSS) / 2
    _text(ax, middle, _MIDDLE + 0.58, "loss L", fontsize=MEDIUM)
    formula = r"$\frac{\|W\odot(\tilde\theta_{i,J}-\theta_{i+K})\|^2}{\|\theta_i-\theta_{i+K}\|^2}$"
    _text(ax, middle, _MIDDLE + 0.31, formula, fontsize=LARGE)
    _text(ax, middle, _MIDDLE + 0.01, f"= {iteration.loss:.3g}", fontsize=LARGE + 1, weight="bold")
    ratio = f"({iteration.end_distance:.3g} / {iteration.start_distance:.3g})²"
    without = f"without W:\n{ratio}\n= {iteration.unweighted_loss:.3g}"
    _text(ax, middle, _MIDDLE - 0.40, without, linespacing=1.25)


def _draw_gradients(ax: Axes, iteration: Iteration) -> None:
    """From the loss back to all that is learned."""
    targets = {
        sum(_DATA) / 2: rf"$\|\partial L/\partial$images$\|$ = {iteration.image_gradient:.3g}",
        2.2: rf"$\partial L/\partial\alpha$ = {signed(iteration.alpha_gradient, '.3g')}",
    }
    if iteration.importance_gradient > 0:
        norm = rf"$\|\partial L/\partial w\|$ = {iteration.importance_gradient:.3g}"
        targets[sum(_WEIGHTS) / 2] = f"{norm}\n(w: W as it is learned)"
    corner = sum(_LOSS) / 2
    ax.plot((corner, corner, min(targets)), (_MIDDLE - 0.72, _BACK, _BACK), color=_BLAME, lw=1.1)
    for place, words in targets.items():
        _arrow(ax, (place, _BACK), (place, _BOTTOM), color=_BLAME)
        _text(ax, place + 0.06, 0.48, words, ha="left", color=_BLAME, linespacing=1.2)
    _text(ax, corner, 0.1, "gradients", color=_BLAME)
