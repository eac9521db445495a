"""What the first cell of a notebook makes: its settings, a study of them, and the place of what it keeps."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from iadd_lab.data.sets import ImageData
from iadd_lab.device import Execution
from iadd_lab.errors import check_like, require
from iadd_lab.notebooks.dask import named_runner
from iadd_lab.notebooks.profiles import HOW_FIELDS, read_profile, read_value, read_values
from iadd_lab.plots.accuracy import paired_intervals
from iadd_lab.plots.style import save_figure
from iadd_lab.store.artefacts import expanded
from iadd_lab.study.comparisons import PairedDifference, difference_frame
from iadd_lab.study.settings import Setting
from iadd_lab.study.study import Cell, Study
from iadd_lab.study.tables import Table, save_frame, save_table

# What a reader wants to know of each setting; `settings` have the rest.
_SHOWN = ("teacher_count", "iterations", "student_steps", "teacher_epochs", "image_rate", "alpha", "seeds")
_SHOWN += ("evaluation_epochs",)


class Page:
    """All that a notebook works with, by its profile and what the reader changed; making it prints that.

    Every value may be text in YAML, as `papermill -p` hands it on; None stands for the profile's.

    Args:
        name: of the notebook, without its ending; pictures and tables are kept under it.
        profile: a key of `PROFILES`, or the path of a YAML file of your own.
        data: keys of `DATASETS`; chooses the profile's rows for them where there are any.
        ipc: distilled images per class, in the same way.
        iterations: of matching parameters.
        seeds: how many distilled sets of each method.
        methods: keys of `METHODS`.
        change: any other fields of `Setting` and `Execution`, which win over all of these.
        device: "auto", "cpu", "cuda" or "cuda:N".
        runs_dir: the folder of runs; empty for `$IADD_RUNS`, or the user's cache folder.
        figures_dir: where pictures and tables are kept; empty: they are only shown.
        own: values that only this notebook knows. One that is a mapping is laid over the profile's.

    Attributes:
        profile: as titles name it: "cpu", or "changed cpu" where a setting is not the profile's.
        settings: one for each row.
        methods: keys of `METHODS`.
        own: the notebook's own values by name.
        study: computes cells of these settings, on the cluster that `$IADD_CLUSTER` names, if any.

    Raises:
        InputError: a name is unknown or a value impossible.
    """

    def __init__(
        self,
        name: str,
        *,
        profile: str = "quick",
        data: str | Sequence[str] | None = None,
        ipc: int | Sequence[int] | None = None,
        iterations: int | Sequence[int] | None = None,
        seeds: int | Sequence[int] | None = None,
        methods: Sequence[str] | None = None,
        change: dict[str, Any] | str | None = None,
        device: str = "auto",
        runs_dir: Path | str = "",
        figures_dir: Path | str = "",
        **own: Any,
    ):
        self.name, self.figures_dir = name, figures_dir and expanded(figures_dir)
        source = read_profile(profile)
        usual = source.page(name)
        rows = {"data": data, "ipc": ipc, "methods": methods}
        knobs = {"iterations": iterations, "seeds": seeds} | {key: own.pop(key, None) for key in HOW_FIELDS}
        chosen = source.page(name, **rows, **knobs, change=change)
        self.settings, self.methods = chosen.settings, chosen.methods
        self.own = {key: _own(key, read_value(value), usual.own) for key, value in own.items()}
        before, now = (Execution.of(None, page.how) for page in (usual, chosen))
        digits = (now.precision, now.instructions) == (before.precision, before.instructions)
        changed = not ({*self.settings} <= {*usual.settings} and digits)
        self.profile = f"changed {source.name}" if changed else source.name
        self.study = Study(runs_dir, how=now, device=device, runner=named_runner())
        print(self.title())
        for setting in self.settings:
            values = ", ".join(f"{name} {getattr(setting, name):g}" for name in _SHOWN)
            print(f"{setting.title}: {values}")
        given = read_values(rows | knobs) | (read_value(change) or {}) | read_values(own)
        said = ", ".join(f"{name} = {value}" for name, value in given.items() if value != {})
        if said:
            print("changed:", said)

    @property
    def setting(self) -> Setting:
        """The only one of the settings."""
        found = len(self.settings)
        require(found == 1, f"{self.name} works with one setting, not with {found}: give one data and ipc.")
        return self.settings[0]

    @property
    def data(self) -> ImageData:
        """The images of the first setting."""
        return self.study.data(self.setting)

    @property
    def where(self) -> str:
        """On which device, and where the runs lie: for people, since it differs from machine to machine."""
        return f"on {self.study.how.place}, runs in {self.study.runs.name}"

    def title(self, *parts: str) -> str:
        """A title of these parts that names the profile: "CIFAR-10, IPC 1, cpu profile"."""
        return ", ".join([*parts, f"{self.profile} profile"])

    def save_figure(self, figure: Figure, suffix: str = "") -> Figure:
        """Keep a picture under the notebook's name, and give it back to be shown."""
        return save_figure(figure, self.figures_dir, self._file(suffix))

    def save_table(self, table: Table, *, records: pd.DataFrame) -> Table:
        """Keep a table, with `records` as its CSV, and give it back to be shown."""
        return save_table(table, self.figures_dir, self.name, records=records)

    def save_frame(self, frame: pd.DataFrame, suffix: str = "", *, name: str = "") -> pd.DataFrame:
        """Keep a frame as CSV under the notebook's name, or under another `name`, and give it back."""
        return save_frame(frame, self.figures_dir, name or self._file(suffix))

    def save_differences(
        self, differences: Sequence[PairedDifference], title: str, *, name: str = ""
    ) -> Figure | None:
        """Keep paired differences as CSV and as a picture, print them, and give the picture back, if any."""
        self.save_frame(difference_frame(differences), "paired_differences", name=name)
        print(*differences, sep="\n")
        shown = paired_intervals(differences, title=title) if differences else None
        return shown and self.save_figure(shown, "paired_differences")

    def save_sets(self, cells: Iterable[Cell]) -> list[Path]:
        """Keep the first distilled set of each cell that matches parameters, and give back the files."""
        return self.study.save_sets(cells, self.figures_dir, self.name)

    def _file(self, suffix: str) -> str:
        return f"{self.name}_{suffix}" if suffix else self.name


def _own(name: str, value: Any, usual: Mapping[str, Any]) -> Any:
    """A notebook's own value: given, or the profile's, or both where they are mappings."""
    if isinstance(value, dict):
        return usual.get(name, {}) | value
    require(value is not None or name in usual, f"{name} is None, and the profile has no {name}: give one.")
    if value is not None:
        check_like(name, value, usual.get(name))
    return usual[name] if value is None else value
