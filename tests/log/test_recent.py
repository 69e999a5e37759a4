"""The last warnings and errors in memory: alike ones together, bounded, without secrets."""

from __future__ import annotations

from collections.abc import Iterator

import orjson
import pytest
from conftest import Events

from asyncchatd.log import metrics
from asyncchatd.log.events import Event
from asyncchatd.log.lines import get_logger
from asyncchatd.log.recent import KINDS, LONGEST_TEXT, Recent
from asyncchatd.log.redaction import redact
from asyncchatd.log.rendering import recent_lines

pytestmark = pytest.mark.usefixtures("events")

log = get_logger()


@pytest.fixture(autouse=True)
def nothing_yet() -> Iterator[None]:
    recent_lines.forget()
    yield
    recent_lines.forget()


def test_warnings_and_errors_are_kept_and_nothing_less() -> None:
    log.debug(Event.PING_OK, chat_id="a")
    log.info(Event.SERVER_UP, server="chat-1")
    log.warning(Event.SERVER_SUSPECT, server="chat-1", alias="117", cause="no answer")
    log.error(Event.SERVER_DOWN, server="chat-1", alias="117", cause="no answer", attempts=3)
    shown = recent_lines.noted(10)
    assert [(each.event, each.level) for each in shown] == [
        ("server_down", "error"),
        ("server_suspect", "warning"),
    ]
    assert shown[0].fields == {"server": "chat-1", "alias": "117", "cause": "no answer", "attempts": 3}
    assert shown[0].meaning == Event.SERVER_DOWN.meaning


def test_a_storm_of_the_same_is_one_entry_and_does_not_push_out_its_cause() -> None:
    log.error(Event.SERVER_DOWN, server="chat-1", alias="117")
    for number in range(10 * KINDS):
        log.warning(Event.PING_RETRY, chat_id=f"chat-{number}", alias="117", cause="status_code_1")
    storm, cause = recent_lines.noted(10)
    assert (storm.event, storm.count) == ("ping_retry", 10 * KINDS)
    assert storm.fields == {"chat_id": "chat-999", "alias": "117", "cause": "status_code_1"}
    assert storm.first <= storm.last
    assert cause.event == "server_down"


def test_of_too_many_kinds_those_last_heard_are_kept() -> None:
    kept = Recent(lambda fields: fields, kinds=3)
    for server in ("a", "b", "c", "a", "d"):
        kept.note("warning", {"event": "server_suspect", "server": server})
    assert [each.fields for each in kept.noted(10)] == [{"server": server} for server in "dac"]
    assert [each.fields for each in kept.noted(2)] == [{"server": server} for server in "da"]


def test_no_secret_is_in_it(events: Events) -> None:
    redact("a-push-secret-of-ours")
    log.warning(
        Event.PUSH_REFUSED,
        message="/push/a-push-secret-of-ours, secureKey=4ee15d7e1c343c8e",
        secure_key="4ee15d7e1c343c8e",
        nested={"password": "4ee15d7e1c343c8e"},
    )
    try:
        raise LookupError("secureKey=4ee15d7e1c343c8e")
    except LookupError:
        log.exception(Event.PING_FAILED, cause=LookupError("secureKey=4ee15d7e1c343c8e"))
    text = str([each.fields for each in recent_lines.noted(10)])
    assert len(recent_lines.noted(10)) == 2
    assert "4ee15d7e1c343c8e" not in text
    assert "a-push-secret" not in text
    assert "[redacted]" in text


def test_whatever_is_in_a_field_can_be_shown_and_is_short() -> None:
    strange = {"key": "x" * 10_000, "message": "\ud800", "advice": 1 << 80, "extra": object(), "none": None}
    recent_lines.note("warning", {"event": Event.CONFIG_WARNING, **strange})
    [entry] = recent_lines.noted(10)
    fields = entry.fields
    orjson.dumps(fields)
    assert set(fields) == {"key", "message", "advice", "extra"}
    assert all(len(str(value)) <= LONGEST_TEXT for value in fields.values())


def test_they_are_counted_by_event() -> None:
    def counted() -> float:
        labels = {"event": "server_down", "level": "error"}
        return metrics.REGISTRY.get_sample_value("asyncchatd_log_events_total", labels) or 0.0

    before = counted()
    for _ in range(3):
        log.error(Event.SERVER_DOWN, server="chat-1")
    assert counted() == before + 3
