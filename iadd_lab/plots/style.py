"""One look for every figure, made for a paper's columns, and the one place that writes figures to disk."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import seaborn as sns
from cycler import cycler
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from iadd_lab.store.artefacts import atomic_path

SINGLE, DOUBLE, PAGE = 3.4, 7.0, 9.0  # inches: one column of a paper, both, and the height of a page
SMALL, MEDIUM, LARGE = 7.0, 8.0, 9.0  # points: ticks and notes, labels, the figure's title

_SIZES = {
    "font.size": MEDIUM,
    "axes.titlesize": MEDIUM,
    "axes.labelsize": MEDIUM,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.title_fontsize": SMALL,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
    "patch.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
    "axes.labelpad": 2,
    "axes.titlepad": 4,
}
_FONTS = {
    # It comes with matplotlib and has every Greek letter: the same picture on every machine.
    "font.family": ["DejaVu Sans"],
    "mathtext.fontset": "dejavusans",
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
}


@contextmanager
def house_style() -> Iterator[None]:
    """Figures made within it, or in a function that it decorates, get the common look."""
    look = sns.axes_style("whitegrid") | sns.plotting_context("paper") | _SIZES | _FONTS
    colours = cycler(color=sns.color_palette("colorblind"))
    with matplotlib.rc_context(look | {"axes.prop_cycle": colours}):
        yield


class _HouseFigure(Figure):
    """A figure that a notebook shows once, where it is returned; pyplot knows nothing of it."""

    def savefig(self, *arguments, **options) -> None:
        """As any figure's, in the common look: ticks are made only when a figure is drawn."""
        with house_style():
            super().savefig(*arguments, **options)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, dpi=110)
        return buffer.getvalue()


def new_figure(width: float, height: float, *, title: str = "", layout: str | None = "constrained") -> Figure:
    """An empty figure of `width` × `height` inches; with layout None, everything is placed by hand."""
    figure = _HouseFigure(figsize=(width, height), layout=layout)
    if title and layout is not None:
        figure.suptitle(fill_title(title, width), fontsize=LARGE)
    return figure


def fill_title(title: str, width: float) -> str:
    """`title` in as many lines as a figure of `width` inches needs."""
    return textwrap.fill(title, max(int(width * 15), 10))  # LARGE letters to an inch


def plain_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis as plain numbers, few enough not to run into each other."""
    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low)
    digits = (1, 2, 5) if decades < 2 else (1, 3) if decades < 3.5 else (1,)
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def signed(value: float, form: str) -> str:
    """A number with a true minus sign."""
    return format(value, form).replace("-", "−")


def save_figure(figure: Figure, folder: Path | str, name: str) -> Figure:
    """Write `figure` to `folder`/`name`.png and .pdf, atomically, and return it for the notebook to show.

    The same figure gives the same bytes: no file says when or by which version it was made. An empty
    `folder` writes nothing.
    """
    if folder:
        formats = {
            ".png": {"dpi": 200, "metadata": {"Software": None}},
            # The resolution of what is rasterised in it: clouds of points.
            ".pdf": {"dpi": 200, "metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
        }
        for suffix, options in formats.items():
            with atomic_path(Path(folder) / f"{name}{suffix}") as temporary:
                figure.savefig(temporary, **options)
    return figure
