"""A message's way through the whole daemon: from a push to the one who fetches it, and nowhere else."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from conftest import Events, MakeSettings, soon

from asyncchatd.config.settings import Settings
from asyncchatd.log.events import Event
from asyncchatd.model.data import TokenNews
from asyncchatd.standin.messages import write_reply
from daemon.test_run import Daemon, Systemd, ready

pytestmark = pytest.mark.usefixtures("events")

TEXT = "Hello, your parcel is here"
NICKNAME = "Agent Planted"
TOKEN = "control-token-number-1"


class Chat:
    """A GMS node, in whose only chat an agent writes."""

    def __init__(self) -> None:
        self.written: list[dict[str, object]] = []

    def writes(self, text: str) -> None:
        index = 2 + len(self.written)
        sender = {"nickname": NICKNAME, "participantId": 2, "type": "Agent"}
        self.written.append({"index": index, "type": "Message", "utcTime": 1, "text": text, "from": sender})

    async def refresh(self, request: web.Request) -> web.Response:
        news = TokenNews(request.match_info["chat_id"], None, None, "117")
        following = 2 + len(self.written)
        return web.Response(
            body=write_reply(0, news, next_position=following, extra={"messages": self.written})
        )


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    listening = Systemd(tmp_path / "notify.sock")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify.sock"))
    yield listening
    listening.close()


@pytest.fixture
async def chat() -> Chat:
    return Chat()


@pytest.fixture
async def settings(make_settings: MakeSettings, tmp_path: Path, chat: Chat) -> AsyncIterator[Settings]:
    app = web.Application()
    app.router.add_post("/genesys/2/chat/{service}/{chat_id}/refresh", chat.refresh)
    (tmp_path / "tokens").write_text(f"{TOKEN} read register operate events\n")
    async with TestServer(app) as gms:
        yield make_settings(
            gms={"nodes": [str(gms.make_url("/genesys"))]},
            control={"listen": "127.0.0.1:0", "token_file": tmp_path / "tokens"},
            store={"url": "sqlite:///sessions.db"},
            consumers=[{"name": "app"}, {"name": "away"}],
        )


@asynccontextmanager
async def in_a_chat(settings: Settings, events: Events, manager: Systemd) -> AsyncIterator[Daemon]:
    async with ready(settings, events, manager) as daemon:
        daemon.http.headers["Authorization"] = f"Bearer {TOKEN}"
        await daemon.register()
        yield daemon


@pytest.mark.slow
async def test_what_an_agent_writes_is_told_while_its_reader_waits_and_nowhere_else(
    settings: Settings, events: Events, manager: Systemd, chat: Chat, tmp_path: Path
) -> None:
    async with in_a_chat(settings, events, manager) as daemon:
        waiting = asyncio.create_task(daemon.call("GET", "/v1/events?consumer=app&wait=60s"))
        chat.writes(TEXT)
        assert await daemon.push() == 200
        _, answer = await soon(waiting)
        [event] = cast(list[dict[str, object]], answer["events"])
        assert (event["chat_id"], event["event"]) == ("chat-1", chat.written[0])
        shown = [str(await daemon.call("GET", f"/v1/{path}")) for path in OTHERS]
        shown += [
            str(await daemon.call("GET", f"/v1/events?{query}")) for query in ("consumer=no", "after=x")
        ]
        for path in ("/metrics", "/"):
            async with daemon.http.get(daemon.control + path) as response:
                shown.append(await response.text())
        async with daemon.http.get(f"{daemon.control}/v1/live") as looking:
            while not (line := await soon(looking.content.readline())).startswith(b"data: {"):
                pass
            shown.append(line.decode())
        shown.append(" ".join(manager.told))
        await daemon.ends()
    story = tmp_path / "daemon.log"
    story.write_text(events.text)
    command = (sys.executable, "-m", "asyncchatd", "logs", "--chat", "chat-1", str(story))
    shown.append(await asyncio.to_thread(lambda: subprocess.check_output(command, text=True, timeout=60)))
    assert "registered" in shown[-1]
    for secret in (TEXT, "parcel", NICKNAME):
        assert secret not in events.text
        assert not [text for text in shown if secret in text]


OTHERS = ("status", "sessions", "sessions/chat-1", "consumers", "restorations", "servers")


@pytest.mark.slow
async def test_who_reads_a_stream_does_not_hold_up_the_stop_and_goes_on_behind_what_he_had(
    settings: Settings, events: Events, manager: Systemd, chat: Chat
) -> None:
    async with in_a_chat(settings, events, manager) as daemon:
        chat.writes("one")
        await daemon.push()
        _, answer = await daemon.call("GET", "/v1/events?consumer=app&wait=60s")
        async with aiohttp.ClientSession(headers=daemon.http.headers) as http:
            url = f"{daemon.control}/v1/events?consumer=app"
            stream = {"Accept": "text/event-stream", "Last-Event-ID": str(answer["cursor"])}
            async with http.get(url, headers=stream) as streaming:
                assert await soon(streaming.content.readline()) == b"retry: 500\n"
                daemon.stop.set()
                assert await soon(streaming.content.read()) == b"\n"
                await soon(daemon.task)
    assert events.names()[-1] == Event.DAEMON_STOPPED
    events.forget()
    async with ready(settings, events, manager) as daemon:
        daemon.http.headers["Authorization"] = f"Bearer {TOKEN}"
        _, answer = await daemon.call("GET", f"/v1/events?consumer=app&after={answer['cursor']}")
        assert answer["events"] == []
        _, answer = await daemon.call("GET", "/v1/events?consumer=away")
        assert len(cast(list[object], answer["events"])) == 1
