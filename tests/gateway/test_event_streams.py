"""Streams and long polls: what clients have that were written for the gateway."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
import pytest_asyncio
from conftest import soon

from .calling.test_history import registered_late, says
from .rig import Client, Json, Shop, shop
from .test_kept_keys import rotate

pytestmark = pytest.mark.usefixtures("events")

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest_asyncio.fixture
async def here(tmp_path: Path) -> AsyncIterator[Shop]:
    """One shop, whose plant must not have suffered."""
    async with shop(tmp_path) as opened:
        yield opened
        assert opened.wrong() == {}


@dataclass
class Stream:
    """A client's stream, as far as it was read."""

    response: aiohttp.ClientResponse
    events: list[Json] = field(default_factory=list)
    last_id: str = ""
    ended: bool = False

    async def read_one(self) -> Json:
        """The next event; the comments before it are passed over."""
        said: dict[str, str] = {}
        while line := (await soon(self.response.content.readline())).decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if name and not line.startswith(":"):
                said[name] = value
            elif "data" in said:
                break
        assert "data" in said, "the stream is over"
        event: Json = json.loads(said["data"])
        self.last_id = said.get("id", self.last_id)
        self.ended |= said.get("event") == "end"
        self.events.append(event)
        return event

    async def hears(self, count: int) -> list[str]:
        """The texts of all messages, once there are so many."""
        while len(self.texts) < count:
            await self.read_one()
        return self.texts

    @property
    def texts(self) -> list[str]:
        return [event["text"] for event in self.events if event.get("type") == "Message"]


@asynccontextmanager
async def stream(
    client: Client, *, last_id: str | None = None, path: str = "events", get: bool = False, **said: str
) -> AsyncIterator[Stream]:
    """A stream that is open, with the client's key unless it is fetched with `get`."""
    url = f"{client.shop.base}/{client.chat_id}/{path}"
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    more: Mapping[str, Any] = (
        {"params": said} if get else {"data": urlencode({**client.triple, **said}).encode()}
    )
    async with client.shop.http.request(
        "GET" if get else "POST", url, headers=headers | ({} if get else FORM), **more
    ) as response:
        yield Stream(response)


@pytest.mark.slow
async def test_a_stream_tells_what_is_said_as_it_is_said_and_ends_with_the_chat(here: Shop) -> None:
    client = await here.open()
    async with stream(client) as opened:
        assert opened.response.status == 200
        headers = opened.response.headers
        assert headers["Content-Type"] == "text/event-stream"
        assert (headers["Cache-Control"], headers["X-Accel-Buffering"]) == ("no-store", "no")
        says(here, client, "Hello")
        assert await opened.hears(1) == ["Hello"]
        await client.call("send", message="Where is my parcel?")
        says(here, client, "On its way")
        assert await opened.hears(3) == ["Hello", "Where is my parcel?", "On its way"]
        await client.call("disconnect")
        while not opened.ended:
            await opened.read_one()
        assert opened.events[-1] == {"chatEnded": True}
        assert await soon(opened.response.content.read()) == b""


@pytest.mark.slow
async def test_a_stream_rides_through_the_loss_of_the_chat_server(here: Shop) -> None:
    client = await here.open()
    async with stream(client) as opened:
        says(here, client, "before")
        await opened.hears(1)
        await rotate(here, client)
        says(here, client, "after")
        assert await opened.hears(2) == ["before", "after"]


@pytest.mark.slow
async def test_a_client_that_comes_back_goes_on_behind_what_it_has(here: Shop) -> None:
    client = await here.open()
    async with stream(client) as opened:
        for text in ("one", "two"):
            says(here, client, text)
        await opened.hears(2)
        last_id = opened.last_id
    for text in ("three", "four"):
        says(here, client, text)
    async with stream(client, last_id=last_id, transcriptPosition="1") as again:
        assert await again.hears(2) == ["three", "four"]
    async with stream(client, last_id="undefined", transcriptPosition="1") as whole:
        assert await whole.hears(4) == ["one", "two", "three", "four"]


async def test_a_stream_begins_with_what_was_said_before_the_chat_was_registered(here: Shop) -> None:
    client = await registered_late(here)
    async with stream(client) as opened:
        assert await opened.hears(2) == ["one", "two"]


async def test_a_stream_makes_no_request_to_gms(here: Shop) -> None:
    client = await here.open()
    await client.begins()
    before = here.requests("refresh")
    for _ in range(3):
        async with stream(client) as opened:
            await opened.read_one()
    assert here.requests("refresh") == before


@pytest.mark.parametrize("path", ["events", "events/ticket"])
async def test_a_wrong_key_opens_nothing_and_reaches_nobody(here: Shop, path: str) -> None:
    client = await here.open()
    await client.begins()
    before = here.requests("refresh")
    client.opened["secureKey"] = "0" * 40
    async with stream(client, path=path) as refused:
        assert refused.response.status == 403
        assert (await refused.response.json())["statusCode"] == 2
    assert here.requests("refresh") == before


# -- tickets ---------------------------------------------------------------------------------------


async def test_a_ticket_is_posted_for(here: Shop) -> None:
    client = await here.open()
    async with stream(client, path="events/ticket", get=True) as refused:
        assert (refused.response.status, refused.response.headers["Allow"]) == (405, "POST, OPTIONS")
