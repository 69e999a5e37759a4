"""What a consumer was told is held against the plant's transcript."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pytest

from asyncchatd.standin import Plant
from asyncchatd.standin.messages import write_event
from asyncchatd.standin.plant.parts import ChatSession

from .account import Account, Event


@pytest.fixture
def session() -> ChatSession:
    """A chat with its beginning and four messages, which was registered after the first of these."""
    moments = count(1_700_000_000_000)
    plant = Plant(now=lambda: 0.0, wall_ms=lambda: next(moments))
    [session] = plant.start_chats(1)
    for text in ("one", "two", "three", "four"):
        plant.say(session, text)
    return session


@pytest.fixture
def begins(session: ChatSession) -> int:
    return session.events[2].index or 0


@pytest.fixture
def events(session: ChatSession) -> list[Event]:
    """As a consumer is told of them, in the order of the transcript."""
    return [
        {
            "id": f"epoch-{number}",
            "kind": "chat",
            "chat_id": session.chat_id,
            "event": write_event(event),
        }
        for number, event in enumerate(session.events)
    ]


@pytest.fixture
def gap(session: ChatSession) -> Event:
    return {"id": "epoch-3.5", "kind": "gap", "chat_id": session.chat_id, "event": None}


def account(*portions: Sequence[Event]) -> Account:
    made = Account("reader")
    for number, portion in enumerate(portions):
        made.take([each | {"id": f"epoch-{number * 10 + at}"} for at, each in enumerate(portion)])
    return made


def test_all_from_the_registration_on_is_enough(
    session: ChatSession, begins: int, events: list[Event]
) -> None:
    told = account(events[2:])
    assert (told.untold(session, begins), told.wrong) == (0, [])


@pytest.mark.parametrize("missing", [2, 3, 4])
def test_each_event_that_is_missing_is_counted(
    session: ChatSession, begins: int, events: list[Event], missing: int
) -> None:
    told = account([event for number, event in enumerate(events[2:], 2) if number != missing])
    assert told.untold(session, begins) == 1


@pytest.mark.parametrize("place", [3, 4])
def test_a_gap_covers_what_is_missing_before_the_next_event_or_before_itself(
    session: ChatSession, begins: int, events: list[Event], gap: Event, place: int
) -> None:
    without = [events[2], events[4]]
    told = account([*without[: place - 2], gap, *without[place - 2 :]])
    assert told.untold(session, begins) == 0


def test_what_is_told_in_another_order_is_wrong(
    session: ChatSession, begins: int, events: list[Event]
) -> None:
    told = account([events[3], events[2], events[4]])
    told.untold(session, begins)
    assert len(told.wrong) == 1


def test_an_event_that_the_plant_never_had_is_wrong(session: ChatSession, events: list[Event]) -> None:
    told = account([events[2] | {"event": events[2]["event"] | {"text": "another"}}])
    told.untold(session, None)
    assert len(told.wrong) == 1


def test_what_comes_again_under_its_id_is_passed_over(
    session: ChatSession, begins: int, events: list[Event]
) -> None:
    told = Account("reader")
    for _ in range(2):
        told.take(events[2:])
    assert (told.untold(session, begins), told.wrong, told.counts["told twice"]) == (0, [], 3)


def test_an_id_below_one_that_was_told_is_wrong(session: ChatSession, events: list[Event]) -> None:
    told = Account("reader")
    told.take([events[3], events[2]])
    assert len(told.wrong) == 1


def test_after_another_history_of_the_store_all_may_come_again(
    session: ChatSession, begins: int, events: list[Event]
) -> None:
    told = account(events[2:])
    assert told.untold(session, begins) == 0
    told.take([event | {"id": f"other-{number}"} for number, event in enumerate(events[3:])])
    assert (told.untold(session, begins), told.wrong) == (1, [])
    told.excuse(session)
    assert told.untold(session, begins) == 0


def test_the_oldest_that_is_untold_is_the_first_behind_what_was(
    session: ChatSession, begins: int, events: list[Event]
) -> None:
    told = account(events[2:3])
    assert told.oldest(session, begins) == session.events[3].utc_time
    told.take([each | {"id": f"epoch-{number}"} for number, each in enumerate(events[3:], 50)])
    assert told.oldest(session, begins) is None
