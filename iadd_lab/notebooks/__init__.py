"""What notebooks stand on: profiles, the first cell, and the batch that executes them."""

from importlib import import_module
from typing import Any

_HOMES = {"Page": "page", "PROFILES": "profiles", "read_profile": "profiles"}
__all__ = ["PROFILES", "Page", "read_profile"]


def __getattr__(name: str) -> Any:
    """A public name, imported when somebody asks for it: the batch needs no pictures, the page no batch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
