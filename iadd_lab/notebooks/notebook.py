"""Notebooks as the batch sees them: where they lie, their cells and parameters, and the files that each made.

They are read as the JSON that they are, and not by papermill, which takes over a second to import: a batch
that finds everything up to date need not spend it.
"""

import ast
import contextlib
import json
import logging
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from iadd_lab.errors import InputError, require
from iadd_lab.notebooks.profiles import Profile, read_profile
from iadd_lab.store.artefacts import check_folder
from iadd_lab.store.configs import fingerprint

logger = logging.getLogger(__name__)

CHANGE = "change"  # the parameter that takes any other field of `Setting`
_FIRST = ("quickstart", "table", "figure")  # what a reader wants to see first


@dataclass(frozen=True)
class Notebook:
    """One notebook.

    Attributes:
        path: where it lies; `name` is the file's name without its ending.
        whole: as nbformat 4 stores it.
        content: what decides the outcome: kind, tags and source of every cell; not ids, outputs or counts.
        defaults: value of each parameter that its parameters cell declares; None where it is computed.
    """

    path: Path
    whole: dict[str, Any]
    content: list[tuple[str, list[str], str]]
    defaults: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def heading(self) -> str:
        """The first heading of its prose; its name where there is none."""
        found = re.search(r"^#+ +(.+?)\s*$", self.source("markdown"), flags=re.MULTILINE)
        return found[1] if found else self.name

    def source(self, kind: str) -> str:
        """Of all cells of this kind, "code" or "markdown"."""
        return "\n".join(source for found, _, source in self.content if found == kind)


def read_notebook(path: Path) -> Notebook:
    """The notebook in `path`.

    Raises:
        InputError: it can't be read, or its parameters cell is not Python.
    """
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        cells = whole["cells"]
        content = [(c["cell_type"], c["metadata"].get("tags", []), "".join(c["source"])) for c in cells]
        source = next((source for _, tags, source in content if "parameters" in tags), "")
        return Notebook(path, whole, content, _defaults(source))
    except SyntaxError as error:
        told = f"the parameters cell of {path} is not valid Python (line {error.lineno})."
        raise InputError(told) from error
    except Exception as error:  # whatever stands in that file
        raise InputError(f"{path} is not a notebook that can be read: remove or mend it.") from error


def _defaults(source: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for statement in ast.parse(source).body:
        targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        found |= dict.fromkeys(names)
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            found |= dict.fromkeys(names, ast.literal_eval(statement.value))
    return found


def notebook_folder() -> Path:
    """Where the notebooks lie: ./notebooks; where there are none, those that were installed."""
    here, package = Path("notebooks"), Path(__file__).resolve().parents[1]
    # The last is that of a clone which is installed in place.
    places = (here, package / "notebooks" / "ipynb", package.parent / "notebooks")
    return next((place for place in places if any(place.glob("*.ipynb"))), here)


def lay_out(folder: Path) -> list[Path]:
    """Copy the notebooks into `folder`, to be opened there; those that are there already stay as they are.

    Returns:
        What was copied.
    """
    folder, sources = check_folder(folder), sorted(notebook_folder().glob("*.ipynb"))
    new = [source for source in sources if not (folder / source.name).exists()]
    return [shutil.copyfile(source, folder / source.name) for source in new]


def natural_order(name: str) -> tuple[int, list[str | int]]:
    """A sorting key: quickstart, tables, figures, then the rest, and table2 before table10."""
    group = next((place for place, first in enumerate(_FIRST) if name.startswith(first)), len(_FIRST))
    return group, [int(piece) if piece.isdigit() else piece for piece in re.split(r"([0-9]+)", name)]


def files_of(name: str, names: Iterable[str], folder: Path) -> list[Path]:
    """The files in `folder` that belong to notebook `name`: `name`.* and `name`_*, in natural order.

    What begins with the longer name of another notebook is that one's: table1_all.png is not of table1 where
    there is a notebook table1_all.
    """

    def owner(file: str) -> str:
        return max((n for n in names if file.startswith((f"{n}.", f"{n}_"))), key=len, default="")

    mine = [path for path in folder.glob("*") if path.is_file() and owner(path.name) == name]
    return sorted(mine, key=lambda path: natural_order(path.name))


@dataclass(frozen=True)
class Record:
    """The last good execution of a notebook.

    Records lie among the runs, which nobody commits, and not beside the pictures: in a fresh clone nothing is
    up to date, and `iadd-lab reproduce` really reproduces.

    Attributes:
        inputs: fingerprint of what it was executed with.
        made: SHA-256 of each file that it made, by file name.
        seconds: how long it took.
    """

    inputs: str
    made: dict[str, str]
    seconds: float

    @property
    def text(self) -> str:
        """What its file holds: itself, and a checksum over it."""
        return json.dumps({"record": vars(self), "sum": fingerprint(vars(self))}, indent=1) + "\n"


def read_record(path: Path) -> Record | None:
    """The record in `path`; None if there is none, or, with a warning, none that is whole and current.

    A damaged record costs one more execution of its notebook, which finds its results among the runs.
    """
    if not path.exists():
        return None
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        text = path.read_text(encoding="utf-8")
        record = Record(**json.loads(text)["record"])
        if text == record.text:
            return record
    logger.warning("%s is damaged or of another version: its notebook counts as not executed", path)
    return None


@dataclass(frozen=True)
class Batch:
    """A profile's notebooks, and where what they make lies.

    Args:
        profile: a key of `PROFILES`, or the path of a YAML file of your own.
        notebooks: folder of the notebooks.
        figures: each picture and executed notebook lands in `figures`/`profile`.
        runs: folder of what notebooks compute once (their runs_dir), and of the records of what was made.
    """

    profile: str = "quick"
    notebooks: Path = field(default_factory=notebook_folder)
    figures: Path = Path("build", "figures")
    runs: Path = Path("runs")

    @cached_property
    def rows(self) -> Profile:
        """What the profile says."""
        return read_profile(self.profile)

    @cached_property
    def found(self) -> dict[str, Notebook]:
        """All notebooks that there are, by name, in the order of `natural_order`.

        Raises:
            InputError: there are none, or one of them can't be read.
        """
        paths = sorted(self.notebooks.glob("*.ipynb"), key=lambda path: natural_order(path.stem))
        mend = "run from the project's folder, or pass --notebooks"
        require(bool(paths), f"there are no notebooks in {self.notebooks}: {mend}.")
        return {path.stem: read_notebook(path) for path in paths}

    @property
    def folder(self) -> Path:
        return self.figures / self.rows.name

    def record(self, name: str) -> Path:
        """The file that says what notebook `name` made."""
        return self.runs / "reproduce" / self.rows.name / f"{name}.json"
