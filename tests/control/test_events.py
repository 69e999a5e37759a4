"""`GET /v1/events` on real sockets: what is fetched comes again until it is acknowledged, whoever waits is told at
once, and whoever has gone leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import aiohttp
import orjson
import pytest
from conftest import FakeClock, PromptStore, listening, settings_of, soon
from stores.desk import Desk, push
from stores.test_transcript import EVERYTHING, message, refresh
from yarl import URL

from asyncchatd.control.api import Control
from asyncchatd.control.events import ACKNOWLEDGE_SECONDS, COMES_AGAIN_SECONDS, HELD_SHARE
from asyncchatd.control.status.picture import Surroundings
from asyncchatd.listening import event_stream
from asyncchatd.listening.guard import Guard
from asyncchatd.model.delivery import Consumer
from asyncchatd.model.transcript import EventKind
from control.test_api import PINGS

pytestmark = pytest.mark.usefixtures("events")

Json = dict[str, object]

APP = Consumer("app", EVERYTHING)
ENDS = Consumer("ends", frozenset({EventKind.ENDED}))
HOOK = Consumer("hook", EVERYTHING, pushes=True)

CONNECTIONS = 40
"""`control.max_connections` here; a share of it may be held."""


@dataclass
class Line:
    """The control API of one daemon, with clients of it, and chats in which something happens."""

    base: str
    http: aiohttp.ClientSession
    desk: Desk
    clock: FakeClock
    control: Control
    open: list[aiohttp.ClientResponse] = field(default_factory=list)

    async def says(self, index: int, text: str) -> None:
        """Somebody writes in the chat, and a Refresh shows it."""
        await refresh(self.desk, message(index, text))

    async def ask(self, **query: object) -> aiohttp.ClientResponse:
        asked = {"consumer": "app", **query}
        url = URL(f"{self.base}/v1/events").with_query({name: str(value) for name, value in asked.items()})
        return await soon(self.http.get(url))

    async def fetch(self, **query: object) -> tuple[list[str], str]:
        """The texts, and the cursor."""
        response = await self.ask(**query)
        assert response.status == 200, await response.text()
        return await told(response)

    async def refused(self, **query: object) -> tuple[int, str, object]:
        """Status, code and field of an error."""
        response = await self.ask(**query)
        error = (await soon(response.json()))["error"]
        assert error["message"]
        return response.status, error["code"], error["field"]

    async def hold(self, **query: object) -> asyncio.Task[aiohttp.ClientResponse]:
        """A poll that waits."""
        held = self.held
        task = asyncio.create_task(self.ask(**{"wait": "60s", **query}))
        await until(lambda: self.held > held or task.done())
        return task

    async def stream(self, last: str | None = None, **query: object) -> Stream:
        url = URL(f"{self.base}/v1/events").with_query(
            {name: str(value) for name, value in {"consumer": "app", **query}.items()}
        )
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        response = await soon(self.http.get(url, headers=headers))
        self.open.append(response)
        return Stream(response)

    def close(self) -> None:
        """All who read streams go."""
        for each in self.open:
            each.close()

    @property
    def held(self) -> int:
        return self.control._events.held


@dataclass
class Stream:
    """One who reads a stream of events."""

    response: aiohttp.ClientResponse

    async def block(self) -> Mapping[str, str]:
        """The fields of the next block; nothing at the end."""
        fields: dict[str, str] = {}
        while line := (await soon(self.response.content.readline())).decode():
            if line == "\n":
                return fields
            name, _, value = line.rstrip("\n").partition(":")
            fields[name] = fields[name] + "\n" + value.strip() if name in fields else value.strip()
        return fields

    async def event(self) -> Json:
        """The next event; what else is said is left out."""
        while "data" not in (said := await self.block()):
            assert said, "the stream has ended"
        found = cast(Json, orjson.loads(said["data"]))
        assert found["id"] == said["id"]
        return found

    async def ended(self) -> bool:
        return await self.block() == {}


async def until(holds: Callable[[], bool]) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def texts(events: list[Json]) -> list[str]:
    return [
        str(cast(Json, event["event"])["text"]) if event["kind"] == "chat" else str(event["kind"])
        for event in events
    ]


async def told(response: aiohttp.ClientResponse) -> tuple[list[str], str]:
    answer = orjson.loads(await soon(response.read()))
    return texts(answer["events"]), answer["cursor"]


@pytest.fixture
async def line(store: PromptStore, clock: FakeClock) -> AsyncIterator[Line]:
    around = Surroundings(list, lambda: PINGS, lambda: True)
    settings = settings_of(control={"listen": "127.0.0.1:0", "max_connections": CONNECTIONS})
    control = Control(store, clock, asyncio.Event(), around, settings)
    desk = Desk(store, clock.now())
    await store.enrol([APP, ENDS, HOOK], now=desk.now)
    await desk.live("chat-1")
    async with (
        listening(control.app()) as base,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        line = Line(base, http, desk, clock, control)
        yield line
        line.close()


# -- what is fetched ----------------------------------------------------------------------------------


async def test_an_event_is_told_with_its_chat_and_as_gms_gave_it(line: Line) -> None:
    said = message(3, "Grüße 😀")
    await refresh(line.desk, said)
    response = await line.ask()
    assert response.headers["Cache-Control"] == "no-store"
    body = await soon(response.read())
    [event] = orjson.loads(body)["events"]
    number = event["id"].removeprefix(f"{line.desk.store.epoch}-")
    assert number.isdecimal()
    assert event == {
        "id": event["id"],
        "kind": "chat",
        "chat_id": "chat-1",
        "service": "support",
        "device_id": "device-of-chat-1",
        "at": line.desk.now,
        "event": said,
    }
    assert orjson.dumps(said) in body, "its very bytes"


async def test_what_is_not_acknowledged_comes_again_and_the_cursor_acknowledges(line: Line) -> None:
    await line.says(3, "one")
    await line.says(4, "two")
    found, cursor = await line.fetch()
    assert found == ["one", "two"]
    assert (await line.fetch())[0] == ["one", "two"]
    assert await line.fetch(after=cursor) == ([], cursor)
    assert await line.fetch() == ([], cursor)
    await line.says(5, "three")
    assert (await line.fetch())[0] == ["three"]


async def test_a_portion_is_as_large_as_was_asked_for(line: Line) -> None:
    for index in range(3, 8):
        await line.says(index, str(index))
    found, cursor = await line.fetch(limit=2)
    assert found == ["3", "4"]
    assert (await line.fetch(limit=2, after=cursor))[0] == ["5", "6"]


async def test_what_may_not_be_asked_is_refused_and_acknowledges_nothing(line: Line) -> None:
    await line.says(3, "one")
    _, cursor = await line.fetch()
    await line.says(4, "two")
    epoch, number = cursor.split("-")
    assert await line.refused(after=f"{epoch}-{int(number) + 1}") == (400, "ahead", "after")
    for wrong in ("7", "-", f"{epoch}-", f"{epoch}-x", "1" * 80):
        assert await line.refused(after=wrong) == (400, "bad_value", "after")
    for wrong in ("61s", "1", "never", "-1s"):
        assert await line.refused(wait=wrong) == (400, "bad_value", "wait")
    for wrong in ("0", "1001", "x"):
        assert await line.refused(limit=wrong) == (400, "bad_value", "limit")
    for wrong, code in (("7", "bad_value"), (f"{epoch}-{int(number) + 1}", "ahead")):
        response = (await line.stream(last=wrong)).response
        error = (await soon(response.json()))["error"]
        assert (response.status, error["code"], error["field"]) == (400, code, "Last-Event-ID")
    assert await line.refused(wiat="25s") == (400, "unknown_field", "wiat")
    assert await line.refused(consumer="") == (400, "bad_value", "consumer")
    assert await line.refused(consumer="nobody") == (404, "not_found", "consumer")
    assert await line.refused(consumer="hook") == (409, "has_webhook", "consumer")
    for twice in ("consumer", "after", "wait", "limit"):
        query = {"consumer": "app", "after": cursor, "wait": "0s", "limit": "9"}
        url = URL(f"{line.base}/v1/events").with_query([*query.items(), (twice, query[twice])])
        response = await soon(line.http.get(url))
        error = (await soon(response.json()))["error"]
        assert (response.status, error["code"], error["field"]) == (400, "bad_value", twice)
    assert (await line.fetch())[0] == ["one", "two"]


async def test_an_id_of_another_history_is_gone_and_it_is_said_which_ids_there_are(line: Line) -> None:
    await line.says(3, "one")
    _, cursor = await line.fetch()
    response = await line.ask(after="0badcafe-7", wait="60s")
    answer = await soon(response.json())
    assert (response.status, answer["error"]["code"]) == (410, "other_epoch")
    assert answer["oldest"] == answer["newest"] == cursor
    assert (await line.fetch())[0] == ["one"], "nothing was acknowledged"


async def test_a_consumer_that_is_not_told_of_something_need_not_acknowledge_it(line: Line) -> None:
    await line.says(3, "one")
    assert (await line.fetch(consumer="ends"))[0] == []
    states = {state.name: state for state in await line.desk.store.consumers()}
    assert (states["ends"].behind, states["app"].behind) == (0, 1)


# -- waiting ------------------------------------------------------------------------------------------


async def test_who_waits_is_told_as_soon_as_there_is_something(line: Line) -> None:
    held = await line.hold()
    await line.says(3, "one")
    found, cursor = await told(await soon(held))
    assert found == ["one"]
    held = await line.hold(after=cursor)
    await line.says(4, "two")
    assert (await told(await soon(held)))[0] == ["two"]
    await until(lambda: line.held == 0)


async def test_who_need_not_wait_does_not(line: Line) -> None:
    await line.says(3, "one")
    assert (await line.fetch(wait="60s"))[0] == ["one"]


async def test_who_waits_in_vain_is_answered_when_his_time_is_over(line: Line) -> None:
    held = await line.hold(wait="25s")
    await line.clock.advance(24)
    assert not held.done()
    await line.clock.advance(1)
    assert (await told(await soon(held)))[0] == []


async def test_who_waits_goes_on_waiting_when_what_comes_is_not_for_him(line: Line) -> None:
    held = await line.hold(consumer="ends", wait="25s")
    await line.says(3, "one")
    await line.clock.advance(24)
    assert not held.done()
    await line.clock.advance(1)
    assert (await told(await soon(held)))[0] == []


async def test_a_reload_answers_whoever_waits(line: Line) -> None:
    held, stream = await line.hold(), await line.stream()
    line.control.reload(settings_of())
    assert (await told(await soon(held)))[0] == []
    assert "retry" in await stream.block()
    assert await stream.ended()
    await until(lambda: line.held == 0)


async def test_a_stop_answers_whoever_waits_at_once(store: PromptStore, clock: FakeClock) -> None:
    around = Surroundings(list, lambda: PINGS, lambda: True)
    control = Control(store, clock, asyncio.Event(), around, settings_of())
    await store.enrol([APP], now=clock.now())
    async with aiohttp.ClientSession() as http:
        async with listening(control.app()) as base:
            line = Line(base, http, Desk(store), clock, control)
            held, stream = await line.hold(), await line.stream()
            assert "retry" in await stream.block()
        assert (await told(await soon(held)))[0] == []
        assert await stream.ended()


async def test_so_many_are_held_and_the_next_is_told_when_to_come_again(line: Line) -> None:
    most = CONNECTIONS // HELD_SHARE
    held = [await line.hold() for _ in range(most - 1)]
    stream = await line.stream()
    for refused in (await line.ask(wait="5s"), (await line.stream()).response):
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        assert (await soon(refused.json()))["error"]["code"] == "too_many_held"
    assert (await line.fetch())[0] == [], "who does not wait takes no place"
    stream.response.close()
    await until(lambda: line.held == most - 1)
    last = await line.hold()
    await line.says(3, "one")
    for each in (*held, last):
        assert (await told(await soon(each)))[0] == ["one"]


@pytest.mark.slow
async def test_polls_and_streams_that_are_dropped_leave_nothing_behind(line: Line) -> None:
    before = len(asyncio.all_tasks())
    for _ in range(25):
        polls = [await line.hold() for _ in range(4)]
        streams = [await line.stream() for _ in range(4)]
        for poll in polls:
            poll.cancel()
        for stream in streams:
            stream.response.close()
        await asyncio.gather(*polls, return_exceptions=True)
        await until(lambda: line.held == 0)
    await until(lambda: len(asyncio.all_tasks()) <= before)


# -- streams ------------------------------------------------------------------------------------------


async def test_who_is_held_or_was_a_moment_ago_listens_and_nobody_else(line: Line) -> None:
    assert line.control.listening() == []
    await line.fetch()
    assert line.control.listening() == ["app"]
    await line.clock.advance(COMES_AGAIN_SECONDS)
    assert line.control.listening() == []
    held = await line.hold(wait="25s")
    assert line.control.listening() == ["app"]
    await line.clock.advance(25)
    await soon(held)
    assert line.control.listening() == ["app"], "it comes again"
    await line.clock.advance(COMES_AGAIN_SECONDS)
    assert line.control.listening() == []


@pytest.mark.parametrize("streams", [False, True])
async def test_who_hangs_up_listens_no_more(line: Line, streams: bool) -> None:
    if streams:
        (await line.stream()).response.close()
    else:
        (await line.hold()).cancel()
    await until(lambda: not line.held)
    assert line.control.listening() == []


async def test_who_is_answered_for_a_reload_comes_again(line: Line) -> None:
    stream = await line.stream()
    line.control.reload(settings_of())
    assert "retry" in await stream.block()
    assert await stream.ended()
    assert line.control.listening() == ["app"]


async def test_a_stream_asks_who_listens_to_it_to_acknowledge(line: Line) -> None:
    asked = Consumer("app", APP.kinds | {EventKind.NOTIFIED}, acknowledges_ms=5_000)
    await line.desk.store.enrol([asked, ENDS, HOOK], now=line.desk.now)
    stream = await line.stream()
    await line.clock.advance((line.desk.now - line.clock.now()) / 1000)
    await line.desk.push(push(), listening=line.control.listening())
    assert (await stream.event())["event"] == {"refresh": True, "for_ms": 5_000}
    assert await line.desk.claim() == []


async def test_a_stream_tells_each_event_once_as_it_comes(line: Line) -> None:
    await line.says(3, "one")
    stream = await line.stream()
    headers = stream.response.headers
    assert headers["Content-Type"] == "text/event-stream"
    assert (headers["Cache-Control"], headers["X-Accel-Buffering"]) == ("no-store", "no")
    assert texts([await stream.event()]) == ["one"]
    for index, text in ((4, "two"), (5, "three")):
        await line.says(index, text)
        assert texts([await stream.event()]) == [text]
    assert (await line.fetch())[0] == ["one", "two", "three"], "a stream acknowledges nothing"


async def test_who_comes_back_to_a_stream_acknowledges_and_goes_on_there(line: Line) -> None:
    await line.says(3, "one")
    await line.says(4, "two")
    stream = await line.stream()
    first = await stream.event()
    stream.response.close()
    again = await line.stream(last=str(first["id"]), after=f"{line.desk.store.epoch}-0")
    assert texts([await again.event()]) == ["two"]
    assert (await line.fetch())[0] == ["two"]


async def test_a_silent_stream_shows_life(line: Line) -> None:
    stream = await line.stream()
    assert "retry" in await stream.block()
    await line.clock.advance(event_stream.HEARTBEAT_SECONDS)
    assert await stream.block() == {"": "alive"}


async def test_a_stream_ends_when_it_is_time_to_acknowledge(line: Line) -> None:
    stream = await line.stream()
    await line.clock.advance(10 * ACKNOWLEDGE_SECONDS)
    await line.says(3, "one")
    last = await stream.event()
    await line.clock.advance(ACKNOWLEDGE_SECONDS / 2)
    await line.says(4, "two")
    last = await stream.event()
    await line.clock.advance(ACKNOWLEDGE_SECONDS)
    while said := await stream.block():
        assert said == {"": "alive"}
    assert (await line.fetch())[0] == ["one", "two"]
    stream = await line.stream(last=str(last["id"]))
    assert (await line.fetch())[0] == []


async def test_a_stream_that_goes_by_another_history_begins_with_a_gap(line: Line) -> None:
    await line.says(3, "one")
    stream = await line.stream(last="0badcafe-7")
    gap, event = await stream.event(), await stream.event()
    assert texts([gap, event]) == ["gap", "one"]
    assert gap["event"] == {"oldest": event["id"], "newest": event["id"]}
    again = await line.stream(last=str(gap["id"]))
    assert texts([await again.event()]) == ["one"]


async def test_a_stream_ends_with_the_disk_and_its_client_hears_why_when_he_comes_back(
    line: Line, store: PromptStore
) -> None:
    stream = await line.stream()
    assert "retry" in await stream.block()
    store.fill_disk()
    store.bell.ring()
    assert await stream.ended()
    assert (await line.stream()).response.status == 503
    store.free_disk()


async def test_one_who_reads_nothing_holds_up_nobody_and_costs_no_more_than_a_portion(line: Line) -> None:
    stream = await line.stream()
    large = "x" * 100_000
    for index in range(3, 203):
        await line.says(index, large)
    assert len((await line.fetch(limit=1))[0]) == 1
    assert await line.fetch(consumer="ends") is not None
    for _ in range(3):
        assert texts([await stream.event()]) == [large]


# -- who may ------------------------------------------------------------------------------------------


async def test_a_page_of_another_site_acknowledges_nothing(
    store: PromptStore, clock: FakeClock, tmp_path: Path
) -> None:
    async with guarded(store, clock, tmp_path) as base, aiohttp.ClientSession() as http:
        for foreign in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
            async with http.get(f"{base}/v1/events?consumer=app", headers={**MAY, **foreign}) as answer:
                assert answer.status == 403
                assert (await soon(answer.json()))["error"]["code"] == "foreign_origin"
        async with http.get(f"{base}/v1/events?consumer=app", headers=MAY) as answer:
            assert answer.status == 200


async def test_a_token_reads_the_events_of_its_consumers_alone(
    store: PromptStore, clock: FakeClock, tmp_path: Path
) -> None:
    async with guarded(store, clock, tmp_path) as base, aiohttp.ClientSession() as http:
        for query, status in (
            ("consumer=app", 200),
            ("consumer=ends", 403),
            ("consumer=app&consumer=ends", 403),
            ("consumer=app&consumer=app", 400),
        ):
            async with http.get(f"{base}/v1/events?{query}", headers=MAY) as answer:
                assert answer.status == status, query


MAY = {"Authorization": "Bearer may-read-app"}


@asynccontextmanager
async def guarded(store: PromptStore, clock: FakeClock, tmp_path: Path) -> AsyncIterator[str]:
    """The API behind its guard, with a token for one consumer."""
    (tmp_path / "tokens").write_text("may-read-app events:app\n")
    settings = settings_of(control={"listen": "127.0.0.1:0", "token_file": tmp_path / "tokens"})
    around = Surroundings(list, lambda: PINGS, lambda: True)
    control = Control(store, clock, asyncio.Event(), around, settings)
    await store.enrol([APP, ENDS], now=clock.now())
    guard = Guard(settings.control)
    async with listening(guard.before(control.app(), control.needs)) as base:
        yield base
