"""Streams: a new client is sent what is said, once and in order, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from conftest import Events, FakeClock, PromptStore, soon
from stores.desk import registration
from stores.test_transcript import message, refresh

from asyncchatd.gateway import event_streams
from asyncchatd.gateway.polls import MOST_BESIDE
from asyncchatd.gateway.watching import watched
from asyncchatd.listening import event_stream
from asyncchatd.log import metrics
from asyncchatd.log.events import Event

from .hall import KEY, Hall, hall

pytestmark = pytest.mark.usefixtures("events")


@pytest_asyncio.fixture
async def here(tmp_path: Path, store: PromptStore, clock: FakeClock) -> AsyncIterator[Hall]:
    async with hall(tmp_path, store, clock, origins=["https://shop.example"]) as opened:
        yield opened


# -- what is said ----------------------------------------------------------------------------------------


async def test_what_is_said_is_sent_as_polls_have_it(here: Hall) -> None:
    await here.said("one", "two")
    stream = await here.stream(3)
    await stream.hears("one", "two")
    await here.said("three")
    third = await stream.must()
    assert (third.id, third.name, third.text) == ("5", "message", "three")
    polled = await soon(here.poll(3))
    assert polled["messages"][-1] == third.json


async def test_its_headers_keep_what_stands_between_from_holding_it_back(here: Hall) -> None:
    headers = (await here.stream(3)).response.headers
    assert headers["Content-Type"] == "text/event-stream"
    assert headers["X-Accel-Buffering"] == "no"
    assert headers["Cache-Control"] == "no-store"
    assert "Content-Encoding" not in headers


async def test_positions_are_those_of_polls(here: Hall) -> None:
    await here.said("one", "two", "three")
    for position, first in (("4", "two"), ("-1", "three"), ("0", "four"), ("6", "four")):
        stream = await here.stream(position)
        await here.held(streams=1)
        if first == "four":
            await here.said("four")
        await stream.hears(first)
        stream.response.close()
        await here.held()


async def test_who_comes_back_with_the_last_id_gets_the_rest_and_nothing_twice(here: Hall) -> None:
    await here.said("one", "two")
    stream = await here.stream(3)
    await stream.hears("one", "two")
    stream.response.close()
    await here.said("three")
    again = await here.stream(3, after=stream.last_id)
    await again.hears("three")
    await here.said("four")
    await again.hears("four")


async def test_who_heard_nothing_yet_comes_back_and_misses_nothing(here: Hall) -> None:
    await here.said("one")
    stream = await here.stream(0)
    assert await soon(stream.place()) == "3"
    stream.response.close()
    await here.said("two")
    await (await here.stream(0, after="3")).hears("two")


async def test_a_chat_of_which_nothing_was_said_has_an_id_too(here: Hall) -> None:
    await here.desk.register(registration("chat-2", next_position=1))
    stream = await here.stream(0, chat="chat-2")
    assert await soon(stream.place()) == "0"
    stream.response.close()
    await refresh(here.desk, message(1, "first"), chat_id="chat-2")
    await (await here.stream(0, chat="chat-2", after="0")).hears("first")


async def test_that_the_agent_types_is_sent_as_polls_have_it(here: Hall) -> None:
    stream = await here.stream(3)
    await refresh(here.desk, {**message(3, ""), "type": "TypingStarted"})
    sent = await stream.must()
    assert (sent.json["type"], sent.id) == ("TypingStarted", "3")
    assert (await soon(here.poll(3)))["messages"] == [sent.json]


async def test_when_chat_server_counts_anew_nothing_comes_twice(here: Hall) -> None:
    await here.said("one", "two", "three")
    stream = await here.stream(3)
    await stream.hears("one", "two", "three")
    await here.counted_anew("one", "two", "three", "four")
    fourth = await stream.must()
    assert (fourth.text, fourth.id) == ("four", "4")
    await here.said("five")
    await stream.hears("five")


async def test_the_end_is_told_and_ends_it(here: Hall) -> None:
    stream = await here.stream(3)
    await here.held(streams=1)
    await here.said("Bye", end=True)
    await stream.hears("Bye")
    end = await stream.must()
    assert (end.name, end.json) == ("end", {"chatEnded": True})
    await stream.ends()
    late = await here.stream(3)
    await late.hears("Bye")
    assert (await late.must()).name == "end"
    await late.ends()


async def test_the_last_words_come_before_the_end_also_when_they_come_together(
    here: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client reads slowly while they come."""
    writes, go_on, write = asyncio.Event(), asyncio.Event(), event_streams._write

    async def slowly(response: web.StreamResponse, data: bytes) -> None:
        if b"data: " in data:
            writes.set()
            await go_on.wait()
        await write(response, data)

    monkeypatch.setattr(event_streams, "_write", slowly)
    stream = await here.stream(3)
    await here.said("one")
    await soon(writes.wait())
    await here.said("Bye", end=True)
    chat = await here.chats._watching.get("chat-1")
    async with asyncio.timeout(10):
        while not chat.ended:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)
    go_on.set()
    await stream.hears("one", "Bye")
    assert (await stream.must()).name == "end"


