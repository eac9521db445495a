"""The report of a batch: one page of Markdown that shows every table and picture under its notebook."""

from __future__ import annotations

import re
from pathlib import Path

from iadd_lab.notebooks.notebook import UNKNOWN, Notebook, executed_parameters
from iadd_lab.notebooks.plan_batch import HARMLESS, PROFILES, Plan
from iadd_lab.notebooks.profiles import SET_BY_BATCH, merge
from iadd_lab.notebooks.record import files_of, read_record
from iadd_lab.store.artefacts import save_text

_REMARKS = {"quick": " Digits stand in for every data set that a heading names."}
_DONE, _FAILED, _MISSING = "executed", "**the last run failed**", "not executed yet"


def write_report(plan: Plan) -> Path:
    """Write README.md into the batch's folder, unless it says the same already, and return its path.

    It holds no times: a batch executed again gives the same page.
    """
    path = plan.folder / "README.md"
    text = _report(plan)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        save_text(path, text)
    return path


def _report(plan: Plan) -> str:
    what = PROFILES[plan.profile]
    lines = [
        f"# Profile {plan.profile}",
        f"{what[0].upper()}{what[1:]}. Made by `iadd-lab reproduce --profile {plan.profile}`."
        + _REMARKS.get(plan.profile, ""),
        "\n".join(_contents(plan)),
    ]
    for notebook in plan.notebooks.values():
        if _state(plan, notebook) != _MISSING:
            lines += _section(plan, notebook)
    # Not every table is called after its notebook.
    named = {path for name in plan.notebooks for path in files_of(name, plan.notebooks, plan.folder)}
    lines += _links("Also here", sorted(set(plan.folder.glob("*.csv")) - named))
    return "\n\n".join(lines) + "\n"


def _contents(plan: Plan) -> list[str]:
    rows = ["| notebook | shows | state |", "| --- | --- | --- |"]
    for name, notebook in plan.notebooks.items():
        state = _state(plan, notebook)
        link = name if state == _MISSING else f"[{name}](#{name})"
        heading = notebook.heading.replace("|", r"\|")
        rows.append(f"| {link} | {heading} | {state} |")
    return rows


def _state(plan: Plan, notebook: Notebook) -> str:
    if (plan.folder / f"{notebook.name}.failed.ipynb").is_file():
        return _FAILED
    return _DONE if (plan.folder / notebook.path.name).is_file() else _MISSING


def _section(plan: Plan, notebook: Notebook) -> list[str]:
    name = notebook.name
    whole = (plan.folder / notebook.path.name).is_file()
    # The anchor is the name, whatever a renderer makes of a heading with punctuation in it.
    heading = f"[{notebook.heading}]({notebook.path.name})" if whole else notebook.heading
    lines = [f'<a id="{name}"></a>', f"## {heading}"]
    if _state(plan, notebook) == _FAILED:
        earlier = " What is shown here may be of an earlier run." if whole else ""
        lines.append(f"The last run failed: see the [partly executed copy]({name}.failed.ipynb).{earlier}")
    lines += _changes(plan, notebook)
    files = _made(plan, name)
    names = {path.name for path in files}
    for path in files:
        if path.suffix == ".md":
            lines += _table(path, names)
    lines += [f"![{path.stem}]({path.name})" for path in files if path.suffix == ".png"]
    texts = {f"{path.stem}.csv" for path in files if path.suffix == ".md"}
    measured = [path for path in files if path.suffix == ".csv" and path.name not in texts]
    sets = [path for path in files if path.suffix == ".safetensors"]
    lines += _links("Measurements", measured) + _links("Distilled sets, for `iadd_lab.load`", sets)
    return lines


def _links(what: str, paths: list[Path]) -> list[str]:
    return [f"{what}: {', '.join(f'[{path.name}]({path.name})' for path in paths)}."] if paths else []


def _changes(plan: Plan, notebook: Notebook) -> list[str]:
    """What was not as the profile has it now.

    The executed copy itself says so, for it is committed, and a record is not.
    """
    had = executed_parameters(plan.folder / notebook.path.name)
    if had is None:
        return []
    given = []
    for name, value in sorted((notebook.defaults | merge(notebook, plan.stored, {}, {})).items()):
        if name in HARMLESS or name in SET_BY_BATCH:
            continue
        if name not in had:  # declared since; its default stands for what the notebook did before
            given += [f"no `{name}`"] if value != notebook.defaults[name] else []
        elif had[name] not in (UNKNOWN, value):
            given.append(f"`{name} = {had[name]!r}`")
    return [f"Not the profile's own: executed with {', '.join(given)}."] if given else []


def _made(plan: Plan, name: str) -> list[Path]:
    """The files that the record lists; all that bear the notebook's name where there is none."""
    found = files_of(name, plan.notebooks, plan.folder)
    record = read_record(plan.record(name))
    return found if record is None else [path for path in found if path.name in record.made]


def _table(path: Path, names: set[str]) -> list[str]:
    others = {f"{path.stem}.csv": "CSV", f"{path.stem}.tex": "LaTeX"}
    links = [f"[{title}]({other})" for other, title in others.items() if other in names]
    text = _below(path.read_text(encoding="utf-8").strip())
    return [text, *([f"The table above as {' and '.join(links)}."] if links else [])]


def _below(text: str) -> str:
    """`text` with its headings two levels deeper, below the notebook's own."""
    return re.sub(r"^(#{1,4}) ", r"##\1 ", text, flags=re.MULTILINE)
