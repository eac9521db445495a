"""The report of a batch: one page of Markdown that shows every table and picture under its notebook."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from iadd_lab.errors import InputError
from iadd_lab.notebooks.notebook import (
    CHANGE,
    Notebook,
    files_of,
    notebook_folder,
    read_notebook,
    read_notebooks,
    read_record,
)
from iadd_lab.notebooks.profiles import PROFILES, PageSettings, Profile, read_profile
from iadd_lab.store.artefacts import save_text
from iadd_lab.store.configs import fingerprint

SET_BY_BATCH = {"figures_dir": "--figures", "runs_dir": "--runs", "profile": "--profile"}
_UNTOLD = {*SET_BY_BATCH, "device", "threads"}  # where a notebook computes, not what
_REMARKS = {"quick": " Digits stand in for every data set that a heading names."}
_DONE, _FAILED, _MISSING = "executed", "**the last run failed**", "not executed yet"


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
        """All notebooks that there are, by name."""
        return read_notebooks(self.notebooks)

    @property
    def folder(self) -> Path:
        return self.figures / self.rows.name

    def record(self, name: str) -> Path:
        """The file that says what notebook `name` made."""
        return self.runs / "reproduce" / self.rows.name / f"{name}.json"


def settings_mark(page: PageSettings | None) -> str:
    """A fingerprint of what a notebook shows, wherever it is computed; empty where it has no page."""
    return fingerprint(page.settings, page.methods, page.own) if page else ""


def write_report(batch: Batch) -> Path:
    """Write README.md into the batch's folder, unless it says the same already, and return its path.

    It holds no times: a batch executed again gives the same page.
    """
    path, text = batch.folder / "README.md", _report(batch)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        save_text(path, text)
    return path


def _report(batch: Batch) -> str:
    rows, sections, profile = ["| notebook | shows | state |", "| --- | --- | --- |"], [], batch.rows.name
    for name, notebook in batch.found.items():
        state, heading = _state(batch, name), notebook.heading.replace("|", r"\|")
        link = name if state == _MISSING else f"[{name}](#{name})"
        rows.append(f"| {link} | {heading} | {state} |")
        sections += [] if state == _MISSING else _section(batch, notebook, state)
    what, remark = PROFILES.get(profile, "settings of its own"), _REMARKS.get(profile, "")
    # Not every table is called after its notebook.
    named = {path for name in batch.found for path in files_of(name, batch.found, batch.folder)}
    others = _links("Also here", sorted(set(batch.folder.glob("*.csv")) - named))
    made = f"{what[0].upper()}{what[1:]}. Made by `iadd-lab reproduce --profile {profile}`.{remark}"
    return "\n\n".join([f"# Profile {profile}", made, "\n".join(rows), *sections, *others]) + "\n"


def _state(batch: Batch, name: str) -> str:
    if (batch.folder / f"{name}.failed.ipynb").is_file():
        return _FAILED
    return _DONE if (batch.folder / f"{name}.ipynb").is_file() else _MISSING


def _section(batch: Batch, notebook: Notebook, state: str) -> list[str]:
    name, whole = notebook.name, (batch.folder / f"{notebook.name}.ipynb").is_file()
    # The anchor is the name, whatever a renderer makes of a heading with punctuation in it.
    heading = f"[{notebook.heading}]({name}.ipynb)" if whole else notebook.heading
    lines = [f'<a id="{name}"></a>', f"## {heading}"]
    if state == _FAILED:
        earlier = " What is shown here may be of an earlier run." if whole else ""
        lines.append(f"The last run failed: see the [partly executed copy]({name}.failed.ipynb).{earlier}")
    lines += _changes(batch, notebook)
    record = read_record(batch.record(name))  # without one, all files that bear the notebook's name are its
    files = [f for f in files_of(name, batch.found, batch.folder) if record is None or f.name in record.made]
    texts = [path for path in files if path.suffix == ".md"]
    for path in texts:
        lines += _table(path, {other.name for other in files})
    lines += [f"![{path.stem}]({path.name})" for path in files if path.suffix == ".png"]
    shown = {f"{path.stem}.csv" for path in texts}
    measured = [path for path in files if path.suffix == ".csv" and path.name not in shown]
    sets = [path for path in files if path.suffix == ".safetensors"]
    return lines + _links("Measurements", measured) + _links("Distilled sets, for `iadd_lab.load`", sets)


def _links(what: str, paths: list[Path]) -> list[str]:
    return [f"{what}: {', '.join(f'[{path.name}]({path.name})' for path in paths)}."] if paths else []


def _changes(batch: Batch, notebook: Notebook) -> list[str]:
    """What was not as the profile has it now.

    The executed copy itself says so, for it is committed, and a record is not. What somebody did to a copy
    must not stop a batch.
    """
    try:
        metadata = read_notebook(batch.folder / notebook.path.name).metadata
        had = dict(metadata.get("papermill", {}).get("parameters", {}))
        mark = metadata.get("iadd_lab", {}).get("settings")
    except (InputError, AttributeError, TypeError, ValueError):
        return []
    given = {name: had[name] for name, value in notebook.defaults.items() if had.get(name, value) != value}
    change = given.pop(CHANGE, {})
    given |= change if isinstance(change, dict) else {CHANGE: change}
    said = [f"`{name} = {value!r}`" for name, value in sorted(given.items()) if name not in _UNTOLD]
    now = settings_mark(batch.rows.page(notebook.name) if notebook.name in batch.rows.pages else None)
    if mark is None:  # an older copy, with parameters that are gone, called its profile changed by itself
        said = ["other settings"] if str(had.get("profile")).startswith("changed ") else []
    elif not said and mark != now:
        said = ["other settings than the profile has now"]
    return [f"Not the profile's own: executed with {', '.join(said)}."] if said else []


def _table(path: Path, names: set[str]) -> list[str]:
    """A table with its headings two levels deeper, below the notebook's own, and links to its other forms."""
    others = {f"{path.stem}.csv": "CSV", f"{path.stem}.tex": "LaTeX"}
    links = [f"[{title}]({other})" for other, title in others.items() if other in names]
    text = re.sub(r"^(#{1,4}) ", r"##\1 ", path.read_text(encoding="utf-8").strip(), flags=re.MULTILINE)
    return [text, *([f"The table above as {' and '.join(links)}."] if links else [])]
