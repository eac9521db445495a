"""The two ways in which a run refuses to go on, and the checks that say so in one sentence."""

import difflib
import math
import sys
from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")
_LARGEST = 2**63 - 1  # what a tensor can hold
_LARGEST_SINGLE = 3.4e38  # and in single precision


class InputError(ValueError):
    """Bad input. The message is one sentence: the value, what was expected, and how to mend it.

    The command line prints it without a traceback and exits with code 2.
    """


class OtherVersionError(InputError):
    """A file of another version of this package: not damaged, and of use where that version is."""


class DivergenceError(RuntimeError):
    """A computation left the region where it means anything (NaN, infinity, a negative learning rate).

    `result` is the last good state as a finished result, where there is one.
    """

    def __init__(self, message: str, *, result: object = None):
        super().__init__(message)
        self.result = result


def require(condition: bool, sentence: str) -> None:
    """Raise `InputError(sentence)` unless `condition` holds."""
    if not condition:
        raise InputError(sentence)


def choose(kind: str, name: str, registry: Mapping[str, Value]) -> Value:
    """`registry[name]`, or an `InputError` that lists the choices and the closest match.

    `kind` is the noun for the message, as in "network".
    """
    if isinstance(name, str) and name in registry:
        return registry[name]
    close = difflib.get_close_matches(str(name), registry, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise InputError(f"unknown {kind} {name!r}{hint}: choose one of {', '.join(sorted(registry))}.")


def check_whole(name: str, value: object, *, minimum: int, maximum: int | None = None) -> None:
    """Require an int in [minimum, maximum], at most 64 bits; `name` is the field as the user wrote it."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    most = _LARGEST if maximum is None else maximum
    limit = f" and at most {most}" if maximum is not None or (whole and value > most) else ""
    inside = whole and minimum <= value <= most
    require(inside, f"{name} is {value!r}; it must be a whole number of at least {minimum}{limit}.")


def check_rate(name: str, value: object, *, above: bool = True) -> None:
    """Require a learning rate: a number above (or of at least) 0 that single precision can hold."""
    check_number(name, value, maximum=_LARGEST_SINGLE, above=above)


def check_number(
    name: str, value: object, *, minimum: float = 0.0, maximum: float = math.inf, above: bool = False
) -> None:
    """Require a finite number in [minimum, maximum], or in (minimum, maximum] if `above`."""
    number = (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )
    inside = number and (value > minimum if above else value >= minimum) and value <= maximum
    bound = f"above {minimum:g}" if above else f"of at least {minimum:g}"
    limit = "" if maximum == math.inf else f" and at most {maximum:g}"
    require(bool(inside), f"{name} is {value!r}; it must be a finite number {bound}{limit}.")


def check_like(name: str, value: object, usual: object) -> None:
    """Require a finite number, or a list, where the `usual` value is a number, and a flag where it is one."""
    if isinstance(usual, bool):
        check_flag(name, value)
    elif isinstance(usual, (int, float)) and not isinstance(value, (list, tuple, dict)):
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
        require(fits, f"{name} is {value!r}; it must be a finite number, as {usual!r} is.")


def check_kind(name: str, value: object, kind: type, *, optional: bool = False) -> None:
    """Require an instance of `kind`, such as a configuration, or None if `optional`."""
    fits = isinstance(value, kind) or (optional and value is None)
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    require(fits, f"{name} is {value!r}; it must be {article} {kind.__name__}.")


def check_flag(name: str, value: object) -> None:
    """Require True or False."""
    require(isinstance(value, bool), f"{name} is {value!r}; it must be True or False.")
