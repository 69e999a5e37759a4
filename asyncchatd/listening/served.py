"""A connection that is served: aiohttp's protocol, with a bound for readers and half a farewell."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

WRITE_SECONDS = 60.0
"""How long a client may take to read what waits for him, beyond what the kernel holds."""


INSTANCE = "Asyncchatd-Instance"
"""The header that tells which daemon of a host answers a probe: `Settings.instance`."""


def alive(instance: str) -> web.Response:
    """The answer to a probe that knows nothing more than the port: it is served, and by which daemon."""
    response = web.json_response({"alive": True}, headers={INSTANCE: instance} if instance else None)
    response.force_close()
    return response


def asks_no_more(connection: RequestHandler) -> bool:
    """Whether the answer that begins now is the last one of a connection."""
    return isinstance(connection, Served) and connection.ends


def is_idle(connection: RequestHandler) -> bool:
    """Whether no request is being answered or waits. aiohttp tells it nowhere else."""
    return not (connection._request_in_progress or connection._messages or connection.transport is None)


def idle_until(connection: RequestHandler) -> float:
    """When an idle connection is closed, by the clock of the event loop in seconds."""
    return connection._next_keepalive_close_time


@contextmanager
def heard_leaving(request: web.Request, event: asyncio.Event) -> Iterator[None]:
    """The event is set when the client has left: aiohttp tells no handler, so a client whose answer is held would keep
    its place and its task until there is something to say."""
    connection = request.protocol
    if not isinstance(connection, Served):
        yield
        return
    connection.leaving = event
    if has_left(request):
        event.set()
    try:
        yield
    finally:
        connection.leaving = None


def has_left(request: web.Request) -> bool:
    """Whether the client has gone, or says that it asks no more. Over TCP the two look the same until something is
    sent, so whoever holds an answer gives it now."""
    connection = request.protocol
    return connection.transport is None or (isinstance(connection, Served) and connection.asked_all)


class Served(RequestHandler):
    """A connection that is served: aiohttp's protocol, but for three things.

    It would keep an answer that nobody reads, and its connection, for ever: closing it waits for the reader, too.
    And it would hang up on a client that says that it has asked all it wants to (`shutdown(SHUT_WR)`, as `nc -N`
    does) before it was answered. And it tells nobody that a client has left.
    """

    __slots__ = ("_patience", "asked_all", "leaving")

    asked_all: bool
    """Whether the client says that it has asked all it wants to."""
    leaving: asyncio.Event | None
    """Set when the client leaves; see `heard_leaving`."""
    _patience: asyncio.TimerHandle | None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.asked_all = False
        self.leaving = None
        self._patience = None
        super().connection_made(transport)

    def eof_received(self) -> Any:  # aiohttp's own answers nothing
        """Whether the connection stays, to be closed after the answer. TLS has no half of a connection."""
        transport, idle = self.transport, self._waiter is not None and not self._waiter.done()
        if idle or transport is None or transport.get_extra_info("sslcontext") is not None:
            return False
        try:
            if self._parser is not None:
                self._parser.feed_eof()
        except HttpProcessingError:
            return False  # in the middle of a body
        self.asked_all = True
        self._tell_leaving()
        if not self._messages:
            self.close()
        return True

    @property
    def ends(self) -> bool:
        """Whether the answer that begins now is the last one."""
        return self.asked_all and not self._messages

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def force_close(self) -> None:
        self._wait_for_reader()
        super().force_close()

    def _wait_for_reader(self) -> None:
        transport = self.transport
        if self._patience is None and transport is not None and transport.get_write_buffer_size():
            self._patience = asyncio.get_running_loop().call_later(WRITE_SECONDS, transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._wait_no_more()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._wait_no_more()
        self._tell_leaving()

    def _tell_leaving(self) -> None:
        if self.leaving is not None:
            self.leaving.set()

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