async def test_chats_that_had_to_make_room_are_read_again_when_something_is_said_and_not_before(
    here: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here.chats._watching, "_most_bytes", 2 * watched.A_CHAT)
    names = ["chat-2", "chat-3", "chat-4"]
    for name in names:
        await here.chat(name)
    streams = {name: await here.stream(3, chat=name) for name in names}
    poll = here.poll(3, chat="chat-2", wait="25")
    await here.held(polls=1, streams=3)
    reads, read = 0, here.desk.store.transcript

    async def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal reads
        reads += 1
        return await read(*arguments, **more)

    monkeypatch.setattr(here.desk.store, "transcript", counted)
    await here.clock.advance(event_stream.HEARTBEAT_SECONDS)
    for name in names:
        assert (await streams[name].must()).name == "comment"
    assert reads == 0
    for name in names:
        await here.said(f"to {name}", chat=name)
        await streams[name].hears(f"to {name}")
    assert reads <= len(names) + 1
    reply = await soon(poll)
    if not reply["messages"]:  # it was answered before the chat was here again
        assert reply["nextPosition"] == 3
        reply = await soon(here.poll(3, chat="chat-2", wait="25"))
    assert [event["text"] for event in reply["messages"]] == ["to chat-2"]


# -- how long ----------------------------------------------------------------------------------------------


async def test_a_silent_one_shows_life(here: Hall) -> None:
    stream = await here.stream(3)
    await here.held(streams=1)
    for _ in range(3):
        await here.clock.advance(event_stream.HEARTBEAT_SECONDS)
        assert (await stream.must()).name == "comment"
    await here.said("one")
    await stream.hears("one")


async def test_four_are_open_with_long_polls_and_one_more_lasts_a_second(here: Hall) -> None:
    streams = [await here.stream(3) for _ in range(MOST_BESIDE - 1)]
    poll = here.poll(3, wait="25")
    await here.held(polls=1, streams=3)
    beyond = await here.stream(3)
    await here.held(polls=1, streams=4)
    await here.clock.advance(1.1)
    await beyond.ends()
    await here.said("one")
    await soon(poll)
    for stream in streams:
        await stream.hears("one")
    fourth = await here.stream(3)
    await fourth.hears("one")
    await here.clock.advance(2)
    await here.said("two")
    await fourth.hears("two")


async def test_a_stop_ends_it_at_once(here: Hall) -> None:
    stream = await here.stream(3)
    await here.held(streams=1)
    await here.chats.drain(1)
    await stream.ends()


@pytest.mark.parametrize("changed", ["origins", "apikeys", "keys"])
async def test_a_reload_of_who_may_ends_it(here: Hall, changed: str) -> None:
    (here.directory / "apikeys").write_text("an-apikey")
    (here.directory / "more-keys").write_text(f"{'7a' * 32}\n{KEY}")
    more: dict[str, dict[str, object]] = {
        "origins": {"origins": ["https://other.example"]},
        "apikeys": {"apikeys_file": "apikeys"},
        "keys": {"key_file": "more-keys"},
    }
    stream = await here.stream(3)
    poll = here.poll(3, wait="25")
    await here.held(polls=1, streams=1)
    _, given = await here.post("events/ticket", here.form())
    here.reload(hold="1s")
    await here.said("one")
    await stream.hears("one")
    poll = here.poll(4, wait="25")
    here.reload(hold="1s", **more[changed])
    await stream.ends()
    async with here.http.get(here.url("events", query={"ticket": given["ticket"]})) as response:
        assert response.status == 403
    poll.cancel()


async def test_who_has_one_open_counts_as_one_who_polls(
    tmp_path: Path, store: PromptStore, clock: FakeClock
) -> None:
    async with hall(tmp_path, store, clock, check_interval="2m") as here:
        stream = await here.stream(3)
        await here.held(streams=1)
        asked = looks()
        for _ in range(11):
            await here.clock.advance(event_stream.HEARTBEAT_SECONDS)
            await stream.must()
        assert looks() == asked + 1
        stream.response.close()
        await here.held()
        await here.clock.advance(600)
        assert looks() == asked + 1


def looks() -> float:
    return float(metrics.LOOKS.labels("asked")._value.get())


async def test_where_all_places_are_taken_the_one_that_is_open_longest_ends(
    tmp_path: Path, store: PromptStore, clock: FakeClock
) -> None:
    async with hall(tmp_path, store, clock, max_connections=8) as here:
        await here.chat("chat-2")
        streams = [await here.stream(3, chat=f"chat-{1 + n % 2}") for n in range(7)]
        poll = here.poll(3, wait="25")
        await here.held(polls=1, streams=7)
        streams.append(await here.stream(3, chat="chat-2"))
        assert (await soon(poll))["messages"] == []  # polls go first
        late = await here.stream(3, chat="chat-2")
        await streams[0].ends()
        await here.said("one", chat="chat-2")
        await streams[1].hears("one")
        late.response.close()


# -- who may -----------------------------------------------------------------------------------------------


