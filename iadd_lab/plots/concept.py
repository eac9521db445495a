"""The idea of matching with importance, drawn from a real run: paths in a plane, and pairs of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from iadd_lab.errors import require
from iadd_lab.plots.style import DOUBLE, MEDIUM, SMALL, house_style, new_figure, signed
from iadd_lab.study.replay import SegmentPath

_MOST = 40_000  # pairs drawn: more would only hide each other


@house_style()
def concept(paths: Sequence[SegmentPath], importance: torch.Tensor, *, title: str = "") -> Figure:
    """Left: a teacher's trajectory and the students' paths in a plane. Right: what W weighs, pair by pair.

    The plane is spanned by the first two principal components of one teacher's snapshots and of all steps
    of the students that started on it: the teacher with the most start epochs among `paths`, since those of
    different teachers lie in different places. The pairs are of all paths.

    Args:
        paths: segments, as from `paths.replay`.
        importance: W, (P,).
        title: above the figure.

    Raises:
        InputError: there is no path, or `importance` is another network's.
    """
    require(len(paths) > 0, "there is no path to show: replay at least one segment.")
    require(
        importance.shape == paths[0].end.shape,
        f"importance has the shape {tuple(importance.shape)}, but the paths have {len(paths[0].end)} "
        "parameters: give the W of the run that was replayed.",
    )
    figure = new_figure(DOUBLE, 3.55 + (0.2 if title else 0), title=title)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.12))
    _draw_plane(left, _one_teacher(paths), segments=len(paths))
    _draw_pairs(figure, right, paths, importance)
    # Below both panels: students go everywhere, and would run under a legend among them.
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _one_teacher(paths: Sequence[SegmentPath]) -> list[SegmentPath]:
    """The paths of the teacher with the most start epochs, of the most paths among equals."""
    groups: dict[int, list[SegmentPath]] = {}
    for path in paths:
        groups.setdefault(path.teacher, []).append(path)
    return max(groups.values(), key=lambda group: (len({path.start_epoch for path in group}), len(group)))


def _plane(points: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of points (count, P) on their two principal components, and the variance explained.

    Returns:
        (count, 2), and the share of each component, (2,).
    """
    centred = points.double() - points.double().mean(0)
    # There are far fewer points than dimensions: their inner products say everything.
    values, vectors = torch.linalg.eigh(centred @ centred.T)  # ascending
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    coordinates = vectors[:, :2] * values[:2].sqrt()
    # A component's sign is arbitrary: the first point, where training began, goes to the lower left.
    coordinates = coordinates * torch.where(coordinates[0] > 0, -1.0, 1.0)
    return coordinates.numpy(), (values[:2] / values.sum().clamp_min(1e-300)).numpy()


def _draw_plane(ax: Axes, paths: Sequence[SegmentPath], *, segments: int) -> None:
    # An epoch more on either side: the rest of a long trajectory would leave no room for the students.
    first = max(min(path.start_epoch for path in paths) - 1, 0)
    trajectory = paths[0].trajectory[first : max(path.target_epoch for path in paths) + 2]
    points = torch.cat([trajectory, *(path.student for path in paths)])
    coordinates, shares = _plane(points)
    teacher, *students = np.split(
        coordinates, np.cumsum([len(trajectory), *(len(path.student) for path in paths)])[:-1]
    )
    ax.plot(*teacher.T, color="0.55", marker="o", ms=3, lw=1.2, label="teacher, epoch by epoch")
    for number, (path, student) in enumerate(zip(paths, students, strict=True)):
        _draw_student(ax, path, student, teacher[path.target_epoch - first], label=number == 0)
    for epoch in sorted({path.start_epoch for path in paths} | {path.target_epoch for path in paths}):
        ax.annotate(rf"$\theta_{{{epoch}}}$", teacher[epoch - first], xytext=(0, -12),
                    textcoords="offset points", color="0.3", ha="center", fontsize=MEDIUM)  # fmt: skip
    one, two = (f"{100 * share:.0f} %" for share in shares)
    ax.set(xlabel=f"first principal component ({one} of the variance)",
           ylabel=f"second principal component ({two})")  # fmt: skip
    ax.set_title(f"teacher {paths[0].teacher + 1} in a plane: {len(paths)} of {segments} segments")
    ax.margins(0.1)


