"""History: a page that is loaded anew shows what was said before asyncchatd heard of its chat."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio

from asyncchatd.gateway.watching.watched import KEPT_EVENTS, Line, Watched

from ..rig import Client, Shop, shop
from ..test_kept_keys import begun_without, register
from ..watching.test_watched import event, ids, watched

pytestmark = pytest.mark.usefixtures("events")


@pytest_asyncio.fixture
async def here(tmp_path: Path) -> AsyncIterator[Shop]:
    """One shop, whose plant must not have suffered."""
    async with shop(tmp_path, store=f"sqlite:///{tmp_path}/chats.db", hold="1s") as opened:
        yield opened
        assert opened.wrong() == {}


def says(here: Shop, client: Client, text: str) -> None:
    assert here.plant.plant.say(here.chat(client), text)


async def registered_late(here: Shop) -> Client:
    """A client that heard something before its chat was registered."""
    client = await begun_without(here)
    says(here, client, "one")
    says(here, client, "two")
    assert await register(here, client, next_position=here.chat(client).next_index) == 201
    return client


@pytest.mark.slow
async def test_a_page_that_is_loaded_anew_shows_what_was_said_before(here: Shop) -> None:
    client = await registered_late(here)
    await client.hears(2)
    says(here, client, "three")
    await client.hears(3)
    again = Client(here, client.opened)
    await again.hears(3)
    assert client.texts == again.texts == ["one", "two", "three"]


async def test_gms_is_asked_once_however_often_the_page_is_loaded(here: Shop) -> None:
    client = await registered_late(here)
    await client.hears(2)
    before = here.requests("refresh")
    for _ in range(5):
        again = Client(here, client.opened)
        await again.poll("undefined")  # as some clients ask each time
        await again.poll()
        assert again.texts == ["one", "two"]
    assert here.requests("refresh") == before


@pytest.mark.slow
async def test_consumers_are_not_told_of_what_was_said_before(here: Shop, tmp_path: Path) -> None:
    client = await registered_late(here)
    await client.hears(2)
    says(here, client, "three")
    await client.hears(3)
    with closing(sqlite3.connect(tmp_path / "chats.db")) as db:
        [[count]] = db.execute("SELECT count(*) FROM event WHERE kind='chat'")
    assert count == 1


@pytest.mark.slow
async def test_a_poll_says_nothing_and_moves_no_position_while_gms_is_asked(tmp_path: Path) -> None:
    async with shop(tmp_path, hold="50ms") as here:
        client = await registered_late(here)
        here.plant.plant.change({"latency": 0.5})
        reply = await client.poll()
        assert (reply["messages"], reply["nextPosition"]) == ([], 1)
        await client.hears(2)
        assert client.texts == ["one", "two"]


# -- what is here ----------------------------------------------------------------------------------


def before(*indexes: int) -> list[Line]:
    return [Line(0, index, b"{}") for index in indexes]


def test_a_poll_lacks_what_comes_before_the_first_event_that_is_here() -> None:
    chat = watched(4, 5)
    assert [chat.lacks(position) for position in (1, 3, 4, 9, 0, -1)] == [True, True, *[False] * 4]
    chat.before = before(1, 2, 3)
    assert not chat.lacks(1)
    assert (len(chat.behind(1)), len(chat.behind(3)), ids(chat, 5)) == (5, 3, [2])


def test_the_last_event_is_lacking_where_none_is_here() -> None:
    chat = Watched("chat-1")
    assert not chat.lacks(-1)
    chat.next_position = 4
    assert chat.lacks(-1)
    chat.before = before(2, 3)
    assert [line.index for line in chat.behind(-1)] == [3]


def test_what_was_before_goes_when_the_oldest_event_goes() -> None:
    chat = watched(*range(4, KEPT_EVENTS + 4))
    chat.before = before(1, 2, 3)
    chat.size += 6
    size = chat.size
    assert chat.add(event(KEPT_EVENTS + 1, KEPT_EVENTS + 4))
    assert (chat.before, chat.complete_from, chat.lacks(1)) == ([], 5, True)
    gone = len(b"{1}") + 6
    assert chat.size == size - gone + len(b"{%d}" % (KEPT_EVENTS + 1))
