"""Adopting: chats that were begun without the gateway are taken over, and a stranger's guess costs nothing more."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from conftest import soon

from ..rig import Client, Shop, shop

pytestmark = pytest.mark.usefixtures("events")


def begun_elsewhere(shop: Shop) -> Client:
    """A client whose chat GMS has, and which comes with GMS' own key."""
    [chat] = shop.plant.plant.start_chats(1)
    said = {
        "chatId": chat.chat_id,
        "userId": chat.user_id,
        "secureKey": chat.secure_key,
        "alias": chat.alias,
    }
    return Client(shop, said)


async def test_a_chat_is_taken_over_with_its_clients_first_request(tmp_path: Path) -> None:
    async with shop(tmp_path, adopt=True) as here:
        client = begun_elsewhere(here)
        await client.until(lambda: client.shown)
        assert (await client.call("send", message="Hello"))["statusCode"] == 0
        key = here.chat(client).secure_key
        for name in list(here.plant.health_urls):
            here.plant.plant.servers.restart(name)
        await client.until(lambda: here.chat(client).secure_key != key)
        await client.until(lambda: client.texts == ["Hello"])
        assert not client.ended
        assert here.wrong() == {}


async def test_many_first_requests_at_once_are_one(tmp_path: Path) -> None:
    async with shop(tmp_path, adopt=True) as here:
        client = begun_elsewhere(here)
        replies = await soon(asyncio.gather(*(client.poll(1) for _ in range(10))))
        assert all(reply["statusCode"] == 0 for reply in replies)
        assert here.wrong() == {}


async def test_without_it_nothing_goes_to_gms(tmp_path: Path) -> None:
    async with shop(tmp_path) as here:
        client = begun_elsewhere(here)
        assert (await client.call("refresh", transcriptPosition="1"))["statusCode"] == 2
        assert here.requests("refresh") == 0


async def test_a_guess_is_tried_once_and_an_address_has_its_rate(tmp_path: Path) -> None:
    async with shop(tmp_path, adopt=True, max_adoptions=2) as here:
        nobody = {"userId": "u", "secureKey": "guess1", "alias": "117"}
        for _ in range(5):
            _, reply = await here.post("/nobody/refresh", nobody)
            assert (reply["statusCode"], reply["chatEnded"]) == (2, True)
        assert here.requests("refresh") <= 1
        for number in range(10):
            await here.post(f"/nobody-{number}/refresh", nobody)
        assert here.requests("refresh") <= 6


async def test_a_known_session_is_never_tried(tmp_path: Path) -> None:
    async with shop(tmp_path, adopt=True) as here:
        client = await here.open()
        await client.until(lambda: client.shown)
        before = here.requests("refresh")
        stranger = Client(here, {**client.opened, "secureKey": "deadbeef"})
        assert (await stranger.call("refresh"))["statusCode"] == 2
        assert here.requests("refresh") == before
        assert here.wrong() == {}


async def test_half_a_triple_is_none(tmp_path: Path) -> None:
    async with shop(tmp_path, adopt=True) as here:
        client = begun_elsewhere(here)
        for name in ("userId", "secureKey", "alias"):
            _, reply = await here.post(f"/{client.chat_id}/refresh", {**client.triple, name: "undefined"})
            assert reply["statusCode"] == 2
        assert here.requests("refresh") == 0


async def test_a_wrong_key_beside_an_adoption_is_refused(tmp_path: Path) -> None:
    async with shop(tmp_path, adopt=True) as here:
        client = begun_elsewhere(here)
        stranger = Client(here, {**client.opened, "secureKey": "0123456789abcdef"})
        both = asyncio.gather(client.poll(1), stranger.poll(1), stranger.call("send", message="forged"))
        assert [reply["statusCode"] for reply in await soon(both)] == [0, 2, 2]
        assert here.requests("send") == 0
