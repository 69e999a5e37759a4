"""Streams and long polls: what clients have that were written for the gateway."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
import pytest_asyncio
import yarl
from conftest import soon

from asyncchatd.gateway.polls import MOST_BESIDE
from asyncchatd.log import metrics

from .rig import Client, Json, Shop, shop
from .test_history import registered_late, says
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


async def ticket(client: Client) -> str:
    reply = await client.call("events/ticket")
    assert reply["expiresIn"] == 30
    return str(reply["ticket"])


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


async def test_a_stream_rides_through_the_loss_of_the_chat_server(here: Shop) -> None:
    client = await here.open()
    async with stream(client) as opened:
        says(here, client, "before")
        await opened.hears(1)
        await rotate(here, client)
        says(here, client, "after")
        assert await opened.hears(2) == ["before", "after"]


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


async def test_a_ticket_opens_one_stream(here: Shop) -> None:
    client = await here.open()
    says(here, client, "Hello")
    given = await ticket(client)
    async with stream(client, get=True, ticket=given) as opened:
        assert await opened.hears(1) == ["Hello"]
    async with stream(client, get=True, ticket=given) as again:
        assert again.response.status == 403
        assert "was not used" in await again.response.text()


async def test_a_ticket_is_for_its_chat_alone(here: Shop) -> None:
    client, other = await here.open(), await here.open()
    given = await ticket(client)
    async with stream(other, get=True, ticket=given) as foreign:
        assert foreign.response.status == 403
    async with stream(client, get=True, ticket=given) as opened:
        assert opened.response.status == 200


@pytest.mark.parametrize("given", ["", "1.2.3", "9999999999999.aa.bb", "x.y.z", "\u0661.a.b"])
async def test_what_is_no_ticket_opens_nothing(here: Shop, given: str) -> None:
    client = await here.open()
    async with stream(client, get=True, ticket=given) as refused:
        assert refused.response.status == 403


async def test_a_key_in_an_address_is_refused(here: Shop) -> None:
    client = await here.open()
    async with stream(client, get=True, **client.triple) as refused:
        assert refused.response.status == 400
        assert "secureKey" in await refused.response.text()


async def test_a_ticket_is_posted_for(here: Shop) -> None:
    client = await here.open()
    async with stream(client, path="events/ticket", get=True) as refused:
        assert (refused.response.status, refused.response.headers["Allow"]) == (405, "POST, OPTIONS")


# -- long polls --------------------------------------------------------------------------------------


async def test_a_client_that_says_so_has_its_poll_held_for_longer(here: Shop) -> None:
    client = await here.open()
    await client.begins()
    began = time.monotonic()
    poll = asyncio.create_task(
        client.call("refresh", transcriptPosition=str(client.position), wait="20", message="")
    )
    await here.held(1)
    assert (await client.poll())["messages"] == []  # held for 0.2 s beside it, and takes no place of it
    says(here, client, "Hello")
    reply = await soon(poll)
    assert [event["text"] for event in reply["messages"]] == ["Hello"]
    assert time.monotonic() - began < 15


async def test_so_many_are_held_beside_each_other_and_one_more_is_answered_soon(here: Shop) -> None:
    client = await here.open()
    await client.begins()
    waiting = {"transcriptPosition": str(client.position), "wait": "30"}
    polls = [asyncio.create_task(client.call("refresh", **waiting)) for _ in range(MOST_BESIDE)]
    await here.held(MOST_BESIDE)
    began = time.monotonic()
    assert (await client.call("refresh", **waiting))["messages"] == []
    assert 0.9 < time.monotonic() - began < 15
    async with stream(client, transcriptPosition=waiting["transcriptPosition"]) as crowded:
        assert b"data" not in await soon(crowded.response.content.read()), "it ends, too"
    says(here, client, "Hello")
    for reply in await soon(asyncio.gather(*polls)):
        assert [event["text"] for event in reply["messages"]] == ["Hello"]


# -- the end -----------------------------------------------------------------------------------------


async def open_streams(count: int) -> None:
    """Wait until so many are open."""
    async with asyncio.timeout(20):
        while next(iter(metrics.STREAMS_OPEN.collect())).samples[0].value != count:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def test_a_stop_ends_streams_and_long_polls_at_once(tmp_path: Path) -> None:
    async with shop(tmp_path) as here:
        client = await here.open()
        await client.begins()
        url = f"{here.base}/{client.chat_id}/events"
        opened = await here.http.post(url, data=urlencode(client.triple).encode(), headers=FORM)
        poll = asyncio.create_task(client.call("refresh", transcriptPosition=str(client.position), wait="30"))
        await here.held(1)
        await open_streams(1)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert (await soon(poll))["messages"] == []
    opened.close()


@pytest.mark.slow
async def test_streams_and_long_polls_whose_clients_left_leave_nothing(tmp_path: Path) -> None:
    async with shop(tmp_path, max_new_chats=1_000) as here:
        pages = [await here.open() for _ in range(25)]
        for page in pages:
            await page.begins()
        tasks = len(asyncio.all_tasks())
        for _ in range(20):
            await _opened_and_dropped(here, pages)
        async with asyncio.timeout(10):
            while len(asyncio.all_tasks()) > tasks:  # noqa: ASYNC110 - a connection that was closed ends by itself
                await asyncio.sleep(0.01)
        for page in pages:
            says(here, page, "Hello")
            await page.hears(1)


async def _opened_and_dropped(here: Shop, pages: Sequence[Client]) -> None:
    """Two streams and two long polls of each page."""
    url = yarl.URL(here.base)
    opened = []
    for page in pages:
        for operation in ("events", "refresh") * 2:
            _, writer = await asyncio.open_connection(url.host, url.port)
            form = urlencode({**page.triple, "transcriptPosition": "100", "wait": "30"})
            head = f"POST {url.path}/{page.chat_id}/{operation} HTTP/1.1\r\nHost: {url.authority}"
            writer.write(f"{head}\r\nContent-Length: {len(form)}\r\n\r\n{form}".encode())
            opened.append(writer)
    await open_streams(2 * len(pages))
    await here.held(2 * len(pages))
    for writer in opened:
        writer.transport.abort()
    await open_streams(0)
    await here.held(0)
