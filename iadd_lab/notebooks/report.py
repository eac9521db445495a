"""The report of a batch: one page of Markdown that shows every table and picture under its notebook."""

import re
from pathlib import Path

from iadd_lab.errors import InputError
from iadd_lab.notebooks.notebook import CHANGE, Batch, Notebook, files_of, read_notebook, read_record
from iadd_lab.notebooks.profiles import PROFILES, PageSettings
from iadd_lab.store.artefacts import save_text
from iadd_lab.store.configs import fingerprint

SET_BY_BATCH = {"figures_dir": "--figures", "runs_dir": "--runs", "profile": "--profile"}
_UNTOLD = {*SET_BY_BATCH, "device", "threads"}  # where a notebook computes, not what
_REMARKS = {"quick": " Digits stand in for every data set that a heading names."}


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
    others = set(batch.folder.glob("*.csv"))  # not every table is called after its notebook
    for name, notebook in batch.found.items():
        files = files_of(name, batch.found, batch.folder)
        others -= set(files)
        failed, whole = (batch.folder / f"{name}{end}" in files for end in (".failed.ipynb", ".ipynb"))
        state = "**the last run failed**" if failed else "executed" if whole else "not executed yet"
        link, heading = name, notebook.heading.replace("|", r"\|")
        if failed or whole:
            link = f"[{name}](#{name})"
            sections += _section(batch, notebook, files, failed=failed, whole=whole)
        rows.append(f"| {link} | {heading} | {state} |")
    what = PROFILES.get(profile, "settings of its own")
    made = f"{what[0].upper()}{what[1:]}. Made by `iadd-lab reproduce --profile {profile}`."
    made += _REMARKS.get(profile, "")
    parts = [f"# Profile {profile}", made, "\n".join(rows), *sections, *_links("Also here", sorted(others))]
    return "\n\n".join(parts) + "\n"


def _section(batch: Batch, notebook: Notebook, files: list[Path], *, failed: bool, whole: bool) -> list[str]:
    name = notebook.name
    # The anchor is the name, whatever a renderer makes of a heading with punctuation in it.
    heading = f"[{notebook.heading}]({name}.ipynb)" if whole else notebook.heading
    lines = [f'<a id="{name}"></a>', f"## {heading}"]
    if failed:
        earlier = " What is shown here may be of an earlier run." if whole else ""
        lines.append(f"The last run failed: see the [partly executed copy]({name}.failed.ipynb).{earlier}")
    lines += _changes(batch, notebook)
    record = read_record(batch.record(name))  # without one, all files that bear the notebook's name are its
    made = {path: path.suffix for path in files if record is None or path.name in record.made}
    tables = [path for path, kind in made.items() if kind == ".md"]
    for path in tables:
        # Its headings two levels deeper, below the notebook's own, and links to its other forms.
        text = path.read_text(encoding="utf-8").strip()
        lines.append(re.sub(r"^(#{1,4}) ", r"##\1 ", text, flags=re.MULTILINE))
        forms = {"CSV": path.with_suffix(".csv"), "LaTeX": path.with_suffix(".tex")}
        links = [f"[{title}]({form.name})" for title, form in forms.items() if form in made]
        lines += [f"The table above as {' and '.join(links)}."] if links else []
    lines += [f"![{path.stem}]({path.name})" for path, kind in made.items() if kind == ".png"]
    shown = {path.with_suffix(".csv") for path in tables}
    lines += _links("Measurements", [p for p, kind in made.items() if kind == ".csv" and p not in shown])
    sets = [path for path, kind in made.items() if kind == ".safetensors"]
    return lines + _links("Distilled sets, for `iadd_lab.load`", sets)


def _links(what: str, paths: list[Path]) -> list[str]:
    return [f"{what}: {', '.join(f'[{path.name}]({path.name})' for path in paths)}."] if paths else []


def _changes(batch: Batch, notebook: Notebook) -> list[str]:
    """What was not as the profile has it now.

    The executed copy itself says so, for it is committed, and a record is not. What somebody did to a copy
    must not stop a batch.
    """
    try:
        metadata = read_notebook(batch.folder / notebook.path.name).whole["metadata"]
        had = dict(metadata.get("papermill", {}).get("parameters", {}))
        mark = metadata.get("iadd_lab", {}).get("settings")
    except (InputError, AttributeError, KeyError, TypeError, ValueError):
        return []
    given = {name: had[name] for name, value in notebook.defaults.items() if had.get(name, value) != value}
    change = given.pop(CHANGE, {})
    given |= change if isinstance(change, dict) else {CHANGE: change}
    said = [f"`{name} = {value!r}`" for name, value in sorted(given.items()) if name not in _UNTOLD]
    now = settings_mark(batch.rows.page(notebook.name) if notebook.name in batch.rows.pages else None)
    if not said and mark not in (None, now):
        said = ["other settings than the profile has now"]
    return [f"Not the profile's own: executed with {', '.join(said)}."] if said else []
