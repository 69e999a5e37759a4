"""The catalogue of events: it is documented, and the program logs what it says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncchatd.log import events as event_catalogue
from asyncchatd.log.events import Event, Subject, Trait
from asyncchatd.log.fields import FIELDS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_documentation_is_the_catalogue() -> None:
    command = [sys.executable, "-m", "asyncchatd.log", "events"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert (ROOT / "docs" / "log-events.md").read_text() == printed, (
        "run python -m asyncchatd.log events > docs/log-events.md"
    )
    assert all(f"| `{event}` |" in printed for event in Event)


def test_every_field_of_an_event_is_described() -> None:
    used = {name for event in Event for name in event.fields}
    assert used == set(FIELDS)
    assert not used & {"time", "level", "event", "exception", "exc_info"}
    assert all(event.value == event.name.lower() and event.meaning.endswith(".") for event in Event)


@pytest.mark.parametrize("words", ["", "summary", "chat often", "guest"])
def test_an_event_that_does_not_say_whose_story_it_belongs_to_is_named(words: str) -> None:
    with pytest.raises(TypeError, match="loop_stalled has to say whose story"):
        event_catalogue._story("loop_stalled", words)


def test_what_speaks_of_one_chat_names_it() -> None:
    for event in Event:
        assert (event.subject is Subject.CHAT) == ("chat_id" in event.fields), event.value
        assert (event.subject is Subject.SERVER) == event.value.startswith("server_"), event.value
        if event.traits & {Trait.COUNTED, Trait.FRUITLESS}:
            assert event.subject is Subject.CHAT, event.value


@pytest.mark.slow
def test_the_program_logs_what_the_catalogue_says() -> None:
    """Every `log.info(Event.X, ...)` has the level and only the fields of X."""
    wrong = []
    for file in sorted((ROOT / "asyncchatd").rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args:
                wrong += [
                    f"{file.name}:{call.lineno}: {problem}" for problem in _differences(call, call.func.attr)
                ]
    assert not wrong


def test_every_event_of_the_catalogue_is_logged_by_somebody() -> None:
    house = ROOT / "asyncchatd"
    told = {
        name
        for file in house.rglob("*.py")
        if file.relative_to(house).parts[0] != "story"
        for name in re.findall(r"\bEvent\.([A-Z_]+)\b", file.read_text())
    }
    assert sorted(Event.__members__.keys() - told) == []


def _differences(call: ast.Call, method: str) -> Iterator[str]:
    name = call.args[0]
    if method not in LEVELS or not (
        isinstance(name, ast.Attribute) and ast.unparse(name.value).endswith("Event")
    ):
        return
    event = Event.__members__.get(name.attr)
    if event is None:
        yield f"no event {name.attr} in the catalogue"
        return
    if LEVELS[method] != event.level:
        yield f"{event} is of level {event.level}"
    for keyword in call.keywords:
        if keyword.arg and keyword.arg not in {*event.fields, "exc_info"}:
            yield f"{event} has no field {keyword.arg}"


LEVELS = {level: level for level in ("debug", "info", "warning", "error", "critical")} | {
    "exception": "error"
}
