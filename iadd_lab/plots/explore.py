"""A slider and lists over stored runs, in a notebook; a plain figure where nothing can be moved."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import iadd_lab.plots
from iadd_lab.errors import InputError, check_whole, require
from iadd_lab.study.views import View, open_run, stored_runs

# One of these is set for a kernel that someone looks at; papermill and nbconvert set none.
_FRONT_ENDS = ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG")
_NOTHING = "nothing"
_KEPT = 64  # pictures that need not be drawn anew when the slider comes back


def explore(
    views: Sequence[View],
    *,
    runs: Path | None = None,
    data_root: Path | None = None,
    image: int = 0,
    count: int = 8,
    interactive: bool | None = None,
) -> Explorer | Figure:
    """What the last line of a cell shows: widgets over one run, or two side by side, or a figure of them.

    Args:
        views: the runs to begin with, one or two.
        runs: a folder of runs that can be chosen beside them; None offers `views` alone.
        data_root: where the real images of those lie; None for the usual place.
        image: which distilled image of the first run is picked to begin with.
        count: how many nearest real images of it to show.
        interactive: widgets, or the figure; None: widgets where a front end has started the kernel, the
            figure where nobody can move anything (papermill, nbconvert, nbval).

    Raises:
        InputError: there is no view, or more than two, `runs` is no folder of runs, or the first view has no
            such image.
    """
    if interactive is None:
        interactive = any(os.environ.get(name) for name in _FRONT_ENDS)
    if interactive:
        return Explorer(views, runs=runs, data_root=data_root, image=image, count=count)
    return iadd_lab.plots.exploration(views, image=image, count=count)


class Explorer:
    """The widgets: `run`, `beside`, `label`, `number` and `iteration` decide what `picture` shows.

    On pages that know no widgets, the figure stands in their place. The arguments are those of `explore`.
    """

    def __init__(
        self,
        views: Sequence[View],
        *,
        runs: Path | None = None,
        data_root: Path | None = None,
        image: int = 0,
        count: int = 8,
    ):
        require(
            0 < len(views) <= 2,
            f"there are {len(views)} views; give one, or two to begin side by side.",
        )
        check_whole("image", image, minimum=0, maximum=len(views[0].distilled.labels) - 1)
        check_whole("count", count, minimum=1)
        self.count, self.runs, self._data_root = count, runs, data_root
        known = frozenset(view.identity for view in views if view.identity)
        self._stored = stored_runs(runs, without=known) if runs is not None else {}
        self._views = {view.title: view for view in views}
        require(
            len(self._views) == len(views),
            f"both views are called {views[0].title!r}: give them titles that tell them apart.",
        )
        self._png = lru_cache(maxsize=_KEPT)(self._draw_png)
        self._settling = True  # while values change that belong together
        self._make_widgets([view.title for view in views])
        self._offer(views[0], *views[0].number(image), views[0].iterations[-1])

    def _make_widgets(self, shown: Sequence[str]) -> None:
        import ipywidgets as widgets  # half a second that only a notebook spends

        names = list(dict.fromkeys([*self._views, *self._stored]))
        wide = {"layout": widgets.Layout(width="420px"), "style": {"description_width": "70px"}}
        self.run = widgets.Dropdown(options=names, value=shown[0], description="run", **wide)
        beside = shown[1] if len(shown) > 1 else _NOTHING
        self.beside = widgets.Dropdown(
            options=[_NOTHING, *names], value=beside, description="beside it", **wide
        )
        self.label = widgets.Dropdown(description="class", **wide)
        self.number = widgets.Dropdown(description="its image", **wide)
        self.iteration = widgets.SelectionSlider(options=[0], description="iteration", **wide)
        self.message = widgets.HTML()
        self.log = widgets.Output()  # for progress bars, which a callback has no cell for
        self.picture = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        rows = [(self.run, self.beside), (self.label, self.number), (self.iteration, self.message)]
        self.box = widgets.VBox([*map(widgets.HBox, rows), self.log, self.picture])
        self.run.observe(self._change_run, names="value")
        for control in (self.beside, self.label, self.number, self.iteration):
            control.observe(self.draw, names="value")

    @property
    def views(self) -> list[View]:
        """The runs that are chosen; a stored one is opened when it is chosen first."""
        chosen = dict.fromkeys([self.run.value, self.beside.value])
        return [self._view(name) for name in chosen if name != _NOTHING]

    def figure(self) -> Figure:
        """What is chosen, as a figure."""
        first, *_ = views = self.views
        image = first.row(self.label.value, self.number.value)
        return iadd_lab.plots.exploration(
            views, iteration=self.iteration.value, image=image, count=self.count
        )

    def draw(self, _: object = None) -> bytes:
        """Show what is chosen, or say why it can't be shown; return the picture as a PNG."""
        if not self._settling:
            self.message.value = "<i>drawing …</i>"
            self.log.clear_output()
            with self.log:
                self.message.value = self._told(self._show)
        return bytes(self.picture.value)

    def _show(self) -> None:
        controls = (self.run, self.beside, self.label, self.number, self.iteration)
        self.picture.value = self._png(*(control.value for control in controls))

    def _draw_png(self, *_: object) -> bytes:
        return self.figure()._repr_png_()

    def _told(self, act: Callable[[], None]) -> str:
        """Do it; the sentence, as HTML, that says why it can't be done, if so."""
        try:
            act()
        except InputError as error:
            return html.escape(f"This can't be shown: {error}")
        return ""

    def _view(self, name: str) -> View:
        if name not in self._views:
            self._views[name] = open_run(
                self._stored[name], runs=self.runs, title=name, data_root=self._data_root
            )
        return self._views[name]

    def _change_run(self, _: object) -> None:
        """Offer what another run has, and choose what is nearest to what was shown."""
        self.log.clear_output()
        with self.log:
            self.message.value = self._told(self._offer_chosen)
        if not self.message.value:
            self.draw()

    def _offer_chosen(self) -> None:
        view = self._view(self.run.value)
        self._offer(view, self.label.value, self.number.value, self.iteration.value)

    def _offer(self, view: View, label: int, number: int, iteration: int) -> None:
        self._settling = True
        classes = view.distilled.classes
        self.label.options = [(name, place) for place, name in enumerate(classes)]
        self.label.value = min(label, len(classes) - 1)
        self.number.options = [(str(place + 1), place) for place in range(view.distilled.ipc)]
        self.number.value = min(number, view.distilled.ipc - 1)
        self.iteration.options = view.iterations
        self.iteration.value = view.iterations[view.place(iteration)]
        self._settling = False

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """The widgets, and the figure for pages that do not know them."""
        picture = base64.b64encode(self.draw()).decode()
        return {**self.box._repr_mimebundle_(), "image/png": picture}
