"""A GMS node of the plant: reads Chat API requests, asks the plant, answers; or is broken on command."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from aiohttp import web

from asyncchatd.standin.browsers import cross_origin, send_file
from asyncchatd.standin.plant import Plant
from asyncchatd.standin.plant.parts import NodeAnswer, Ticket
from asyncchatd.standin.port import LoopbackPort
from asyncchatd.standin.requests import MultipartCall, is_multipart, read_call
from asyncchatd.standin.spoiling import AfterWork, Over, Spoiling, Spoilt
from asyncchatd.wire import FORM, NODE_STATUS, ChatApiError, NodeStatus

BASE = "/genesys"
CHAT_API = f"{BASE}/2/chat/"

_DOUBLED = re.compile("//+")

UNREAD_SECONDS = 0.5
"""An answer so young may be lost with its node: a reset throws away what the client has not read yet."""

MOST_UNREAD = 4096

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
    """The phases of a GMS node."""

    UP = "up"
    HUNG = "hung"
    """Accepts and never answers."""
    DOWN = "down"


class ErrorPage(StrEnum):
    """What an HTTP error shows: nothing of the Chat API."""

    TEXT = "text"
    HTML = "html"
    """A servlet container that has not loaded the application yet."""
    SERVLET = "servlet"
    """The application itself, while it starts: `{"exception", "message"}`."""


ERROR_PAGES = {
    ErrorPage.TEXT: ("out of order", "text/plain"),
    ErrorPage.HTML: ("<html><body><h1>HTTP Status</h1><hr></body></html>", "text/html"),
    ErrorPage.SERVLET: (
        '{"exception":"com.example.gms.ServiceNotFoundException","message":"no such service"}',
        "application/json",
    ),
}  # fmt: skip


@dataclass(slots=True)
class Failing:
    """Requests that are answered with an HTTP error."""

    status: int = 503
    rate: float = 1.0
    """Share of the requests, 0 to 1."""
    retry_after: int | None = None
    page: ErrorPage = ErrorPage.TEXT


class GmsNode:
    """One GMS node. `failing`, `garbage_rate` and a hang strike before a Chat Server sees the request: what is
    spoilt was never carried out, so no new key is lost with it. `spoiling` and `patience` strike after
    it: a new key may be lost, and the plant forgives that to who could not know it."""

    def __init__(
        self, plant: Plant, number: int, thawed: Callable[[str], Awaitable[object]], host: str, port: int
    ) -> None:
        self._plant = plant
        self._number = number
        self._thawed = thawed
        self._going = asyncio.Event()
        self._going.set()
        self._garbage = itertools.cycle(GARBAGE)
        self._port = LoopbackPort(self._answer, host, port)
        self.slow = 0.0
        self.failing: Failing | None = None
        self.garbage_rate = 0.0
        self.spoiling: Spoiling | None = None
        self.patience: float | None = None
        """Seconds after which a proxy in front of it hangs up, whatever is still worked on."""
        self.requests = 0
        self._busy: set[object] = set()
        """Those of clients whose request is being worked on."""
        self._given: deque[tuple[float, Ticket]] = deque(maxlen=MOST_UNREAD)
        """The answers it gave last, and when."""
        self._answered: set[object] = set()
        """Ports of clients that had an answer over their connection. Those of closed ones stay: the system
        gives a port to nobody else for a long time, and there are few."""
        self._behind: set[asyncio.Task[NodeAnswer]] = set()

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
        self.spoiling = None
        self.patience = None
        self._going.set()
        await self._port.open()
        self._plant.node_gone(self._number, gone=False)

    async def kill(self) -> None:
        """Port closed, connections dropped; requests waiting in it are gone, and so may be what it answered last."""
        self._plant.node_gone(self._number)
        self._doubt_the_last()  # at once: another node may be asked with the keys before
        behind = list(self._behind)
        for work in behind:
            work.cancel()
        await asyncio.gather(*behind, return_exceptions=True)
        await self._port.close()
        self._doubt_the_last()  # it went on answering until then
        self._going.set()

    def _doubt_the_last(self) -> None:
        lately = self._plant.now() - UNREAD_SECONDS
        for given_at, ticket in self._given:
            if given_at >= lately:
                self._plant.answer_perhaps_lost(ticket)
        self._given.clear()

    def fail(self, failing: Failing | None, seconds: float | None = None) -> None:
        """HTTP errors from now on, or for so many seconds."""
        self.failing = failing
        self._pushes_again()

        def over() -> None:
            if self.failing is failing:
                self.failing = None
                self._pushes_again()

        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, over)

    def redeploy(self, seconds: float) -> None:
        """Its servlet container is there for so long without the application, which does not push either: 404, as
        after every update."""
        self.fail(Failing(404, page=ErrorPage.HTML), seconds)
        self._plant.node_gone(self._number)

    def _pushes_again(self) -> None:
        if self.phase is NodePhase.UP:
            self._plant.node_gone(self._number, gone=False)

    def hang(self) -> None:
        """Accepts connections and answers nothing until `start`."""
        self._going.clear()
        self._plant.node_gone(self._number)

    async def release(self) -> None:
        """Gives its port back."""
        await self.kill()
        await self._port.release()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests += 1
        self._plant.hit()
        allowed = cross_origin(request, self._plant.settings.origins)
        if request.method == "OPTIONS" and allowed:
            return web.Response(headers=allowed)
        answer = await self._respond(request, allowed)
        if allowed and not answer.prepared:
            answer.headers.update(allowed)
        return answer

    async def _respond(self, request: web.BaseRequest, allowed: Mapping[str, str]) -> web.StreamResponse:
        plant = self._plant
        path = _DOUBLED.sub("/", request.raw_path)
        if (spoilt := self._fault()) is not None:
            plant.suffering.faulted += 1
            return await _behind_the_body(request, spoilt)
        if (refusal := self._refusal(request, path)) is not None:
            return await _behind_the_body(request, refusal)
        try:
            ticket = await self._arrived(request, path[len(CHAT_API) :])
        except ChatApiError as error:
            plant.suffering.unreadable += 1
            status = 404 if error.code == "unknown_operation" else 400
            return await _behind_the_body(request, web.Response(status=status, text=str(error)))
        return await self._answer_call(request, ticket, allowed)

    async def _arrived(self, request: web.BaseRequest, path: str) -> Ticket:
        """The call of which all has come. Raises `ChatApiError` for what is none."""
        plant = self._plant
        content_type = request.headers.get("Content-Type", FORM)
        if not is_multipart(content_type):
            received = read_call(path, await request.read(), content_type)
            return plant.arrive(received, lambda: _connected(request), node=self._number)
        call = MultipartCall(path, content_type, plant.settings.upload_max_file_size)
        # On its way from its first byte on: while a file comes, nothing else of its session may.
        ticket = plant.arrive(call.begun, lambda: _connected(request), node=self._number)
        try:
            async for piece in request.content.iter_any():
                call.feed(piece)
            ticket.received = call.received()
        except BaseException:
            plant.leave(ticket)
            raise
        return ticket

    def _refusal(self, request: web.BaseRequest, path: str) -> web.Response | None:
        """The answer to what is no call of the Chat API, or may not be one."""
        plant = self._plant
        asked_how_it_is = request.method == "GET" and path == BASE + NODE_STATUS
        if not (path.startswith(CHAT_API) or asked_how_it_is):
            # As `asyncchatd check` does, at a wrong address too.
            looks = path.rstrip("/") == BASE or path.endswith(NODE_STATUS)
            if request.method != "GET" or not looks:
                plant.suffering.unreadable += 1
            return web.Response(status=404, text="Not Found")
        if request.method == "OPTIONS":
            return web.Response(headers={"Allow": "POST, OPTIONS"})
        if request.method != "POST" and not asked_how_it_is:
            plant.suffering.unreadable += 1
            return web.Response(status=405, text="Method Not Allowed", headers={"Allow": "POST"})
        for name, value in plant.settings.required_headers.items():
            if request.headers.get(name) != value:
                plant.suffering.unauthorised += 1
                asks = {"WWW-Authenticate": 'Basic realm="GMS"'} if value.startswith("Basic ") else {}
                return web.Response(status=401, text="Unauthorized", headers=asks)
        return web.Response(text=NodeStatus.ONLINE, charset="iso-8859-1") if asked_how_it_is else None

    async def _answer_call(
        self, request: web.BaseRequest, ticket: Ticket, allowed: Mapping[str, str]
    ) -> web.StreamResponse:
        client = _client(request)
        self._busy.add(client)
        try:
            if self.patience is None:
                answer = await self._carry_out(ticket)
            elif (seen := await self._within(self.patience, ticket)) is not None:
                answer = seen
            else:
                return Spoilt(GONE, HANG_UP)
            if answer.file is None:
                return self._handed_over(client, ticket, answer)
            cut_off = self._is_struck(client, answer)
            return await send_file(request, answer.file, answer.content_type, allowed, cut_off=cut_off)
        finally:
            self._busy.discard(client)

    async def _carry_out(self, ticket: Ticket) -> NodeAnswer:
        try:
            answer = await self._work(ticket)
        finally:
            self._plant.leave(ticket)
        self._given.append((self._plant.now(), ticket))  # whether or not it still gets out
        return answer

    async def _within(self, seconds: float, ticket: Ticket) -> NodeAnswer | None:
        """The answer, or `None` when a proxy hung up before: then the work goes on behind it."""
        work = asyncio.ensure_future(self._carry_out(ticket))
        self._behind.add(work)
        work.add_done_callback(self._behind.discard)
        await asyncio.wait({work}, timeout=seconds)
        if work.done():
            return work.result()
        self._plant.cut_off(ticket)
        work.add_done_callback(lambda _: self._plant.answer_lost(ticket))
        return None

    def _is_struck(self, client: object, answer: NodeAnswer) -> bool:
        """Whether this answer is spoilt."""
        kept = client in self._answered
        self._answered.add(client)
        spoiling = self.spoiling
        return (
            spoiling is not None
            and spoiling.over in (Over.ANY, Over.KEPT if kept else Over.FRESH)
            and answer is not GONE
            and random.random() < spoiling.rate
        )

    def _handed_over(self, client: object, ticket: Ticket, answer: NodeAnswer) -> web.StreamResponse:
        spoiling = self.spoiling
        if not self._is_struck(client, answer) or spoiling is None:
            return web.Response(status=answer.status, body=answer.body, content_type=answer.content_type)
        if spoiling.what.loses_the_answer:
            self._plant.answer_lost(ticket)
        else:
            self._plant.suffering.extra_answers += 1
        return Spoilt(answer, spoiling, busy=lambda: client in self._busy)

    async def _work(self, ticket: Ticket) -> NodeAnswer:
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

    async def _wait_for_chat_server(self, ticket: Ticket) -> NodeAnswer:
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
            text, content_type = ERROR_PAGES[self.failing.page]
            return web.Response(
                status=self.failing.status, text=text, content_type=content_type, headers=headers
            )
        if self.garbage_rate and random.random() < self.garbage_rate:
            body, content_type = next(self._garbage)
            return web.Response(body=body, content_type=content_type)
        return None


GONE = NodeAnswer(b"", 499, "text/plain")
"""For a client that is no longer there; nobody reads it."""

HANG_UP = Spoiling(AfterWork.HANG_UP)


async def _behind_the_body(request: web.BaseRequest, answer: web.Response) -> web.Response:
    """The answer, when all of the body was taken: who sends a file reads it only then."""
    async for _ in request.content.iter_any():
        pass
    return answer


def _client(request: web.BaseRequest) -> object:
    return None if request.transport is None else request.transport.get_extra_info("peername")


def _connected(request: web.BaseRequest) -> bool:
    transport = request.transport
    return transport is not None and not transport.is_closing()
