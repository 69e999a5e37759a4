"""The plant on loopback sockets: GMS nodes, health ports, pushes out, and the control port."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

import aiohttp
from aiohttp import web

from asyncchatd.standin.control import control_app
from asyncchatd.standin.gms_node import GmsNode
from asyncchatd.standin.health_page import HealthFormat, write_health
from asyncchatd.standin.plant import Plant
from asyncchatd.standin.plant.parts import Phase, PlantServer, ServerProcess
from asyncchatd.standin.port import LoopbackPort
from asyncchatd.standin.pushes import SentPush
from asyncchatd.standin.settings import PlantSettings, SettingError, SickPage, is_loopback

TICK = 0.005
"""Seconds between two looks at what has become due: the resolution of resends and planned stops, and of the
plant's own pauses."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports on which the plant listens; 0, or nothing said, means any free port."""

    host: str = "127.0.0.1"
    """A loopback address."""
    control: int = 0
    gms: tuple[int, ...] = ()
    """One per GMS node."""
    health: Mapping[str, int] = field(default_factory=dict)
    """By Chat Server name."""


class StandIn:
    """A running plant.

        async with StandIn(PlantSettings(push_url=...)) as standin:
            standin.gms_urls, standin.health_urls, standin.control_url
            standin.plant.servers.kill("chat-1")
            await standin.settled()

    Raises `SettingError` for an address that is not loopback, `OSError` when a port is taken.
    """

    def __init__(self, settings: PlantSettings | None = None, ports: Ports | None = None) -> None:
        self.ports = ports or Ports()
        self._outbox: asyncio.Queue[SentPush] = asyncio.Queue()
        self.plant = Plant(settings, send_push=self._outbox.put_nowait)
        self.nodes: list[GmsNode] = []
        self._health: dict[str, LoopbackPort] = {}
        self._opened_for: dict[str, ServerProcess] = {}
        self._thawed: dict[str, asyncio.Event] = {}
        self._following: set[asyncio.Task[None]] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self.control_url = ""

    @property
    def gms_urls(self) -> list[str]:
        """Base URLs of the GMS nodes, in order."""
        return [node.url for node in self.nodes]

    @property
    def health_urls(self) -> dict[str, str]:
        """URLs of the health pages by Chat Server name."""
        return {name: f"{port.url}/" for name, port in self._health.items()}

    async def __aenter__(self) -> StandIn:
        async with contextlib.AsyncExitStack() as stack:
            await self._open_chat_servers(stack)
            await self._open_nodes(stack)
            await self._open_control(stack)
            await self._start_tasks(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def settled(self) -> None:
        """Waits until every health port is what its Chat Server's phase says."""
        while self._following:
            await asyncio.gather(*self._following)

    async def broken(self) -> None:
        """Waits for ever, or until something of the plant itself breaks, and raises that."""
        await asyncio.gather(*self._tasks)

    # --- opening ----------------------------------------------------------------------------

    async def _open_chat_servers(self, stack: contextlib.AsyncExitStack) -> None:
        for server in self.plant.servers.values():
            port = LoopbackPort(
                partial(self._health_page, server), self.ports.host, self.ports.health.get(server.name, 0)
            )
            stack.push_async_callback(port.release)
            self._health[server.name] = port
            self._thawed[server.name] = asyncio.Event()
            self._locks[server.name] = asyncio.Lock()
            self._follow(server)
        stack.push_async_callback(self._stop_following)
        self.plant.servers.on_change = self._follow
        await self.settled()

    async def _open_nodes(self, stack: contextlib.AsyncExitStack) -> None:
        for n in range(self.plant.settings.gms_nodes):
            number = self.ports.gms[n] if n < len(self.ports.gms) else 0
            node = GmsNode(self.plant, n + 1, self._until_thawed, self.ports.host, number)
            stack.push_async_callback(node.release)
            await node.start()
            self.nodes.append(node)

    async def _open_control(self, stack: contextlib.AsyncExitStack) -> None:
        if not is_loopback(self.ports.host):
            raise SettingError(self.ports.host, "expected a loopback address")
        runner = web.AppRunner(control_app(self), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, self.ports.host, self.ports.control).start()
        host = f"[{self.ports.host}]" if ":" in self.ports.host else self.ports.host
        self.control_url = f"http://{host}:{runner.addresses[0][1]}"

    async def _start_tasks(self, stack: contextlib.AsyncExitStack) -> None:
        settings = self.plant.settings
        out = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=settings.push_connections),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        )
        self._tasks = [asyncio.create_task(self._advance(), name="standin-clock")]
        self._tasks += [
            asyncio.create_task(self._send_pushes(out), name=f"standin-push-{n}")
            for n in range(settings.push_connections)
        ]
        stack.push_async_callback(_cancelled, self._tasks)

    # --- Chat Servers -----------------------------------------------------------------------

    def _follow(self, server: PlantServer) -> None:
        """A Chat Server changed: its port follows, and whoever waited for its thaw looks again."""
        thawed = self._thawed[server.name]
        if server.phase is Phase.HUNG:
            thawed.clear()
        else:
            thawed.set()
        task = asyncio.get_running_loop().create_task(self._match_port(server))
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _match_port(self, server: PlantServer) -> None:
        async with self._locks[server.name]:
            port = self._health[server.name]
            if server.phase is Phase.DOWN or self._opened_for.get(server.name) is not server.process:
                await port.close()
            if server.phase is not Phase.DOWN:
                self._opened_for[server.name] = server.process
                await port.open()

    async def _stop_following(self) -> None:
        self.plant.servers.on_change = lambda server: None
        await self.settled()

    async def _until_thawed(self, name: str) -> None:
        await self._thawed[name].wait()

    async def _health_page(self, server: PlantServer, request: web.BaseRequest) -> web.StreamResponse:
        # Looked up anew after each wait: a hung server may have died, and come back as another process.
        await self._until_thawed(server.name)
        if server.slow > 0:
            await asyncio.sleep(server.slow)
        process = server.seen()
        match server.health:
            case SickPage.HTTP_500:
                return web.Response(status=500, text="Internal Server Error")
            case SickPage.HTML:
                return web.Response(text="<html><body>Welcome</body></html>", content_type="text/html")
        started = process.started_at / 1000
        told = self.plant.settings.health_tells_start
        page = write_health(
            server.health,
            server.app_dbid,
            process.pid,
            uptime=round(time.time() - started, 3) if told else None,
            started=started if told else None,
            counters={"sessions_opened_total": process.opened} if told else None,
        )
        return web.Response(body=page, content_type=_CONTENT_TYPES.get(server.health, "text/plain"))

    # --- what goes on by itself -------------------------------------------------------------

    async def _advance(self) -> None:
        woke = self.plant.now()
        while True:
            await asyncio.sleep(TICK)
            due, woke = woke + TICK, self.plant.now()
            self.plant.stood_still(woke - due)
            self.plant.advance()

    async def _send_pushes(self, out: aiohttp.ClientSession) -> None:
        """One of GMS' connections to the push URL. GMS does not repeat what failed."""
        headers = {"Content-Type": "application/json"}
        while True:
            push = await self._outbox.get()
            settings = self.plant.settings
            if settings.push_url is None:
                continue
            try:
                async with out.post(
                    settings.push_url,
                    data=push.body,
                    headers=headers,
                    timeout=aiohttp.ClientTimeout(total=settings.push_timeout),
                    allow_redirects=False,
                    ssl=False,
                ) as response:
                    self.plant.push_done(delivered=response.status == 200, push=push)
            except (aiohttp.ClientError, TimeoutError, OSError):
                self.plant.push_done(delivered=False, push=push)


async def serve(
    settings: PlantSettings | None = None,
    ports: Ports | None = None,
    *,
    ready: Callable[[StandIn], None] = lambda standin: None,
) -> None:
    """Runs a plant until cancelled. `ready` is called once when everything listens."""
    async with StandIn(settings, ports) as standin:
        ready(standin)
        await standin.broken()


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


_CONTENT_TYPES = {
    HealthFormat.JSON: "application/json",
    HealthFormat.NESTED_JSON: "application/json",
    HealthFormat.XML_ATTRIBUTES: "application/xml",
    HealthFormat.XML_ELEMENTS: "application/xml",
}
