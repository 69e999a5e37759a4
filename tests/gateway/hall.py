"""A hall: the gateway behind its listener, on a clock that stands still, with a store in which a test writes itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode

import aiohttp
import orjson
from conftest import FakeClock, PromptStore, settings_of, soon
from stores.desk import Desk
from stores.test_transcript import message, refresh

from asyncchatd.config.settings import Settings
from asyncchatd.gateway import Chats, Gateway
from asyncchatd.gateway.keys import Keys
from asyncchatd.gms import GmsClient, InFlight, Pacer
from asyncchatd.listening import Listener
from asyncchatd.model.data import Verdict
from asyncchatd.model.transcript import EventKind
from asyncchatd.sending.sending import Sending

SHOWN = frozenset({EventKind.CHAT, EventKind.ENDED, EventKind.GAP})
SERVICE = "support"
KEY = "9b" * 32
SECTION = {"listen": "127.0.0.1:0", "key_file": "gateway-keys", "node_group": "gms"}
Json = dict[str, Any]
Pairs = Mapping[str, str]


@dataclass(frozen=True)
class Sent:
    """One event of a stream."""

    data: str
    id: str | None = None
    name: str = "message"

    @property
    def json(self) -> Json:
        return cast(Json, orjson.loads(self.data))

    @property
    def text(self) -> str:
        return str(self.json.get("text"))


@dataclass
class Reader:
    """A client that reads a stream as the standard has it."""

    response: aiohttp.ClientResponse
    last_id: str = ""
    comments: int = 0

    async def next(self) -> Sent | None:
        """The next event; `None` at the end of the stream."""
        data: list[str] = []
        name = "message"
        async for raw in self.response.content:
            line = raw.decode().rstrip("\n")
            field_name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if line == "":
                if data:
                    return Sent("\n".join(data), self.last_id or None, name)
                name = "message"
            elif not field_name:
                self.comments += 1
                return Sent("", name="comment")
            elif field_name == "data":
                data.append(value)
            elif field_name == "id":
                self.last_id = value
            elif field_name == "event":
                name = value
        return None

    async def place(self) -> str:
        """The id with which the stream begins."""
        while not self.last_id:
            name, _, value = (await self.response.content.readline()).decode().strip().partition(": ")
            self.last_id = value if name == "id" else ""
        return self.last_id

    async def hears(self, *texts: str) -> None:
        """The next events have these texts."""
        assert [one.text for one in [await self.must() for _ in texts]] == list(texts)

    async def must(self) -> Sent:
        """The next event, which must come soon."""
        found = await soon(self.next())
        assert found is not None
        return found

    async def ends(self) -> None:
        """Nothing more comes."""
        assert await soon(self.next()) is None


@dataclass
class Hall:
    """All of it."""

    chats: Chats
    gateway: Gateway
    desk: Desk
    clock: FakeClock
    base: str
    http: aiohttp.ClientSession
    settings: Settings
    directory: Path
    section: dict[str, object]
    _index: dict[str, int] = field(default_factory=dict)

    async def chat(self, name: str = "chat-1") -> None:
        """A chat that lives."""
        await self.desk.live(name)
        self._index[name] = 2

    async def said(self, *texts: str, chat: str = "chat-1", end: bool = False) -> None:
        """What a reply of GMS shows."""
        told = []
        for text in texts:
            self._index[chat] += 1
            told.append(message(self._index[chat], text))
        await refresh(self.desk, *told, chat_id=chat, verdict=Verdict.ENDED if end else Verdict.ANSWERED)

    async def counted_anew(self, *texts: str, chat: str = "chat-1") -> None:
        """Chat Server counts all of a chat from 1 on, as a reply of GMS shows and the one that follows it confirms."""
        self._index[chat] = len(texts)
        told = [message(index, text) for index, text in enumerate(texts, start=1)]
        for _ in range(2):
            await refresh(self.desk, *told, chat_id=chat)

    def form(self, chat: str = "chat-1", **said: str) -> dict[str, str]:
        key = Keys([bytes.fromhex(KEY)]).of(SERVICE, chat)
        return {"userId": "u", "alias": "117", "secureKey": key, "transcriptPosition": "3", **said}

    def url(self, operation: str, chat: str = "chat-1", query: Pairs | None = None) -> str:
        return f"{self.base}/{chat}/{operation}" + (f"?{urlencode(query)}" if query else "")

    async def post(self, operation: str, form: Pairs, chat: str = "chat-1", **query: str) -> tuple[int, Json]:
        url = self.url(operation, chat, query)
        async with self.http.post(url, data=urlencode(form).encode(), headers=FORM) as response:
            return response.status, await response.json()

    def poll(self, position: int, *, chat: str = "chat-1", **said: str) -> asyncio.Task[Json]:
        """A poll that is under way."""

        async def ask() -> Json:
            form = self.form(chat, transcriptPosition=str(position), **said)
            status, reply = await self.post("refresh", form, chat)
            assert status == 200
            return reply

        return asyncio.create_task(ask())

    async def stream(
        self, position: int | str = 1, *, chat: str = "chat-1", after: str | None = None
    ) -> Reader:
        headers = FORM | ({} if after is None else {"Last-Event-ID": after})
        form = self.form(chat, transcriptPosition=str(position))
        response = await soon(
            self.http.post(self.url("events", chat), data=urlencode(form).encode(), headers=headers)
        )
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        return Reader(response)

    def reload(self, **more: object) -> None:
        """Other settings of the gateway are taken over."""
        assert self.settings.gateway is not None
        changed = settings_of(self.directory, gateway={**self.section, **more})
        self.gateway.reload(changed)
        self.chats.reload(changed)

    async def held(self, polls: int = 0, streams: int = 0) -> None:
        """Wait until so many are held."""
        async with asyncio.timeout(10):
            while (self.chats._polls.held, len(self.chats._events)) != (polls, streams):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@asynccontextmanager
async def hall(directory: Path, store: PromptStore, clock: FakeClock, **more: object) -> AsyncIterator[Hall]:
    """One chat lives in it, `chat-1`, of whose transcript the first event has index 3."""
    (directory / "gateway-keys").write_text(KEY)
    section = {**SECTION, **more}
    settings = settings_of(directory, gateway=section)
    assert settings.gateway is not None
    wakeup = asyncio.Event()
    gms = cast(GmsClient, None)  # nobody calls
    sending = Sending(store, gms, Pacer(200, clock), InFlight(100, 1.0, clock), settings, clock, wakeup)
    chats = Chats(store, sending, settings.gateway, clock, wakeup)
    gateway = Gateway(settings.gateway, chats)
    listener = Listener(gateway.app(), settings.gateway, name="gateway", answer_longest=chats.answer_longest)
    await store.enrol([], now=clock.now(), shown=SHOWN)
    await chats.open()
    lives = [asyncio.create_task(life) for life in chats.lives().values()]
    await listener.start()
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with aiohttp.ClientSession(connector=connector) as http:
            base = f"http://{listener.addresses[0]}/genesys/2/chat/{SERVICE}"
            made = Hall(chats, gateway, Desk(store), clock, base, http, settings, directory, section)
            await made.chat()
            yield made
            await chats.drain(5)
            await listener.stop(0.1)  # what the client keeps open would be waited for to the end
    finally:
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
