"""What can become of a good answer on its way back: lost, damaged, or followed by one that nobody asked for.

By then the work is done: the session is restored, its keys are changed, and whoever takes the missing answer
for a missing request sends it a second time. The bytes go to the socket as they are, because no HTTP library
writes what is wrong on purpose.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import orjson
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from asyncchatd.standin.messages import write_reply
from asyncchatd.standin.plant.parts import NodeAnswer


class AfterWork(StrEnum):
    """The mishaps of an answer after the work was done."""

    HANG_UP = "hang_up"
    """The connection is closed without a byte."""
    RESET = "reset"
    """The same by RST, as when the node's process is killed."""
    EMPTY = "empty"
    """200 without a body."""
    HALF_BODY = "half_body"
    """Closed in the middle of the body."""
    DAMAGED_GZIP = "damaged_gzip"
    HTTP_500 = "http_500"
    HTTP_502 = "http_502"
    HTTP_503 = "http_503"
    """A proxy's page in its place."""
    UNDER_500 = "under_500"
    """The answer itself, under a status that says it failed."""
    TWICE = "twice"
    """It comes again a little later."""
    TWICE_NAMELESS = "twice_nameless"
    """It comes again without its `chatId`."""
    END_OF_ANOTHER = "end_of_another"
    """Behind it comes, late, the end of a chat that is not named."""
    FAREWELL = "farewell"
    """Behind it comes a 408, and the connection is closed: the node has waited long enough for more."""
    GLUED = "glued"
    """It comes twice in one piece."""

    @property
    def loses_the_answer(self) -> bool:
        """Whether the client cannot know what was answered."""
        return self not in _FOLLOWED


_FOLLOWED = frozenset(
    (
        AfterWork.TWICE,
        AfterWork.TWICE_NAMELESS,
        AfterWork.END_OF_ANOTHER,
        AfterWork.FAREWELL,
        AfterWork.GLUED,
    )
)

HANGING_UP = frozenset((AfterWork.HANG_UP, AfterWork.RESET, AfterWork.HALF_BODY))


LATE_SECONDS = 0.02


class Over(StrEnum):
    """The connections whose answers are spoilt."""

    ANY = "any"
    FRESH = "fresh"
    """The first answer on a connection."""
    KEPT = "kept"
    """Every later one."""


@dataclass(frozen=True, slots=True)
class Spoiling:
    """Answers that go wrong after the work."""

    what: AfterWork
    rate: float = 1.0
    """Share of the answers, 0 to 1."""
    over: Over = Over.ANY
    seconds: float = LATE_SECONDS
    """How much later that comes which nobody asked for."""


class Spoilt(web.StreamResponse):
    """An answer that goes to the socket as bytes, and what follows it."""

    def __init__(
        self, answer: NodeAnswer, spoiling: Spoiling, *, busy: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__()
        self._busy = busy
        self._answer = answer
        self._spoiling = spoiling

    @property
    def keep_alive(self) -> bool | None:
        """As long as there was no error."""
        return True

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Says all of it. Raises `ConnectionResetError`, which ends the connection, where that is the fault."""
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        what = self._spoiling.what
        transport.write(spoilt_bytes(self._answer, what))
        if what is AfterWork.RESET:
            linger_for_no_time(transport)
        if what in HANGING_UP:
            raise ConnectionResetError("hung up")
        if (late := late_bytes(self._answer, what)) is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(self._spoiling.seconds, self._say_unasked, transport, late)
        return None

    def _say_unasked(self, transport: asyncio.Transport, late: bytes) -> None:
        leaves = self._spoiling.what is AfterWork.FAREWELL
        if transport.is_closing() or (leaves and self._busy()):
            return  # no node takes its leave while it works
        transport.write(late)
        if leaves:
            transport.close()

    async def write_eof(self, data: bytes = b"") -> None:
        """All is said."""


def spoilt_bytes(answer: NodeAnswer, what: AfterWork) -> bytes:
    """What is said in place of this answer."""
    whole = _http(answer.status, answer.body, answer.content_type)
    match what:
        case AfterWork.HANG_UP | AfterWork.RESET:
            return b""
        case AfterWork.EMPTY:
            return _http(200, b"", answer.content_type)
        case AfterWork.HALF_BODY:
            return whole[: len(whole) - len(answer.body) // 2 - 1]
        case AfterWork.DAMAGED_GZIP:
            packed = gzip.compress(answer.body)
            damaged = packed[:12] + bytes(byte ^ 0xFF for byte in packed[12:])
            return _http(200, damaged, answer.content_type, "Content-Encoding: gzip\r\n")
        case AfterWork.HTTP_500 | AfterWork.HTTP_502 | AfterWork.HTTP_503:
            return _http(int(what.value[-3:]), PROXY_PAGE, "text/html")
        case AfterWork.UNDER_500:
            return _http(500, answer.body, answer.content_type)
        case AfterWork.GLUED:
            return whole + whole
        case _:
            return whole


def late_bytes(answer: NodeAnswer, what: AfterWork) -> bytes | None:
    """What comes behind it that nobody asked for."""
    match what:
        case AfterWork.TWICE:
            return _http(answer.status, answer.body, answer.content_type)
        case AfterWork.TWICE_NAMELESS:
            return _http(answer.status, _nameless(answer.body), answer.content_type)
        case AfterWork.END_OF_ANOTHER:
            return _http(200, write_reply(2, chat_ended=True), answer.content_type)
        case AfterWork.FAREWELL:
            return _http(408, b"", "text/plain", "Connection: close\r\n")
        case _:
            return None


PROXY_PAGE = b"<html><body><h1>Bad Gateway</h1></body></html>"


def linger_for_no_time(transport: asyncio.BaseTransport) -> None:
    """The kernel sends an RST when it is closed."""
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _nameless(body: bytes) -> bytes:
    try:
        reply = orjson.loads(body)
    except ValueError:
        return body
    if isinstance(reply, dict):
        reply.pop("chatId", None)
    return orjson.dumps(reply)


def _http(status: int, body: bytes, content_type: str, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status} Stand-in\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body
