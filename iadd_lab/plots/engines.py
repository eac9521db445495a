"""What the gradient engines cost in memory and time, and the training beside them, from `bench.measure`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from iadd_lab.errors import require
from iadd_lab.plots.style import DOUBLE, SINGLE, SMALL, house_style, new_figure, plain_ticks

_REFERENCE = "full"  # the engine that the others are compared with
# The same in every figure, whichever engines are in it: colour, marker and line. Engines that need the same
# memory stay apart: their markers are empty, and a broken line lets the one below be seen.
_LOOKS = {
    "full": ("C0", "o", "-"),
    "adjoint": ("C1", "s", "-"),
    "frozen": ("C2", "^", "--"),
    "compiled": ("C4", "D", "-."),
    "full_reusing": ("C9", "v", ":"),
}
_OTHER = ("C5", "P", ":")
_LIMIT = {"color": "black", "ls": (0, (2.5, 1.2)), "lw": 1.0}


@house_style()
def engine_costs(measured: Mapping[str, Any], *, title: str = "") -> Figure:
    """Peak memory and time per student step of each engine, one row of panels for each number of images.

    Above a bar stands its time as a multiple of the full unroll's. The dashed line across a bar is the time
    that the engine's convolutions would take at the rate of the machine's matrix products.

    Args:
        measured: what `bench.measure` returns.
        title: above the figure.

    Raises:
        InputError: no engine was measured.
    """
    records = measured["engines"]
    require(bool(records), "there is no engine to show: measure at least one, as in BenchConfig.engines.")
    counts = sorted({record["images"] for record in records})
    unit = "GB" if max(record["peak_mb"] for record in records) >= 1000 else "MB"
    figure = new_figure(DOUBLE, 0.6 + 1.75 * len(counts) + (0.2 if title else 0), title=title)
    rows = figure.subplots(len(counts), 2, squeeze=False)
    for memory, _ in rows[1:]:
        memory.sharey(rows[0][0])  # to be compared from row to row
    for count, (memory, time) in zip(counts, rows, strict=True):
        shown = [record for record in records if record["images"] == count]
        _draw_memory(memory, shown, unit)
        _draw_times(time, shown, measured["matmul_gflops"])
        for ax in (memory, time):
            ax.set_title("1 image per step" if count == 1 else f"{count} images per step")
    peaks = [_in_unit(record["peak_mb"], unit) for record in records]
    room = max(1.8, (max(peaks) / min(peaks)) ** 0.22)  # for words; and small differences look small
    for memory, _ in rows:
        memory.set_ylim(min(peaks) / room, room * max(peaks))
        plain_ticks(memory.yaxis)
    for ax in rows[-1]:
        ax.set_xlabel("student steps J")
    _draw_legend(figure, records, measured["matmul_gflops"])
    return figure


def _draw_memory(ax: Axes, records: Sequence[Mapping[str, Any]], unit: str) -> None:
    """Peak memory against J; the highest and the lowest value at the largest J are written out."""
    for engine in _engines(records):
        points = sorted((r["steps"], _in_unit(r["peak_mb"], unit)) for r in records if r["engine"] == engine)
        ax.plot(*zip(*points, strict=True), **_line(engine))
    steps = _steps(records)
    last = [_in_unit(r["peak_mb"], unit) for r in records if r["steps"] == steps[-1]]
    extremes = {min(last): (-4, "top"), max(last): (4, "bottom")}  # one, where they are the same
    for value, (away, side) in extremes.items():
        ax.annotate(f"{_short(value)} {unit}", (steps[-1], value), xytext=(0, away),
                    textcoords="offset points", ha="center", va=side, fontsize=SMALL)  # fmt: skip
    ax.set(xscale="log", yscale="log", ylabel=f"peak memory ({unit})")
    ax.margins(x=0.12)
    ax.set_xticks(steps, [str(count) for count in steps])
    ax.xaxis.set_minor_locator(NullLocator())


def _draw_times(ax: Axes, records: Sequence[Mapping[str, Any]], matmul_gflops: float) -> None:
    """A group of bars for each J, with each engine's ratio to the full unroll and its limit."""
    engines, steps = _engines(records), _steps(records)
    reference = {r["steps"]: r["seconds"] for r in records if r["engine"] == _REFERENCE}
    width = 0.84 / len(engines)
    tops = []
    for record in records:
        number = engines.index(record["engine"]) - (len(engines) - 1) / 2
        place = steps.index(record["steps"]) + number * width
        time = 1000 * record["seconds"] / record["steps"]
        limit = time * record["conv_gflops"] / matmul_gflops
        ax.bar(place, time, 0.92 * width, color=_line(record["engine"])["color"])
        ax.plot([place - width / 2, place + width / 2], [limit, limit], **_LIMIT, solid_capstyle="butt")
        tops.append(max(time, limit))
        if record["engine"] != _REFERENCE and record["steps"] in reference:
            ratio = record["seconds"] / reference[record["steps"]]
            ax.annotate(f"×{ratio:.2f}", (place, tops[-1]), xytext=(0, 2.5), textcoords="offset points",
                        ha="center", va="bottom", rotation=90, fontsize=SMALL)  # fmt: skip
    ax.set_xticks(range(len(steps)), [str(count) for count in steps])
    ax.set(ylabel="time per step (ms)", xlim=(-0.5, len(steps) - 0.5), ylim=(0, 1.42 * max(tops)))
    ax.grid(axis="x", visible=False)


