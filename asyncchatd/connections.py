"""Kept connections to one GMS node: a POST goes out, its answer comes back.

A ping is one small POST, thousands of times a second. aiohttp's client can do far more (redirects,
cookies, proxies, middlewares), and what it takes for that was more than all the rest of a restoration
together (docs/performance.md). So this is a pool and a protocol, and nothing else; what is hard stays with
those who know it: httptools reads HTTP (`wire/http_reply.py`), `ssl` speaks TLS, aiohappyeyeballs connects.

Nothing is sent twice and no redirect is followed here: what a failure means the caller decides.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Mapping
from typing import cast

from aiohappyeyeballs import start_connection
from yarl import URL

from asyncchatd.names import Names
from asyncchatd.wire.http_reply import HttpReply, HttpReplyError, HttpReplyReader, HttpReplyTooLarge

CONNECT = "connect"
"""No connection: the request was never sent."""
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


class ExchangeError(Exception):
    """There is no answer. `cause` is one of the constants above, `detail` says more, without secrets."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail


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
        self._timeout = timeout
        lines = {"Host": base.host_port_subcomponent, **headers}
        self._start = f"POST {base.raw_path}/"
        self._head = "".join(
            (" HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in lines.items()), "Content-Length: ")
        )
        self._idle: list[_Connection] = []
        """The one used last stands last, and is used first: the others then grow old and are closed."""
        self._open: set[_Connection] = set()
        self._asking = 0
        self._ended = asyncio.Event()
        """Set when a connection or a request has come to its end."""
        self._sweep: asyncio.TimerHandle | None = None
        self._retired = self._closed = False

    async def post(self, path: str, body: bytes, *, fresh: bool = False) -> HttpReply:
        """Send a request to `{base}/{path}`; `path` is percent-encoded. `fresh`: not over a connection that
        was idle. Raises `ExchangeError`."""
        self._asking += 1
        try:
            connection = (None if fresh else self._kept()) or await self._connect()
            request = f"{self._start}{path}{self._head}{len(body)}\r\n\r\n".encode("ascii") + body
            timer = connection.loop.call_later(self._timeout, connection.time_out)
            try:
                return await connection.ask(request)
            finally:
                timer.cancel()
                self._keep(connection)
        finally:
            self._asking -= 1
            self._ended.set()

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

    def made(self, connection: _Connection) -> None:
        """A connection is open."""
        self._open.add(connection)

    def lost(self, connection: _Connection) -> None:
        """A connection is closed."""
        self._open.discard(connection)
        self._ended.set()

    def _kept(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable():
                return connection
        return None

    def _keep(self, connection: _Connection) -> None:
        if self._retired or not connection.is_usable():
            connection.abort()
            return
        connection.idle_since = connection.loop.time()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = connection.loop.call_later(KEPT_SECONDS, self._close_old)

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
            self._names.doubt(self._name)
            expired = isinstance(error, TimeoutError) and error.errno is None
            detail = (
                f"no connection within {self._connect_timeout:g} s" if expired else _connect_trouble(error)
            )
            raise ExchangeError(CONNECT, detail) from error
        if self._closed:
            connection.abort()
            raise ExchangeError(CONNECT, "closed")
        return connection

    async def _reach(self) -> _Connection:
        if self._closed:
            raise ExchangeError(CONNECT, "closed")
        loop = asyncio.get_running_loop()
        reached = await start_connection(
            await self._names.addresses(self._name, self._port),
            happy_eyeballs_delay=EYEBALLS_SECONDS,
            loop=loop,
        )
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(self, loop),
                sock=reached,
                ssl=self._tls,
                server_hostname=self._host if self._tls else None,
            )
        except BaseException:
            reached.close()  # the event loop may not have got as far as taking it over
            raise
        return connection


class _Connection(asyncio.Protocol):
    """One of them: one request at a time."""

    def __init__(self, pool: Connections, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.idle_since = 0.0
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[HttpReply] | None = None
        """To the request on its way."""
        self._reader: HttpReplyReader | None = None
        self._reusable = True

    def ask(self, request: bytes) -> asyncio.Future[HttpReply]:
        """Send it; the future has the answer, or an `ExchangeError`."""
        answer = self._answer = self.loop.create_future()
        self._reader = HttpReplyReader()
        self._reusable = False
        if self._transport is None:
            self._fail(DISCONNECTED, "hung up")
        else:
            self._transport.write(request)
        return answer

    def is_usable(self) -> bool:
        """Whether another request may be sent: the last one is answered, and the node has not hung up."""
        return self._reusable and self._transport is not None and not self._transport.is_closing()

    def time_out(self) -> None:
        """Nobody waits any longer. The connection is of no more use: its answer may still come."""
        self._fail(TIMEOUT, "no answer in time")

    def abort(self) -> None:
        """Close it at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._pool.made(self)

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._reader is None:
            self.abort()  # nobody asked: a proxy that says farewell to an idle connection, for instance
            return
        try:
            self._take(self._reader.feed(data))
        except HttpReplyTooLarge as error:
            self._fail(REPLY_TOO_LARGE, str(error))
        except HttpReplyError as error:
            self._fail(PROTOCOL, str(error))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._pool.lost(self)
        if self._answer is None or self._reader is None:
            return
        why = _tls_trouble(error) if isinstance(error, ssl.SSLError) else type(error).__name__
        try:
            if self._reader.begun and error is None:
                self._take(self._reader.end())
        except HttpReplyError as unreadable:
            self._fail(PROTOCOL, str(unreadable))
        if self._reader.begun:
            self._fail(CUT_SHORT, why if error else "hung up")
        elif isinstance(error, ssl.SSLError):
            self._fail(TLS, why)
        else:
            self._fail(DISCONNECTED, why if error else "hung up")

    def _take(self, reply: HttpReply | None) -> None:
        if reply is None or self._answer is None or self._reader is None:
            return
        answer, self._answer = self._answer, None
        self._reusable = self._reader.keeps_alive
        if not answer.done():  # whoever waited may be cancelled
            answer.set_result(reply)

    def _fail(self, cause: str, detail: str) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(ExchangeError(cause, detail))


def _connect_trouble(error: OSError | RuntimeError | UnicodeError) -> str:
    if isinstance(error, socket.gaierror):
        return (error.strerror or "the name has no address").lower()
    number = getattr(error, "errno", None)  # none where a name has several addresses and all failed
    return os.strerror(number).lower() if number else type(error).__name__


def _tls_trouble(error: ssl.SSLError) -> str:
    """What OpenSSL says is made of certificates and states, and for a person."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or type(error).__name__).lower().replace("_", " ")
