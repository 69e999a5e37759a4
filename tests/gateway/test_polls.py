"""Polls of plain clients: how long they are held, what ends that, and what is told of them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import orjson
import pytest
import pytest_asyncio
from conftest import Events, FakeClock, PromptStore, soon

from asyncchatd.gateway import polls
from asyncchatd.gateway.chats import LOOK_SECONDS
from asyncchatd.gateway.polls import MOST_BESIDE, Beside
from asyncchatd.log import metrics
from asyncchatd.log.events import Event
from asyncchatd.model.transcript import StoredEvent
from asyncchatd.stores import STORE_PAUSE_SECONDS, StoreError

from .hall import Hall, hall

pytestmark = pytest.mark.usefixtures("events")


@pytest_asyncio.fixture
async def here(tmp_path: Path, store: PromptStore, clock: FakeClock) -> AsyncIterator[Hall]:
    async with hall(tmp_path, store, clock, hold="3s") as opened:
        yield opened


def counted() -> list[float]:
    return [metrics.POLLS.labels(answer)._value.get() for answer in ("news", "empty", "ended")]


async def test_each_poll_is_counted_by_what_it_was_answered_with(here: Hall) -> None:
    before = counted()

    def since() -> list[float]:
        return [now - then for now, then in zip(counted(), before, strict=True)]

    await here.said("Hello")
    assert len((await soon(here.poll(3)))["messages"]) == 1
    assert since() == [1, 0, 0]
    poll = here.poll(4)
    await here.held(polls=1)
    await here.clock.advance(3)
    assert (await soon(poll))["messages"] == []
    assert since() == [1, 1, 0]
    await here.said("Bye", end=True)
    assert (await soon(here.poll(4)))["chatEnded"]
    assert since() == [1, 1, 1]


async def is_held_and_empty(here: Hall) -> None:
    """A poll is held for as long as is configured, and nothing is in its answer."""
    poll = here.poll(3)
    await here.held(polls=1)
    await here.clock.advance(2.9)
    assert not poll.done()
    await here.clock.advance(0.1)
    reply = await soon(poll)
    assert (reply["statusCode"], reply["messages"], reply["nextPosition"]) == (0, [], 3)


async def test_a_poll_without_news_is_held_for_as_long_as_is_configured(here: Hall) -> None:
    await is_held_and_empty(here)
    await here.held(polls=0)


async def test_of_an_ended_chat_a_poll_without_news_is_not_held(here: Hall) -> None:
    await here.said("Bye", end=True)
    reply = await soon(here.poll(3))
    assert (len(reply["messages"]), reply["chatEnded"]) == (1, True)
    reply = await soon(here.poll(reply["nextPosition"]))
    assert (reply["messages"], reply["chatEnded"]) == ([], True)


async def test_a_poll_of_a_chat_that_is_not_known_here_is_held_and_empty(here: Hall) -> None:
    """It may be known in a moment: a client is not told that it is over."""
    before = counted()
    poll = here.poll(7, chat="another")
    await here.held(polls=1)
    await here.clock.advance(2.9)
    assert not poll.done()
    await here.clock.advance(0.1)
    reply = await soon(poll)
    assert (reply["messages"], reply["nextPosition"], reply["chatEnded"]) == ([], 7, False)
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [0, 1, 0]


async def test_a_stop_answers_polls_of_chats_that_are_not_known_too(here: Hall) -> None:
    poll = here.poll(3, chat="another")
    await here.held(polls=1)
    await here.chats.drain(1)
    assert (await soon(poll))["messages"] == []
    assert (await soon(here.poll(3, chat="another")))["messages"] == []


async def test_while_the_store_fails_polls_are_held_and_empty_and_afterwards_nothing_was_missed(
    here: Hall, store: PromptStore
) -> None:
    store.fill_disk()
    await is_held_and_empty(here)
    store.free_disk()
    await here.clock.advance(1)
    poll = here.poll(3)
    await here.held(polls=1)
    await here.said("Hello")
    assert [event["text"] for event in (await soon(poll))["messages"]] == ["Hello"]


async def test_a_poll_of_a_chat_that_has_to_be_read_again_is_held_and_asks_the_same_again(here: Hall) -> None:
    before = counted()
    chat = await here.chats._watching.get("chat-1")
    chat.followed, chat.next_position = False, 9  # what came since is not here
    chat.not_back_before = math.inf  # and GMS is not asked
    await is_held_and_empty(here)
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [0, 1, 0]


async def test_a_held_poll_is_answered_at_once_when_its_chat_is_to_be_read_again(here: Hall) -> None:
    poll = here.poll(3)
    await here.held(polls=1)
    await here.chats.forget("chat-1")
    reply = await soon(poll)
    assert (reply["messages"], reply["nextPosition"], reply["chatEnded"]) == ([], 3, False)


async def test_a_poll_that_asks_for_no_events_is_held_whatever_is_said(here: Hall) -> None:
    poll = here.poll(0)
    await here.held(polls=1)
    await here.said("Hello")
    await here.clock.advance(2.9)
    assert not poll.done()
    await here.clock.advance(0.1)
    reply = await soon(poll)
    assert (reply["messages"], reply["nextPosition"]) == ([], 4)


async def test_what_others_who_share_the_store_wrote_is_told_within_a_second(
    here: Hall, store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    poll = here.poll(3)
    await here.held(polls=1)
    monkeypatch.setattr(store.bell, "ring", lambda: None)
    await here.said("Hello")
    await here.clock.advance(0.5 * LOOK_SECONDS)
    assert not poll.done()
    await here.clock.advance(0.6 * LOOK_SECONDS)
    assert [event["text"] for event in (await soon(poll))["messages"]] == ["Hello"]


async def test_a_hold_that_is_reloaded_holds_for_the_next_poll(here: Hall) -> None:
    here.reload(hold="1s")
    poll = here.poll(3)
    await here.held(polls=1)
    await here.clock.advance(1)
    assert (await soon(poll))["messages"] == []


async def test_a_store_whose_news_cannot_be_read_is_told_and_asked_again_a_little_later(
    here: Hall, store: PromptStore, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[float]()

    async def fails(*_: object, **__: object) -> tuple[list[StoredEvent], int]:
        asked.append(here.clock.monotonic())
        raise StoreError("a statement failed")

    poll = here.poll(3, wait="25")
    await here.held(polls=1)
    monkeypatch.setattr(store, "news", fails)
    await here.said("Hello")
    await here.clock.advance(5 * STORE_PAUSE_SECONDS)
    told = [line["cause"] for line in events.of(Event.STORE_FAILED)]
    assert told == ["a statement failed"] * len(asked)
    assert len(asked) in {5, 6}
    monkeypatch.undo()
    await here.clock.advance(STORE_PAUSE_SECONDS)
    assert [event["text"] for event in (await soon(poll))["messages"]] == ["Hello"]


async def test_where_all_places_are_taken_a_poll_is_answered_before_a_stream_ends(here: Hall) -> None:
    stream = await here.stream(3)
    poll = here.poll(3)
    await here.held(polls=1, streams=1)
    assert here.chats.answer_longest()
    assert (await soon(poll))["messages"] == []
    await here.held(streams=1)
    assert here.chats.answer_longest()
    await stream.ends()
    await here.held()
    assert not here.chats.answer_longest()


async def test_what_is_too_much_for_one_reply_comes_with_the_next_poll_and_the_end_with_the_last(
    here: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    await here.said("one", "two", "three", "four", "x" * 2_000, "six", end=True)
    told = (await soon(here.poll(3)))["messages"]
    size = len(orjson.dumps(told[0]))
    monkeypatch.setattr(polls, "MOST_BYTES", 2 * size + size // 2)
    position, given, ended = 3, list[list[str]](), list[bool]()
    while not any(ended):
        reply = await soon(here.poll(position))
        given.append([event["text"] for event in reply["messages"]])
        ended.append(reply["chatEnded"])
        position = reply["nextPosition"]
    assert given == [["one", "two"], ["three", "four"], ["x" * 2_000], ["six"]]
    assert ended == [False, False, False, True]
    assert position == 9


async def test_a_reply_without_events_asks_a_client_to_ask_the_same_again(here: Hall) -> None:
    asked = [here.poll(position, chat="another") for position in (0, 1, 2)]
    other = here.poll(12, chat="other")
    await here.held(polls=4)
    await here.clock.advance(3)
    assert [(await soon(poll))["nextPosition"] for poll in (*asked, other)] == [1, 1, 2, 12]


def test_a_place_beside_others_is_free_again_for_one_when_one_has_left() -> None:
    beside = Beside()
    with ExitStack() as held, ExitStack() as last:
        for _ in range(MOST_BESIDE - 1):
            assert held.enter_context(beside.place("chat-1"))
        assert last.enter_context(beside.place("chat-1"))
        with beside.place("chat-1") as has_place, beside.place("chat-2") as has_another:
            assert (has_place, has_another) == (False, True)
        with beside.place("chat-1") as has_place:
            assert not has_place  # one that had none gave none back
        last.close()
        with beside.place("chat-1") as has_place:
            assert has_place
            with beside.place("chat-1") as has_place:
                assert not has_place
    for _ in range(2):
        with ExitStack() as held:
            places = [held.enter_context(beside.place("chat-1")) for _ in range(MOST_BESIDE + 1)]
            assert places == [True] * MOST_BESIDE + [False]
    assert not beside._held  # nothing is kept of a chat of which none is held
