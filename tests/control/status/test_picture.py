"""The picture of the daemon: what it says beyond what the store says."""

from __future__ import annotations

import pytest
from conftest import FakeClock, PromptStore, register

from asyncchatd.control import shapes
from asyncchatd.control.status.picture import ELSEWHERE, Pictures, Surroundings
from asyncchatd.log import metrics
from asyncchatd.model.data import ChatServer, Reason
from asyncchatd.standin.messages import write_push
from asyncchatd.stores import StoreError
from asyncchatd.wire.push import read_push
from control.test_api import PINGS

pytestmark = pytest.mark.usefixtures("events")


def pictures(store: PromptStore, clock: FakeClock) -> Pictures:
    servers = [ChatServer("chat-1", "117"), ChatServer("chat-2")]
    return Pictures(store, clock, Surroundings(lambda: servers, lambda: PINGS, lambda: True))


async def test_rates_are_per_second_since_the_last_picture(store: PromptStore, clock: FakeClock) -> None:
    taker = pictures(store, clock)
    nothing = dict.fromkeys([*(reason.word for reason in Reason), "pushes"])
    assert (await taker.take()).rates == nothing
    metrics.PINGS.labels("restore", "answered").inc(4)
    metrics.PINGS.labels("restore", "retry").inc(2)
    metrics.PINGS.labels("keepalive", "answered").inc(1)
    metrics.PUSH_SECONDS.observe(0.001)
    await clock.advance(2)
    assert (await taker.take()).rates == {
        "acknowledge": 0.0,
        "restore": 3.0,
        "request": 0.0,
        "keepalive": 0.5,
        "pushes": 0.5,
    }
    metrics.PINGS.labels("restore", "answered").inc(1000)
    await clock.advance(60)  # nobody looked meanwhile: when in this minute they were is not known
    assert (await taker.take()).rates == nothing


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
