"""A GMS node of the plant: reads Chat API requests, asks the plant, answers; or is broken on command."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from aiohttp import web

from asyncchatd.standin.parts import Answer, Ticket
from asyncchatd.standin.plant import Plant
from asyncchatd.standin.port import LoopbackPort
from asyncchatd.wire.chat_api import FORM, ChatApiError, read_call

BASE = "/genesys"
CHAT_API = f"{BASE}/2/chat/"

GARBAGE = (
    (b"", "application/json"),
    (b"<html><body><h1>It works!</h1></body></html>", "text/html"),
    (b'{"statusCode":0,"alias":"117","secureKey":"4ee15d7', "application/json"),
    (b"Forbidden", "text/plain"),
    (b"[]", "application/json"),
    (b"null", "text/html"),
    (b"\xff\xfe\x00\x01", "application/octet-stream"),
    (b'{"statusCode":"zero"}', "application/json"),
    (b'{"statusCode":1e400,"chatEnded":true}', "application/json"),
    (b'{"statusCode":99999999999999999999,"chatEnded":true}', "application/json"),
    (
        b'{"statusCode":0,"chatId":"another-chat","userId":"0","secureKey":"another-key","alias":"0"}',
        "application/json",
    ),
    (b"[" * 5000, "application/json"),
)
"""Answers nobody can use, one of another chat among them. A client that takes tokens from any of
them, or ends a chat for it, is caught."""


class NodePhase(StrEnum):
    """What a GMS node does."""

    UP = "up"
    HUNG = "hung"
    """Accepts and never answers."""
    DOWN = "down"


@dataclass(slots=True)
class Failing:
    """Requests that are answered with an HTTP error."""

    status: int = 503
    rate: float = 1.0
    """Share of the requests, 0 to 1."""
    retry_after: int | None = None


class GmsNode:
    """One node. Faults strike before a Chat Server sees the request: what is spoilt was never
    carried out, so no new key is lost with it."""

    def __init__(
        self, plant: Plant, thawed: Callable[[str], Awaitable[object]], host: str, port: int
    ) -> None:
        self._plant = plant
        self._thawed = thawed
        self._going = asyncio.Event()
        self._going.set()
        self._garbage = itertools.cycle(GARBAGE)
        self._port = LoopbackPort(self._answer, host, port)
        self.slow = 0.0
        self.failing: Failing | None = None
        self.garbage_rate = 0.0
        self.requests = 0

    @property
    def url(self) -> str:
        """Its base URL, as `gms.nodes` of the daemon's configuration takes it."""
        return self._port.url + BASE

    @property
    def phase(self) -> NodePhase:
        """What it does now."""
        if not self._port.is_open:
            return NodePhase.DOWN
        return NodePhase.UP if self._going.is_set() else NodePhase.HUNG

    async def start(self) -> None:
        """Heals: port open, no fault left."""
        self.slow = 0.0
        self.failing = None
        self.garbage_rate = 0.0
        self._going.set()
        await self._port.open()

    async def kill(self) -> None:
        """Port closed, connections dropped; requests waiting in it are gone."""
        await self._port.close()
        self._going.set()

    def hang(self) -> None:
        """Accepts connections and answers nothing until `start`."""
        self._going.clear()

    async def release(self) -> None:
        """Gives its port back."""
        await self._port.release()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        plant = self._plant
        self.requests += 1
        plant.hit()
        body = await request.read()
        if (spoilt := self._fault()) is not None:
            plant.suffering.faulted += 1
            return spoilt
        path = request.raw_path
        if not path.startswith(CHAT_API):
            if request.method != "GET" or path.rstrip("/") != BASE:  # `asyncchatd check` looks there
                plant.suffering.unreadable += 1
            return web.Response(status=404, text="Not Found")
        if request.method != "POST":
            plant.suffering.unreadable += 1
            return web.Response(status=405, text="Method Not Allowed", headers={"Allow": "POST"})
        for name, value in plant.settings.required_headers.items():
            if request.headers.get(name) != value:
                plant.suffering.unauthorised += 1
                return web.Response(status=401, text="Unauthorized")
        try:
            received = read_call(path[len(CHAT_API) :], body, request.headers.get("Content-Type", FORM))
        except ChatApiError as error:
            plant.suffering.unreadable += 1
            return web.Response(status=404 if error.code == "unknown_operation" else 400, text=str(error))
        ticket = plant.arrive(received, lambda: _connected(request))
        try:
            answer = await self._work(ticket)
        finally:
            plant.leave(ticket)
        return web.Response(status=answer.status, body=answer.body, content_type=answer.content_type)

    async def _work(self, ticket: Ticket) -> Answer:
        plant = self._plant
        if not self._going.is_set():
            await self._going.wait()
            if not ticket.wanted():
                plant.suffering.faulted += 1
                return GONE
        plant.queue(ticket)
        if ticket.refused is not None:
            return ticket.refused
        if (delay := ticket.delay + self.slow) > 0:
            await asyncio.sleep(delay)
        return plant.serve(ticket) or await self._wait_for_chat_server(ticket)

    async def _wait_for_chat_server(self, ticket: Ticket) -> Answer:
        """The session's Chat Server hangs: until it goes on or dies, or GMS has waited long enough."""
        plant = self._plant
        try:
            async with asyncio.timeout(plant.settings.gms_hang_timeout):
                while True:
                    assert ticket.session is not None
                    await self._thawed(ticket.session.process.server.name)
                    if not ticket.wanted():
                        return GONE
                    if (answer := plant.serve(ticket)) is not None:
                        return answer
        except TimeoutError:
            return plant.give_up(ticket)

    def _fault(self) -> web.Response | None:
        # Chance, not cryptography: which requests fail does not matter.
        if self.failing is not None and random.random() < self.failing.rate:
            retry_after = self.failing.retry_after
            headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
            return web.Response(status=self.failing.status, text="out of order", headers=headers)
        if self.garbage_rate and random.random() < self.garbage_rate:
            body, content_type = next(self._garbage)
            return web.Response(body=body, content_type=content_type)
        return None


GONE = Answer(b"", 499, "text/plain")
"""For a client that is no longer there; nobody reads it."""


def _connected(request: web.BaseRequest) -> bool:
    transport = request.transport
    return transport is not None and not transport.is_closing()
