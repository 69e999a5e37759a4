"""A webhook whose consumer is asked to acknowledge pushes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from conftest import Events
from stores.desk import push

from asyncchatd.log.events import Event
from asyncchatd.model.delivery import Consumer
from asyncchatd.model.transcript import EventKind

from .rig import ChatApp, Rig, Says

ASKED: dict[str, Any] = {"kinds": ["notified"], "send_keys": True, "acknowledges": "5s"}

pytestmark = pytest.mark.usefixtures("events")


@pytest.fixture
async def asked(rig: Rig) -> Rig:
    """A chat whose pushes a consumer is to acknowledge."""
    consumer = Consumer("app", frozenset((EventKind.NOTIFIED,)), pushes=True, acknowledges_ms=5_000)
    await rig.store.enrol([consumer], now=rig.clock.now())
    await rig.chats("chat-1")
    return rig


async def pushed(rig: Rig) -> None:
    await rig.store.take_push(push(), now=rig.clock.now())
    await rig.store.absorb(10, now=rig.clock.now(), listening=["app"])


async def is_pinged(rig: Rig) -> bool:
    return bool(await rig.store.claim(now=rig.clock.now(), limit=10, lease_ms=1_000))


def said(app: ChatApp) -> list[Any]:
    return [event["event"] for got in app.got for event in got.events]


async def test_a_push_is_told_with_the_tokens_and_the_time_that_there_is(
    asked: Rig, app: ChatApp, events: Events
) -> None:
    async with asked.webhook(**ASKED):
        await pushed(asked)
        await asked.noted(1)
    [told] = said(app)
    assert told == {
        "refresh": True,
        "for_ms": 5_000,
        "user_id": "user-of-chat-1",
        "secure_key": "key-of-chat-1",
        "alias": "117",
        "next_position": 1,
    }
    assert not await is_pinged(asked)
    line = events.one(Event.ACKNOWLEDGEMENT_ASKED)
    assert (line["chat_id"], line["consumer"], line["for_ms"]) == ("chat-1", "app", 5_000)
    assert "key-of-chat-1" not in events.text


async def test_no_key_goes_to_who_may_not_have_one(asked: Rig, app: ChatApp) -> None:
    async with asked.webhook(**{**ASKED, "send_keys": False}):
        await pushed(asked)
        await asked.noted(1)
    assert said(app) == [{"refresh": True, "for_ms": 5_000}]
    assert b"key" not in app.got[0].body


@pytest.mark.parametrize("status", [401, 404, 410])
async def test_who_refuses_it_is_not_waited_for(asked: Rig, app: ChatApp, status: int) -> None:
    app.script.append(Says(status))
    async with asked.webhook(**ASKED):
        await pushed(asked)
        await asked.noted(1)
    assert await is_pinged(asked)


async def test_who_is_not_there_is_not_waited_for_and_not_asked(asked: Rig, app: ChatApp) -> None:
    await app.stop()
    async with asked.webhook(**ASKED) as webhook:
        assert webhook.listens
        await pushed(asked)
        await asked.noted(1)
        assert not webhook.listens
        assert await is_pinged(asked)


async def test_who_may_have_heard_it_is_waited_for(asked: Rig, app: ChatApp) -> None:
    app.script.append(Says(500))
    async with asked.webhook(**ASKED):
        await pushed(asked)
        await asked.noted(1)
        assert not await is_pinged(asked)
        await asked.clock.advance(1)
        await asked.noted(2)
        assert not await is_pinged(asked)
        await asked.clock.advance(4)
        assert await is_pinged(asked)
    assert [event["refresh"] for event in said(app)] == [True, True]
    assert [event["for_ms"] for event in said(app)] == [5_000, 4_000]


async def test_who_is_told_too_late_is_told_that_there_is_nothing_to_do_and_the_worker_wakes(
    asked: Rig, app: ChatApp
) -> None:
    await pushed(asked)
    await asked.clock.advance(3)
    wakeup = asyncio.Event()
    async with asked.webhook(**ASKED) as webhook:
        webhook._wakeup = wakeup
        await asked.noted(1)
    assert said(app) == [{"refresh": False}]
    assert wakeup.is_set()
    assert await is_pinged(asked)


async def test_one_that_is_not_asked_is_told_so(asked: Rig, app: ChatApp) -> None:
    async with asked.webhook(kinds=["notified"]):
        await asked.store.take_push(push(), now=asked.clock.now())
        await asked.store.absorb(10)
        await asked.noted(1)
    assert said(app) == [{"refresh": False}]
    assert await is_pinged(asked)
