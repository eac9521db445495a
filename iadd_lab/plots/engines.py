"""What the gradient engines cost in memory and time, and the training beside them, from `bench.measure`."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iadd_lab.errors import require
from iadd_lab.plots.style import DOUBLE, SINGLE, SMALL, grouped_bars, house_style, new_figure

_REFERENCE = "full"  # the engine that the others are compared with
# The same in every figure, whichever engines are in it.
_COLOURS = {"full": "C0", "adjoint": "C1", "frozen": "C2", "compiled": "C4", "full_reusing": "C9",
            "graphs": "C5", "compiled_graphs": "C6"}  # fmt: skip
_LIMIT = {"color": "black", "ls": (0, (2.5, 1.2)), "lw": 1.0}


@house_style()
def engine_costs(measured: Mapping[str, Any], *, title: str = "") -> Figure:
    """Peak memory and time per student step of each engine, one row of panels for each number of images.

    Above a bar of time stands its multiple of the full unroll's. The dashed line across it is the time that
    the engine's convolutions would take at the rate of the machine's matrix products.

    Args:
        measured: what `bench.measure` returns.
        title: above the figure.

    Raises:
        InputError: no engine was measured.
    """
    require(bool(measured["engines"]), "there is no engine to show: measure one, as in BenchConfig.engines.")
    records, rate = pd.DataFrame(measured["engines"]), measured["matmul_gflops"]
    unit, size = ("GB", 1000) if records.peak_mb.max() >= 1000 else ("MB", 1)
    records["memory"], records["time"] = records.peak_mb / size, 1000 * records.seconds / records.steps
    records["limit"] = records.time * records.conv_gflops / rate
    reference = records[records.engine == _REFERENCE].set_index(["images", "steps"]).time.rename("reference")
    records = records.join(reference, on=["images", "steps"])
    panels = {"memory": f"peak memory ({unit})", "time": "time per step (ms)"}
    counts = records.groupby("images")
    figure = new_figure(DOUBLE, 0.6 + 1.75 * len(counts), title=title)
    axes = figure.subplots(len(counts), 2, squeeze=False)
    for (count, own), row in zip(counts, axes, strict=True):
        row[0].sharey(axes[0][0])  # to be compared from row to row
        heading = "1 image per step" if count == 1 else f"{count} images per step"
        for ax, (what, label) in zip(row, panels.items(), strict=True):
            _draw_bars(ax, own, what)
            ax.set(title=heading, xlabel="student steps J", ylabel=label)
    first, titles = axes[0][1], dict(zip(records.engine, records.title, strict=True))
    limit = f"a bar's convolutions at {rate:.0f} GFLOP/s, the rate of matrix products"
    first.plot([], [], **_LIMIT, label=limit)
    if _REFERENCE in titles and len(titles) > 1:
        first.plot([], [], " ", label=f"×: time relative to {titles[_REFERENCE]}")
    handles = [*first.containers, *first.lines]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _draw_bars(ax: Axes, records: pd.DataFrame, what: str) -> None:
    """A bar for each engine and number of steps, labelled; those of time have their limits across them."""
    engines = dict(list(records.groupby("title", sort=False)))
    rows = {title: own.set_index("steps")[what].to_dict() for title, own in engines.items()}
    colors = {title: _COLOURS[own.engine.iloc[0]] for title, own in engines.items()}
    drawn = grouped_bars(ax, rows, sorted(records.steps.unique()), colors=colors)
    for bars, own in zip(drawn, engines.values(), strict=True):
        labels = own[what].map(_short)
        if what == "time":
            ratios = (own.time / own.reference).mask(own.engine == _REFERENCE)
            labels = ["" if pd.isna(ratio) else f"×{ratio:.2f}" for ratio in ratios]
            left = [bar.get_x() for bar in bars]
            ax.hlines(own.limit, left, [bar.get_x() + bar.get_width() for bar in bars], **_LIMIT)
        ax.bar_label(bars, labels, rotation=90, padding=2.5, fontsize=SMALL)
    ax.margins(y=0.35)


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
    records = pd.DataFrame(measured["training"])
    require(len(records) > 0, "there is no training to show: measure some, with BenchConfig(training=True).")
    records["task"] = records.task.str.wrap(20)
    seconds = records.pivot(index="way", columns="task", values="seconds")
    seconds = seconds.loc[records.way.unique(), records.task.unique()]
    ratios, first = seconds / seconds.iloc[0], seconds.index[0]
    figure = new_figure(SINGLE, 0.8 + 0.42 * len(seconds.columns), title=title)
    ax = figure.subplots()
    drawn = grouped_bars(ax, ratios.T.to_dict(), list(ratios), horizontal=True)
    for bars, way in zip(drawn, seconds.index, strict=True):
        texts = seconds.loc[way].map(_short) + " s"
        if way != first:
            texts += ratios.loc[way].map(", ×{:.2f}".format)
        ax.bar_label(bars, texts, padding=2.5, fontsize=SMALL)
    ax.set(xlabel=f"time of an epoch, relative to the {first}", xlim=(0, 1.35 * ratios.to_numpy().max()))
    ax.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=len(seconds), frameon=False)
    return figure


def _short(value: float) -> str:
    return f"{value:#.2g}" if value < 9.95 else f"{value:.0f}"  # two digits at least
