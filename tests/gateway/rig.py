"""A shop: the daemon with its gateway in this process, a stand-in plant behind it, and plain clients before it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
from conftest import PATIENCE, claimed_port, settings_of, soon

from asyncchatd.daemon.run import run
from asyncchatd.log import metrics
from asyncchatd.standin.plant.parts import ChatSession
from asyncchatd.standin.server import StandIn
from asyncchatd.standin.settings import PlantSettings, Rotation

SECRET = "push-secret-1"
KEYS = ("9b" * 32,)
NOTHING_WRONG = (
    "wrong_key_requests",
    "overlapping_requests",
    "overlapping_abandoned_requests",
    "repeated_at_once_requests",
    "wrong_service_requests",
)

Json = dict[str, Any]


@dataclass
class Shop:
    """All of it."""

    plant: StandIn
    base: str
    http: aiohttp.ClientSession
    control: str
    stop: asyncio.Event
    """Has the daemon stop, which it does at the latest when the shop closes."""

    async def post(self, path: str, pairs: Any, **more: Any) -> tuple[int, Json]:
        body = pairs if isinstance(pairs, bytes) else urlencode(pairs).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded", **more}
        async with self.http.post(f"{self.base}{path}", data=body, headers=headers) as response:
            return response.status, await response.json()

    async def open(self, **said: str) -> Client:
        """A client whose chat has begun."""
        status, reply = await self.post("", {"nickname": "Ann", **said})
        assert (status, reply["statusCode"]) == (200, 0), reply
        return Client(self, reply)

    def chat(self, client: Client) -> ChatSession:
        return self.plant.plant.sessions[client.chat_id]

    def wrong(self) -> dict[str, int]:
        """What the plant suffered and should not have."""
        report = self.plant.plant.report()
        suffered = {name: count for name in NOTHING_WRONG if (count := getattr(report, name))}
        if report.refreshes_of_closed_chats_max > 1:  # by the first one it may have been learned
            suffered["refreshes_of_closed_chats_max"] = report.refreshes_of_closed_chats_max
        return suffered

    async def held(self, count: int) -> None:
        """Wait until so many polls are held."""
        async with asyncio.timeout(PATIENCE):
            while next(iter(metrics.POLLS_HELD.collect())).samples[0].value != count:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)

    def requests(self, operation: str) -> int:
        return self.plant.plant.report().requests_by_operation.get(operation, 0)


@dataclass
class Client:
    """A client that keeps its first key for ever, polls from the position it was told, and shows what comes."""

    shop: Shop
    opened: Json
    position: int = 1
    shown: list[Json] = field(default_factory=list)
    ended: bool = False

    @property
    def chat_id(self) -> str:
        return str(self.opened["chatId"])

    @property
    def triple(self) -> dict[str, str]:
        return {name: self.opened[name] for name in ("userId", "secureKey", "alias")}

    async def call(self, operation: str, **said: str) -> Json:
        status, reply = await soon(self.shop.post(f"/{self.chat_id}/{operation}", {**self.triple, **said}))
        assert status == 200, reply
        return reply

    async def poll(self, position: int | str | None = None) -> Json:
        asked = self.position if position is None else position
        reply = await self.call("refresh", transcriptPosition=str(asked), message="")
        if position is None:
            self.position = reply["nextPosition"]
            self.shown += reply["messages"]
        self.ended |= reply["chatEnded"]
        return reply

    @property
    def texts(self) -> list[str]:
        return [event["text"] for event in self.shown if event["type"] == "Message"]

    async def begins(self) -> None:
        """Poll until the transcript has begun to show."""
        await self.until(lambda: self.shown)

    async def hears(self, count: int) -> None:
        """Poll until so many messages are shown."""
        await self.until(lambda: len(self.texts) == count)

    async def until(self, what: Callable[[], object]) -> None:
        """Poll until that is so."""
        async with asyncio.timeout(PATIENCE):
            while not what():
                await self.poll()


@asynccontextmanager
async def shop(
    directory: Path, *, plant: PlantSettings | None = None, store: str = "memory:", **gateway: object
) -> AsyncIterator[Shop]:
    """A plant, a daemon and its gateway; the daemon must end well."""
    (directory / "gateway-keys").write_text("\n".join(KEYS))
    (directory / "foreign-keys").write_text("7a" * 32)
    # Claimed, so that nobody else is given them before the daemon listens there.
    with claimed_port() as one, claimed_port() as two, claimed_port() as three:
        receiver, control, door = (each.getsockname()[1] for each in (one, two, three))
        async with _shop(directory, plant, store, receiver, control, door, gateway) as opened:
            yield opened


@asynccontextmanager
async def _shop(
    directory: Path,
    plant: PlantSettings | None,
    store: str,
    receiver: int,
    control: int,
    door: int,
    gateway: dict[str, object],
) -> AsyncIterator[Shop]:
    plant = plant or PlantSettings(rotate=Rotation.RESTORE)
    plant = dataclasses.replace(plant, push_url=f"http://127.0.0.1:{receiver}/push/{SECRET}")
    async with StandIn(plant) as standin, aiohttp.ClientSession() as http:
        settings = settings_of(
            directory,
            receiver={"secrets": [SECRET], "listen": f"127.0.0.1:{receiver}"},
            control={"listen": f"127.0.0.1:{control}"},
            gms={"nodes": standin.gms_urls, "service": "customer-support"},
            store={"url": store},
            watcher={"interval": "100ms", "timeout": "500ms", "fall": 2},
            gateway={
                "listen": f"127.0.0.1:{door}",
                "key_file": "gateway-keys",
                "node_group": "gms",
                "hold": "200ms",
                **gateway,
            },
            chat_servers=[{"name": name, "health_url": url} for name, url in standin.health_urls.items()],
        )
        stop = asyncio.Event()
        daemon = asyncio.create_task(run(settings, stop=stop))
        base = f"http://127.0.0.1:{door}/genesys/2/chat/customer-support"
        try:
            await _answers(http, f"http://127.0.0.1:{door}/healthz", daemon)
            yield Shop(standin, base, http, f"http://127.0.0.1:{control}", stop)
        finally:
            await http.close()  # what a client keeps open is waited for to the end
            stop.set()
            await asyncio.wait_for(daemon, 15)


async def _answers(http: aiohttp.ClientSession, url: str, daemon: asyncio.Task[None]) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            assert not daemon.done(), daemon.result()
            try:
                async with http.get(url) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                await asyncio.sleep(0.01)
