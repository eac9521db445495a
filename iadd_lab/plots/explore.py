"""A slider and lists over stored runs, in a notebook; a plain figure where nothing can be moved."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from iadd_lab.errors import InputError, require
from iadd_lab.plots.exploration import check_views, exploration
from iadd_lab.study.views import View, open_run, stored_runs

# One of these is set for a kernel that someone looks at; papermill and nbconvert set none.
_FRONT_ENDS = ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG")
_NOTHING = "nothing"


def explore(
    views: Sequence[View], *, image: int = 0, count: int = 8, interactive: bool | None = None, **options: Any
) -> Explorer | Figure:
    """What the last line of a cell shows: widgets over one run, or two side by side, or a figure of them.

    Args:
        views: the runs to begin with, one or two.
        image: which distilled image of the first run is picked to begin with.
        count: how many nearest real images of it to show.
        interactive: widgets, or the figure; None: widgets where a front end has started the kernel, the
            figure where nobody can move anything (papermill, nbconvert, nbval).
        options: `runs` and `data_root` of the `Explorer`.

    Raises:
        InputError: there is no view, or more than two, `runs` is no folder of runs, or the first view has no
            such image.
    """
    if interactive is None:
        interactive = any(os.environ.get(name) for name in _FRONT_ENDS)
    show = partial(Explorer, **options) if interactive else exploration
    return show(views, image=image, count=count)


class Explorer(widgets.VBox):
    """The widgets: `run`, `beside`, `label`, `number` and `iteration` decide what `picture` shows.

    On pages that know no widgets, the figure stands in their place.

    Args:
        views: the runs to begin with, one or two.
        runs: a folder of runs that can be chosen beside them; None offers `views` alone.
        data_root: where the real images of those lie; None for the usual place.
        image: which distilled image of the first run is picked to begin with.
        count: how many nearest real images of it to show.
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
        check_views(views, image=image, count=count)
        given = {view.title: view for view in views}
        sentence = f"both views are called {views[0].title!r}: give them titles that tell them apart."
        require(len(given) == len(views), sentence)
        found = stored_runs(runs, without=views) if runs is not None else {}
        names, shown, self.count = [*given, *found], [*given, _NOTHING], count
        options = {"runs": runs, "data_root": data_root}
        # A stored run is opened when it is chosen first, and nothing drawn anew when the slider comes back.
        self._view = cache(lambda name: given.get(name) or open_run(found[name], title=name, **options))
        self._drawn = lru_cache(64)(lambda *_: self.figure()._repr_png_())
        wide = {"layout": widgets.Layout(width="420px"), "style": {"description_width": "70px"}}
        choice = partial(widgets.Dropdown, **wide)
        self.run = choice(options=names, value=shown[0], description="run")
        self.beside = choice(options=[_NOTHING, *names], value=shown[1], description="beside it")
        self.label, self.number = choice(description="class"), choice(description="its image")
        self.iteration = widgets.SelectionSlider(options=[0], description="iteration", **wide)
        self.messages = widgets.Output()  # and progress bars, which a callback has no cell for
        self.picture = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        self._offer(views[0], *views[0].number(image), views[0].iterations[-1])
        rows = (self.run, self.beside), (self.label, self.number), (self.iteration,)
        self._controls = [control for row in rows for control in row]
        for control in self._controls:
            control.observe(self.draw, names="value")
        super().__init__([*map(widgets.HBox, rows), self.messages, self.picture])

    @property
    def views(self) -> list[View]:
        """The runs that are chosen."""
        chosen = dict.fromkeys([self.run.value, self.beside.value])
        return [self._view(name) for name in chosen if name != _NOTHING]

    def figure(self) -> Figure:
        """What is chosen, as a figure."""
        image = self.views[0].row(self.label.value, self.number.value)
        return exploration(self.views, iteration=self.iteration.value, image=image, count=self.count)

    def draw(self, change: Mapping[str, Any] | None = None) -> bytes:
        """Show what is chosen, or say why it can't be shown; return the picture as a PNG."""
        if not self._settling:
            self.messages.clear_output()
            with self.messages:
                try:
                    if change and change["owner"] is self.run:
                        moment = self.label.value, self.number.value, self.iteration.value
                        self._offer(self._view(self.run.value), *moment)
                    self.picture.value = self._drawn(*(control.value for control in self._controls))
                except InputError as error:
                    print(f"This can't be shown: {error}")
        return bytes(self.picture.value)

    def _offer(self, view: View, label: int, number: int, iteration: int) -> None:
        """Offer what a run has, and choose what is nearest to what was shown."""
        self._settling = True  # while values change that belong together
        classes, ipc = view.distilled.classes, view.distilled.ipc
        self.label.options = [(name, place) for place, name in enumerate(classes)]
        self.number.options = [(str(place + 1), place) for place in range(ipc)]
        self.iteration.options = view.iterations
        self.label.index, self.number.index = min(label, len(classes) - 1), min(number, ipc - 1)
        self.iteration.index = view.place(iteration)
        self._settling = False

    def _repr_mimebundle_(self, **options: object) -> dict[str, Any]:
        """The widgets, and the figure for pages that do not know them."""
        picture = base64.b64encode(self.draw()).decode()
        return {**super()._repr_mimebundle_(**options), "image/png": picture}
