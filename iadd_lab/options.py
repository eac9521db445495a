"""Command-line options that are read off a configuration: name, type, default and help stand in one place."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Collection
from typing import Annotated, Any

import typer


def options_of(config: type, *, leave_out: Collection[str] = ()) -> Callable[[Callable], Callable]:
    """Give a typer command one option for each field of the dataclass `config`.

    The command takes them together as the keyword argument `fields`, a dict that fits `config(**fields)`.
    Help texts are the field's lines under `Args:` in the class's docstring.

    Args:
        config: a dataclass whose remaining fields are numbers, strings or None.
        leave_out: fields that the command builds by itself.
    """
    hints, helps = typing.get_type_hints(config), _described(config)
    added = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[hints[field.name], typer.Option(help=helps[field.name])],
        )
        for field in dataclasses.fields(config)
        if field.name not in leave_out
    ]

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def run(**given: Any) -> Any:
            fields = {parameter.name: given.pop(parameter.name) for parameter in added}
            return command(**given, fields=fields)

        own = inspect.signature(command, eval_str=True)
        kept = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in own.parameters.items()
            if name != "fields"
        ]
        run.__signature__ = own.replace(parameters=kept + added)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in kept + added}
        return run

    return decorate


def _described(config: type) -> dict[str, str]:
    """What the docstring's `Args:` says of each field, as one sentence each."""
    _, _, arguments = inspect.getdoc(config).partition("Args:\n")
    items = re.split(r"^    (\w+): ", arguments, flags=re.MULTILINE)[1:]
    sentences = (" ".join(text.split("\n\n")[0].split()) for text in items[1::2])
    return {name: text[0].upper() + text[1:] for name, text in zip(items[::2], sentences, strict=True)}
