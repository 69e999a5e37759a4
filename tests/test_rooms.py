"""The rooms of the house: each has a face, and nobody goes in by another door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import asyncchatd

HOUSE = Path(asyncchatd.__file__).parent

FURTHER_FACES = {
    "asyncchatd.control.api",  # what the daemon runs, and with what;
    "asyncchatd.control.status.picture",  # `control` itself imports nothing,
    "asyncchatd.control.client",  # so that a command that only asks starts without a server's modules
    "asyncchatd.terminal.screens",  # rich: what prints a line alone starts without it
    "asyncchatd.stores.sqlite",  # a store like any other, by its entry point; its commands ask for it by name
}
"""Modules that are a face besides the `__init__` of their room, and why."""

ROOMS = sorted(path.parent.name for path in HOUSE.glob("*/__init__.py"))


def imported(file: Path) -> Iterator[str]:
    """The modules of ours that a file imports from."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("asyncchatd."):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("asyncchatd."))


@pytest.mark.slow
def test_a_room_is_entered_by_its_face_alone() -> None:
    strange = []
    for file in sorted(HOUSE.rglob("*.py")):
        at_home = file.relative_to(HOUSE).parts[0]
        for module in imported(file):
            room = module.split(".")[1]
            if room != at_home and module.count(".") > 1 and module not in FURTHER_FACES:
                strange.append(f"{file.relative_to(HOUSE)} imports {module}")
    assert not strange, "import from the face of the room, and add to its __all__ what is missing there"


@pytest.mark.parametrize("room", ROOMS)
def test_a_face_says_what_it_shows_and_shows_nothing_else(room: str) -> None:
    face = import_module(f"asyncchatd.{room}")
    told = getattr(face, "__all__", [])
    assert len(told) == len(set(told))
    assert [name for name in told if not hasattr(face, name)] == []
    shown = {
        name.asname or name.name
        for node in ast.parse((HOUSE / room / "__init__.py").read_text()).body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("asyncchatd")
        for name in node.names
    }
    assert shown <= set(told), "imported into the face and not in its __all__"


def test_nothing_lies_flat_that_has_a_room() -> None:
    flat = {path.stem for path in HOUSE.glob("*.py")} - {"__init__", "__main__"}
    assert flat == {"lacks", "names", "receiver", "tether", "visible"}
