"""Keys that clients came with: those of registered chats and of `passthrough`, through every rotation at GMS."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio
from conftest import Events, settings_of, soon

from asyncchatd.daemon.run import run
from asyncchatd.gateway.keys import Keys
from asyncchatd.log import Event
from asyncchatd.stores import StoreError

from .rig import KEYS, Client, Shop, shop

pytestmark = pytest.mark.usefixtures("events")

SERVICE = "customer-support"


@pytest_asyncio.fixture
async def here(tmp_path: Path) -> AsyncIterator[Shop]:
    """One shop, whose plant must not have suffered."""
    async with shop(tmp_path) as opened:
        yield opened
        assert opened.wrong() == {}


async def begun_without(here: Shop) -> Client:
    """A client whose chat began at GMS itself, and nobody registered."""
    async with here.http.post(
        f"{here.plant.gms_urls[0]}/2/chat/{SERVICE}", data={"nickname": "Ann"}
    ) as response:
        return Client(here, await response.json())


async def register(here: Shop, client: Client, **said: object) -> int:
    tokens = {
        "user_id": client.opened["userId"],
        "secure_key": client.opened["secureKey"],
        "alias": client.opened["alias"],
        "next_position": 1,
        **said,
    }
    async with here.http.put(f"{here.control}/v1/sessions/{client.chat_id}", json=tokens) as response:
        return response.status


async def registered(here: Shop) -> Client:
    client = await begun_without(here)
    assert await register(here, client) == 201
    return client


async def rotate(here: Shop, client: Client) -> None:
    """GMS gives the chat another key, as its Chat Server is lost."""
    async with asyncio.timeout(10):
        while not await _are_known(here):
            await client.poll()
    before = here.chat(client).secure_key
    for name in list(here.plant.health_urls):
        here.plant.plant.servers.restart(name)
    await client.until(lambda: here.chat(client).secure_key != before)


async def _are_known(here: Shop) -> bool:
    """Whether the daemon knows the processes that would be lost."""
    async with here.http.get(f"{here.control}/v1/servers") as response:
        return all(server["process_os_pid"] for server in (await response.json())["servers"])


async def say(client: Client, text: str) -> None:
    async with asyncio.timeout(10):
        while (await client.call("send", message=text))["statusCode"] != 0:
            pass


def with_ours(client: Client) -> Client:
    """The same client with the gateway's key of its chat."""
    key = Keys([bytes.fromhex(KEYS[0])]).of(SERVICE, client.chat_id)
    return Client(client.shop, {**client.opened, "secureKey": key})


async def refused(client: Client, key: str) -> None:
    for operation in ("refresh", "send"):
        pairs = {**client.triple, "secureKey": key, "message": "x"}
        _, reply = await soon(client.shop.post(f"/{client.chat_id}/{operation}", pairs))
        assert (reply["statusCode"], reply["chatEnded"]) == (2, True)


@pytest.mark.slow
async def test_the_client_of_a_registered_chat_keeps_its_first_key_for_ever(here: Shop) -> None:
    client = await registered(here)
    first = client.opened["secureKey"]
    assert first == here.chat(client).secure_key
    await say(client, "before")
    await rotate(here, client)
    await say(client, "after")
    await rotate(here, client)
    reply = await client.call("startTyping")
    assert (reply["statusCode"], reply["secureKey"]) == (0, first)
    await client.until(lambda: "after" in client.texts)
    other = with_ours(client)
    await say(other, "with the gateway's")
    await client.until(lambda: "with the gateway's" in client.texts)
    await refused(client, here.chat(client).secure_key)
    here.plant.plant.end_chats([here.chat(client)])
    await client.call("startTyping")
    await client.until(lambda: client.ended)
    last = await client.poll("1")
    assert (last["statusCode"], last["chatEnded"], last["secureKey"]) == (0, True, first)


async def test_a_chat_that_is_looked_at_already_is_known_by_its_key_once_it_is_registered(here: Shop) -> None:
    client = await begun_without(here)
    await refused(client, client.opened["secureKey"])
    assert await register(here, client) == 201
    assert (await client.call("send", message="Hello"))["statusCode"] == 0


async def test_a_key_that_is_registered_later_is_none_that_the_client_came_with(here: Shop) -> None:
    client = await registered(here)
    await rotate(here, client)
    chat = here.chat(client)
    said = {"user_id": chat.user_id, "secure_key": chat.secure_key, "alias": chat.alias}
    assert await register(here, client, **said) == 200
    await say(client, "Hello")
    await refused(client, here.chat(client).secure_key)


