"""Profiles: tables of settings, and which of them a notebook shows.

The parts of a profile's file: `every` holds for all settings; `settings` has one row for each data set and IPC;
`pages` says for each notebook which `rows` it shows, which `methods`, what else differs there, where a list has
one value for each row, and under `own` what no setting has. What stands later wins: the defaults of `Setting`,
`every`, the row, the page, and last what the reader changed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from iadd_lab.device import Execution
from iadd_lab.errors import InputError, choose, require
from iadd_lab.study.methods import METHODS
from iadd_lab.study.settings import Setting

PROFILES = {
    "quick": "8 × 8 digits and five short teachers: minutes on two cores",
    "cpu": "real images at a scale for two CPU cores: hours",
    "paper": "the literature's full hyper-parameters, for a GPU",
}
SETTING_FIELDS = {field.name: field for field in fields(Setting)}
HOW_FIELDS = {field.name: field for field in fields(Execution) if field.name != "device"}
_FIELDS = SETTING_FIELDS | HOW_FIELDS
_Values = dict[str, Any]


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


def as_meant(value: Any) -> Any:
    """What was meant by a text from a command line: a number, true, null, a list, a mapping, or a word.

    Anything but text is given back as it is.

    Raises:
        InputError: the text can't be read, or holds something else.
    """
    unreadable = f"parameter value {value!r} can't be read: write a number, a word or a list."
    if isinstance(value, str):
        for number in (int, float):  # before YAML, to which 010 is 8
            with contextlib.suppress(ValueError):
                return number(value)
        try:
            value = yaml.load(value, _Loader) if value.strip() else value  # nothing is a word too, not null
        except (ValueError, yaml.YAMLError) as error:
            raise InputError(unreadable) from error
    require(_is_plain(value), unreadable)
    return value


def _is_plain(value: object) -> bool:
    """Whether `value` can be written into a notebook and into a record alike."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | None)


@dataclass(frozen=True)
class PageSettings:
    """What a notebook works with.

    Attributes:
        settings: one for each row; none where a notebook goes by the data that it is given.
        methods: keys of `METHODS`.
        how: fields of `Execution`.
        own: what the notebook alone knows, as the numbers that a bench measures.
    """

    settings: tuple[Setting, ...]
    methods: tuple[str, ...]
    how: Mapping[str, Any]
    own: Mapping[str, Any]


@dataclass(frozen=True)
class Profile:
    """A profile's file, read and checked.

    Attributes:
        name: of the profile.
        how: fields of `Execution` that hold for all pages.
        rows: by name, the fields of each `Setting`.
        pages: by notebook, what the file says of it.
    """

    name: str
    how: _Values
    rows: dict[str, _Values]
    pages: dict[str, _Values]

    def page(
        self,
        name: str,
        *,
        data: str | Sequence[str] | None = None,
        ipc: int | Sequence[int] | None = None,
        methods: Sequence[str] | None = None,
        change: Mapping[str, Any] | str | None = None,
    ) -> PageSettings:
        """What the notebook `name` works with. Each value may be text, as a command line gives it.

        Args:
            name: of the notebook, without its ending.
            data: keys of `DATASETS`: the page's rows of these, else the profile's, else the page's rows with
                these data in place of their own. None takes the page's.
            ipc: distilled images per class, in the same way; with two lists, their values go in pairs.
            methods: keys of `METHODS`; None takes the page's.
            change: fields of `Setting` and `Execution` that win over the profile's; a list has one value
                for each setting.

        Raises:
            InputError: there is no such page or field, a value is impossible, or two settings have the same
                data and IPC.
        """
        values = choose(f"notebook of the {self.name} profile", name, self.pages)
        change = dict(_known(as_meant(change or {}), _FIELDS, "change"))
        wanted = {"data_name": change.pop("data_name", data), "ipc": change.pop("ipc", ipc)}
        chosen = self._pick(values, {key: as_meant(value) for key, value in wanted.items()})
        mine = {key: value for key, value in change.items() if key in SETTING_FIELDS}
        require(
            bool(chosen) or not mine, f"{name} has no setting of the profile: change can't set {[*mine]}."
        )
        made = [Setting(**(row | more)) for row, more in zip(chosen, _spread(mine, len(chosen)), strict=True)]
        _check_apart(made)
        how = self.how | values | change
        return PageSettings(
            settings=tuple(made),
            methods=_methods(values.get("methods", []) if methods is None else as_meant(methods)),
            how={key: value for key, value in how.items() if key in HOW_FIELDS},
            own=values.get("own", {}),
        )

    def _pick(self, page: _Values, wanted: _Values) -> list[_Values]:
        """The fields of each setting of a page: its own rows where they are `wanted`, else others."""
        rows = [choose(f"row of the {self.name} profile", name, self.rows) for name in page.get("rows", [])]
        own = _spread({key: value for key, value in page.items() if key in SETTING_FIELDS}, len(rows))
        wanted = {key: value for key, value in wanted.items() if value is not None}
        picked = []
        for want in _spread(
            wanted, max([len(v) for v in wanted.values() if isinstance(v, list | tuple)] or [1])
        ):
            found = [row | more for row, more in zip(rows, own, strict=True) if _fits(row, want)]
            others: dict[tuple, _Values] = {}
            for row, more in zip(rows, own, strict=True):
                place = {"data_name": row["data_name"], "ipc": row["ipc"]} | want
                other = next((each for each in self.rows.values() if _fits(each, place)), row | place)
                others.setdefault(tuple(map(str, place.values())), other | more)
            picked += found or others.values()
        return picked


