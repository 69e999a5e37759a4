"""Pictures once a second for everybody who looks: one producer, no looker holds up another, and none the stop."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web
from conftest import Events, FakeClock, listening, soon
from yarl import URL

from asyncchatd.control.shapes import Shape
from asyncchatd.control.status import live
from asyncchatd.control.status.history import History
from asyncchatd.control.status.live import LISTENERS, LISTENERS_OF_ONE, Live, TooManyListeners
from asyncchatd.log.events import Event
from asyncchatd.stores import StoreError

pytestmark = pytest.mark.usefixtures("events")


@dataclass
class Stream:
    """One looker."""

    response: aiohttp.ClientResponse

    async def block(self) -> tuple[str, object]:
        """The next event and its data, or a comment."""
        lines: list[str] = []
        while line := (await soon(self.response.content.readline())).decode().removesuffix("\n"):
            lines.append(line)
        if not lines:
            return "end", None
        if lines[0].startswith((":", "retry")):
            return lines[0], None
        name, data = lines
        return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))

    async def event(self) -> tuple[str, object]:
        """The next event; what is said once at the beginning, and what was done, left out."""
        while (said := await self.block())[0].startswith(("retry", "history", "moments")):
            pass
        return said

    async def moments(self) -> list[float]:
        """The ends of the moments that come next, in seconds since the start."""
        while (said := await self.block())[0] not in ("history", "moments"):
            pass
        assert isinstance(said[1], list)
        return [each["uptime_seconds"] for each in said[1]]

    async def picture(self) -> int:
        name, data = await self.event()
        assert (name, type(data)) == ("picture", dict)
        number = data["number"]  # type: ignore[index]
        assert isinstance(number, int)
        return number


class Numbered(Shape, frozen=True, kw_only=True):
    """A picture that says which one it is."""

    number: int
    padding: str


@dataclass
class Studio:
    """Pictures that are numbered, on a real socket."""

    clock: FakeClock
    taken: int = 0
    trouble: Exception | None = None
    hangs: asyncio.Event = field(default_factory=asyncio.Event)
    padding: str = ""
    base: str = ""
    history: History = field(init=False)
    live: Live = field(init=False)
    http: aiohttp.ClientSession = field(init=False)
    rest: AsyncExitStack = field(default_factory=AsyncExitStack)

    def __post_init__(self) -> None:
        self.hangs.set()
        self.history = History(self.clock, limit=lambda: 200.0)
        self.live = Live(self.take, self.history, self.clock)

    async def take(self) -> Numbered:
        await self.hangs.wait()
        if self.trouble is not None:
            raise self.trouble
        self.taken += 1
        return Numbered(number=self.taken, padding=self.padding)

    def app(self) -> web.Application:
        async def serve(request: web.Request) -> web.StreamResponse:
            try:
                return await self.live.serve(request)
            except TooManyListeners:
                return web.Response(status=503)

        app = web.Application()
        app.router.add_get("/", serve, allow_head=False)
        app.on_shutdown.append(self.live.end)
        app.on_cleanup.append(self.live.ended)
        return app

    async def looks(self, whence: str = "") -> Stream:
        if not whence:
            return Stream(await soon(self.http.get(self.base)))
        connector = aiohttp.TCPConnector(local_addr=(whence, 0))
        http = await self.rest.enter_async_context(aiohttp.ClientSession(connector=connector))
        return Stream(await soon(http.get(self.base)))


@asynccontextmanager
async def open_studio(clock: FakeClock) -> AsyncIterator[Studio]:
    studio = Studio(clock)
    unbounded = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(connector=unbounded, read_bufsize=16 << 20) as studio.http,
        listening(studio.app()) as studio.base,
        studio.rest,
    ):
        yield studio


@pytest.fixture
async def studio(clock: FakeClock) -> AsyncIterator[Studio]:
    async with open_studio(clock) as studio:
        yield studio


async def test_a_looker_gets_a_picture_at_once_and_one_every_second(studio: Studio, clock: FakeClock) -> None:
    stream = await studio.looks()
    assert stream.response.headers["Content-Type"] == "text/event-stream"
    assert stream.response.headers["Cache-Control"] == "no-store"
    assert await stream.block() == ("retry: 2000", None)
    assert await stream.block() == ("history", [])
    assert await stream.picture() == 1
    for number in (2, 3, 4):
        await clock.advance(1)
        assert await stream.picture() == number
    assert studio.taken == 4


async def test_one_picture_serves_all_lookers(studio: Studio, clock: FakeClock) -> None:
    streams = [await studio.looks() for _ in range(5)]
    for stream in streams:
        assert await stream.picture() == 1
    await clock.advance(1)
    for stream in streams:
        assert await stream.picture() == 2
    assert studio.taken == 2


async def test_who_comes_later_gets_the_last_picture(studio: Studio, clock: FakeClock) -> None:
    first = await studio.looks()
    for number in (1, 2, 3):
        assert await first.picture() == number
        await clock.advance(1 if number < 3 else 0)
    assert await (await studio.looks()).picture() == 3


async def test_who_looks_has_all_that_was_done_before_and_then_what_is_new(
    studio: Studio, clock: FakeClock
) -> None:
    for _ in range(3):  # nobody looks
        await clock.advance(1)
        studio.history.take()
    stream = await studio.looks()
    assert await stream.moments() == [1, 2, 3]
    for number in (1, 2):
        assert await stream.picture() == number
        studio.history.take()
        await clock.advance(1)
    studio.history.take()
    assert await stream.moments() == [4]
    again = await studio.looks()
    assert await again.moments() == [1, 2, 3, 4, 5], "a page that is loaded anew shows the same"


async def test_a_looker_that_missed_a_picture_misses_no_moment(studio: Studio, clock: FakeClock) -> None:
    stream = await studio.looks()
    assert await stream.moments() == []
    assert await stream.picture() == 1
    studio.trouble = StoreError("the disk is gone")
    for _ in range(3):
        studio.hangs.clear()
        await clock.advance(1)
        studio.history.take()
    studio.hangs.set()
    assert await stream.moments() == [1, 2, 3]
    assert await stream.event() == ("trouble", {"message": "the disk is gone"})


async def test_while_nobody_looks_no_picture_is_taken(studio: Studio, clock: FakeClock) -> None:
    await clock.advance(10)
    assert studio.taken == 0
    stream = await studio.looks()
    assert await stream.picture() == 1
    stream.response.close()
    taken = await until_nobody_looks(studio, clock)
    await clock.advance(100)
    assert studio.taken == taken
    again = await studio.looks()
    assert await again.picture() == taken + 1  # a fresh one, not the last of before


async def until_nobody_looks(studio: Studio, clock: FakeClock) -> int:
    """A closed connection is noticed at the next picture or the one after; how many were taken by then."""
    async with asyncio.timeout(20):
        while True:
            before = studio.taken
            await clock.advance(1)
            # A request that is answered: what was closed before it has been noticed by the loop.
            await studio.http.get(studio.base + "/nothing")
            if studio.taken == before:
                return before


async def test_one_address_does_not_take_every_place(studio: Studio) -> None:
    streams = [await studio.looks() for _ in range(LISTENERS_OF_ONE + 1)]
    streams.append(await studio.looks("127.0.0.2"))
    assert [each.response.status for each in streams] == [200] * LISTENERS_OF_ONE + [503, 200]
    for each in streams:
        each.response.close()


async def test_there_is_an_end_to_how_many_may_look(
    studio: Studio, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncchatd.control.status.live.LISTENERS_OF_ONE", LISTENERS)
    streams = [await studio.looks() for _ in range(LISTENERS)]
    assert (await studio.looks()).response.status == 503
    streams.pop().response.close()
    async with asyncio.timeout(20):
        while (await studio.looks()).response.status == 503:
            await clock.advance(1)


async def test_while_no_picture_comes_the_connection_shows_life(studio: Studio, clock: FakeClock) -> None:
    studio.hangs.clear()
    stream = await studio.looks()
    for _ in range(3):
        await clock.advance(live.HEARTBEAT_SECONDS)
        assert await stream.event() == (": alive", None)
    studio.hangs.set()
    assert await stream.picture() == 1


async def test_a_store_that_cannot_be_read_is_told_and_gets_over_it(studio: Studio, clock: FakeClock) -> None:
    studio.trouble = StoreError("the disk is gone")
    stream = await studio.looks()
    assert await stream.event() == ("trouble", {"message": "the disk is gone"})
    studio.trouble = None
    await clock.advance(1)
    assert await stream.picture() == 1


async def test_a_fault_of_ours_ends_the_stream_and_is_logged(
    studio: Studio, clock: FakeClock, events: Events
) -> None:
    studio.trouble = LookupError("a fault of ours")
    stream = await studio.looks()
    await clock.advance(live.HEARTBEAT_SECONDS)
    with pytest.raises(aiohttp.ClientPayloadError):
        await soon(stream.response.read())
    assert "a fault of ours" in str(events.one(Event.LIBRARY_MESSAGE)["exception"])
    events.forget()
    studio.trouble = None
    assert await (await studio.looks()).picture() == 1


@pytest.mark.slow
async def test_who_reads_nothing_is_let_go_and_holds_up_nobody(
    studio: Studio, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "WRITE_SECONDS", 2.0)  # whoever reads has time to, on a busy machine too
    studio.padding = "x" * (4 << 20)
    with socket.create_connection(("127.0.0.1", URL(studio.base).port or 0)) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        stream = await studio.looks()
        number = await stream.picture()
        async with asyncio.timeout(20):
            while studio.live.listeners > 1:
                await clock.advance(1)
                number += 1
                assert await stream.picture() == number


async def test_at_the_stop_every_looker_is_told_and_nothing_runs_on(clock: FakeClock) -> None:
    before = asyncio.all_tasks()
    async with aiohttp.ClientSession() as http:
        studio = Studio(clock)
        async with listening(studio.app()) as studio.base:
            studio.http = http
            streams = [await studio.looks() for _ in range(3)]
            for stream in streams:
                await stream.picture()
        for stream in streams:
            assert await stream.event() == ("stopping", {})
            assert await stream.block() == ("end", None)
    assert asyncio.all_tasks() - before == set()


async def test_names_with_half_a_surrogate_pair_do_not_end_it(studio: Studio) -> None:
    studio.padding = "\ud800"
    assert await (await studio.looks()).picture() == 1
