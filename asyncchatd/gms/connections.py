"""Kept connections to one GMS node: a POST goes out, its answer comes back.

A ping is one small POST, thousands of times a second. aiohttp's client can do far more (redirects,
cookies, proxies, middlewares), and what it takes for that was more than all the rest of a restoration
together (docs/performance.md). So this is a pool and a protocol, and nothing else; what is hard stays with
those who know it: httptools reads HTTP (`wire/http_reply.py`), `ssl` speaks TLS, aiohappyeyeballs connects.

Nothing is sent twice and no redirect is followed here: what a failure means the caller decides. It is told
what decides: whether the request was sent, over which kind of connection, and whether an answer had begun.

HTTP/1.1 has no number that ties an answer to its request. So a connection that holds unread bytes, or over which
anything came that nobody asked for, is not used, nor one that has asked for the same before; and whether an
answer is the one to its request is for the caller to say, who can wait for the next one.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import struct
import time
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from itertools import takewhile
from typing import Self, cast

from aiohappyeyeballs import start_connection
from yarl import URL

from asyncchatd.gms.http_reply import (
    HttpReply,
    HttpReplyError,
    HttpReplyReader,
    HttpReplyTooLarge,
    unpacked,
)
from asyncchatd.lacks import own_lack, resolver_words, system_words
from asyncchatd.names import Names

CONNECT = "connect"
"""No connection: the request was never sent."""
OWN_LACK = "own_lack"
"""The same, because this host had no descriptor, port or memory left for one: the node has no part in it."""
TLS = "tls"
DISCONNECTED = "disconnected"
"""Hung up before an answer: so ends also a kept connection that the node had given up."""
TIMEOUT = "timeout"
"""No answer in time: the request may still be worked on."""
CUT_SHORT = "cut_short"
"""Hung up in the middle of an answer: what it told is lost."""
PROTOCOL = "http_protocol"
"""What came is no HTTP answer."""
REPLY_TOO_LARGE = "reply_too_large"

KEPT_SECONDS = 30.0
"""How long an idle connection is kept."""

EYEBALLS_SECONDS = 0.25
"""A node with several addresses: when the next one is tried beside one that does not answer (RFC 8305)."""

PAUSED_SECONDS = 0.1
"""A time-out that comes so late was held up by a pause of the whole process: SIGSTOP, a VM that slept. The node
had no chance to be heard meanwhile, and gets its time once more."""

SHORTEST_SECONDS = 0.001
"""Event loops count in milliseconds; asked for less they return at once."""

LOOKS = 4
"""Turns of the event loop between a time-out and its effect: what has come by then is read. After a pause both
loops may run their timers before they look at sockets, and each hands over what came one turn later."""

MOST_REPLIES = 64
"""So many answers to one request, none of them the right one, are nonsense."""

MOST_SERVED = 500
"""Requests over one connection, each for another path: as many paths it has to remember."""

_AT_ONCE = struct.pack("ii", 1, 0)
_RTT_AT = 68
"""Where the kernel's `struct tcp_info` has the smoothed round trip, in microseconds."""


