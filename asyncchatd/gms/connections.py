"""The pool of kept connections to one GMS node: a POST goes out, its answer comes back.

A ping is one small POST, thousands of times a second. aiohttp's client can do far more (redirects,
cookies, proxies, middlewares), and what it takes for that was more than all the rest of a restoration
together (docs/performance.md). So this is a pool and a protocol, and nothing else; what is hard stays with
those who know it: httptools reads HTTP (`wire/http_reply.py`), `ssl` speaks TLS, aiohappyeyeballs connects.

Nothing is sent twice and no redirect is followed here: what a failure means the caller decides. It is told
what decides: whether the request was sent, over which kind of connection, and whether an answer had begun.

A connection that has asked for the same before is not used either: a second answer to that would pass for the one
to this.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping

from aiohappyeyeballs import start_connection
from yarl import URL

from asyncchatd.gms.connection import Connection
from asyncchatd.gms.exchange import Deadlines, Exchange
from asyncchatd.gms.trouble import ExchangeError, Trouble, in_connecting, in_tls
from asyncchatd.lacks import own_lack
from asyncchatd.names import Names

KEPT_SECONDS = 30.0
"""How long an idle connection is kept."""

STOOD_STILL_SECONDS = 1.0
"""A connection of which the time-out comes so late was held up by the process itself, which stood still. That is held
against no GMS node: all of them would rest, and what was held meanwhile would wait for that."""

EYEBALLS_SECONDS = 0.25
"""A node with several addresses: when the next one is tried beside one that does not answer (RFC 8305)."""


class Connections:
    """The pool of connections to one GMS node. As many are open as there are requests on their way at once."""

    def __init__(
        self,
        base: URL,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | None,
        *,
        connect_timeout: float,
        timeout: float,
        names: Names | None = None,
    ) -> None:
        """`headers` go with every request. `tls` is how to speak to an `https` node. `connect_timeout` and `timeout`,
        for the answer to a request that was sent, are seconds. `names` remember addresses beyond these connections."""
        self._names = names or Names()
        self._name = base.raw_host or ""
        self._host = self._name.rstrip(".")  # no certificate has the dot that ends a full name
        self._port = base.port or 0
        self._tls = tls if base.scheme == "https" else None
        self._connect_timeout = connect_timeout
        self._deadlines = Deadlines(timeout)
        lines = {"Host": base.host_port_subcomponent, **headers}
        self._start = f"POST {base.raw_path}/"
        self._head = "".join(
            (" HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in lines.items()), "Content-Length: ")
        )
        self._idle: list[Connection] = []
        """The one used last stands last, and is used first: the others then grow old and are closed."""
        self._open: set[Connection] = set()
        """Each from the moment it is begun until its transport is gone."""
        self._asking = 0
        self._ended = asyncio.Event()
        """Set when a connection or a request has come to its end."""
        self._sweep: asyncio.TimerHandle | None = None
        self._retired = self._closed = False

    async def post(
        self,
        path: str,
        body: bytes,
        *,
        fresh: bool = False,
        most_idle: float = KEPT_SECONDS,
        is_late: Callable[[], bool] = lambda: False,
    ) -> Exchange:
        """Send a request to `{base}/{path}`; `path` is percent-encoded. `fresh`: not over a connection that was
        idle; `most_idle`: nor over one that was so for more seconds. Not when it `is_late`, asked right before: it had
        to wait for a connection, or the process stood still. Raises `ExchangeError`. What comes for it is for a
        `with`, at whose end the connection is kept for others if nothing speaks against it."""
        self._asking += 1
        try:
            connection = (None if fresh else self._kept(path, most_idle)) or await self._connect()
            if is_late():
                connection.abort()
                raise ExchangeError(Trouble.TOO_LATE, "not sent")
        except BaseException:
            self._asking -= 1
            self._ended.set()
            raise
        request = f"{self._start}{path}{self._head}{len(body)}\r\n\r\n".encode("ascii") + body
        connection.served.add(path)
        return Exchange(self, connection, request, self._deadlines)

    def retire(self) -> None:
        """Leave the requests that begin from now on to another pool. Those that have begun go on, and every connection
        is closed after its own."""
        self._retired = True
        for connection in self._idle:
            connection.abort()
        self._idle.clear()
        if self._sweep is not None:
            self._sweep.cancel()

    async def close(self) -> None:
        """Close all connections, also where an answer is still waited for. Nothing is sent any more."""
        self._closed = True
        self.retire()
        for connection in list(self._open):
            connection.abort()
        while self.in_use:
            self._ended.clear()
            await self._ended.wait()

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._open)

    @property
    def in_use(self) -> bool:
        """Whether any connection is open or about to be."""
        return bool(self._open or self._asking)

    def end(self, connection: Connection, usable: bool) -> None:
        """Take a connection back whose request is done with. `usable`: another one may follow, if the node left it
        fit."""
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

    def found(self, connection: Connection) -> None:
        """A connection that was given up was made after all."""
        self._open.add(connection)

    def lost(self, connection: Connection) -> None:
        """A connection is no more."""
        self._open.discard(connection)
        self._ended.set()

    def _kept(self, path: str, most_idle: float) -> Connection | None:
        """One that has not asked for this before: a second answer to that would pass for the one to this."""
        idle = self._idle
        oldest = 0.0 if most_idle >= KEPT_SECONDS else asyncio.get_running_loop().time() - most_idle
        for place in range(len(idle) - 1, -1, -1):
            if idle[place].idle_since < oldest:
                break
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

    async def _connect(self) -> Connection:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._connect_timeout):
                connection = await self._reach()
        except ssl.SSLError as error:
            self._names.doubt(self._name)  # perhaps another host has the address now
            raise ExchangeError(Trouble.TLS, in_tls(error)) from error
        except (OSError, RuntimeError, UnicodeError) as error:  # uvloop's; a name that cannot be one
            if (lack := own_lack(error)) is not None:
                raise ExchangeError(Trouble.OWN_LACK, lack) from error
            expired = isinstance(error, TimeoutError) and error.errno is None
            if expired and time.monotonic() - began > self._connect_timeout + STOOD_STILL_SECONDS:
                raise ExchangeError(Trouble.TOO_LATE, "not sent") from error
            self._names.doubt(self._name)
            raise ExchangeError(Trouble.CONNECT, self._late() if expired else in_connecting(error)) from error
        if self._closed:
            connection.abort()
            raise ExchangeError(Trouble.CONNECT, "closed")
        if not connection.is_fit():
            connection.abort()
            raise ExchangeError(Trouble.CONNECT, "hung up or spoke before it was asked")
        return connection

    def _late(self) -> str:
        if self._names.is_sought(self._name):
            return f"its name cannot be resolved: no name server answers within {self._connect_timeout:g} s"
        return f"no connection within {self._connect_timeout:g} s"

    async def _reach(self) -> Connection:
        if self._closed:
            raise ExchangeError(Trouble.CONNECT, "closed")
        loop = asyncio.get_running_loop()
        reached = await start_connection(
            await self._names.addresses(self._name, self._port),
            happy_eyeballs_delay=EYEBALLS_SECONDS,
            loop=loop,
        )
        connection = Connection(self, loop, reached, has_tls=self._tls is not None)
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
