"""One kept connection to a GMS node, as the event loop drives it: one request at a time.

HTTP/1.1 has no number that ties an answer to its request. So a connection that holds unread bytes, or over which
anything came that nobody asked for, is not used.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import struct
import time
from enum import Enum, auto
from typing import Protocol, cast

from asyncchatd.gms.http_reply import HttpReply, HttpReplyError, HttpReplyReader
from asyncchatd.gms.trouble import Trouble, cause_of, in_tls, is_refusal

MOST_SERVED = 500
"""Requests over one connection, each for another path: as many paths it has to remember."""

_AT_ONCE = struct.pack("ii", 1, 0)
_RTT_AT = 68
"""Where the kernel's `struct tcp_info` has the smoothed round trip, in microseconds."""


class State(Enum):
    """What a connection is good for."""

    NEW = auto()
    """It is made, and nothing was sent yet."""
    ACTIVE = auto()
    """A request is on its way, or answered and not yet done with."""
    IDLE = auto()
    """It waits for another request."""
    CLOSED = auto()
    """It serves no request any more, and is closed or about to be."""


# Looked up in its class a member costs five times as much, and that several times a ping.
NEW, ACTIVE, IDLE, CLOSED = State


class Asking(Protocol):
    """The request that a connection is busy with, as the connection knows it."""

    sent_at: float
    """When it was sent, by the monotonic clock."""
    kept: bool
    """Whether the connection had served another request before."""
    begun: bool
    """Whether a byte of an answer has come; the connection sets it."""

    def take(self, reply: HttpReply) -> None:
        """Bytes came over the connection."""

    def fail(self, cause: Trouble, detail: str, *, stale: bool = False, refused: bool = False) -> None:
        """The connection brings nothing more. `refused`: nor was the request read."""


class Keeper(Protocol):
    """The pool of a connection, as the connection knows it: it keeps count of those that are open."""

    def found(self, connection: Connection) -> None:
        """A connection that was given up was made after all."""

    def lost(self, connection: Connection) -> None:
        """A connection is no more."""


class Connection(asyncio.Protocol):
    """A connection to one GMS node."""

    def __init__(
        self, keeper: Keeper, loop: asyncio.AbstractEventLoop, sock: socket.socket, *, has_tls: bool
    ) -> None:
        self.loop = loop
        self.state = NEW
        self.idle_since = 0.0
        self.served: set[str] = set()
        """Paths that were asked for over it."""
        self.keys: set[int] = set()
        """Hashes of the secure keys that went over it, either way."""
        self.exchange: Asking | None = None
        """The one that has it."""
        self._keeper = keeper
        self._socket = sock
        self._has_tls = has_tls
        self._transport: asyncio.Transport | None = None
        self._reader = HttpReplyReader()
        self._round_trip = round_trip(sock)
        unread = select.poll()
        unread.register(sock, select.POLLIN | select.POLLRDHUP)
        self._unread = unread.poll

    # -- what the pool asks of it ------------------------------------------------------------------------

    def send(self, exchange: Asking, request: bytes) -> None:
        """Send a request; the exchange is told what comes for it."""
        self.exchange = exchange
        self.state = ACTIVE
        self._write(request)

    def is_fit(self) -> bool:
        """Whether a request may be sent: the node has said nothing that nobody asked for, not even that it hangs up.
        Nor is there anything that the event loop has not read yet, which would be taken for the answer."""
        # A system call, half a microsecond. TLS holds nothing back: whatever it has read it has handed over. But
        # behind its handshake the node sends tickets.
        return self.state is not CLOSED and ((self.state is NEW and self._has_tls) or not self._unread(0))

    def rest(self) -> bool:
        """Have the connection wait for another request, if the node left it fit for that as far as it has said."""
        if self.state is not ACTIVE or not self._reader.keeps_alive or len(self.served) >= MOST_SERVED:
            return False
        self.state = IDLE
        return True

    def abort(self) -> None:
        """Close the connection at once."""
        self.state = CLOSED
        if self._transport is not None:
            self._transport.abort()

    def leave_no_trace(self) -> None:
        """Close the connection with a reset: one that serves a single request would else hold its port for a minute,
        and thousands a second all that there are."""
        if self.state is not CLOSED:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)

    def give_up(self) -> None:
        """Give the connection up, which was not made in time. The event loop may have got further than it had time to
        say, or not have taken the socket over at all; and uvloop, where it closes what it has just made, tells
        nobody."""
        self.abort()
        if self._transport is None or self._socket.fileno() == -1:
            self._socket.close()
            self._keeper.lost(self)

    # -- what the event loop tells -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._write = self._transport.write
        if self.state is CLOSED:  # it was given up meanwhile
            self._keeper.found(self)
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        exchange, reader = self.exchange, self._reader
        if exchange is None or self.state is not ACTIVE:
            self.abort()  # nobody asked: a proxy that says farewell to an idle connection, for instance
            return
        if not exchange.begun:
            exchange.begun = True
            if (took := time.monotonic() - exchange.sent_at) < self._round_trip:
                self._round_trip = took
        try:
            reply = reader.feed(data)
        except HttpReplyError as error:
            self._give_up_reading(exchange, error)
            return
        if reply is not None:
            exchange.take(reply)
            if not reader.keeps_alive:
                self._take_further(exchange)

    def eof_received(self) -> None:
        if self.state is not ACTIVE:
            self.state = CLOSED

    def connection_lost(self, error: Exception | None) -> None:
        by_us = self.state is CLOSED
        self.state, self._transport = CLOSED, None
        self._keeper.lost(self)
        if self.exchange is not None:
            self._tell_end(self.exchange, error, by_us)
        self._reader.close()

    def _take_further(self, exchange: Asking) -> None:
        for reply in self._reader.further:
            exchange.take(reply)
        self._reader.further.clear()
        if self._reader.failure is not None:
            self._give_up_reading(exchange, self._reader.failure)

    def _give_up_reading(self, exchange: Asking, error: HttpReplyError) -> None:
        exchange.fail(cause_of(error), str(error))
        self.abort()

    def _tell_end(self, exchange: Asking, error: Exception | None, by_us: bool) -> None:
        if error is None and not by_us:
            try:
                reply = self._reader.end()
            except HttpReplyError as unreadable:
                self._give_up_reading(exchange, unreadable)
                return
            if reply is not None:
                exchange.take(reply)
        why = "hung up" if error is None else type(error).__name__
        if isinstance(error, ssl.SSLError):
            why = in_tls(error)
        if exchange.begun:
            exchange.fail(Trouble.CUT_SHORT, why)
        elif isinstance(error, ssl.SSLError):
            exchange.fail(Trouble.TLS, why, refused=not exchange.kept and is_refusal(error))
        else:
            # Before the end of the round trip the request cannot have reached it and the end have come back.
            in_time = time.monotonic() - exchange.sent_at <= self._round_trip
            exchange.fail(Trouble.DISCONNECTED, why, stale=exchange.kept and in_time and not by_us)


def round_trip(sock: socket.socket) -> float:
    """How many seconds the way to the other end and back took when the connection was made, as the kernel measured
    it. 0 where it did not."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_AT + 4)
    except OSError:
        return 0.0
    microseconds: int = struct.unpack_from("I", info, _RTT_AT)[0]
    return microseconds / 1e6