def _draw_student(
    ax: Axes, path: SegmentPath, student: np.ndarray, target: np.ndarray, *, label: bool
) -> None:
    """The steps, an arrow at their end, and the line to where the student should be."""
    ax.plot(*student.T, color="C0", lw=0.9, marker=".", ms=2.5,
            label=f"student, {len(student) - 1} steps" if label else "")  # fmt: skip
    ax.annotate("", student[-1], student[-2], arrowprops={"arrowstyle": "-|>", "color": "C0", "lw": 0.9,
                "shrinkA": 0, "shrinkB": 0})  # fmt: skip
    ax.plot(*np.array([student[-1], target]).T, color="C3", lw=1.4, ls=(0, (1.5, 1)),
            label="student’s end and teacher’s: what is matched" if label else "")  # fmt: skip
    ax.plot(*student[0], "o", ms=5.5, mfc="none", mec="C0", mew=1.0)
    for end in (student[-1], target):
        ax.plot(*end, "o", ms=5.5, mfc="none", mec="C3", mew=1.0)


def _draw_pairs(figure: Figure, ax: Axes, paths: Sequence[SegmentPath], importance: torch.Tensor) -> None:
    teacher = torch.cat([path.movement for path in paths])  # (segments * P,)
    student = torch.cat([path.end - path.trajectory[path.start_epoch] for path in paths])
    weights = importance.repeat(len(paths)).double()
    # In a drawn order, so that no layer lies on top of all others.
    shown = torch.randperm(len(teacher), generator=torch.Generator().manual_seed(0))[:_MOST]
    exponent = math.floor(math.log10(teacher.abs().double().mean().item() or 1.0))
    x, y = (values[shown].double().numpy() / 10.0**exponent for values in (teacher, student))
    spread = max(float(np.quantile(np.abs(np.log(weights.clamp_min(1e-3).numpy())), 0.99)), math.log(1.05))
    cloud = ax.scatter(x, y, c=weights[shown].clamp_min(1e-3).numpy(), s=2, linewidths=0, rasterized=True,
                       cmap="coolwarm", norm=LogNorm(math.exp(-spread), math.exp(spread)))  # fmt: skip
    limit = 1.05 * float(np.quantile(np.abs(np.concatenate((x, y))), 0.9995))
    ax.axline((0, 0), slope=1, color="black", lw=0.8, ls="--")
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    unit = rf"$10^{{{exponent}}}$"
    ax.set(xlabel=rf"teacher moved, $\theta_{{i+K}} - \theta_i$ ({unit})",
           ylabel=rf"student moved, $\tilde\theta_{{i,J}} - \theta_i$ ({unit})")  # fmt: skip
    ax.set_title(f"pairs of {len(paths)} segments; dashed: perfect match")
    _write_numbers(ax, teacher, student, len(shown))
    bar = figure.colorbar(cloud, ax=ax, extend="both", label="importance W", fraction=0.05, pad=0.02)
    bar.set_ticks(np.exp(spread * np.linspace(-1, 1, 5)))
    bar.ax.yaxis.set_major_formatter("{x:.2f}")
    bar.minorticks_off()


def _write_numbers(ax: Axes, teacher: torch.Tensor, student: torch.Tensor, shown: int) -> None:
    pairs = torch.stack((teacher, student)).double()
    lines = [f"correlation {signed(torch.corrcoef(pairs)[0, 1].item(), '.2f')}"]
    if shown < len(teacher):
        lines.append(f"{shown:,} of {len(teacher):,} pairs")
    ax.text(0.03, 0.97, "\n".join(lines), transform=ax.transAxes, va="top", fontsize=SMALL)
