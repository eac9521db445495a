"""Executing the notebooks in one batch, and collecting what they make."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
import papermill
import yaml
from tqdm import tqdm

from iadd_lab.errors import InputError, choose, require
from iadd_lab.store import atomic_path, save_text

PROFILES = {
    "quick": "embedded real data (8×8 digits), minutes on two cores",
    "cpu": "real image data at reduced scale, hours on two cores",
    "paper": "the literature's full hyper-parameters, for a GPU",
}


def reproduce(
    *,
    profile: str = "quick",
    only: Sequence[str] = (),
    parameters: Mapping[str, str] | None = None,
    notebooks: Path = Path("notebooks"),
    figures: Path = Path("figures"),
    progress: bool = True,
) -> list[str]:
    """Execute notebooks with papermill into `figures`/`profile`; inputs are never changed.

    Args:
        profile: a key of `PROFILES`. `notebooks`/profiles/`profile`.yaml holds its parameters: one mapping
            per notebook; the quick profile is the notebooks' own defaults and needs no file.
        only: names of the notebooks to execute; all if empty.
        parameters: set in every notebook executed; they win over the profile.
        notebooks: folder of the notebooks.
        figures: each picture and executed notebook lands in `figures`/`profile`.
        progress: whether to show progress bars.

    Returns:
        The names of the notebooks that failed; the others were executed all the same.

    Raises:
        InputError: a profile, notebook or parameter is unknown. Nothing is executed then.
    """
    choose("profile", profile, PROFILES)
    require("figures_dir" not in (parameters or {}), "figures_dir is set by the batch: use --figures.")
    plan = _plan(profile, only, dict(parameters or {}), Path(notebooks))
    target = Path(figures) / profile
    # Relative, so that no executed notebook carries a path of the machine that ran it.
    folder = os.path.relpath(target, notebooks)
    failed, done = [], []
    for path, values in tqdm(
        plan.items(), desc=f"reproduce {profile}", unit="notebook", disable=not progress
    ):
        try:
            _execute(path, target / path.name, values | {"figures_dir": folder}, progress)
            done.append(path.stem)
        except papermill.PapermillExecutionError as error:
            failed.append(path.stem)
            print(f"{path.name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}")
        except Exception as error:  # a kernel that died or a notebook that can't be read: on to the next
            failed.append(path.stem)
            print(f"{path.name} could not be executed: {error}")
    if done:
        save_text(target / "README.md", _report(profile, target))
        print(f"The results lie in {target}: see {target / 'README.md'}.")
    return failed


def _plan(profile: str, only: Sequence[str], given: dict[str, str], folder: Path) -> dict[Path, dict]:
    """Which notebooks to execute, each with its parameters, all checked against what it declares."""
    found = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    require(
        bool(found),
        f"there are no notebooks in {folder}: run from the project's folder, or pass --notebooks.",
    )
    chosen = {name: choose("notebook", name, found) for name in only} or found
    stored = _profile_parameters(profile, folder)
    for name in stored:
        choose("notebook in the profile", name, found)
    plan, known = {}, set()
    for name, path in chosen.items():
        declared = _declared(path)
        for parameter in stored.get(name, {}):
            choose(f"parameter of {name} in profile {profile}:", parameter, declared)
        mine = {key: _literal(value) for key, value in given.items() if key in declared}
        known |= mine.keys()
        plan[path] = {key: _literal(value) for key, value in stored.get(name, {}).items()} | mine
    for key in given:
        require(
            key in known, f"parameter {key!r} is unknown to {', '.join(chosen)}: see their parameters cells."
        )
    return plan


def _declared(path: Path) -> dict[str, object]:
    try:
        return papermill.inspect_notebook(path)
    except Exception as error:  # whatever a reader makes of a foreign file
        raise InputError(f"{path} is not a notebook that can be read: remove or mend it.") from error


def _profile_parameters(profile: str, folder: Path) -> dict[str, dict]:
    path = folder / "profiles" / f"{profile}.yaml"
    if profile == "quick" and not path.exists():
        return {}
    require(path.is_file(), f"profile {profile!r} has no {path} yet: use --profile quick.")
    return yaml.safe_load(path.read_text()) or {}


def _literal(text: object) -> object:
    """A parameter as it was meant: numbers (1e-5 too, which YAML takes for a word), true, null, lists."""
    if not isinstance(text, str):
        return text
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(
            f"parameter value {text!r} can't be read: write a number, a word or a list."
        ) from error


def _execute(source: Path, target: Path, parameters: dict, progress: bool) -> None:
    with atomic_path(target) as temporary:
        papermill.execute_notebook(
            source,
            temporary,
            parameters=parameters,
            kernel_name="python3",
            cwd=str(source.parent),
            progress_bar=progress,
            coalesce_streams=True,  # of a progress bar, keep the last state
        )
        _name_output(temporary, target)


def _name_output(notebook: Path, target: Path) -> None:
    # papermill noted the temporary name, which means nothing to a reader.
    content = nbformat.read(notebook, as_version=4)
    content.metadata.papermill.output_path = target.name
    content.metadata.papermill.input_path = target.name
    nbformat.write(content, notebook)


def _report(profile: str, folder: Path) -> str:
    """Markdown that shows every picture in `folder` below the notebook that made it."""
    lines = [
        f"# Profile {profile}",
        "",
        f"{PROFILES[profile].capitalize()}. Made by `iadd-lab reproduce`.",
        "",
    ]
    notebooks = sorted(folder.glob("*.ipynb"))
    for notebook in notebooks:
        lines += [f"## [{notebook.stem}]({notebook.name})", ""]
        for picture in sorted(folder.glob(f"{notebook.stem}_*.png")):
            lines += [f"![{picture.stem}]({picture.name})", ""]
    return "\n".join(lines)
