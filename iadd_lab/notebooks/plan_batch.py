"""What a batch is to execute, with which parameters, and into which folder; all checked, nothing done."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from iadd_lab.data.sets import require_data
from iadd_lab.errors import choose, require
from iadd_lab.notebooks.notebook import UNKNOWN, Notebook, read_notebooks
from iadd_lab.notebooks.profiles import Profile, check_known, merge, read_given, read_profile
from iadd_lab.store.configs import fingerprint

PROFILES = {
    "quick": "embedded real data (8×8 digits), minutes on two cores",
    "cpu": "real image data at reduced scale, hours on two cores",
    "paper": "the literature's full hyper-parameters, for a GPU",
}
# What a number or a picture may depend on.
_LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn", "pandas", "matplotlib", "seaborn", "papermill")
HARMLESS = {"device", "threads"}  # where a notebook computes, not what
_DATA_PARAMETERS = ("data_name", "data_names")
_COLUMNS = "only_columns"  # positions of the columns of a table that are computed; None for all


@dataclass(frozen=True)
class Task:
    """One notebook to execute.

    Attributes:
        name: of the notebook.
        source: the notebook, which is only read.
        parameters: to set in it.
        changed: those of them that were given in place of the profile's.
        inputs: fingerprint of all that decides what it makes.
        folder: where the executed notebook and its pictures land.
        record: the file that says what it made.
    """

    name: str
    source: Path
    parameters: dict[str, Any]
    changed: dict[str, Any]
    inputs: str
    folder: Path
    record: Path

    @property
    def executed(self) -> Path:
        return self.folder / f"{self.name}.ipynb"

    @property
    def failed_copy(self) -> Path:
        return self.folder / f"{self.name}.failed.ipynb"

    def anywhere(self) -> Task:
        """The same for a process in another folder."""
        return replace(self, source=self.source.absolute(), folder=self.folder.absolute())


@dataclass(frozen=True)
class Plan:
    """A batch.

    Attributes:
        profile: a key of `PROFILES`.
        stored: what its file says.
        folder: where everything lands.
        records: where the records of what was made lie.
        notebooks: all that there are, by name.
        tasks: of those chosen, in natural order.
    """

    profile: str
    stored: Profile
    folder: Path
    records: Path
    notebooks: dict[str, Notebook]
    tasks: list[Task]

    def record(self, name: str) -> Path:
        """The file that says what notebook `name` made."""
        return self.records / f"{name}.json"


def plan_batch(
    *,
    profile: str,
    only: Sequence[str],
    parameters: Mapping[str, str],
    notebooks: Path,
    figures: Path,
    runs: Path,
) -> Plan:
    """Check everything that can be checked before the first notebook starts; nothing is written.

    Args:
        profile, only, parameters, notebooks, figures, runs: as in `reproduce`.

    Raises:
        InputError: a profile, notebook, parameter or data set is unknown or missing.
    """
    choose("profile", profile, PROFILES)
    given = read_given(parameters)
    found = read_notebooks(notebooks)
    named = {name: choose("notebook", name, found) for name in only}
    chosen = [notebook for name, notebook in found.items() if name in named or not named]
    stored = read_profile(profile, notebooks)
    stored.check(found)
    check_known(given, chosen)
    folder, records = figures / profile, runs / "reproduce" / profile
    require(
        not (folder.exists() and folder.samefile(notebooks)),
        f"{folder} is the folder of the notebooks themselves: choose another with --figures.",
    )
    batch = {
        "figures_dir": _seen_from(notebooks, folder),
        "runs_dir": _seen_from(notebooks, runs),
    }
    tasks, code = [], _package_digest()
    for notebook in chosen:
        # Titles and tables name the profile: with other numbers in it, they must not pass for its own.
        mine = given.keys() & notebook.defaults.keys()
        changed = {name: given[name] for name in sorted(mine - HARMLESS)}
        own = batch | {"profile": f"changed {profile}" if changed else profile}
        values = merge(notebook, stored, given, own)
        _check_figures(notebook)
        inputs = _inputs(notebook, values, code)
        record = records / f"{notebook.name}.json"
        tasks.append(Task(notebook.name, notebook.path, values, changed, inputs, folder, record))
    return Plan(profile, stored, folder, records, found, tasks)


def _seen_from(notebooks: Path, folder: Path) -> str:
    """`folder` relative to the notebooks: the same on every machine on which the project is one folder.

    It counts among the inputs, and a notebook may print it; as a parameter, `tidy` empties it.

    Links are followed, as the operating system does when a kernel in that folder opens "../runs".
    """
    folder, notebooks = Path(os.path.realpath(folder)), Path(os.path.realpath(notebooks))
    # On another drive there is no relative path.
    return os.path.relpath(folder, notebooks) if folder.drive == notebooks.drive else str(folder)


def _check_figures(notebook: Notebook) -> None:
    require(
        "figures_dir" in notebook.defaults,
        f'{notebook.path} declares no figures_dir: add figures_dir = "" to its cell tagged "parameters".',
    )


def _inputs(notebook: Notebook, parameters: dict[str, Any], code: str) -> str:
    """16 hex digits over cells, parameters, this package's `code`, versions, and the data sets' folders."""
    data = []
    for name in _data_names(notebook.defaults | parameters):
        folder = require_data(name).resolve()
        data.append([name, str(folder), _tree_digest(folder)])
    versions = [sys.version, *(version(library) for library in _LIBRARIES)]
    return fingerprint(notebook.content(), parameters, code, versions, data)


def _data_names(parameters: dict[str, Any]) -> list[str]:
    """The data sets that a notebook with these parameters needs: of a table, those of the columns chosen."""
    columns, names = parameters.get(_COLUMNS), []
    for key in _DATA_PARAMETERS:
        given = _as_list(parameters.get(key, UNKNOWN))
        if isinstance(columns, list) and all(column in range(len(given)) for column in columns):
            given = [given[column] for column in columns]
        names += given
    return names


def _tree_digest(folder: Path) -> str:
    """SHA-256 over path, size and time of change of every file below `folder`."""
    digest = hashlib.sha256()
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            found = os.stat(os.path.join(parent, name))
            digest.update(f"{parent}/{name}:{found.st_size}:{found.st_mtime_ns};".encode())
    return digest.hexdigest()


def _as_list(value: Any) -> list[Any]:
    if value is UNKNOWN:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _package_digest() -> str:
    """SHA-256 over the package's own modules and tables."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.suffix in (".py", ".csv")):
        digest.update(f"{path.relative_to(package).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
