"""One look for all figures, and the one place that writes them."""

from __future__ import annotations

import io
from contextlib import contextmanager
from pathlib import Path

import seaborn as sns
from matplotlib.figure import Figure

from iadd_lab.store import atomic_path

WIDTH = 7.0  # inches: a two-column paper's text width
COLORS = sns.color_palette("colorblind").as_hex()  # ten, told apart by colour-blind readers too

# Nothing in a file depends on when or by which version it was drawn: the same picture has the same bytes.
_FORMATS = {
    ".png": {"dpi": 200, "metadata": {"Software": None}},
    ".pdf": {"dpi": 200, "metadata": {"CreationDate": None, "Producer": None}},
}


@contextmanager
def style():
    """Seaborn's paper style with a colour-blind palette, legible at column width."""
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"), sns.color_palette("colorblind"):
        yield


class NotebookFigure(Figure):
    """A figure that a notebook shows once, where it is returned; pyplot knows nothing of it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, dpi=110, metadata={"Software": None})
        return buffer.getvalue()


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure of `width` × `height` inches."""
    figure = NotebookFigure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def save_figure(figure: Figure, folder: Path | str, name: str) -> Figure:
    """Write `figure` to `folder`/`name`.png and .pdf, atomically, and return it for the notebook to show.

    An empty `folder` writes nothing.
    """
    if folder:
        for suffix, options in _FORMATS.items():
            with atomic_path(Path(folder) / f"{name}{suffix}") as temporary:
                figure.savefig(temporary, **options)
    return figure
