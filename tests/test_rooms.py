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
    "asyncchatd.control.clients.blocking",  # so that a command that only asks starts without a server's modules,
    "asyncchatd.control.clients.calls",
    "asyncchatd.control.clients.client",  # nor aiohttp, which this is made of
    "asyncchatd.terminal.bars",  # rich's, which few commands have
    "asyncchatd.terminal.screens",  # rich: what prints a line alone starts without it
    "asyncchatd.stores.sqlite",  # a store like any other, by its entry point; its commands ask for it by name
    "asyncchatd.stores.postgres",  # the same, and the demo of several nodes tidies up in a database that it was given
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
    shown = {name for names in shown_from(room).values() for name in names}
    assert shown <= set(told), "imported into the face and not in its __all__"


def shown_from(room: str) -> dict[str, set[str]]:
    """What the type checker sees in the face of a room, by the module that it is from."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse((HOUSE / room / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"asyncchatd.{room}"):
            for name in node.names:
                found.setdefault(f"{node.module}", set()).add(name.asname or name.name)
    return found


def on_demand(room: str) -> dict[str, tuple[str, ...]] | None:
    """The modules of a face that imports on demand, with the names in each; None for one that imports at once."""
    for node in ast.walk(ast.parse((HOUSE / room / "__init__.py").read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "on_demand":
            homes: dict[str, tuple[str, ...]] = ast.literal_eval(node.args[1])
            return homes
    return None


ON_DEMAND = [room for room in ROOMS if on_demand(room) is not None]


@pytest.mark.parametrize("room", ON_DEMAND)
def test_a_face_on_demand_has_what_the_type_checker_sees_in_it_and_no_module_takes_a_name(room: str) -> None:
    homes = on_demand(room) or {}
    seen = shown_from(room)
    modules = seen.pop(f"asyncchatd.{room}", set())
    assert modules <= homes.keys()
    named = {f"asyncchatd.{room}.{module}": set(names) for module, names in homes.items() if names}
    assert named == seen
    names = [name for names in homes.values() for name in names]
    files = {path.stem for path in (HOUSE / room).glob("*.py")} | {
        path.parent.name for path in (HOUSE / room).glob("*/__init__.py")
    }
    assert not files & set(names), "once the module is imported, it stands in the place of the name"


def test_what_a_face_does_not_show_is_told_as_python_tells_it() -> None:
    assert "config" in ON_DEMAND
    with pytest.raises(AttributeError, match=r"module 'asyncchatd\.config' has no attribute 'nothing'"):
        getattr(import_module("asyncchatd.config"), "nothing")  # noqa: B009 - of which the type checker knows


def test_nothing_lies_flat_that_has_a_room() -> None:
    flat = {path.stem for path in HOUSE.glob("*.py")} - {"__init__", "__main__"}
    assert flat == {"faces", "lacks", "lean", "names", "receiver", "tether", "visible"}
