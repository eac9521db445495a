"""Figure 3: one iteration as a diagram that carries the run's own shapes and numbers."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from iadd_lab.paths import Iteration
from iadd_lab.plots.images import tile
from iadd_lab.plots.style import COLORS, WIDTH, new_figure, style
from iadd_lab.plots.symbols import END, START, STUDENT, TARGET, THETA

_REAL, _MADE, _WEIGHT, _LOSS = COLORS[0], COLORS[2], COLORS[4], COLORS[3]
_ACROSS, _UP = 14.0, 6.6  # the drawing's own units


def iteration_diagram(iteration: Iteration, *, title: str = "") -> Figure:
    """Teacher above, student below, W and the loss on the right; gradients go back along dashed arrows.

    Args:
        iteration: with all its numbers; see `paths.one_iteration`.
        title: above all.
    """
    with style():
        figure = new_figure(WIDTH, WIDTH * _UP / _ACROSS + 0.2, title)
        ax = figure.subplots()
        ax.set(xlim=(0, _ACROSS), ylim=(0, _UP))
        ax.axis("off")
        _draw_teacher(ax, iteration)
        _draw_student(ax, iteration)
        _draw_weights(ax, iteration)
        _draw_loss(ax, iteration)
        _draw_gradients(ax, iteration)
    return figure


def _draw_teacher(ax: Axes, it: Iteration) -> None:
    channels, height, width = it.pictures.shape[1:]
    _box(
        ax, 0.1, 5.0, 2.5, 1.3, f"real set\n{it.real_images:,} images\n{channels} × {height} × {width}", _REAL
    )
    _arrow(ax, (2.6, 5.65), (3.4, 5.65), _REAL, "train")
    epochs = f"epoch {it.start_epoch}"
    _box(ax, 3.4, 5.0, 2.2, 1.3, f"teacher {it.teacher + 1} of {it.teachers}\n{epochs}\n{START}", _REAL)
    steps = it.target_epoch - it.start_epoch
    _arrow(ax, (5.6, 5.65), (7.8, 5.65), _REAL, f"K = {steps} epochs")
    text = f"teacher, epoch {it.target_epoch}\n{TARGET}\n{it.layout.count:,} parameters"
    _box(ax, 7.8, 5.0, 2.3, 1.3, text, _REAL)


def _draw_student(ax: Axes, it: Iteration) -> None:
    count, channels, height, width = it.pictures.shape
    _box(ax, 0.1, 0.9, 2.5, 2.5, "", _MADE)
    _thumbnails(ax, it.pictures, (0.3, 1.75, 2.1, 1.5))
    text = f"distilled set\n{count} × {channels} × {height} × {width}"
    ax.text(1.35, 1.3, text, ha="center", va="center", fontsize=7.5)
    _arrow(ax, (2.6, 2.15), (3.4, 2.15), _MADE)
    drawn = _wrapped(", ".join(dict.fromkeys(it.augmentations)))
    step = f"{STUDENT} ← {STUDENT} − α ∇ℓ(A(D); {STUDENT})"
    text = f"J = {it.student_steps} steps\n{step}\nα = {it.alpha:.4g}\nA: {drawn}"
    _box(ax, 3.4, 1.2, 3.4, 1.9, text, _MADE)
    _arrow(ax, (4.5, 5.0), (4.5, 3.1), _MADE, f"start at {START}", side=True)
    _arrow(ax, (6.8, 2.15), (7.8, 2.15), _MADE)
    _box(ax, 7.8, 1.5, 2.3, 1.3, f"student\n{END}\n{it.layout.count:,} parameters", _MADE)


def _draw_weights(ax: Axes, it: Iteration) -> None:
    low, high = it.importance.min().item(), it.importance.max().item()
    _box(ax, 7.8, 3.3, 2.3, 1.25, "", _WEIGHT)
    ax.text(8.95, 4.3, f"W: {low:.2f} … {high:.2f}", ha="center", va="center", fontsize=7)
    inset = ax.inset_axes((8.0, 3.42, 1.9, 0.68), transform=ax.transData)
    inset.hist(it.importance.numpy(), bins=40, color=_WEIGHT)
    inset.axvline(1, color="0.3", lw=0.7, ls="--")
    inset.tick_params(labelsize=5.5, pad=1, length=2)
    inset.set(yticks=[])
    inset.grid(visible=False)
    for side in ("left", "right", "top"):
        inset.spines[side].set_visible(False)


def _draw_loss(ax: Axes, it: Iteration) -> None:
    text = (
        f"matching loss\nL = {it.loss:.3f}\n\nwithout W: {it.unweighted_loss:.3f}\n\n"
        f"‖{START} − {TARGET}‖ = {it.start_distance:.3g}\n‖{END} − {TARGET}‖ = {it.end_distance:.3g}"
    )
    _box(ax, 11.1, 2.6, 2.8, 2.7, text, _LOSS)
    _arrow(ax, (10.1, 5.65), (11.1, 4.9), _REAL, f"W ⊙ {THETA}", side=True)
    _arrow(ax, (10.1, 3.92), (11.1, 3.92), _WEIGHT)
    _arrow(ax, (10.1, 2.15), (11.1, 2.85), _MADE)
    ax.text(10.5, 2.1, f"W ⊙ {STUDENT}", ha="left", va="center", fontsize=7)


def _draw_gradients(ax: Axes, it: Iteration) -> None:
    """Down from the loss, along the bottom, and up into what is learned."""
    ax.plot([12.5, 12.5, 1.35], [2.6, 0.35, 0.35], color=_LOSS, lw=1.1, ls="--")
    _arrow(ax, (1.35, 0.35), (1.35, 0.9), _LOSS, dashed=True)
    _arrow(ax, (5.1, 0.35), (5.1, 1.2), _LOSS, dashed=True)
    ax.text(1.5, 0.5, f"‖∂L/∂D‖ = {it.image_gradient:.2g}", fontsize=7, color=_LOSS, va="bottom")
    ax.text(5.25, 0.5, f"∂L/∂α = {it.alpha_gradient:.2g}", fontsize=7, color=_LOSS, va="bottom")
    ax.text(12.35, 0.5, "backwards through all J steps", fontsize=7, color=_LOSS, va="bottom", ha="right")
    _arrow(ax, (11.1, 3.55), (10.1, 3.55), _LOSS, dashed=True)
    ax.text(
        10.6, 3.45, f"‖∂L/∂W‖\n{it.importance_gradient:.2g}", fontsize=6.5, color=_LOSS, va="top", ha="center"
    )


def _box(ax: Axes, left: float, bottom: float, width: float, height: float, text: str, color: str) -> None:
    shape = FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.15",
                           facecolor=(*to_rgb(color), 0.12), edgecolor=color, lw=1.2)  # fmt: skip
    ax.add_patch(shape)
    ax.text(
        left + width / 2, bottom + height / 2, text, ha="center", va="center", fontsize=7.5, linespacing=1.35
    )


def _arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str,
    text: str = "",
    *,
    side: bool = False,
    dashed: bool = False,
) -> None:
    """An arrow with `text` above its middle, or beside it."""
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=color, lw=1.2,
                                 ls="--" if dashed else "-", shrinkA=1, shrinkB=1))  # fmt: skip
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    shift, align = ((0.12, 0.12), "left") if side else ((0, 0.1), "center")
    ax.text(middle[0] + shift[0], middle[1] + shift[1], text, ha=align, va="bottom", fontsize=7)


def _thumbnails(ax: Axes, pictures: torch.Tensor, place: tuple[float, float, float, float]) -> None:
    """The first ten pictures at most, in two rows."""
    shown = pictures[:: max(len(pictures) // 10, 1)][:10]
    columns = (len(shown) + 1) // 2
    sheet = tile(shown, torch.arange(len(shown)) % columns, columns=columns, depth=2)
    inset = ax.inset_axes(place, transform=ax.transData)
    inset.imshow(sheet, interpolation="nearest", vmin=0, vmax=1)
    inset.axis("off")


def _wrapped(words: str) -> str:
    """A list of words on two lines where it is long."""
    if len(words) <= 30:
        return words
    cut = words.rfind(", ", 0, 30) + 1
    return f"{words[:cut]}\n{words[cut:].strip()}"
