"""The windows: polls are answered from memory with what the store has, whatever Chat Server does to the indexes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from conftest import NOON, Events, FakeClock, PromptStore
from stores.desk import Desk
from stores.test_transcript import message, refresh

from asyncchatd.gateway.watching.watched import A_CHAT, Watched, Watching
from asyncchatd.log.events import Event
from asyncchatd.model.data import Session, Verdict
from asyncchatd.model.transcript import EventKind, StoredEvent
from asyncchatd.model.values import replace

SHOWN = frozenset({EventKind.CHAT, EventKind.ENDED, EventKind.GAP})


def event(number: int, index: int | None) -> StoredEvent:
    return StoredEvent(number, EventKind.CHAT, "chat-1", "support", None, 0, b"{%d}" % number, 1, index)


def watched(*indexes: int | None) -> Watched:
    chat = Watched("chat-1")
    for number, index in enumerate(indexes, start=1):
        assert chat.add(event(number, index))
    return chat


def ids(chat: Watched, position: int) -> list[int]:
    return [line.id for line in chat.behind(position)]


def test_positions_are_those_of_the_chat_api() -> None:
    chat = watched(1, 2, 5)  # indexes have gaps
    assert (ids(chat, 1), ids(chat, 3), ids(chat, 5), ids(chat, 6)) == ([1, 2, 3], [3], [3], [])
    assert (ids(chat, 0), ids(chat, -1)) == ([], [3])
    assert chat.next_position == 6


def test_what_is_not_counted_stands_behind_the_event_before_it() -> None:
    chat = watched(1, 2, None)
    assert (ids(chat, 2), chat.next_position) == ([2, 3], 3)
    assert ids(chat, 3) == [3], "nobody can ask for it by its index"
    chat.gave(chat.behind(3), 0)
    assert ids(chat, 3) == []


def test_what_is_not_counted_is_not_for_those_who_ask_further_on() -> None:
    chat = watched(1, None, 4)
    assert (ids(chat, 2), ids(chat, 3), ids(chat, 4)) == ([2, 3], [3], [3])


def test_the_first_event_that_is_seen_may_be_one_before_the_position_of_its_session() -> None:
    chat = Watched("chat-1")
    chat.next_position = 10
    assert chat.add(event(1, 5))
    assert (ids(chat, 1), ids(chat, 10), chat.next_position) == ([1], [], 10)


def test_events_are_told_as_shown_once_and_with_how_long_the_oldest_waited(events: Events) -> None:
    chat = watched(3, 4, 7, 8)
    chat.lines = [replace(line, at=NOON + 100 * line.id) for line in chat.lines]
    for first, last, now in ((0, 1, NOON + 150), (0, 3, NOON + 1000), (1, 3, NOON + 2000), (3, 4, NOON)):
        chat.gave(chat.lines[first:last], now)
    shown = [
        tuple(line[name] for name in ("chat_id", "count", "first_index", "last_index", "lag_ms"))
        for line in events.of(Event.EVENTS_SHOWN)
    ]
    assert shown == [("chat-1", 1, 3, 3, 50), ("chat-1", 2, 4, 7, 800), ("chat-1", 1, 8, 8, 0)]
    assert chat.given == 4


def test_an_event_that_is_known_is_not_shown_twice() -> None:
    chat = watched(1, 2)
    assert chat.add(event(2, 2))
    assert ids(chat, 1) == [1, 2]


def test_a_lower_index_says_that_chat_server_counts_anew() -> None:
    chat = watched(1, 2, 7)
    assert not chat.add(event(4, 4))


def test_a_client_that_counts_as_before_misses_nothing() -> None:
    """It asks behind index 9, and Chat Server has five events now."""
    chat = watched(1, 2, 3, 4)
    chat.given = 4
    assert ids(chat, 10) == []
    for number in range(5, 12):
        chat.add(event(number, number))
        assert ids(chat, max(10, number)) == [number]
        chat.given = number


def test_what_comes_at_once_when_both_counts_meet_is_not_missed() -> None:
    chat = watched(1, 2)
    chat.given = 2
    assert ids(chat, 4) == []
    for number in (3, 4, 5):
        chat.add(event(number, number))
    assert ids(chat, 4) == [3, 4, 5]


def test_a_client_that_goes_by_the_new_count_may_lose_an_answer() -> None:
    """It asked behind index 9 once, and goes on from the position it heard."""
    chat = watched(1, 2, 3, 4)
    chat.given = 4
    assert ids(chat, 10) == []
    chat.add(event(5, 5))
    chat.given = 5
    assert (ids(chat, 5), ids(chat, 5)) == ([5], [5])


def test_a_client_that_knows_more_than_is_here_gets_nothing_twice() -> None:
    """Its chat was begun without the gateway: what it was told there, comes with the first Refresh."""
    chat = watched()
    assert ids(chat, 4) == []
    for number in (1, 2, 3, 4):
        chat.add(event(number, number))
    assert ids(chat, 4) == [4]


# -- with a store --------------------------------------------------------------------------------------


@pytest.fixture
async def desk(store: PromptStore, clock: FakeClock) -> Desk:
    await store.enrol([], now=clock.now(), shown=SHOWN)
    desk = Desk(store)
    await desk.live("chat-1")
    return desk


async def test_a_chat_is_read_once_and_follows_from_then_on(desk: Desk) -> None:
    await refresh(desk, message(3, "one"))
    watching = Watching(desk.store)
    await watching.begin()
    chat = await watching.get("chat-1")
    assert (chat.service, [line.index for line in chat.lines]) == ("support", [3])
    await refresh(desk, message(4, "two"))
    news = asyncio.Event()
    with chat.heard_by(news):
        await watching.follow()
    assert watching.now("chat-1") is chat
    assert [line.index for line in chat.lines] == [3, 4]
    assert news.is_set()
    assert not chat.waiting


async def test_a_chat_is_read_once_for_all_who_ask(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poll never touches the disk."""
    watching, asked, get = Watching(desk.store), list[str](), desk.store.get

    async def counted(chat_id: str) -> Session | None:
        asked.append(chat_id)
        return await get(chat_id)

    monkeypatch.setattr(desk.store, "get", counted)
    first, second = await asyncio.gather(watching.get("chat-1"), watching.get("chat-1"))
    assert await watching.get("chat-1") is first is second
    assert asked == ["chat-1"]


