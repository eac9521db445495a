"""Notebooks as the batch sees them before it executes any: their cells, parameters and headings.

They are read as the JSON that they are: nbformat and papermill take over a second to import, which a batch
that finds everything up to date need not spend.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iadd_lab.errors import InputError, require

UNKNOWN = object()  # the default of a parameter that is computed rather than written down
_INJECTED = "injected-parameters"  # papermill's tag on the cell of the parameters that it was given
_FIRST = ("quickstart", "table", "figure")  # what a reader wants to see first


@dataclass(frozen=True)
class Notebook:
    """One notebook that is to be executed.

    Attributes:
        path: where it lies; `name` is the file's name without its ending.
        cells: as nbformat 4 stores them.
        defaults: value of each parameter that its parameters cell declares, or `UNKNOWN`.
    """

    path: Path
    cells: list[dict[str, Any]]
    defaults: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def heading(self) -> str:
        """The first heading of its prose; its name where there is none."""
        prose = (source_of(cell) for cell in self.cells if cell["cell_type"] == "markdown")
        found = re.search(r"^#+ +(.+?)\s*$", "\n".join(prose), flags=re.MULTILINE)
        return found.group(1) if found else self.name

    def content(self) -> list[list[Any]]:
        """What decides the outcome: kind, tags and source of every cell; not ids, outputs or counts."""
        return [
            [cell["cell_type"], cell.get("metadata", {}).get("tags", []), source_of(cell)]
            for cell in self.cells
        ]


def read_notebooks(folder: Path) -> dict[str, Notebook]:
    """The notebooks of `folder` by name, in the order of `natural_order`.

    Raises:
        InputError: there are none, or one of them can't be read.
    """
    paths = sorted(folder.glob("*.ipynb"), key=lambda path: natural_order(path.stem))
    require(
        bool(paths),
        f"there are no notebooks in {folder}: run from the project's folder, or pass --notebooks.",
    )
    return {path.stem: _read(path) for path in paths}


def executed_parameters(path: Path) -> dict[str, Any] | None:
    """The parameters that the executed notebook in `path` had, whether given to it or its own defaults.

    None where it can't be read: what somebody did to an executed copy must not stop a batch.
    """
    try:
        notebook = _read(path)
        values = notebook.defaults
        for _, tags, source in notebook.content():
            if _INJECTED in tags:
                values = values | _defaults(path, source)
    except (ValueError, RecursionError, MemoryError):  # the last two from text nested too deep to parse
        return None
    return values


def without_paths(cell: dict[str, Any], names: Iterable[str]) -> None:
    """Empty the paths that papermill gave to a `cell` of parameters under these `names`; others stay."""
    if _INJECTED in cell["metadata"].get("tags", []):  # one parameter a line
        given = re.compile(rf"^({'|'.join(names)}) = .*$", flags=re.MULTILINE)
        cell["source"] = given.sub(r'\1 = ""', source_of(cell)).splitlines(keepends=True)


def natural_order(name: str) -> tuple[int, list[str | int]]:
    """A sorting key: quickstart, tables, figures, then the rest, and table2 before table10."""
    group = next((place for place, first in enumerate(_FIRST) if name.startswith(first)), len(_FIRST))
    return group, [int(piece) if piece.isdigit() else piece for piece in re.split(r"([0-9]+)", name)]


def source_of(cell: dict[str, Any]) -> str:
    """The text of a cell, which a file may hold as one string or as a list of lines."""
    return "".join(cell["source"])


def _read(path: Path) -> Notebook:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        notebook = Notebook(path=path, cells=cells, defaults={})
        notebook.content()  # touches all that is read later
        tagged = [source for kind, tags, source in notebook.content() if "parameters" in tags]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a notebook that can be read: remove or mend it.") from error
    return Notebook(path=path, cells=cells, defaults=_defaults(path, tagged[0]) if tagged else {})


def _defaults(path: Path, source: str) -> dict[str, Any]:
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise InputError(
            f"the parameters cell of {path} is not valid Python (line {error.lineno})."
        ) from error
    defaults = {}
    for statement in statements:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    defaults[target.id] = _value(statement.value)
    return defaults


def _value(expression: ast.expr) -> Any:
    try:
        return ast.literal_eval(expression)
    except (ValueError, TypeError):
        return UNKNOWN
