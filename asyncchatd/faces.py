"""Faces of rooms that import a module when one of its names is asked for, and not before.

A command that asks a running daemon needs an address of the configuration, an event's name of the log, and nothing of
pydantic, structlog and prometheus_client, which take longer to read than all that it does itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module


def on_demand(face: str, homes: Mapping[str, tuple[str, ...]]) -> Callable[[str], object]:
    """The `__getattr__` of the package `face`, whose modules have these names. No name may be that of a module: Python
    would give the module, once it is imported. A module that is itself shown has no names here, or some. Raises
    `AttributeError` for what is not of the face."""
    home_of = {name: module for module, names in homes.items() for name in names}

    def found(name: str) -> object:
        if name in homes:
            return import_module(f"{face}.{name}")
        if name not in home_of:
            raise AttributeError(f"module {face!r} has no attribute {name!r}")
        return getattr(import_module(f"{face}.{home_of[name]}"), name)

    return found