async def test_a_wrong_key_gets_nothing(here: Hall, events: Events) -> None:
    for form in ({}, here.form(secureKey="deadbeef"), here.form("chat-2")):
        for operation in ("events", "events/ticket"):
            status, reply = await here.post(operation, form)
            assert (status, reply["statusCode"], reply["chatEnded"]) == (403, 2, True)
    assert events.of(Event.CLIENT_REFUSED)


async def test_a_right_key_of_a_chat_that_nobody_knows_is_told_to_come_again(here: Hall) -> None:
    async with here.http.post(here.url("events", "chat-9"), data=here.form("chat-9")) as response:
        assert response.status == 503
        assert response.headers["Retry-After"]
        assert not (await response.json())["chatEnded"]


async def test_a_key_in_the_url_is_refused_by_its_name(here: Hall) -> None:
    query = here.form()
    for method, operation in (("GET", "events"), ("POST", "events"), ("POST", "events/ticket")):
        async with here.http.request(method, here.url(operation, query=query), data={}) as response:
            assert response.status == 400
            assert (await response.json())["errors"][0]["advice"].startswith("expected no secureKey")


async def test_a_ticket_that_is_not_good_gets_nothing(here: Hall, events: Events) -> None:
    for query in ({}, {"ticket": "deadbeef"}):
        async with here.http.get(here.url("events", query={"transcriptPosition": "3", **query})) as response:
            assert response.status == 403
            advice = (await response.json())["errors"][0]["advice"]
        assert advice.startswith("expected a ticket of the last 30 s that was not used")
    assert events.of(Event.CLIENT_REFUSED)


async def test_a_ticket_says_how_long_it_is_good(here: Hall) -> None:
    status, given = await here.post("events/ticket", here.form())
    assert (status, given["expiresIn"]) == (200, 30)


async def test_what_is_no_form_is_refused_with_an_error_that_ends_an_event_source(here: Hall) -> None:
    for operation in ("events", "events/ticket"):
        async with here.http.post(here.url(operation), json={}) as response:
            assert response.status == 400
            assert "not JSON" in (await response.json())["errors"][0]["advice"]


async def test_a_page_that_is_served_may_read_it(here: Hall) -> None:
    headers = {"Origin": "https://shop.example"}
    preflight = {**headers, "Access-Control-Request-Method": "POST"}
    async with here.http.options(here.url("events"), headers=preflight) as response:
        assert response.headers["Access-Control-Allow-Methods"] == "GET, POST"
    async with here.http.options(here.url("events/ticket"), headers=preflight) as response:
        assert response.headers["Access-Control-Allow-Methods"] == "POST"
    response = await here.http.post(here.url("events"), data=here.form(), headers=headers)
    assert response.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    response.close()
    foreign = {"Origin": "https://foreign.example"}
    async with here.http.post(here.url("events"), data=here.form(), headers=foreign) as response:
        assert response.status == 403


async def test_an_apikey_is_asked_for_and_a_ticket_says_that_it_was_shown(
    tmp_path: Path, store: PromptStore, clock: FakeClock
) -> None:
    (tmp_path / "apikeys").write_text("an-apikey")
    async with hall(tmp_path, store, clock, apikeys_file="apikeys") as here:
        for operation in ("events", "events/ticket"):
            assert (await here.post(operation, here.form()))[0] == 403
        async with here.http.post(
            here.url("events/ticket"), data=here.form(), headers={"apikey": "an-apikey"}
        ) as response:
            ticket = (await response.json())["ticket"]
        response = await here.http.get(
            here.url("events", query={"ticket": ticket, "transcriptPosition": "3"})
        )
        assert response.status == 200
        response.close()


# -- those who leave ---------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_thousand_that_are_dropped_leave_no_task_and_no_memory(here: Hall) -> None:
    """Streams and long polls of 100 chats, ten times over, each broken off by its client."""
    chats = [f"chat-{number}" for number in range(2, 52)]
    for chat in chats:
        await here.chat(chat)

    async def come_and_go() -> None:
        async with AsyncExitStack() as stack:
            connector = aiohttp.TCPConnector(limit=0)
            http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            streams = [
                asyncio.create_task(http.post(here.url("events", chat), data=here.form(chat)))
                for chat in chats
                for _ in range(2)
            ]
            polls = [
                asyncio.create_task(http.post(here.url("refresh", chat), data=here.form(chat, wait="50")))
                for chat in chats
                for _ in range(2)
            ]
            await here.held(polls=100, streams=100)
            for stream in streams:
                (await stream).close()
            for poll in polls:
                poll.cancel()
            await asyncio.gather(*polls, return_exceptions=True)
        await here.held()
        await here.clock.advance(60)  # until then it keeps their alarms

    await come_and_go()
    before = len(asyncio.all_tasks()), objects()
    for _ in range(9):
        await come_and_go()
    after = len(asyncio.all_tasks()), objects()
    assert after[0] <= before[0]
    assert count(web.StreamResponse) == 0
    assert after[1] - before[1] < 1_000  # of 1,800 that came meanwhile each would leave dozens


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def count(kind: type | Callable[..., object]) -> int:
    return sum(type(each) is kind for each in gc.get_objects())
