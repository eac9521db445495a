"""Students beside their teachers: paths in a plane, pairs of parameters, and differences layer by layer."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from iadd_lab.errors import require
from iadd_lab.plots.layers import Layer, check_count, layers, tensors
from iadd_lab.plots.style import DOUBLE, MEDIUM, SMALL, Rows, grouped_bars, house_style, new_figure, signed
from iadd_lab.study.replay import ReplayedSegment
from iadd_lab.training.networks import ParameterLayout

_MOST = 40_000  # pairs drawn: more would only hide each other
_Paths = Mapping[str, Sequence[ReplayedSegment]]


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
                    textcoords="offset points", color="0.3", ha="center", fontsize=MEDIUM,
                    parse_math=True)  # fmt: skip
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
    ax.set_xlabel(rf"teacher moved, $\theta_{{i+K}} - \theta_i$ ($10^{{{exponent}}}$)", parse_math=True)
    ax.set_ylabel(rf"student moved, $\tilde\theta_{{i,J}} - \theta_i$ ($10^{{{exponent}}}$)", parse_math=True)
    ax.set_title(f"pairs of {len(paths)} segments; dashed: perfect match")
    note = f"correlation {signed(torch.corrcoef(torch.stack((teacher, student)))[0, 1].item(), '.2f')}"
    if len(shown) < len(teacher):
        note += f"\n{len(shown):,} of {len(teacher):,} pairs"
    ax.text(0.03, 0.97, note, transform=ax.transAxes, va="top", fontsize=SMALL)
    ticks = np.exp(spread * np.linspace(-1, 1, 5))
    ax.figure.colorbar(cloud, ax=ax, ticks=ticks, label="importance W", format="{x:.2f}", extend="both",
                       fraction=0.05, pad=0.02).minorticks_off()  # fmt: skip


@house_style()
def parameter_difference(paths_by_method: _Paths, layout: ParameterLayout, *, title: str = "") -> Figure:
    """θ̃_{i,J} − θ_{i+K}, dimension by dimension: a row of panels per method, a column per layer.

    The points are the first segment's signed differences. The numbers above them, and the bars, are of all
    segments: the root mean square, and its share of what the teacher itself moved.

    Args:
        paths_by_method: {method: its segments, as from `replay.replay`}, the same segments for each.
        layout: of the network.
        title: above the figure.

    Raises:
        InputError: there is no method or no segment, or the layout is another network's.
    """
    require(bool(paths_by_method), "there is no method to show: give {method: its segments}.")
    for method, paths in paths_by_method.items():
        require(len(paths) > 0, f"{method} has no segment: replay at least one.")
        for path in paths:
            check_count(f"a segment of {method}", path.end, layout.count)
    parts, count = layers(layout), len(paths_by_method)
    shown = torch.stack([paths[0].difference for paths in paths_by_method.values()]).double()  # (methods, P)
    exponent = round(math.log10(shown.square().mean().sqrt().item() or 1.0))
    unit, heights = 10.0**exponent, (0.4 + 1.1 * count, 1.55)
    figure = new_figure(DOUBLE, sum(heights), title=title)
    # No frames: the layout's solver ends at 0 or at -0 by chance, which a PDF would show as other bytes.
    upper, lower = figure.subfigures(2, 1, height_ratios=heights, frameon=False)
    axes = upper.subplots(count, len(parts), sharex="col", sharey="col", squeeze=False)
    for column, part in zip(axes.T, parts, strict=True):
        _draw_points(column, shown[:, part.place] / unit)
        for ax, paths in zip(column, paths_by_method.values(), strict=True):
            ax.set_title(f"RMS {_rms(paths, part, 'difference') / unit:.2f}", fontsize=SMALL)
        column[0].set_title(f"{part.name}\n{column[0].get_title()}", fontsize=SMALL)
    for ax, method in zip(axes[:, 0], paths_by_method, strict=True):
        ax.set_ylabel(method)
    upper.supxlabel("dimension within the layer", fontsize=SMALL)
    unit_label = rf"difference, first segment, in $10^{{{exponent}}}$"
    upper.supylabel(unit_label, fontsize=SMALL, parse_math=True)
    _draw_shares(lower.subplots(), paths_by_method, parts)
    lower.legend(loc="outside lower center", ncols=count, frameon=False)
    return figure


def _rms(paths: Sequence[ReplayedSegment], part: Layer, what: str) -> float:
    """The root mean square of "difference" or "movement" in a layer, over all segments."""
    values = torch.stack([getattr(path, what)[part.place] for path in paths])
    return values.double().square().mean().sqrt().item()


def _draw_points(axes: Sequence[Axes], shown: torch.Tensor) -> None:
    """A layer's differences (methods, parameters) on one scale that leaves out, but counts, outliers."""
    sizes, dot = shown.abs(), 1.6 if shown.shape[1] < 3000 else 0.9
    # Fifteen medians are ten standard deviations of a normal distribution.
    limit = 1.08 * min(sizes.max().item(), 15 * sizes.median().item() or math.inf) or 1.0
    for number, ax in enumerate(axes):
        # Thousands of points: an image in the PDF.
        ax.plot(shown[number].numpy(), ".", color=f"C{number % 10}", mew=0, ms=dot, rasterized=True)
        ax.axhline(0, color="0.4", lw=0.5)
        ax.xaxis.set_major_locator(MaxNLocator(2, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4, symmetric=True))
        ax.set_ylim(-limit, limit)
        if beyond := int((sizes[number] > limit).sum()):
            ax.text(0.97, 0.03, f"{beyond} beyond", transform=ax.transAxes, ha="right", va="bottom",
                    fontsize=SMALL)  # fmt: skip


