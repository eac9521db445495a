"""The idea of matching with importance, drawn from a real run: paths in a plane, and pairs of parameters."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from iadd_lab.errors import require
from iadd_lab.plots.layers import check_count
from iadd_lab.plots.style import DOUBLE, MEDIUM, SMALL, house_style, new_figure, signed
from iadd_lab.study.replay import ReplayedSegment

_MOST = 40_000  # pairs drawn: more would only hide each other


@house_style()
def concept(paths: Sequence[ReplayedSegment], importance: torch.Tensor, *, title: str = "") -> Figure:
    """Left: a teacher's trajectory and the students' paths in a plane. Right: what W weighs, pair by pair.

    The plane is spanned by the first two principal components of one teacher's snapshots and of all steps
    of the students that started on it: the teacher with the most start epochs among `paths`, since those of
    different teachers lie in different places. The pairs are of all paths.

    Args:
        paths: segments, as from `replay.replay`.
        importance: W, (P,).
        title: above the figure.

    Raises:
        InputError: there is no path, or `importance` is another network's.
    """
    require(len(paths) > 0, "there is no path to show: replay at least one segment.")
    check_count("importance", importance, len(paths[0].end))
    figure = new_figure(DOUBLE, 3.55, title=title)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.12))
    by_teacher = [[path for path in paths if path.teacher == number] for number in {p.teacher for p in paths}]
    # Of those with equally many start epochs, the one with the most paths.
    shown = max(by_teacher, key=lambda own: (len({path.start_epoch for path in own}), len(own)))
    _draw_plane(left, shown)
    left.set_title(f"teacher {shown[0].teacher + 1} in a plane: {len(shown)} of {len(paths)} segments")
    _draw_pairs(right, paths, importance)
    # Below both panels: students go everywhere, and would run under a legend among them.
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_plane(ax: Axes, paths: Sequence[ReplayedSegment]) -> None:
    """One teacher's epochs, the steps of its students, and lines from their ends to where they should be."""
    from sklearn.decomposition import PCA  # takes a second to import, and only this picture needs it

    # An epoch more on either side: the rest of a long trajectory would leave no room for the students.
    first = max(min(path.start_epoch for path in paths) - 1, 0)
    trajectory = paths[0].trajectory[first : max(path.target_epoch for path in paths) + 2]
    parts = [trajectory, *(path.student for path in paths)]
    components = PCA(2, svd_solver="arpack", random_state=0)  # two of hundreds of thousands
    coordinates = components.fit_transform(torch.cat(parts).double().numpy())  # (points, 2)
    # A component's sign is arbitrary: the first point, where training began, goes to the lower left.
    coordinates *= np.where(coordinates[0] > 0, -1, 1)
    teacher, *students = np.split(coordinates, np.cumsum([len(part) for part in parts])[:-1])
    ax.plot(*teacher.T, color="0.55", marker="o", ms=3, lw=1.2, label="teacher, epoch by epoch")
    steps, matched = f"student, {len(students[0]) - 1} steps", "student’s end and teacher’s: what is matched"
    arrow = {"arrowstyle": "-|>", "color": "C0", "lw": 0.9, "shrinkA": 0, "shrinkB": 0}
    rings = {"s": 30, "facecolors": "none", "edgecolors": ("C0", "C3", "C3"), "zorder": 2}
    for path, student in zip(paths, students, strict=True):
        gap = np.array([student[-1], teacher[path.target_epoch - first]])
        ax.plot(*student.T, color="C0", lw=0.9, marker=".", ms=2.5, label=steps)
        ax.annotate("", student[-1], student[-2], arrowprops=arrow)
        ax.plot(*gap.T, color="C3", lw=1.4, ls=(0, (1.5, 1)), label=matched)
        ax.scatter(*np.vstack((student[:1], gap)).T, **rings)
        steps = matched = ""  # once is enough
    for epoch in sorted({epoch for path in paths for epoch in (path.start_epoch, path.target_epoch)}):
        ax.annotate(rf"$\theta_{{{epoch}}}$", teacher[epoch - first], xytext=(0, -12),
                    textcoords="offset points", color="0.3", ha="center", fontsize=MEDIUM)  # fmt: skip
    one, two = (f"{100 * share:.0f} %" for share in components.explained_variance_ratio_)
    ax.set_xlabel(f"first principal component ({one} of the variance)")
    ax.set_ylabel(f"second principal component ({two})")
    ax.margins(0.1)


def _draw_pairs(ax: Axes, paths: Sequence[ReplayedSegment], importance: torch.Tensor) -> None:
    """How far the student moved against how far the teacher did, in every dimension, coloured by W."""
    teacher = torch.cat([path.movement for path in paths]).double()  # (segments * P,)
    student = torch.cat([path.end - path.student[0] for path in paths]).double()
    weights = importance.repeat(len(paths)).double().clamp_min(1e-3)
    # In a drawn order, so that no layer lies on top of all others.
    shown = torch.randperm(len(teacher), generator=torch.Generator().manual_seed(0))[:_MOST]
    exponent = math.floor(math.log10(teacher.abs().mean().item() or 1.0))
    x, y = (values[shown].numpy() / 10.0**exponent for values in (teacher, student))
    spread = max(float(np.quantile(np.abs(np.log(weights.numpy())), 0.99)), math.log(1.05))
    cloud = ax.scatter(x, y, c=weights[shown].numpy(), s=2, linewidths=0, rasterized=True, cmap="coolwarm",
                       norm=LogNorm(math.exp(-spread), math.exp(spread)))  # fmt: skip
    limit = 1.05 * float(np.quantile(np.abs(np.concatenate((x, y))), 0.9995))
    ax.axline((0, 0), slope=1, color="black", lw=0.8, ls="--")
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    ax.set_xlabel(rf"teacher moved, $\theta_{{i+K}} - \theta_i$ ($10^{{{exponent}}}$)")
    ax.set_ylabel(rf"student moved, $\tilde\theta_{{i,J}} - \theta_i$ ($10^{{{exponent}}}$)")
    ax.set_title(f"pairs of {len(paths)} segments; dashed: perfect match")
    note = f"correlation {signed(torch.corrcoef(torch.stack((teacher, student)))[0, 1].item(), '.2f')}"
    if len(shown) < len(teacher):
        note += f"\n{len(shown):,} of {len(teacher):,} pairs"
    ax.text(0.03, 0.97, note, transform=ax.transAxes, va="top", fontsize=SMALL)
    ticks = np.exp(spread * np.linspace(-1, 1, 5))
    ax.figure.colorbar(cloud, ax=ax, ticks=ticks, label="importance W", format="{x:.2f}", extend="both",
                       fraction=0.05, pad=0.02).minorticks_off()  # fmt: skip