def read_profile(name: str) -> Profile:
    """The profile `name`, a key of `PROFILES` or the path of a YAML file of your own.

    Raises:
        InputError: there is none, it can't be read as YAML, or it names what is not there.
    """
    path = Path(__file__).with_name(f"{name}.yaml") if name in PROFILES else Path(name).expanduser()
    if path.suffix != ".yaml" or not path.is_file():
        choose("profile (or YAML file)", name, PROFILES)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} can't be read as YAML ({' '.join(str(error).split())}).") from error
    where = f"the {path.stem} profile"
    parts = _known(content, {"every": {}, "settings": {}, "pages": {}}, where)
    every, rows, pages = (dict(parts.get(part) or {}) for part in ("every", "settings", "pages"))
    for row, fields_of_row in rows.items():
        _known(fields_of_row, SETTING_FIELDS, f"row {row} of {where}")
        require(
            {"data_name", "ipc"} <= fields_of_row.keys(), f"row {row} of {where} needs data_name and ipc."
        )
    for page, values in pages.items():
        _known(values, _FIELDS | dict.fromkeys(("rows", "methods", "own")), f"{page} in {where}")
    shared = {
        key: value
        for key, value in _known(every, _FIELDS, f"every in {where}").items()
        if key in SETTING_FIELDS
    }
    return Profile(path.stem, every, {row: shared | values for row, values in rows.items()}, pages)


def _known(values: object, names: Mapping[str, object], where: str) -> Mapping[str, Any]:
    require(isinstance(values, Mapping), f"{where} is {values!r}; it must map names to values.")
    for name in values:
        choose(f"name in {where}:", name, names)
    return values


def _fits(row: _Values, want: _Values) -> bool:
    return all(type(row[key]) is type(value) and row[key] == value for key, value in want.items())


def _spread(values: Mapping[str, Any], count: int) -> list[_Values]:
    """One mapping for each of `count` settings: a list has a value for each, anything else is shared."""
    lists = {key: value for key, value in values.items() if isinstance(value, list | tuple)}
    for key, value in lists.items():
        require(
            len(value) == count,
            f"{key} has {len(value)} values for {count} settings: give one value, or one for each setting.",
        )
    return [{key: value[i] if key in lists else value for key, value in values.items()} for i in range(count)]


def _methods(names: object) -> tuple[str, ...]:
    names = [names] if isinstance(names, str) else names
    require(
        isinstance(names, list | tuple), f"methods is {names!r}; it must be a list, as in ['mtt', 'iadd']."
    )
    for name in names:
        choose("method", name, METHODS)
    return tuple(names)


def _check_apart(settings: Sequence[Setting]) -> None:
    """Tables and files name a setting by its data and IPC alone."""
    places = [(setting.data_key, setting.ipc) for setting in settings]
    twice = next((setting for setting in settings if places.count((setting.data_key, setting.ipc)) > 1), None)
    require(
        twice is None,
        f"two settings are both {twice and twice.title}: give each its own data or ipc, or choose one of them.",
    )
