"""The documents for developers name what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from architecture import PAGE, imports, levels, page, reduced

ROOT = Path(__file__).parents[1]
PATH = re.compile(r"`((?:[\w.*-]+/)*[\w.*-]+(?:\.(?:py|cfg|md|toml|json|yml|html|1)|/))`")


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


@pytest.mark.parametrize("document", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_path_a_document_names_is_there(document: str) -> None:
    named = PATH.findall((ROOT / document).read_text())
    assert named
    places = [ROOT, ROOT / "asyncchatd", ROOT / "docs"]
    assert [path for path in named if not any(any(place.glob(path)) for place in places)] == []
