"""What an agent writes reaches the chat application: at once, each message, in order, whoever is killed meanwhile."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from standardwebhooks.webhooks import Webhook as Verifier

from .conftest import Start
from .plant import Chat, free_port, push
from .rig import Rig, eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

CHAOS_SECONDS = 12.0
EVENTS_PER_SECOND = 50


class ChatApp:
    """The customer's chat application, which can be killed: then its connections break off wherever they are, and
    nobody listens until it is started again. What it took it has."""

    def __init__(self) -> None:
        self.port = free_port()
        self.requests: list[tuple[str, bytes]] = []
        """The ids and bytes of all tries."""
        self.taken: dict[str, list[str]] = {}
        """The messages by chat, as they came; those that came again as well."""
        self.events: set[str] = set()
        self.fails = 0.0
        """The share of answers that are 503, or that never come although the batch was taken."""
        self.fails_once = False
        self._chance = random.Random(11)
        self._runner: web.ServerRunner | None = None

    async def start(self) -> None:
        self._runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def kill(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        Verifier(SECRET).verify(body, dict(request.headers))
        self.requests.append((request.headers["webhook-id"], body))
        if self.fails_once or self._chance.random() < self.fails:
            self.fails_once = False
            return web.Response(status=503)
        batch = json.loads(body)
        said = self.taken.setdefault(batch["chat_id"], [])
        for event in batch["events"]:
            self.events.add(event["id"])
            said.append(event["event"]["text"])
        if self._chance.random() < self.fails:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=204)

    @property
    def tried_again(self) -> bool:
        return len(self.requests) > len({number for number, _ in self.requests})

    def has(self, chat: Chat) -> bool:
        return self.first_times(chat) == [event["text"] for event in chat.said]

    def first_times(self, chat: Chat) -> list[str]:
        return list(dict.fromkeys(self.taken.get(chat.chat_id, ())))


@pytest_asyncio.fixture(loop_scope="module")
async def app() -> AsyncIterator[ChatApp]:
    running = ChatApp()
    await running.start()
    yield running
    await running.kill()


def consumer(app: ChatApp, directory: Path) -> str:
    secret = directory / "webhook-secret"
    secret.write_text(f"{SECRET}\n")
    secret.chmod(0o600)
    return (
        f'name = "chat-app"\nurl = "http://127.0.0.1:{app.port}/"\nsecret_file = "{secret}"\nkinds = ["chat"]'
    )


async def test_what_an_agent_writes_is_with_the_chat_application_within_a_second(
    start: Start, app: ChatApp, tmp_path: Path
) -> None:
    rig = await start(consumer=consumer(app, tmp_path))
    [chat] = await rig.registered()
    rig.plant.say(chat, "Hello, your parcel is here")
    await rig.acknowledged(chat, push(chat, "dummy message"))
    await eventually("the message at the chat application", lambda: app.has(chat), within=1)
    assert app.taken == {chat.chat_id: ["Hello, your parcel is here"]}
    assert "parcel" not in rig.log_text()


async def test_the_log_tells_how_long_a_message_took_to_the_chat_application_and_that_it_waits(
    start: Start, app: ChatApp, tmp_path: Path
) -> None:
    """With a webhook that fails once, then is not there at all."""
    rig = await start(consumer=consumer(app, tmp_path))
    [chat] = await rig.registered()
    index = chat.next_position
    app.fails_once = True
    rig.plant.say(chat, "Hello, your parcel is here")
    await rig.acknowledged(chat, push(chat, "dummy message"))
    await eventually("the delivery in the log", lambda: rig.log("events_delivered"))
    told = await rig.told(chat)
    assert f"it fetched event {index}" in told
    assert re.search(rf"Consumer chat-app took event {index}, \S+ s after it was fetched, at try 2", told)
    assert "nothing is waiting" in told
    await app.kill()
    rig.plant.say(chat, "Are you there?")
    await rig.acknowledged(chat, push(chat, "dummy message"))
    await eventually("the failure in the log", lambda: len(rig.log("consumer_down")) == 2)
    told = await rig.told(chat)
    assert "nothing is waiting" not in told
    assert f"Event {index + 1} waits for consumer chat-app, since" in told
    assert "its endpoint does not answer" in told


async def test_a_restoration_brings_what_was_said_and_says_nothing_twice(
    start: Start, app: ChatApp, tmp_path: Path
) -> None:
    rig = await start(consumer=consumer(app, tmp_path))
    chats = await rig.registered(20, alias="111")
    await rig.watching()
    rig.plant.rotate_on_restore = {"key"}
    for chat in chats:
        rig.plant.say(chat, "before")
        await rig.acknowledged(chat, push(chat, "dummy message"))
    await rig.plant.kill(rig.plant.servers[0])
    for chat in chats:
        rig.plant.say(chat, "meanwhile")
    await eventually("all restored", lambda: not rig.plant.unrestored(), within=10)
    await eventually("all told", lambda: all(app.has(chat) for chat in chats))
    assert all(app.taken[chat.chat_id] == ["before", "meanwhile"] for chat in chats)


class Talk:
    """Agents who write without a pause, and Chat Server, which pushes until it is answered with 200."""

    def __init__(self, rig: Rig, chats: list[Chat], chance: random.Random) -> None:
        self._rig = rig
        self._chats = chats
        self._chance = chance
        self._unheard: dict[str, Chat] = {}
        self._written = asyncio.Event()
        self.count = 0

    async def write(self, seconds: float, enough: Callable[[], bool]) -> None:
        """For so long, and until enough has happened meanwhile."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while (passed := loop.time() - begun) < seconds or not enough():
            while self.count < passed * EVENTS_PER_SECOND:
                chat = self._chance.choice(self._chats)
                self.count += 1
                self._rig.plant.say(chat, f"message {self.count}")
                self._unheard[chat.chat_id] = chat
            self._written.set()
            await asyncio.sleep(0.02)

    async def push(self) -> None:
        while True:
            await self._written.wait()
            self._written.clear()
            for chat_id, chat in list(self._unheard.items()):
                del self._unheard[chat_id]
                if not await self._heard(chat):
                    self._unheard[chat_id] = chat
                    self._written.set()
                    await asyncio.sleep(0.05)

    async def _heard(self, chat: Chat) -> bool:
        with suppress(aiohttp.ClientError):
            return (await self._rig.push(push(chat, "dummy message"))).status == 200
        return False

    @property
    def heard(self) -> bool:
        return not self._unheard


