"""Configurations as plain values: described, restored, and named by a fingerprint of all that they say."""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from iadd_lab.errors import InputError, require

FORMAT_VERSION = 2
# Raised whenever the same configuration gives another result than before: part of the name of every run.
RESULT_VERSION = 3
_LATER, _UNSTORED = "added later", "not stored"


def added_field(default: Any) -> Any:
    """A field that joined a configuration after runs of it were stored: described only where it was set.

    So the fingerprints of earlier runs, and the folders that are named by them, stay as they are.
    """
    return dataclasses.field(default=default, metadata={_LATER: True})


def unstored_field() -> Any:
    """A field that is never described, None where nothing was given, as a function can't be stored."""
    return dataclasses.field(default=None, metadata={_UNSTORED: True})


def describe(config: Any) -> Any:
    """A configuration (nested frozen dataclasses) as plain JSON values; each dataclass names its `kind`.

    An `added_field` at its default is left out: `restore` puts it back.
    """
    if dataclasses.is_dataclass(config):
        hints, described = typing.get_type_hints(type(config)), {"kind": type(config).__name__}
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            usual = _LATER in field.metadata and value == field.default
            if not usual and _UNSTORED not in field.metadata:
                described[field.name] = describe(_canonical(hints[field.name], value))
        return described
    if isinstance(config, Mapping):
        return {name: describe(value) for name, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [describe(value) for value in config]
    return config


def _canonical(hint: Any, value: Any) -> Any:
    """1 and 1.0, 0.0 and −0.0 are equal as a float field, so they are written alike."""
    is_float = hint is float or float in typing.get_args(hint)
    if is_float and isinstance(value, (tuple, list)):
        return [float(each) + 0.0 for each in value]
    return float(value) + 0.0 if is_float and value is not None else value


def restore(expected: Any, description: Any) -> Any:
    """The inverse of `describe`: rebuild a value of type `expected`, validating every dataclass on the way.

    Where a base class is expected, the stored `kind` names the subclass. Of unions only `X | None` is known.

    Raises:
        InputError: a field is unknown, or the description is not one of `expected`.
    """
    if dataclasses.is_dataclass(expected):
        return _restore_dataclass(expected, description)
    if typing.get_origin(expected) is types.UnionType and description is not None:
        (expected,) = (choice for choice in typing.get_args(expected) if choice is not types.NoneType)
        return restore(expected, description)
    return tuple(description) if typing.get_origin(expected) is tuple else description


def _restore_dataclass(expected: Any, description: Any) -> Any:
    named = description.get("kind") if isinstance(description, Mapping) else None
    found = next((kind for kind in (expected, *expected.__subclasses__()) if kind.__name__ == named), None)
    if found is None:
        said = str(description)[:80]
        raise InputError(f"a stored {expected.__name__} was expected, but {said!r} was found.")
    names = [name for name in description if name != "kind"]
    unknown = sorted(set(names) - {field.name for field in dataclasses.fields(found)})
    require(not unknown, f"{named} has no field {', '.join(unknown)}: it was written by another version.")
    try:
        return found(**restore_fields(found, names, description))
    except TypeError as error:
        raise InputError(f"a stored {named} is incomplete or of another version ({error}).") from error


def restore_fields(kind: type, names: Iterable[str], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The fields `names` of a dataclass, each from what `describe` made of it in `stored`."""
    hints = typing.get_type_hints(kind)
    return {name: restore(hints[name], stored[name]) for name in names}


def fingerprint(*parts: Any) -> str:
    """16 hex digits that are equal exactly when the described parts (configurations, JSON values) are."""
    text = json.dumps([describe(part) for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_folder(root: Path | str, name: str, *parts: Any) -> Path:
    """`root`/`name`-<fingerprint of `parts`>: a changed configuration gets a folder of its own."""
    return Path(root) / f"{name}-{fingerprint(FORMAT_VERSION, RESULT_VERSION, *parts)}"