async def test_only_what_is_written_from_then_on_is_heard(desk: Desk) -> None:
    await refresh(desk, message(3, "one"))
    heard: list[int | None] = []
    watching = Watching(desk.store, heard=lambda event: heard.append(event.index))
    await watching.begin()
    await refresh(desk, message(4, "two"))
    await watching.follow()
    await watching.follow()
    assert heard == [4]


async def test_what_comes_while_it_is_read_is_not_missed(desk: Desk) -> None:
    watching = Watching(desk.store)
    await watching.begin()
    reading = asyncio.create_task(watching.get("chat-1"))
    await asyncio.sleep(0)
    await refresh(desk, message(3, "one"))
    await watching.follow()
    chat = await reading
    await watching.follow()
    assert [line.index for line in chat.lines] == [3]


async def test_a_chat_that_nobody_knows_is_asked_for_again(desk: Desk) -> None:
    watching = Watching(desk.store)
    await watching.begin()
    assert not (await watching.get("chat-2")).is_known
    assert len(watching) == 0
    await desk.live("chat-2")
    assert (await watching.get("chat-2")).is_known


async def test_a_chat_without_events_goes_on_where_its_session_is(desk: Desk) -> None:
    watching = Watching(desk.store)
    await watching.begin()
    assert (await watching.get("chat-1")).next_position == 3


async def test_an_end_is_told(desk: Desk) -> None:
    watching = Watching(desk.store)
    await watching.begin()
    chat = await watching.get("chat-1")
    await refresh(desk, message(3, "bye"), verdict=Verdict.ENDED)
    await watching.follow()
    assert chat.ended
    assert [line.index for line in chat.lines] == [3]


async def test_those_that_were_not_looked_at_for_longest_go_first(desk: Desk) -> None:
    watching = Watching(desk.store, most_bytes=2 * A_CHAT + 100)
    await watching.begin()
    for name in ("chat-2", "chat-3", "chat-4"):
        await desk.live(name)
    await watching.get("chat-2")
    await watching.get("chat-3")
    await watching.get("chat-2")
    await watching.get("chat-4")
    assert [chat.chat_id for chat in watching] == ["chat-2", "chat-4"]
    assert watching.size == 2 * A_CHAT


async def test_when_chat_server_counts_anew_all_is_read_again(desk: Desk) -> None:
    watching = Watching(desk.store)
    await watching.begin()
    chat = await watching.get("chat-1")
    await refresh(desk, message(3, "one", at=1), message(5, "two", at=2))
    await watching.follow()
    await refresh(desk, message(1, "one", at=1), message(2, "two", at=2), message(3, "three", at=3))
    await refresh(desk, message(1, "one", at=1), message(2, "two", at=2), message(3, "three", at=3))
    await watching.follow()
    assert [line.index for line in chat.lines][-1] == 3
    assert chat.next_position == 4


async def test_a_count_that_falls_by_one_costs_no_event(desk: Desk) -> None:
    """The next event fills the place: what the client asks for is the next position by the new count as well."""
    watching = Watching(desk.store)
    await watching.begin()
    chat = await watching.get("chat-1")
    await refresh(desk, message(3, "one", at=1), message(5, "two", at=2))
    await watching.follow()
    chat.gave(chat.behind(1), 0)
    chat.position_given = 6
    anew = (message(3, "one", at=1), message(4, "two", at=2), message(5, "three", at=3))
    for _ in range(2):
        await refresh(desk, *anew)
    await watching.follow()
    assert chat.next_position == 6
    assert [line.index for line in chat.behind(6)] == [5]
    chat.gave(chat.behind(6), 0)
    assert chat.behind(6) == []


async def test_a_chat_that_is_counted_anew_while_it_is_read_is_read_once_more(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await refresh(desk, message(3, "one"), message(7, "two"))
    transcript, reads = desk.store.transcript, 0

    async def counted(chat_id: str, *, limit: int) -> Sequence[StoredEvent]:
        nonlocal reads
        reads += 1
        return await transcript(chat_id, limit=limit)

    monkeypatch.setattr(desk.store, "transcript", counted)
    watching = Watching(desk.store)
    await watching.begin()
    reading = asyncio.create_task(watching.get("chat-1"))
    for _ in range(3):
        await asyncio.sleep(0)  # a turn of the loop each: the task, the reading, its first look
    watching._loading["chat-1"].append(event(99, 5))
    chat = await reading
    assert ([line.index for line in chat.lines], reads) == ([3, 7], 2), "as the store has it now"
    assert watching.size == A_CHAT + chat.size
