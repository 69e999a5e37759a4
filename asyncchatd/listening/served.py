"""A connection that is served: aiohttp's protocol, with a bound for readers and half a farewell."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

WRITE_SECONDS = 60.0
"""How long a client may take to read what waits for him, beyond what the kernel holds."""


def asks_no_more(connection: RequestHandler) -> bool:
    """Whether the answer that begins now is the last one of a connection."""
    return isinstance(connection, Served) and connection.ends


def is_idle(connection: RequestHandler) -> bool:
    """Whether no request is being answered or waits. aiohttp tells it nowhere else."""
    return not (connection._request_in_progress or connection._messages or connection.transport is None)


def idle_until(connection: RequestHandler) -> float:
    """When an idle connection is closed, by the clock of the event loop in seconds."""
    return connection._next_keepalive_close_time


class Served(RequestHandler):
    """A connection that is served: aiohttp's protocol, but for two things.

    It would keep an answer that nobody reads, and its connection, for ever: closing it waits for the reader, too.
    And it would hang up on a client that says that it has asked all it wants to (`shutdown(SHUT_WR)`, as `nc -N`
    does) before it was answered.
    """

    __slots__ = ("_asks_no_more", "_patience")

    _asks_no_more: bool
    _patience: asyncio.TimerHandle | None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._asks_no_more = False
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
        self._asks_no_more = True
        if not self._messages:
            self.close()
        return True

    @property
    def ends(self) -> bool:
        """Whether the answer that begins now is the last one."""
        return self._asks_no_more and not self._messages

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

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
