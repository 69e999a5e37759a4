"""The picture of the daemon: what it says beyond what the store says."""

from __future__ import annotations

import pytest
from conftest import FakeClock, PromptStore, register

from asyncchatd.control import shapes
from asyncchatd.control.shapes import SENT
from asyncchatd.control.status.history import History
from asyncchatd.control.status.picture import ELSEWHERE, Pictures, Surroundings
from asyncchatd.log import metrics
from asyncchatd.model.data import Cause, ChatServer
from asyncchatd.standin.messages import write_push
from asyncchatd.stores import StoreError
from asyncchatd.wire.push import read_push
from control.test_api import PINGS

pytestmark = pytest.mark.usefixtures("events")


def pictures(store: PromptStore, clock: FakeClock, history: History | None = None) -> Pictures:
    servers = [ChatServer("chat-1", "117"), ChatServer("chat-2")]
    around = Surroundings(lambda: servers, lambda: PINGS, lambda: True)
    return Pictures(store, clock, around, history or History(clock, lambda: PINGS.max_rate))


async def test_rates_are_those_of_the_last_second_that_the_history_has(
    store: PromptStore, clock: FakeClock
) -> None:
    history = History(clock, lambda: PINGS.max_rate)
    taker = pictures(store, clock, history)
    nothing = dict.fromkeys((*SENT, "pushes", "told"))
    assert (await taker.take()).rates == nothing
    metrics.REQUESTS_SENT.labels("restore").inc(6)
    metrics.REQUESTS_SENT.labels("call").inc(1)
    metrics.PUSH_SECONDS.observe(0.001)
    metrics.EVENTS_TOLD.labels("chat", "delivered").inc(4)
    await clock.advance(2)
    history.take()
    done = {"restore": 3.0, "call": 0.5, "pushes": 0.5, "told": 2.0}
    assert (await taker.take()).rates == {**dict.fromkeys(nothing, 0.0), **done}
    await clock.advance(60)
    assert (await taker.take()).rates == nothing, "what happens now is not known"


async def test_the_uptime_is_how_long_it_runs_whatever_the_clock_says(
    store: PromptStore, clock: FakeClock
) -> None:
    taker = pictures(store, clock)
    await clock.advance(20)
    clock.set_wall(-3_600_000)
    assert (await taker.take()).uptime_seconds == 20.0


async def test_what_a_restoration_still_takes_is_told_while_it_runs(
    store: PromptStore, clock: FakeClock
) -> None:
    names = [f"chat-{number}" for number in range(4)]
    await register(store, *names, now=clock.now())
    begun_now = await store.begin_restoration(
        alias="117", server="chat-1", cause=Cause.OPERATOR, now=clock.now()
    )
    await store.mark(begun_now.id, limit=10, now=clock.now())
    taker = pictures(store, clock)
    await clock.advance(30)
    [begun] = await running(taker)
    assert (begun.waiting, begun.left_seconds) == (4, None)
    await store.remove("chat-0", now=clock.now())
    [begun] = await running(taker)
    assert (begun.waiting, begun.left_seconds) == (3, 90.0)
    for name in names[1:]:
        await store.remove(name, now=clock.now())
    [over] = (await taker.take()).restorations
    assert (over.waiting, over.left_seconds) == (0, None)


async def test_of_the_last_sessions_of_a_restoration_nothing_is_foretold(
    store: PromptStore, clock: FakeClock
) -> None:
    """They wait for GMS, or for the `hold` of a node that stands still, and the others are done long ago."""
    names = [f"chat-{number}" for number in range(40)]
    await register(store, *names, now=clock.now())
    begun_now = await store.begin_restoration(
        alias="117", server="chat-1", cause=Cause.OPERATOR, now=clock.now()
    )
    await store.mark(begun_now.id, limit=100, now=clock.now())
    taker = pictures(store, clock)
    await clock.advance(37)
    for name in names[:37]:
        await store.remove(name, now=clock.now())
    [running_still] = await running(taker)
    assert (running_still.waiting, running_still.left_seconds) == (3, 3.0)
    await store.remove(names[37], now=clock.now())
    [running_still] = await running(taker)
    assert (running_still.waiting, running_still.left_seconds) == (2, None)


async def test_it_says_why_nothing_can_be_written(store: PromptStore, clock: FakeClock) -> None:
    taker = pictures(store, clock)
    assert (await taker.status()).store_trouble is None
    store.fill_disk()
    with pytest.raises(StoreError):
        await register(store, "a", now=clock.now())
    store.free_disk()
    for picture in (await taker.status(), await taker.take()):
        assert "disk is full" in str(picture.store_trouble)


async def test_a_restoration_that_only_waits_for_further_notices_is_not_running(
    store: PromptStore, clock: FakeClock
) -> None:
    await register(store, "a", now=clock.now())
    leaves = {"type": "ParticipantLeft", "index": 4, "eventAttributes": {"quit-reason-advice": "reconnect"}}
    push = read_push(write_push("device-of-a", {"session-id": "a", "messages": [leaves]}))
    await store.take_push(push, now=clock.now())
    await store.absorb(10)
    taker = pictures(store, clock)
    assert [each.waiting for each in await running(taker)] == [1]
    await store.remove("a", now=clock.now())
    assert await running(taker) == []


async def running(taker: Pictures) -> list[shapes.Restoration]:
    return (await taker.status()).restorations


async def test_sessions_are_counted_by_server_and_the_most_of_those_elsewhere_are_told(
    store: PromptStore, clock: FakeClock
) -> None:
    await register(store, "a", "b", now=clock.now())
    await register(store, "x", "y", now=clock.now(), alias="999")
    for number in range(ELSEWHERE):
        await register(store, f"other-{number}", now=clock.now(), alias=f"other-{number}")
    picture = await pictures(store, clock).take()
    assert [(each.name, each.sessions) for each in picture.servers] == [("chat-1", 2), ("chat-2", 0)]
    assert (len(picture.sessions_elsewhere), picture.sessions_elsewhere["999"]) == (ELSEWHERE, 2)