class ExchangeError(Exception):
    """There is no answer. `cause` is one of the constants above, `detail` says more, without secrets."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail
        self.sent = False
        """Whether the request may have been taken: it was written, if only in part, to a node that did not refuse
        the TLS handshake."""
        self.kept = False
        """Whether that was over a connection that had served another request before."""
        self.begun = False
        """Whether a byte of an answer had come."""
        self.stale = False
        """Whether the node had closed the connection before the request can have reached it: a kept one, not a
        byte of an answer, and the end came within one round trip of the write."""


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


class Connections:
    """Those to one node. As many are open as there are requests on their way at once."""

    def __init__(
        self,
        base: URL,
        headers: Mapping[str, str],
        tls: ssl.SSLContext,
        *,
        connect_timeout: float,
        timeout: float,
        names: Names | None = None,
    ) -> None:
        """`headers` go with every request. `connect_timeout` and `timeout`, for the answer to a request that
        was sent, are seconds. `names` remember addresses beyond these connections."""
        self._names = names or Names()
        self._name = base.raw_host or ""
        self._host = self._name.rstrip(".")  # no certificate has the dot that ends a full name
        self._port = base.port or 0
        self._tls = tls if base.scheme == "https" else None
        self._connect_timeout = connect_timeout
        self._deadlines = _Deadlines(timeout)
        lines = {"Host": base.host_port_subcomponent, **headers}
        self._start = f"POST {base.raw_path}/"
        self._head = "".join(
            (" HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in lines.items()), "Content-Length: ")
        )
        self._idle: list[_Connection] = []
        """The one used last stands last, and is used first: the others then grow old and are closed."""
        self._open: set[_Connection] = set()
        """Each from the moment it is begun until its transport is gone."""
        self._asking = 0
        self._ended = asyncio.Event()
        """Set when a connection or a request has come to its end."""
        self._sweep: asyncio.TimerHandle | None = None
        self._retired = self._closed = False

    async def post(self, path: str, body: bytes, *, fresh: bool = False) -> Exchange:
        """Send a request to `{base}/{path}`; `path` is percent-encoded. `fresh`: not over a connection that was
        idle. Raises `ExchangeError`. What comes for it is for a `with`, at whose end the connection is kept for
        others if nothing speaks against it."""
        self._asking += 1
        try:
            connection = (None if fresh else self._kept(path)) or await self._connect()
        except BaseException:
            self._asking -= 1
            self._ended.set()
            raise
        request = f"{self._start}{path}{self._head}{len(body)}\r\n\r\n".encode("ascii") + body
        connection.served.add(path)
        return Exchange(self, connection, request, self._deadlines)

    def retire(self) -> None:
        """Others serve the requests that begin from now on. Those that have begun go on, and every connection
        is closed after its own."""
        self._retired = True
        for connection in self._idle:
            connection.abort()
        self._idle.clear()
        if self._sweep is not None:
            self._sweep.cancel()

    async def close(self) -> None:
        """Close all of them, also where an answer is still waited for. Nothing is sent any more."""
        self._closed = True
        self.retire()
        for connection in list(self._open):
            connection.abort()
        while self.in_use:
            self._ended.clear()
            await self._ended.wait()

    @property
    def open(self) -> int:
        """How many there are."""
        return len(self._open)

    @property
    def in_use(self) -> bool:
        """Whether any is open or about to be."""
        return bool(self._open or self._asking)

    def end(self, connection: _Connection, usable: bool) -> None:
        """Its request is done with. `usable`: another one may follow, if the node left it fit for that."""
        self._asking -= 1
        if self._closed:
            self._ended.set()
        if self._retired or not usable or not connection.rest():
            connection.abort()
            return
        connection.idle_since = connection.loop.time()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = connection.loop.call_later(KEPT_SECONDS, self._close_old)

    def found(self, connection: _Connection) -> None:
        """A connection that was given up was made after all."""
        self._open.add(connection)

    def lost(self, connection: _Connection) -> None:
        """A connection is no more."""
        self._open.discard(connection)
        self._ended.set()

    def _kept(self, path: str) -> _Connection | None:
        """One that has not asked for this before: a second answer to that would pass for the one to this."""
        idle = self._idle
        for place in range(len(idle) - 1, -1, -1):
            if path not in idle[place].served:
                connection = idle.pop(place)
                if connection.is_fit():
                    return connection
                connection.abort()
        return None

    def _close_old(self) -> None:
        self._sweep = None
        loop = asyncio.get_running_loop()
        old = loop.time() - KEPT_SECONDS
        for connection in self._idle:
            if connection.idle_since <= old:
                connection.abort()
        self._idle = [connection for connection in self._idle if connection.idle_since > old]
        if self._idle:
            self._sweep = loop.call_at(self._idle[0].idle_since + KEPT_SECONDS, self._close_old)

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(self._connect_timeout):
                connection = await self._reach()
        except ssl.SSLError as error:
            self._names.doubt(self._name)  # perhaps another host has the address now
            raise ExchangeError(TLS, _tls_trouble(error)) from error
        except (OSError, RuntimeError, UnicodeError) as error:  # uvloop's; a name that cannot be one
            if (lack := own_lack(error)) is not None:
                raise ExchangeError(OWN_LACK, lack) from error
            self._names.doubt(self._name)
            expired = isinstance(error, TimeoutError) and error.errno is None
            raise ExchangeError(CONNECT, self._late() if expired else _connect_trouble(error)) from error
        if self._closed:
            connection.abort()
            raise ExchangeError(CONNECT, "closed")
        if not connection.is_fit():
            connection.abort()
            raise ExchangeError(CONNECT, "hung up or spoke before it was asked")
        return connection

    def _late(self) -> str:
        if self._names.is_sought(self._name):
            return f"its name cannot be resolved: no name server answers within {self._connect_timeout:g} s"
        return f"no connection within {self._connect_timeout:g} s"

    async def _reach(self) -> _Connection:
        if self._closed:
            raise ExchangeError(CONNECT, "closed")
        loop = asyncio.get_running_loop()
        reached = await start_connection(
            await self._names.addresses(self._name, self._port),
            happy_eyeballs_delay=EYEBALLS_SECONDS,
            loop=loop,
        )
        connection = _Connection(self, loop, reached, has_tls=self._tls is not None)
        self._open.add(connection)
        try:
            await loop.create_connection(
                lambda: connection,
                sock=reached,
                ssl=self._tls,
                server_hostname=self._host if self._tls else None,
            )
        except BaseException:
            connection.give_up()
            raise
        return connection


class _Deadlines:
    """Until when the requests on their way may wait for an answer. All have the same time, so the one that was sent
    first has the first deadline, and one timer does for all: to set and cancel one for each takes longer than to write
    the request down."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._waiting: dict[Exchange, float] = {}
        """With their deadlines, the first one first."""
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, exchange: Exchange, now: float) -> None:
        """It has its time from now on."""
        self._waiting[exchange] = now + self.seconds
        if self._timer is None:
            self._timer = exchange.loop.call_later(self.seconds, self._look)

    def end(self, exchange: Exchange) -> None:
        """It waits no longer."""
        self._waiting.pop(exchange, None)

    def _look(self) -> None:
        """Tell those whose time is over, and come again for the next one."""
        now = time.monotonic()
        late = list(takewhile(lambda each: self._waiting[each] <= now, self._waiting))
        for exchange in late:
            del self._waiting[exchange]
            exchange.time_out()
        self._timer = None
        if (first := next(iter(self._waiting), None)) is not None:
            wait = max(SHORTEST_SECONDS, self._waiting[first] - now)
            self._timer = first.loop.call_later(wait, self._look)