async def test_with_passthrough_a_client_gets_the_key_of_gms_and_keeps_it(tmp_path: Path) -> None:
    async with shop(tmp_path, passthrough=True) as here:
        client = await here.open()
        first = client.opened["secureKey"]
        assert first == here.chat(client).secure_key
        await say(client, "before")
        await rotate(here, client)
        await say(client, "after")
        assert (await client.poll())["secureKey"] == first
        await client.until(lambda: client.texts == ["before", "after"])
        await refused(client, here.chat(client).secure_key)
        assert here.wrong() == {}


async def test_a_restart_of_the_daemon_forgets_no_key(tmp_path: Path) -> None:
    async with shop(tmp_path, store="sqlite:///chats.db", passthrough=True) as first:
        client = await first.open()
        key = client.opened["secureKey"]
    with closing(sqlite3.connect(tmp_path / "chats.db")) as db:
        [[kept]] = db.execute("SELECT came_with FROM session").fetchall()
    assert key not in kept
    async with shop(tmp_path, store="sqlite:///chats.db") as second:
        reply = await Client(second, client.opened).poll("1")
        assert (reply["statusCode"], reply["secureKey"]) == (0, key)


@pytest.mark.slow
async def test_a_thousand_wrong_old_and_foreign_keys_do_not_reach_gms(here: Shop) -> None:
    ours, theirs = await here.open(), await registered(here)
    await say(theirs, "Hello")
    await rotate(here, theirs)
    await say(theirs, "again")
    for client in (ours, theirs):
        await client.begins()
    before = {name: here.requests(name) for name in ("send", "disconnect", "startTyping")}
    current = here.chat(theirs).secure_key
    keys = {
        ours.chat_id: [
            here.chat(ours).secure_key,
            theirs.opened["secureKey"],
            with_ours(theirs).opened["secureKey"],
        ],
        theirs.chat_id: [current, ours.opened["secureKey"], here.chat(ours).secure_key],
    }
    for number in range(1_000):
        client = (ours, theirs)[number % 2]
        tried = [*keys[client.chat_id], "", f"{number:040x}", client.opened["secureKey"][:-1]]
        operation = ("send", "disconnect", "startTyping", "refresh")[number // 2 % 4]
        pairs = {**client.triple, "secureKey": tried[number // 8 % len(tried)], "message": "x"}
        _, reply = await here.post(f"/{client.chat_id}/{operation}", pairs)
        assert (reply["statusCode"], reply["chatEnded"]) == (2, True)
    assert {name: here.requests(name) for name in before} == before


async def test_the_daemon_does_not_start_with_the_keys_of_another_gateway(
    tmp_path: Path, events: Events
) -> None:
    async with shop(tmp_path, store="sqlite:///chats.db") as here:
        await here.open()
    with pytest.raises(StoreError, match=r"gateway\.key_file"):
        async with shop(tmp_path, store="sqlite:///chats.db", key_file="foreign-keys"):
            pass
    assert not events.of(Event.DAEMON_FAILED), "no part was begun that could end"
    async with shop(tmp_path, store="sqlite:///chats.db"):
        pass


async def test_a_start_without_the_gateway_says_whose_clients_are_left_alone(
    tmp_path: Path, events: Events
) -> None:
    async def told() -> list[object]:
        """The daemon starts without a gateway, and stops."""
        stop, before = asyncio.Event(), len(events.of(Event.DAEMON_READY))
        settings = settings_of(tmp_path, store={"url": "sqlite:///chats.db"})
        daemon = asyncio.create_task(run(settings, stop=stop))
        while len(events.of(Event.DAEMON_READY)) == before and not daemon.done():
            await soon(asyncio.to_thread(lambda: None))
        stop.set()
        await soon(daemon)
        return [each["message"] for each in events.of(Event.CONFIG_WARNING) if each["key"] == "gateway"]

    async with shop(tmp_path, store="sqlite:///chats.db") as here:
        client = await here.open()
    began = "1 live chat began at a gateway, and there is none: GMS does not know the keys their clients hold"
    assert await told() == [began]
    async with (
        shop(tmp_path, store="sqlite:///chats.db") as here,
        here.http.delete(f"{here.control}/v1/sessions/{client.chat_id}") as response,
    ):
        assert response.status < 300
    assert await told() == [began], "no more than before"


async def test_the_status_tells_how_many_chats_hold_the_gateway_in_its_place(here: Shop) -> None:
    async def told() -> tuple[int, str]:
        async with here.http.get(f"{here.control}/v1/status") as response:
            status = await response.json()
        async with here.http.get(f"{here.control}/metrics") as response:
            lines = (await response.text()).splitlines()
        [metric] = [line for line in lines if line.startswith("asyncchatd_gateway_chats ")]
        return status["gateway_chats"], metric.split()[1]

    await registered(here)
    client = await here.open()
    assert await told() == (1, "1.0")
    await client.call("disconnect")
    await client.until(lambda: client.ended)
    assert await told() == (0, "0.0")
