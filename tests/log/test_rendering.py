"""From an event to a line, whatever is in it."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncchatd.log.events import Event
from asyncchatd.log.lines import Format, get_logger
from asyncchatd.log.rendering import to_json
from asyncchatd.model.data import Tokens

from .rig import writing


def test_a_line_says_when_how_bad_and_what() -> None:
    output = writing()
    get_logger().info(Event.PUSH_RECEIVED, chat_id="0008", alias="117", resend=False)
    line = output.line()
    assert list(line) == ["time", "level", "event", "chat_id", "alias", "resend"]
    assert datetime.fromisoformat(str(line["time"])).utcoffset() == timedelta(0)
    assert str(line["time"]).endswith("Z")
    assert (line["level"], line["event"], line["chat_id"]) == ("info", "push_received", "0008")


def test_a_terminal_gets_words_and_a_traceback_without_local_variables() -> None:
    output = writing(format="console")
    local_variable = "value of a local variable"
    try:
        raise ValueError("went wrong")
    except ValueError:
        get_logger().exception(Event.DAEMON_FAILED, part="watcher")
    assert "daemon_failed" in output.text()
    assert "part=watcher" in output.text()
    assert "ValueError: went wrong" in output.text()
    assert output.text().count(local_variable) == 0


def test_an_exception_comes_as_its_traceback() -> None:
    output = writing()
    error = ValueError("went wrong")
    get_logger().error(Event.DAEMON_FAILED, exc_info=error)
    assert output.line()["exception"] == "ValueError: went wrong"


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError


ODD_VALUES: list[object] = [
    2**80,
    "\ud800",
    {1: 2},
    {("a", 1): "\udfff"},
    {2**70},
    b"\xff",
    float("nan"),
    Unshowable(),
    [[[[[[[[[[[1]]]]]]]]]]],
    Tokens("c", "u", "k", "117"),
    datetime(2024, 1, 1),
    Path("/x"),
    ValueError("x"),
]


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("format", ["json", "console"])
def test_no_value_makes_logging_fail(value: object, format: Format) -> None:
    output = writing(format=format)
    get_logger().info(Event.DAEMON_READY, value=value, nested=[{"value": value}])
    get_logger().info(Event.DAEMON_READY, value=value, text="secure")
    assert output.text().count("daemon_ready") == 2
    if format == "json":
        assert len(output.lines()) == 2


_WHATEVER = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


@given(_WHATEVER)
def test_whatever_is_logged_is_one_line_of_json(value: object) -> None:
    line = to_json(None, "info", {"event": Event.DAEMON_READY, "value": value, "text": "password"})
    assert b"\n" not in line
    assert json.loads(line)["event"] == "daemon_ready"