def _draw_legend(figure: Figure, records: Sequence[Mapping[str, Any]], matmul_gflops: float) -> None:
    """One entry for each engine, and what the numbers above the bars and the dashed lines are."""
    titles = {record["engine"]: record["title"] for record in records}
    handles = []
    for engine, name in titles.items():
        handles.append(Line2D([], [], **_line(engine), label=name))
    limit = f"a bar's convolutions at {matmul_gflops:.0f} GFLOP/s, the rate of matrix products"
    handles.append(Line2D([], [], **_LIMIT, label=limit))
    if _REFERENCE in titles and len(titles) > 1:
        handles.append(Line2D([], [], ls="", label=f"×: time relative to {titles[_REFERENCE]}"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)


@house_style()
def training_costs(measured: Mapping[str, Any], *, title: str = "") -> Figure:
    """How long networks train in each way, a group of bars for each task, relative to its first way.

    The tasks' own times differ too much for one axis: the seconds of an epoch stand beside the bars.

    Args:
        measured: what `bench.measure` returns.
        title: above the figure.

    Raises:
        InputError: no training was measured.
    """
    records = measured["training"]
    require(bool(records), "there is no training to show: measure some, with BenchConfig(training=True).")
    tasks = list(dict.fromkeys(record["task"] for record in records))
    ways = list(dict.fromkeys(record["way"] for record in records))
    first = {task: next(r["seconds"] for r in records if r["task"] == task) for task in tasks}
    figure = new_figure(SINGLE, 0.8 + 0.42 * len(tasks) + (0.2 if title else 0), title=title)
    ax = figure.subplots()
    height = 0.8 / len(ways)
    for number, way in enumerate(ways):
        shown = {record["task"]: record["seconds"] for record in records if record["way"] == way}
        places = [tasks.index(task) + (number - (len(ways) - 1) / 2) * height for task in shown]
        ratios = [seconds / first[task] for task, seconds in shown.items()]
        ax.barh(places, ratios, 0.92 * height, color=f"C{number % 10}", label=way)
        for place, ratio, seconds in zip(places, ratios, shown.values(), strict=True):
            text = f"{_short(seconds)} s" + (f", ×{ratio:.2f}" if number else "")
            ax.annotate(text, (ratio, place), xytext=(2.5, 0), textcoords="offset points",
                        ha="left", va="center", fontsize=SMALL)  # fmt: skip
    ax.set_yticks(range(len(tasks)), [textwrap.fill(task, 20) for task in tasks])
    longest = max(record["seconds"] / first[record["task"]] for record in records)
    ax.set(xlabel=f"time of an epoch, relative to the {ways[0]}", xlim=(0, 1.35 * longest))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=len(ways), frameon=False)
    return figure


def _engines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(record["engine"] for record in records))


def _steps(records: Sequence[Mapping[str, Any]]) -> list[int]:
    return sorted({record["steps"] for record in records})


def _line(engine: str) -> dict[str, Any]:
    color, marker, style = _LOOKS.get(engine, _OTHER)
    return {"color": color, "marker": marker, "ls": style, "ms": 4.5, "mfc": "none"}


def _short(value: float) -> str:
    return f"{value:#.2g}" if value < 9.95 else f"{value:.0f}"  # two digits at least


def _in_unit(megabytes: float, unit: str) -> float:
    return megabytes / 1000 if unit == "GB" else megabytes