@pytest.mark.timeout(240)
async def test_no_event_is_lost_and_no_order_broken_whoever_is_killed_meanwhile(
    start: Start, app: ChatApp, tmp_path: Path
) -> None:
    rig = await start(
        consumer=consumer(app, tmp_path) + '\ntimeout = "1s"', lease="1500ms", gms_timeout="1s", max_rate=300
    )
    # The alias that only a lost reply told, once.
    rig.forgiven.add("stale_alias")
    chance = random.Random(4711)
    chats = await rig.registered(25, alias="111")
    await rig.watching()
    talk = Talk(rig, chats, chance)
    kills = {"daemon": 0, "app": 0}

    async def kill_the_daemon() -> None:
        while True:
            await asyncio.sleep(chance.uniform(0.2, 2))
            await rig.kill()
            kills["daemon"] += 1
            await rig.start()

    async def kill_the_app() -> None:
        while True:
            await asyncio.sleep(chance.uniform(0.1, 1.5))
            await app.kill()
            kills["app"] += 1
            await asyncio.sleep(chance.uniform(0, 0.5))
            await app.start()
            app.fails = chance.choice((0.1, 0.2, 0.3))

    async def lose_a_server() -> None:
        await asyncio.sleep(CHAOS_SECONDS / 3)
        await rig.plant.kill(rig.plant.servers[0])

    pushing = asyncio.create_task(talk.push())
    faults = [asyncio.create_task(fault()) for fault in (kill_the_app, lose_a_server)]
    killing = asyncio.create_task(kill_the_daemon())
    await talk.write(CHAOS_SECONDS, lambda: min(kills.values()) >= 3 and app.tried_again)
    for task in (*faults, killing):
        task.cancel()
    await asyncio.gather(*faults, killing, return_exceptions=True)
    await app.kill()
    if rig.process is not None:  # it may have been cancelled between the kill and the start
        rig.process.kill()
        await rig.ended()
    app.fails = 0.0
    await app.start()
    await rig.start()
    await eventually("each push taken", lambda: talk.heard, within=20)
    await eventually("all told", lambda: all(app.has(chat) for chat in chats), within=40)
    pushing.cancel()
    await asyncio.gather(pushing, return_exceptions=True)
    assert talk.count >= CHAOS_SECONDS * EVENTS_PER_SECOND * 0.8
    assert len(app.events) == talk.count, "each event has one id, however often it came"
    bytes_of: dict[str, set[bytes]] = {}
    for number, body in app.requests:
        bytes_of.setdefault(number, set()).add(body)
    assert {len(bodies) for bodies in bytes_of.values()} == {1}, "each try of a batch has the same bytes"
    for chat in chats:
        assert_in_order(app.taken[chat.chat_id])


def assert_in_order(texts: list[str]) -> None:
    """What comes again is the batch that came last: nothing is told behind what follows it."""
    numbers = [int(text.split()[1]) for text in texts]
    assert list(dict.fromkeys(numbers)) == sorted(set(numbers))