def _draw_shares(ax: Axes, paths_by_method: _Paths, parts: Sequence[Layer]) -> None:
    """Bars: the RMS difference over all segments in per cent of the teacher's own RMS movement."""
    shares = {}
    for method, paths in paths_by_method.items():
        moved = {part.name: _rms(paths, part, "movement") or math.inf for part in parts}
        shares[method] = {p.name: 100 * _rms(paths, p, "difference") / moved[p.name] for p in parts}
    for bars in grouped_bars(ax, shares, [part.name for part in parts]):
        ax.bar_label(bars, fmt="%.0f" if len(shares) > 2 else "%.1f", fontsize=SMALL, padding=1)
    ax.margins(y=0.15)
    segments = len(next(iter(paths_by_method.values())))
    title = f"RMS difference over all {segments} segments, in % of how far the teacher itself moved"
    ax.set(ylabel="RMS (%)", title=title)


@house_style()
def movement_shares(shares: Rows, layout: ParameterLayout, *, title: str = "") -> Figure:
    """Bars of the shares of a teacher's squared movement, in per cent: a group for each tensor, then for all.

    Args:
        shares: {what it is a share of: {name of a tensor, or "all": share}}, as `unmatched_shares` and
            `luck_shares` give them; a tensor that none has is left out.
        layout: of the teachers' network.
        title: above the figure.

    Raises:
        InputError: there is no share at all.
    """
    spoken = {name: part.name for name, part in zip(layout.names, tensors(layout), strict=True)}
    spoken["all"] = "all parameters"
    names = [name for name in spoken if any(name in values for values in shares.values())]
    require(bool(names), "there is no share to show: give {what: {tensor: share}}.")
    figure = new_figure(DOUBLE, 2.6, title=title)
    ax = figure.subplots()
    rows = {what: {name: 100 * values.get(name, 0.0) for name in names} for what, values in shares.items()}
    for bars in grouped_bars(ax, rows, names):
        ax.bar_label(bars, fmt=lambda share: f"{share:.{int(share < 10)}f}", fontsize="x-small", padding=1)
    ax.set_xticks(range(len(names)), [spoken[name].replace(" ", "\n") for name in names], fontsize="small")
    ax.set_ylabel("share of the teacher's\nsquared movement (%)")
    ax.legend()
    return figure
