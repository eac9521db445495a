"""Profiles: tables of settings, and which of them a notebook shows.

The parts of a profile's file: `every` holds for all settings; `settings` has one row for each data set and
IPC; `pages` says for each notebook which `rows` it shows, which `methods`, what else differs there (a list
has one value for each row), and under `own` what no setting has. What stands later wins: the defaults of
`Setting`, `every`, the row, the page, and last what the reader changes.
"""

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from iadd_lab.device import Execution
from iadd_lab.errors import InputError, choose, require
from iadd_lab.store.artefacts import expanded
from iadd_lab.study.methods import METHODS
from iadd_lab.study.settings import Setting

PROFILES = {
    "quick": "8 × 8 digits and five short teachers: minutes on two cores",
    "cpu": "real images at a scale for two CPU cores: hours",
    "paper": "the literature's full hyper-parameters, for a GPU: days",
}
SETTING_FIELDS = {field.name: field for field in fields(Setting)}
HOW_FIELDS = {field.name: field for field in fields(Execution) if field.name != "device"}
FIELDS = SETTING_FIELDS | HOW_FIELDS


class _Loader(yaml.SafeLoader):
    """YAML without its traps: numbers are plain digits; 2024-01-01, 1:30, 010, 0x10 and .nan stay words."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own name, and nobody changes it)
        first: [(tag, form) for tag, form in forms if not tag.endswith((":int", ":float", ":timestamp"))]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _WHOLE, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def read_value(value: Any) -> Any:
    """What a text from a command line means: a number, true, null, a list, a mapping, or a word.

    Anything but text is given back as it is.

    Raises:
        InputError: the text is no YAML, or no plain value.
    """
    if not isinstance(value, str) or not value.strip():  # nothing is a word too, not null
        return value
    for number in (int, float):  # before YAML, to which 010 is 8
        with contextlib.suppress(ValueError):
            if abs(meant := number(value)) < math.inf:  # nan and inf are words, which no number may be
                return meant
    try:
        meant = yaml.load(value, _Loader)
        # And so can be kept in a notebook and in a record.
        plain = json.loads(json.dumps(meant, allow_nan=False)) == meant
    except (ValueError, TypeError, yaml.YAMLError):
        plain = False
    require(plain, f"parameter value {value!r} can't be read: write a finite number, a word or a list.")
    return meant


def read_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `read_value` makes of each value that is not None."""
    return {name: read_value(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class PageSettings:
    """What a notebook works with.

    Attributes:
        settings: one for each row; none where a notebook goes by the data that it is given.
        methods: keys of `METHODS`.
        how: fields of `Execution`.
        own: what is no part of a setting, as the numbers of a bench.
    """

    settings: tuple[Setting, ...]
    methods: tuple[str, ...]
    how: dict[str, Any]
    own: dict[str, Any]


@dataclass(frozen=True)
class Profile:
    """A profile's file, read and checked.

    Attributes:
        name: of the profile.
        every: fields of `Setting` and `Execution` that hold for all.
        rows: by name, the fields of each `Setting`.
        pages: by notebook, what the file says of it.
    """

    name: str
    every: dict[str, Any]
    rows: dict[str, dict[str, Any]]
    pages: dict[str, dict[str, Any]]

    def page(self, name: str, **given: Any) -> PageSettings:
        """What the notebook `name` works with.

        Args:
            name: of the notebook, without its ending.
            given: instead of what the profile says; None takes that, and a text is read as YAML.
                data: keys of `DATASETS`: the page's rows of these, else the profile's, else the page's rows
                    with these data in place of their own.
                ipc: distilled images per class, in the same way; two lists go in pairs.
                methods: keys of `METHODS`.
                change: fields of `Setting` and `Execution`; a list has one value for each setting.
                Whatever else is given is a field as well, over which `change` wins.

        Raises:
            InputError: there is no such page or field, a value is impossible, or two settings have the same
                data and IPC.
        """
        page = choose(f"notebook of the {self.name} profile", name, self.pages)
        given = read_values(given)
        chosen, change = given.pop("methods", page.get("methods", ())), given.pop("change", None) or {}
        given["data_name"] = given.pop("data", None)
        change = {**check_names(given, FIELDS, "page"), **check_names(change, FIELDS, "change")}
        wanted = {key: change.pop(key, None) for key in ("data_name", "ipc")}
        rows = self._pick(page, {key: value for key, value in wanted.items() if value is not None})
        mine = _only(change, SETTING_FIELDS)
        require(bool(rows) or not mine, f"{name} goes by its data, and has no {', '.join(mine)} to change.")
        settings = [Setting(**(row | more)) for row, more in zip(rows, _spread(mine, len(rows)), strict=True)]
        twice = [title for title, n in Counter(each.title for each in settings).items() if n > 1]
        require(not twice, f"two settings are both {', '.join(twice)}: give each data or an ipc of its own.")
        chosen = (chosen,) if isinstance(chosen, str) else chosen
        require(isinstance(chosen, list | tuple), f"methods is {chosen!r}; it must be a list like ['iadd'].")
        for method in chosen:
            choose("method", method, METHODS)
        how = _only(self.every | page | change, HOW_FIELDS)
        Execution.of(None, how)  # refused now, where a value is impossible
        return PageSettings(tuple(settings), tuple(chosen), how, page.get("own", {}))

    def _pick(self, page: dict[str, Any], wanted: dict[str, Any]) -> list[dict[str, Any]]:
        """The fields of each setting of a page, or of those that are `wanted` in their place."""
        rows = [choose(f"row of the {self.name} profile", row, self.rows) for row in page.get("rows", ())]
        pairs = list(zip(rows, _spread(_only(page, SETTING_FIELDS), len(rows)), strict=True))
        lengths = [len(value) for value in wanted.values() if isinstance(value, list | tuple)]
        picked = []
        for want in _spread(wanted, max([*lengths, 1])):
            found = [row | own for row, own in pairs if _fits(row, want)]
            others = {}  # one for each place, should the page have several rows that differ in `want` alone
            for row, own in pairs:
                place = {key: want.get(key, row[key]) for key in ("data_name", "ipc")}
                other = next((other for other in self.rows.values() if _fits(other, place)), row | place)
                others.setdefault(str(place), other | own)
            picked += found or others.values()
        return picked


def read_profile(name: str) -> Profile:
    """The profile `name`: a key of `PROFILES`, or the path of a YAML file of your own.

    Raises:
        InputError: there is none, it can't be read, or it has a part or field that nobody knows.
    """
    name = str(name)
    if not name.endswith(".yaml"):
        choose("profile", name, PROFILES)
    path = Path(__file__).with_name(f"{name}.yaml") if name in PROFILES else expanded(name)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} can't be read as YAML ({' '.join(str(error).split())}).") from error
    names, where = ("every", "settings", "pages"), f"of {path.name}"
    parts = check_names(content, names, path.name)
    every, rows, pages = (dict(check_names(parts.get(n) or {}, None, f"{n} {where}")) for n in names)
    check_names(every, FIELDS, f"every {where}")
    for row, values in rows.items():
        check_names(values, SETTING_FIELDS, f"row {row} of {path.name}")
        require({"data_name", "ipc"} <= values.keys(), f"row {row} of {path.name} needs data_name and ipc.")
        rows[row] = _only(every, SETTING_FIELDS) | values
    for page, values in pages.items():
        check_names(values, {"rows", "methods", "own", *FIELDS}, f"page {page} {where}")
        check_names(values.get("own", {}), None, f"own of page {page} {where}")
        listed = values.get("rows", [])
        require(isinstance(listed, list), f"rows of page {page} is {listed!r}; it must be a list of names.")
    return Profile(path.stem, every, rows, pages)


def check_names(values: object, names: Iterable[str] | None, where: str) -> Mapping[str, Any]:
    """`values`, a mapping of none but these names, or of any if None; `where` it stands, for the message."""
    named = isinstance(values, Mapping) and all(isinstance(name, str) for name in values)
    require(named, f"{where} is {values!r}; it must map names to values.")
    for name in values if names is not None else ():
        choose(f"name in {where}:", name, dict.fromkeys(names))
    return values


def _only(values: Mapping[str, Any], names: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}


def _fits(row: dict[str, Any], want: dict[str, Any]) -> bool:
    return all(type(row[key]) is type(value) and row[key] == value for key, value in want.items())


def _spread(values: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """One mapping for each of `count` settings: a list has a value for each, anything else is shared."""
    lists = {name: value for name, value in values.items() if isinstance(value, list | tuple)}
    for name, value in lists.items():
        right = f"{name} has {len(value)} values for {count} settings: give one, or one for each setting."
        require(len(value) == count, right)
    return [{**values, **{name: value[index] for name, value in lists.items()}} for index in range(count)]
