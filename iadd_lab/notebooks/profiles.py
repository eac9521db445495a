"""The parameters of a batch: profile files, values from the command line, and what they may be."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from iadd_lab.errors import InputError, choose, require
from iadd_lab.notebooks.notebook import Notebook

SET_BY_BATCH = {"figures_dir": "--figures", "runs_dir": "--runs", "profile": "--profile"}
PATHS_SET_BY_BATCH = ("figures_dir", "runs_dir")
_COMMON = "common"


class _Loader(yaml.SafeLoader):
    """YAML with two of its traps removed: 1e-5 is a number, and a date stays the word that it is."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own way to configure a loader)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


@dataclass(frozen=True)
class Profile:
    """What a profile file says.

    Attributes:
        name: of the profile.
        common: parameters for every notebook that declares them.
        own: by notebook, parameters of its own, which win over the common ones.
    """

    name: str
    common: dict[str, Any] = field(default_factory=dict)
    own: dict[str, dict[str, Any]] = field(default_factory=dict)

    def check(self, notebooks: Mapping[str, Notebook]) -> None:
        """Raise an `InputError` if it names a notebook or a parameter that is not among `notebooks`."""
        for name, values in self.own.items():
            notebook = choose(f"notebook in profile {self.name}:", name, notebooks)
            for parameter in values:
                choose(f"parameter of {name} in profile {self.name}:", parameter, notebook.defaults)
        every = {key: None for notebook in notebooks.values() for key in notebook.defaults}
        for parameter in self.common:
            choose(f"common parameter in profile {self.name}:", parameter, every)


def read_profile(name: str, folder: Path) -> Profile:
    """The profile in `folder`/profiles/`name`.yaml; the quick one may be missing, which leaves all defaults.

    Top-level keys that begin with _ are homes of YAML anchors and mean nothing by themselves.

    Raises:
        InputError: it is missing, can't be read, is not a mapping of mappings, or sets what the batch sets.
    """
    path = folder / "profiles" / f"{name}.yaml"
    if name == "quick" and not path.exists():
        return Profile(name)
    require(path.is_file(), f"profile {name!r} has no {path} yet: use --profile quick.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} can't be read as YAML ({reason}).") from error
    require(isinstance(content, dict), f"{path} must be a mapping with one entry per notebook.")
    own = {}
    for key, values in content.items():
        if not str(key).startswith("_"):
            require(
                isinstance(values, dict | None), f"{key} in {path} must be a mapping of parameters to values."
            )
            own[key] = _checked(values or {}, path)
    return Profile(name, common=own.pop(_COMMON, {}), own=own)


def _checked(values: dict[Any, Any], path: Path) -> dict[str, Any]:
    for key, value in values.items():
        require(key not in SET_BY_BATCH, f"{key} is set by the batch: take it out of {path}.")
        require(_is_plain(value), f"{key} in {path} must be a number, a word, true, false, null or a list.")
    return values


def read_given(given: Mapping[str, str]) -> dict[str, Any]:
    """Parameters from the command line as they were meant: numbers, true, null, lists.

    Raises:
        InputError: a value can't be read, or is the batch's to set.
    """
    for name in given:
        option = SET_BY_BATCH.get(name)
        require(option is None, f"{name} is set by the batch: use {option} instead of -p.")
    return {name: _literal(text) for name, text in given.items()}


def _literal(text: object) -> Any:
    unreadable = f"parameter value {text!r} can't be read: write a number, a word or a list."
    value = text
    if isinstance(text, str):
        for number in (int, float):  # before YAML, to which 010 is 8
            with contextlib.suppress(ValueError):
                return number(text)
        try:
            value = yaml.load(text, _Loader) if text.strip() else text  # nothing is a word too, not null
        except (ValueError, yaml.YAMLError) as error:
            raise InputError(unreadable) from error
    require(_is_plain(value), unreadable)
    return value


def _is_plain(value: object) -> bool:
    """Whether `value` can be written into a notebook and into a record alike."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | None)


def merge(
    notebook: Notebook, profile: Profile, given: Mapping[str, Any], batch: Mapping[str, Any]
) -> dict[str, Any]:
    """The parameters to set in `notebook`: the profile's common ones, its own, those given, the batch's."""
    declared = notebook.defaults
    common = {name: value for name, value in profile.common.items() if name in declared}
    mine = {name: value for name, value in given.items() if name in declared}
    fixed = {name: value for name, value in batch.items() if name in declared}
    return common | profile.own.get(notebook.name, {}) | mine | fixed


def check_known(given: Mapping[str, Any], notebooks: Sequence[Notebook]) -> None:
    """Raise an `InputError` unless each parameter given is declared by at least one of `notebooks`."""
    declared = {name: None for notebook in notebooks for name in notebook.defaults}
    owner = notebooks[0].name if len(notebooks) == 1 else "these notebooks"
    for name in given:
        choose(f"parameter of {owner}", name, declared)
