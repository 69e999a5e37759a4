"""The documents for developers name what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from architecture import PAGE, imports, levels, page, reduced

ROOT = Path(__file__).parents[1]
PATH = re.compile(
    r"(?:tests|etc|docs|stores|asyncchatd|systemd|bench)(?:/[\w.*-]+)+/?"
    r"|(?:[\w.*-]+/)*[\w*-][\w.*-]*(?:\.(?:py|cfg|md|toml|json|yml|html|1)|/)"
)
NAME = re.compile(r"_?[A-Z]\w+|[a-z]+(?:_[a-z]+)+")
"""How code names something: a constant, a class, a function of several words."""
STORES = ("sqlite", "postgres")
"""The stores of our own, which `*` stands for in `stores/*/`."""


def test_the_picture_is_drawn_from_the_imports() -> None:
    assert PAGE.read_text() == page(), "run make picture"


def test_an_arrow_that_is_left_out_follows_from_those_that_are_drawn() -> None:
    arrows = imports()
    drawn = reduced(arrows)

    def reached(room: str) -> set[str]:
        return drawn[room].union(*map(reached, drawn[room]))

    assert [room for room, to in arrows.items() if not to <= reached(room)] == []
    assert sum(map(len, drawn.values())) < sum(map(len, arrows.values()))


def test_every_room_of_the_contract_is_told_of() -> None:
    told = PAGE.read_text()
    rooms = {room for level in levels() for room in level} - {"__main__"}
    assert [room for room in sorted(rooms) if not re.search(rf"`{room}(?:/|\.py)`", told)] == []


def words(text: str) -> list[str]:
    """What stands in backticks: of a command or of several paths, each by itself."""
    return [word for span in re.findall(r"`([^`\n]+)`", text) for word in span.split()]


def found(path: str) -> list[Path]:
    """What a path of a document leads to; with a `*`, nothing where one of the stores of our own lacks it."""
    stars = [path.replace("stores/*/", f"stores/{store}/") for store in STORES] if "*" in path else [path]
    places = [ROOT, ROOT / "asyncchatd", ROOT / "docs"]
    each = [[leads for place in places for leads in place.glob(star)] for star in stars]
    return [leads for led in each for leads in led] if all(each) else []


@pytest.mark.parametrize("document", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_path_a_document_names_is_there(document: str) -> None:
    named = [word for word in words((ROOT / document).read_text()) if PATH.fullmatch(word)]
    assert named
    assert [path for path in named if not found(path)] == []


LISTS = re.split(r"^### ", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("listed", LISTS, ids=lambda text: str(text).splitlines()[0])
def test_every_name_of_a_list_stands_in_a_file_of_it(listed: str) -> None:
    files = [path for word in words(listed) if PATH.fullmatch(word) for path in found(word)]
    texts = [path.read_text() for path in files if path.is_file()]
    texts += [module.read_text() for path in files if path.is_dir() for module in path.rglob("*.py")]
    names = {word for word in words(listed) if NAME.fullmatch(word)}
    assert [
        name for name in sorted(names) if not any(re.search(rf"\b{name}\b", text) for text in texts)
    ] == []
