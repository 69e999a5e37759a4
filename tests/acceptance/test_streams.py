"""A stream of the running daemon: an agent's words reach it, also over the loss of a Chat Server and a reconnect."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from conftest import soon

from .conftest import Start
from .plant import Chat
from .rig import Rig, eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

FIRST = "3"


class Stream:
    """A client's stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self._content = response.content
        self.last_id = ""

    async def hears(self, text: str) -> None:
        """The next event has this text."""
        while (line := (await soon(self._content.readline())).decode()) != "":
            name, _, value = line.strip().partition(": ")
            if name == "id":
                self.last_id = value
            elif name == "data":
                assert json.loads(value)["text"] == text
                return
        raise AssertionError(f"the stream ended before {text!r}")


@asynccontextmanager
async def opened(rig: Rig, chat: Chat, key: str, *, last_id: str = "") -> AsyncIterator[Stream]:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    async with rig.http.post(url_of(rig, chat), data=form(chat, key), headers=headers) as response:
        yield Stream(response)


def url_of(rig: Rig, chat: Chat, operation: str = "events") -> str:
    return f"http://127.0.0.1:{rig.gateway_port}/genesys/2/chat/customer-support/{chat.chat_id}/{operation}"


def form(chat: Chat, key: str) -> dict[str, str]:
    return {"userId": chat.user_id, "secureKey": key, "alias": chat.alias, "transcriptPosition": FIRST}


async def writes(rig: Rig, chat: Chat, text: str) -> None:
    rig.plant.say(chat, text)
    await rig.pushed(chat)


async def test_an_agents_words_come_once_over_a_loss_and_a_reconnect(start: Start) -> None:
    rig = await start(gateway="")
    await rig.watching()
    rig.plant.rotate_on_restore = {"key"}
    [chat] = await rig.registered()
    key, server = chat.secure_key, rig.plant.servers[0]  # its client keeps this one, whatever becomes of it
    async with opened(rig, chat, key) as stream:
        assert stream.status == 200
        await writes(rig, chat, "before")
        await stream.hears("before")
        await rig.plant.kill(server)
        await rig.until_state(server.name, "down")
        await rig.plant.revive(server, pid=server.pid + 1)
        await eventually("the restoration", lambda: not rig.plant.unrestored())
        await rig.settled()
        assert chat.secure_key != key
        await writes(rig, chat, "after")
        await stream.hears("after")
        last_id = stream.last_id
    await writes(rig, chat, "while it was away")
    await rig.settled()
    async with opened(rig, chat, key, last_id=last_id) as again:
        await again.hears("while it was away")
        await writes(rig, chat, "here again")
        await again.hears("here again")
    async with opened(rig, chat, key) as whole:
        for text in ("before", "after", "while it was away", "here again"):
            await whole.hears(text)


async def test_a_ticket_opens_one_stream(start: Start) -> None:
    rig = await start(gateway="")
    [chat] = await rig.registered()
    data = form(chat, chat.secure_key)
    async with rig.http.post(url_of(rig, chat, "events/ticket"), data=data) as response:
        ticket = (await response.json())["ticket"]
    query = {"ticket": ticket, "transcriptPosition": FIRST}
    async with rig.http.get(url_of(rig, chat), params=query) as response:
        await writes(rig, chat, "Hello")
        await Stream(response).hears("Hello")
    async with rig.http.get(url_of(rig, chat), params=query) as response:
        assert response.status == 403
    assert ticket not in rig.log_text()


NODE = shutil.which("node")
DOCUMENT = Path(__file__).parents[2] / "docs/gateway.md"


@pytest.mark.skipif(NODE is None, reason="needs node")
async def test_the_documented_client_shows_each_message_once_over_a_restart_and_stops_at_the_end(
    start: Start,
) -> None:
    assert NODE is not None
    rig = await start(gateway="")
    chat = rig.plant.chat()
    chat.next_position, chat.positions = (
        1,
        {"1"},
    )  # the example asks for all, and all is what comes from here on
    await rig.register([chat])
    [example] = re.findall(r"```js\n(async function follow.*?)```", DOCUMENT.read_text(), re.DOTALL)
    triple = {
        name: value for name, value in form(chat, chat.secure_key).items() if name != "transcriptPosition"
    }
    url = json.dumps(url_of(rig, chat).removesuffix("/events"))
    shown = "(event) => console.log(event.text)"
    script = f"{example}\nfollow({url}, {json.dumps(triple)}, {shown}).then(() => console.log('over'));"
    process = await asyncio.create_subprocess_exec(NODE, "-e", script, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        for text in ("one", "two"):
            await writes(rig, chat, text)
            assert (await soon(process.stdout.readline())).decode() == f"{text}\n"
        await rig.stop()
        await rig.start()
        await writes(rig, chat, "three")
        assert (await soon(process.stdout.readline())).decode() == "three\n"
        chat.answers.append({"statusCode": 0, "chatEnded": True})
        await rig.pushed(chat)
        assert (await soon(process.stdout.readline())).decode() == "over\n"
        assert await soon(process.wait()) == 0
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()
