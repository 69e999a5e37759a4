"""Pushes that stop: the gateway notices, and clients see their messages all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from conftest import Events

from asyncchatd.gateway.calling import previews
from asyncchatd.gateway.watching import pushes
from asyncchatd.log import metrics
from asyncchatd.log.events import Event

from ..rig import Shop, shop

pytestmark = pytest.mark.slow


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks and judgements that take seconds, in less."""
    monkeypatch.setattr(pushes, "FIRST_LOOK_SECONDS", 0.3)
    monkeypatch.setattr(pushes, "LATE_PUSH_SECONDS", 0.3)


async def missing(here: Shop) -> bool:
    async with here.http.get(f"{here.control}/v1/status") as response:
        return bool((await response.json())["pushes_missing"])


@pytest.mark.usefixtures("quick", "events")
async def test_a_message_whose_push_got_lost_is_seen_by_the_look_after_a_call(tmp_path: Path) -> None:
    async with shop(tmp_path, fallback_interval="200ms") as here:
        client = await here.open()
        await client.until(lambda: client.shown)
        here.plant.plant.swallow([here.chat(client)])
        await client.call("send", message="Where is my parcel?")
        here.plant.plant.say(here.chat(client), "On its way")
        await client.until(lambda: "On its way" in client.texts)
        chats = metrics.CHATS_WITHOUT_PUSHES.collect
        await client.until(lambda: next(iter(chats())).samples[0].value == 1)
        here.plant.plant.say(here.chat(client), "It comes today")
        await client.until(lambda: "It comes today" in client.texts)
        here.plant.plant.swallow([here.chat(client)], swallowed=False)
        here.plant.plant.say(here.chat(client), "Good bye")
        await client.until(lambda: "Good bye" in client.texts)
        await client.until(lambda: next(iter(chats())).samples[0].value == 0)
        assert client.texts == ["Where is my parcel?", "On its way", "It comes today", "Good bye"]
        assert not await missing(here)
        assert here.wrong() == {}


@pytest.mark.usefixtures("quick")
async def test_where_all_pushes_get_lost_the_operator_is_told(tmp_path: Path, events: Events) -> None:
    async with shop(tmp_path, fallback_interval="200ms") as here:
        clients = [await here.open() for _ in range(6)]
        for client in clients:
            await client.begins()
        here.plant.plant.swallow(map(here.chat, clients))
        for client in clients:
            await client.call("send", message="Hello")
            here.plant.plant.say(here.chat(client), "How can I help?")
        for client in clients:
            await client.hears(2)
        async with asyncio.timeout(10):
            while not events.of(Event.PUSHES_MISSING):
                await asyncio.gather(*(client.poll() for client in clients))
        assert await missing(here)
        assert len(events.of(Event.PUSHES_MISSING)) == 1
        assert here.wrong() == {}


@pytest.mark.usefixtures("events")
async def test_a_silence_is_no_refresh_at_gms(tmp_path: Path) -> None:
    async with shop(tmp_path, hold="1ms") as here:
        client = await here.open()
        await client.call("send", message="Hello")
        here.plant.plant.say(here.chat(client), "How can I help?")
        await client.until(lambda: len(client.texts) == 2)
        before = here.requests("refresh")
        for _ in range(300):
            await client.poll()
        assert here.requests("refresh") == before
        assert here.wrong() == {}


@pytest.mark.usefixtures("events")
async def test_what_a_customer_types_goes_out_when_it_is_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(previews, "PAUSE_SECONDS", 0.0)
    async with shop(tmp_path, hold="1ms") as here:
        client = await here.open()
        await client.until(lambda: client.shown)
        before = here.requests("refresh")

        async def type_until(text: str, refreshes: int) -> None:
            async with asyncio.timeout(10):
                while here.requests("refresh") - before < refreshes:
                    await client.call("refresh", transcriptPosition=str(client.position), message=text)
            for _ in range(20):
                await client.call("refresh", transcriptPosition=str(client.position), message=text)
            assert here.requests("refresh") - before == refreshes

        await type_until("Where", 1)
        await type_until("Where is", 2)
        await type_until("", 2)
        monkeypatch.setattr(previews, "PAUSE_SECONDS", 60.0)
        await type_until("Where is my", 2)
        assert here.wrong() == {}
