"""One look for every figure, made for a paper's columns, and the one place that writes figures to disk."""

import io
import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
import seaborn as sns
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from iadd_lab.store.artefacts import atomic_path

SINGLE, DOUBLE, PAGE = 3.4, 7.0, 9.0  # inches: one column of a paper, both, and the height of a page
_HATCHES = (None, "///", "...")
Rows = Mapping[str, Mapping[str, float]]  # {label: {group: value}}, as `grouped_bars` draws them
SMALL, MEDIUM, LARGE = 7.0, 8.0, 9.0  # points: ticks and notes, labels, the figure's title

# It comes with matplotlib and has every Greek letter: the same picture on every machine. `names.readable`
# adds fonts that class names need.
FAMILIES = ["DejaVu Sans"]
_LOOK = {
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), MEDIUM),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), SMALL),
    **dict.fromkeys(("axes.linewidth", "patch.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size", "xtick.major.pad", "ytick.major.pad"), 2),
    **{"grid.linewidth": 0.5, "lines.linewidth": 1.2, "axes.labelpad": 2, "axes.titlepad": 4},
    "text.parse_math": False,  # a dollar in a name is a dollar: formulas ask to be read as such
    "mathtext.fontset": "dejavusans",
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
    "axes.prop_cycle": cycler(color=sns.color_palette("colorblind")),
}


@contextmanager
def house_style() -> Iterator[None]:
    """Figures made within it, or in a function that it decorates, get the common look on every machine."""
    look = sns.axes_style("whitegrid") | sns.plotting_context("paper") | _LOOK | {"font.family": FAMILIES}
    with matplotlib.style.context(["default", look]), warnings.catch_warnings():  # whatever the user's is
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # in titles; of class names it was said
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
    """An empty figure of `width` × `height` inches, and room for its title above them.

    With `layout` None everything, the title too, is placed by hand.
    """
    lines = textwrap.fill(title, max(int(width * 15), 10))  # LARGE letters to an inch
    room = 0.16 * (lines.count("\n") + 1) + 0.04 if title else 0.0
    figure = _HouseFigure(figsize=(width, height + room), layout=layout)
    if title:
        by_hand = {} if layout else {"y": 1 - 0.03 / (height + room)}
        figure.suptitle(lines, fontsize=LARGE, **by_hand)
    return figure


def plain_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis as plain numbers, few enough not to run into each other."""
    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low)
    digits = (1, 2, 5) if decades < 2 else (1, 3) if decades < 3.5 else (1,)
    axis.set(major_locator=LogLocator(subs=digits), major_formatter="{x:g}", minor_locator=NullLocator())


def grouped_bars(
    ax: Axes, rows: Rows, groups: Sequence[str], *, colors: Mapping[str, str] = {}, horizontal: bool = False
) -> list[BarContainer]:
    """A bar for each value of {label: {group: value}}, side by side in the groups; a container a label."""
    width, bars = 0.84 / len(rows), []
    draw, ticks = (ax.barh, ax.set_yticks) if horizontal else (ax.bar, ax.set_xticks)
    for number, (label, values) in enumerate(rows.items()):
        places = [groups.index(name) + (number - (len(rows) - 1) / 2) * width for name in values]
        # After ten rows, colours come again.
        look = {"color": colors.get(label, f"C{number % 10}"), "hatch": _HATCHES[number // 10 % 3]}
        bars.append(draw(places, list(values.values()), 0.92 * width, label=label, **look))
    ticks(range(len(groups)), groups)
    ax.grid(axis="y" if horizontal else "x", visible=False)
    return bars


def signed(value: float, form: str) -> str:
    """A number with a true minus sign."""
    return format(value, form).replace("-", "−")


def save_figure(figure: Figure, folder: Path | str, name: str) -> Figure:
    """Write `figure` to `folder`/`name`.png and .pdf, atomically, and return it for the notebook to show.

    The same figure gives the same bytes: no file says when or by which version it was made. An empty
    `folder` writes nothing.
    """
    left_out = {".png": ("Software",), ".pdf": ("CreationDate", "Creator", "Producer")}
    for suffix, keys in left_out.items() if folder else ():
        with atomic_path(Path(folder) / f"{name}{suffix}") as temporary:
            # In a PDF, the resolution of what is rasterised in it: clouds of points.
            figure.savefig(temporary, dpi=200, metadata=dict.fromkeys(keys))
    return figure
