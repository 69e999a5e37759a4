"""Long polls: a new client says how long it waits, and is held beside others of its chat."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from conftest import FakeClock, PromptStore, soon

from asyncchatd.gateway.polls import MOST_BESIDE

from .hall import Hall, Json, hall

pytestmark = pytest.mark.usefixtures("events")


@pytest_asyncio.fixture
async def here(tmp_path: Path, store: PromptStore, clock: FakeClock) -> AsyncIterator[Hall]:
    async with hall(tmp_path, store, clock) as opened:
        yield opened


def texts(reply: Json) -> list[str]:
    return [event["text"] for event in reply["messages"]]


async def test_it_is_held_for_as_long_as_it_says(here: Hall) -> None:
    poll = here.poll(3, wait="25")
    await here.held(polls=1)
    await here.clock.advance(24.5)
    assert not poll.done()
    await here.clock.advance(1)
    reply = await soon(poll)
    assert (reply["messages"], reply["nextPosition"], reply["chatEnded"]) == ([], 3, False)


async def test_it_is_answered_when_something_is_said(here: Hall) -> None:
    poll = here.poll(3, wait="25")
    await here.held(polls=1)
    await here.clock.advance(20)
    await here.said("Hello")
    reply = await soon(poll)
    assert (texts(reply), reply["nextPosition"]) == (["Hello"], 4)


async def test_it_is_answered_when_the_chat_ends(here: Hall) -> None:
    poll = here.poll(3, wait="25")
    await here.held(polls=1)
    await here.said("Bye", end=True)
    reply = await soon(poll)
    if not reply["chatEnded"]:  # the words came first
        assert texts(reply) == ["Bye"]
        reply = await soon(here.poll(reply["nextPosition"], wait="25"))
    assert reply["chatEnded"]


async def test_the_address_may_say_it_too(here: Hall) -> None:
    form = here.form(transcriptPosition="3")
    poll = asyncio.create_task(here.post("refresh", form, wait="25"))
    await here.held(polls=1)
    await here.clock.advance(20)
    assert not poll.done()
    await here.said("Hello")
    assert texts((await soon(poll))[1]) == ["Hello"]


async def test_four_are_held_beside_each_other_and_beside_the_plain_one(here: Hall) -> None:
    polls = [here.poll(3, wait="25") for _ in range(MOST_BESIDE)]
    await here.held(polls=4)
    plain = here.poll(3)
    await here.held(polls=5)
    second = here.poll(3)
    assert (await soon(plain))["messages"] == []
    await here.held(polls=5)
    await here.said("Hello")
    assert [texts(await soon(poll)) for poll in (*polls, second)] == [["Hello"]] * 5


async def test_one_more_is_answered_after_a_second(here: Hall) -> None:
    polls = [here.poll(3, wait="25") for _ in range(MOST_BESIDE)]
    await here.held(polls=4)
    beyond = here.poll(3, wait="25")
    await here.held(polls=5)
    await here.clock.advance(1.1)
    assert (await soon(beyond))["messages"] == []
    await here.held(polls=4)
    await here.chat("chat-2")
    other = here.poll(3, chat="chat-2", wait="25")
    await here.held(polls=5)
    await here.clock.advance(1.1)
    assert not any(poll.done() for poll in (*polls, other))
    await here.clock.advance(25)
    assert [texts(await soon(poll)) for poll in (*polls, other)] == [[]] * 5


async def test_one_too_many_keeps_no_place_from_others(here: Hall) -> None:
    streams = [await here.stream(3) for _ in range(MOST_BESIDE)]
    await here.held(streams=4)
    beyond = here.poll(3, wait="25")
    await here.held(polls=1, streams=4)
    streams[0].response.close()
    await here.held(polls=1, streams=3)
    poll = here.poll(3, wait="25")
    await here.held(polls=2, streams=3)
    await here.clock.advance(1.1)
    assert (await soon(beyond))["messages"] == []
    await here.clock.advance(5)
    assert not poll.done()
    await here.said("one")
    assert texts(await soon(poll)) == ["one"]


async def test_each_of_two_gets_what_is_said_also_when_chat_server_counts_anew(here: Hall) -> None:
    await here.said("one", "two", "three", "four", "five")
    assert len(texts(await soon(here.poll(3, wait="25")))) == 5
    polls = [here.poll(8, wait="25") for _ in range(2)]
    await here.held(polls=2)
    await here.counted_anew("one", "two", "three", "four", "five", "six")
    replies = [await soon(poll) for poll in polls]
    assert [(texts(reply), reply["nextPosition"]) for reply in replies] == [(["six"], 7)] * 2


async def test_a_stop_answers_it_at_once(here: Hall) -> None:
    poll = here.poll(3, wait="25")
    await here.held(polls=1)
    await here.chats.drain(1)
    assert (await soon(poll))["messages"] == []
    assert (await soon(here.poll(3, wait="25")))["messages"] == []
