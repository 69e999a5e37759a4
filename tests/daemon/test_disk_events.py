"""Events on a disk that takes nothing: nobody is told of what is not kept yet, and whatever is kept is told."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from asyncchatd.model.data import TokenNews
from asyncchatd.standin.messages import write_reply

from .test_disk import PATIENCE, USUAL, Daemon, running

pytestmark = pytest.mark.slow

TOKEN = "control-token-number-1"
MORE = """
[[consumer]]
name = "app"
[restoration]
lease = "1500ms"
backoff = "200ms"
backoff_max = "400ms"
"""
CHAT = "chat-1"


class Gms:
    """A GMS node, in whose only chat an agent writes. It shows what lies behind the position it is asked with."""

    def __init__(self) -> None:
        self.written: list[dict[str, object]] = []
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()
        """While it is clear, no answer leaves."""
        self.answers.set()

    def writes(self, text: str) -> None:
        index = 2 + len(self.written)
        sender = {"nickname": "Agent", "participantId": 2, "type": "Agent"}
        self.written.append(
            {"index": index, "type": "Message", "utcTime": index, "text": text, "from": sender}
        )

    async def refresh(self, request: web.Request) -> web.Response:
        position = int(str((await request.post()).get("transcriptPosition", "1")))
        self.asked.set()
        await self.answers.wait()
        shown = [each for each in self.written if cast(int, each["index"]) >= position]
        news = TokenNews(CHAT, None, None, "117")
        reply = write_reply(0, news, next_position=2 + len(self.written), extra={"messages": shown})
        return web.Response(body=reply)


@pytest.fixture
async def gms() -> Gms:
    return Gms()


@pytest.fixture
async def url(gms: Gms) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/genesys/2/chat/{service}/{chat_id}/refresh", gms.refresh)
    async with TestServer(app) as node:
        yield str(node.make_url("/genesys"))


@pytest.fixture
def text(tmp_path: Path, url: str) -> str:
    """A configuration with that node, a consumer, and a token that may read events."""
    (tmp_path / "tokens").write_text(f"{TOKEN} read register operate events\n")
    (tmp_path / "tokens").chmod(0o600)
    lines = USUAL.replace("http://127.0.0.1:9/genesys", url)
    return lines.replace("[control]", '[control]\ntoken_file = "tokens"') + MORE


async def texts(daemon: Daemon, after: str = "", wait: str = "20s") -> tuple[list[str], str]:
    """What there is to be told behind that, and the cursor."""
    status, answer = await daemon.get(f"/v1/events?consumer=app&wait={wait}&after={after}", TOKEN)
    assert status == 200, answer
    events = cast(list[dict[str, Any]], answer["events"])
    return [event["event"]["text"] for event in events], str(answer["cursor"])


async def test_nobody_is_told_of_what_the_disk_does_not_take_and_everybody_once_it_does(
    tmp_path: Path, gms: Gms, text: str
) -> None:
    async with running(tmp_path, text) as daemon:
        cursor = await begun(daemon, gms)
        await full_while_it_is_asked(daemon, gms)
        await daemon.until(lambda status: status == 503, "/readyz")
        status, answer = await daemon.get(f"/v1/events?consumer=app&after={cursor}", TOKEN)
        assert (status, "meanwhile" in str(answer)) in ((503, False), (200, False))
        daemon.largest_file(resource.RLIM_INFINITY)
        assert (await texts(daemon, cursor))[0] == ["meanwhile"]
        await daemon.until(lambda status: status == 200, "/readyz")
        gms.writes("after")
        assert (await daemon.push(CHAT)).status == 200
        told = await until_told(daemon, cursor, 2)
        assert told == ["meanwhile", "after"], "nothing twice, nothing out of order"
    async with running(tmp_path, text) as daemon:
        assert (await texts(daemon))[0] == ["meanwhile", "after"], "what was not acknowledged comes again"


async def test_what_a_daemon_could_not_keep_before_its_end_is_fetched_again(
    tmp_path: Path, gms: Gms, text: str
) -> None:
    async with running(tmp_path, text) as daemon:
        cursor = await begun(daemon, gms)
        await full_while_it_is_asked(daemon, gms)
        await daemon.until(lambda status: status == 503, "/readyz")
    async with running(tmp_path, text) as daemon:
        assert (await daemon.push(CHAT)).status == 200  # GMS resends what nobody acknowledged
        assert (await texts(daemon, cursor))[0] == ["meanwhile"]


async def begun(daemon: Daemon, gms: Gms) -> str:
    """A chat in which the consumer was told something; its cursor."""
    await daemon.register([CHAT], TOKEN)
    gms.writes("before")
    assert (await daemon.push(CHAT)).status == 200
    told, cursor = await texts(daemon)
    assert told == ["before"]
    return (await texts(daemon, cursor, "0s"))[1]


async def full_while_it_is_asked(daemon: Daemon, gms: Gms) -> None:
    """The disk fills while a Refresh is on its way; its answer brings an event."""
    gms.writes("meanwhile")
    gms.answers.clear()
    gms.asked.clear()
    assert (await daemon.push(CHAT)).status == 200
    async with asyncio.timeout(PATIENCE):
        await gms.asked.wait()
    daemon.largest_file(0)
    gms.answers.set()


async def until_told(daemon: Daemon, cursor: str, count: int) -> list[str]:
    told: list[str] = []
    async with asyncio.timeout(PATIENCE):
        while len(told) < count:
            told = (await texts(daemon, cursor))[0]
    return told