class Exchange:
    """One request and what comes for it."""

    __slots__ = (
        *(
            "_alone",
            "_answer",
            "_asked",
            "_connection",
            "_deadlines",
            "_error",
            "_further",
            "_late",
            "_looking",
        ),
        *("_pool", "begun", "kept", "loop", "reusable", "sent_at"),
    )

    def __init__(
        self, pool: Connections, connection: _Connection, request: bytes, deadlines: _Deadlines
    ) -> None:
        loop = self.loop = connection.loop
        self.kept = connection.state is IDLE
        """Whether the connection had served another request before: what comes over it may be that one's."""
        self.begun = False
        """Whether a byte of an answer has come."""
        self.reusable = True
        """For who reads the answer to unset: whether it is certain to be the one to this request."""
        self._pool = pool
        self._connection = connection
        self._answer: asyncio.Future[HttpReply] = loop.create_future()
        """The next that is waited for."""
        self._asked = 0
        self._alone = False
        """Whether one answer came and nothing else."""
        self._further: Sequence[HttpReply] = ()
        """Answers that nobody has asked for yet."""
        self._error: ExchangeError | None = None
        self._late = False
        """Whether it has its time for the second time."""
        self._looking: asyncio.Handle | None = None
        """Its time is over, and what has come by now is read first."""
        self._deadlines = deadlines
        # Not the event loop's clock: uvloop's is of whole milliseconds, and stands still for a turn.
        self.sent_at = time.monotonic()
        deadlines.begin(self, self.sent_at)
        connection.send(self, request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        self._deadlines.end(self)
        if self._looking is not None:
            self._looking.cancel()
        connection, connection.exchange = self._connection, None
        answered = self._alone and failed is None
        if answered and not self.reusable:
            connection.leave_no_trace()
        self._pool.end(connection, answered and self.reusable)

    def reply(self) -> asyncio.Future[HttpReply]:
        """The answer; asked again, the next one. The future raises `ExchangeError`."""
        self._asked += 1
        if self._asked > 1:
            self._answer = self._next()
        return self._answer

    async def unpacked(self, reply: HttpReply) -> bytes:
        """The body of an answer that is `packed`. Raises `ExchangeError`."""
        try:
            return await asyncio.to_thread(unpacked, reply)
        except HttpReplyError as error:
            raise self._trouble(_unreadable(error), str(error)) from error

    def note_keys(self, *keys: str | None) -> None:
        """Remember, for the requests that follow, the keys that this request and its answer had."""
        for key in keys:
            if key is not None:
                self._connection.keys.add(hash(key))

    def knows_key(self, key: str) -> bool:
        """Whether an earlier request over this connection, or its answer, had that key."""
        return hash(key) in self._connection.keys

    def _next(self) -> asyncio.Future[HttpReply]:
        answer = self.loop.create_future()
        self._alone = False
        if self._asked > MOST_REPLIES:
            self._further = ()
            self.fail(PROTOCOL, f"more than {MOST_REPLIES} answers")
        if self._further:
            first, *self._further = self._further
            answer.set_result(first)
        elif self._error is not None:
            answer.set_exception(self._error)
        return answer

    # -- what the connection tells ----------------------------------------------------------------------

    def take(self, reply: HttpReply) -> None:
        """This came."""
        if self._answer.done():  # or whoever waited is cancelled
            self._further = (*self._further, reply)
            self._alone = False
        else:
            self._answer.set_result(reply)
            self._alone = self._asked < 2

    def fail(self, cause: str, detail: str, *, stale: bool = False, refused: bool = False) -> None:
        """Nothing more will come. `refused`: nor was the request read."""
        if self._error is not None:
            return
        self._alone = False
        error = self._error = self._trouble(cause, detail)
        error.sent, error.stale = not refused, stale
        if not self._answer.done():
            self._answer.set_exception(error)

    def _trouble(self, cause: str, detail: str) -> ExchangeError:
        error = ExchangeError(cause, detail)
        error.sent, error.kept, error.begun = True, self.kept, self.begun
        return error

    # -- what its deadline tells --------------------------------------------------------------------------

    def time_out(self) -> None:
        """Its time is over."""
        now = time.monotonic()
        if not self._late and now > self.sent_at + self._deadlines.seconds + PAUSED_SECONDS:
            self._late = True
            self._deadlines.begin(self, now)
        else:
            self._look_again(LOOKS)

    def _look_again(self, looks: int) -> None:
        """Nobody waits any longer. The connection is of no more use: its answer may still come."""
        if looks:
            self._looking = self.loop.call_soon(self._look_again, looks - 1)
        else:
            self.fail(TIMEOUT, "no answer in time")


class _Connection(asyncio.Protocol):
    """One of them: one request at a time."""

    def __init__(
        self, pool: Connections, loop: asyncio.AbstractEventLoop, sock: socket.socket, *, has_tls: bool
    ) -> None:
        self.loop = loop
        self.state = NEW
        self.idle_since = 0.0
        self.served: set[str] = set()
        """Paths that were asked for over it."""
        self.keys: set[int] = set()
        """Hashes of the secure keys that went over it, either way."""
        self.exchange: Exchange | None = None
        """The one that has it."""
        self._pool = pool
        self._socket = sock
        self._has_tls = has_tls
        self._transport: asyncio.Transport | None = None
        self._reader = HttpReplyReader()
        self._round_trip = round_trip(sock)
        unread = select.poll()
        unread.register(sock, select.POLLIN | select.POLLRDHUP)
        self._unread = unread.poll

    # -- what the pool asks of it ------------------------------------------------------------------------

    def send(self, exchange: Exchange, request: bytes) -> None:
        """Send it; what comes for it the exchange is told."""
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
        """Wait for another request, if the node left it fit for that as far as it has said."""
        if self.state is not ACTIVE or not self._reader.keeps_alive or len(self.served) >= MOST_SERVED:
            return False
        self.state = IDLE
        return True

    def abort(self) -> None:
        """Close it at once."""
        self.state = CLOSED
        if self._transport is not None:
            self._transport.abort()

    def leave_no_trace(self) -> None:
        """Close it with a reset: one that serves a single request would else hold its port for a minute, and
        thousands a second all that there are."""
        if self.state is not CLOSED:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)

    def give_up(self) -> None:
        """It was not made in time. The event loop may have got further than it had time to say, or not have taken the
        socket over at all; and uvloop, where it closes what it has just made, tells nobody."""
        self.abort()
        if self._transport is None or self._socket.fileno() == -1:
            self._socket.close()
            self._pool.lost(self)

    # -- what the event loop tells -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._write = self._transport.write
        if self.state is CLOSED:  # it was given up meanwhile
            self._pool.found(self)
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
        self._pool.lost(self)
        if self.exchange is not None:
            self._tell_end(self.exchange, error, by_us)
        self._reader.close()

    def _take_further(self, exchange: Exchange) -> None:
        for reply in self._reader.further:
            exchange.take(reply)
        self._reader.further.clear()
        if self._reader.failure is not None:
            self._give_up_reading(exchange, self._reader.failure)

    def _give_up_reading(self, exchange: Exchange, error: HttpReplyError) -> None:
        exchange.fail(_unreadable(error), str(error))
        self.abort()

    def _tell_end(self, exchange: Exchange, error: Exception | None, by_us: bool) -> None:
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
            why = _tls_trouble(error)
        if exchange.begun:
            exchange.fail(CUT_SHORT, why)
        elif isinstance(error, ssl.SSLError):
            exchange.fail(TLS, why, refused=not exchange.kept and _is_refusal(error))
        else:
            # Before the end of the round trip the request cannot have reached it and the end have come back.
            in_time = time.monotonic() - exchange.sent_at <= self._round_trip
            exchange.fail(DISCONNECTED, why, stale=exchange.kept and in_time and not by_us)


