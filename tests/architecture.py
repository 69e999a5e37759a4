"""The picture of the imports in docs/architecture.md: `python tests/architecture.py` draws it anew.

The rooms stand on the levels of the import contract in setup.cfg. An arrow is an import; one that follows from others
(daemon needs worker, worker needs gms, so daemon may need gms) is left out, or nobody could read the picture.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Mapping
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
CONTRACT = "importlinter:contract:layers"
_BLOCK = re.compile(r"```mermaid\n.*?```\n", re.S)


def levels() -> list[list[str]]:
    """The rooms on each level of the contract, the highest first."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return [line.replace(" ", "").split("|") for line in setup[CONTRACT]["layers"].split("\n") if line]


def imports() -> dict[str, set[str]]:
    """Which rooms each room imports from."""
    graph = grimp.build_graph("asyncchatd")
    rooms = [room for level in levels() for room in level]
    for room in rooms:
        graph.squash_module(f"asyncchatd.{room}")
    found = {room: graph.find_modules_directly_imported_by(f"asyncchatd.{room}") for room in rooms}
    return {
        room: {name.split(".")[1] for name in names if "." in name} - {room} for room, names in found.items()
    }


def reduced(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that do not follow from others. There is no circle."""

    def reached(room: str) -> set[str]:
        return arrows[room].union(*map(reached, arrows[room]))

    return {room: to - set().union(*map(reached, to)) for room, to in arrows.items()}


def drawn() -> str:
    """The picture, as Mermaid."""
    lines = ["flowchart TD"]
    for number, level in enumerate(levels()):
        inside = " ~~~ ".join(f"{room}[{room}]" for room in level)
        lines += [f"    subgraph level{number}[ ]", "        direction LR", f"        {inside}", "    end"]
    for room, to in reduced(imports()).items():
        lines += [f"    {room} --> {other}" for other in sorted(to)]
    return "\n".join(["```mermaid", *lines, "```", ""])


def page() -> str:
    """The page as it should be."""
    return _BLOCK.sub(lambda _: drawn(), PAGE.read_text())


if __name__ == "__main__":
    PAGE.write_text(page())