def _unreadable(error: HttpReplyError) -> str:
    return REPLY_TOO_LARGE if isinstance(error, HttpReplyTooLarge) else PROTOCOL


def round_trip(sock: socket.socket) -> float:
    """How many seconds the way to the other end and back took when the connection was made, as the kernel measured
    it. 0 where it did not."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_AT + 4)
    except OSError:
        return 0.0
    microseconds: int = struct.unpack_from("I", info, _RTT_AT)[0]
    return microseconds / 1e6


def _connect_trouble(error: OSError | RuntimeError | UnicodeError) -> str:
    if isinstance(error, socket.gaierror):
        return f"its name cannot be resolved: {resolver_words(error) or 'it has no address'}"
    words = system_words(error)  # none where a name has several addresses and all failed
    return words.lower() if words else type(error).__name__


def _tls_trouble(error: ssl.SSLError) -> str:
    """What OpenSSL says is made of certificates and states, and for a person."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or type(error).__name__).lower().replace("_", " ")


def _is_refusal(error: ssl.SSLError) -> bool:
    """Whether the node says that it does not take our certificate, or our lack of one. With TLS 1.3 it says so
    when for us the handshake is over, and has read no request by then."""
    reason = error.reason or ""
    return "ALERT" in reason and any(word in reason for word in _REFUSALS)


_REFUSALS = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "HANDSHAKE_FAILURE")
