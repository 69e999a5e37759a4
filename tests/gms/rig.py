"""A node on real sockets, and connections to it. The daemon runs on uvloop, or on asyncio's own loop where that is not
installed."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest
import uvloop
from conftest import PATIENCE, ScriptedNode, Talk, raw_server, soon
from yarl import URL

from asyncchatd.gms.connections import Connections
from asyncchatd.gms.http_reply import HttpReply
from asyncchatd.gms.trouble import ExchangeError

HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"


def on_each_loop(scenario: Callable[..., Coroutine[object, object, None]]) -> Callable[..., None]:
    """Make a test of this, for each event loop that the daemon may run on."""

    def test(new_loop: Callable[[], asyncio.AbstractEventLoop], **fixtures: object) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(scenario(**fixtures))

    given = inspect.signature(scenario)
    own = inspect.Parameter("new_loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    test.__signature__ = given.replace(parameters=[own, *given.parameters.values()])  # type: ignore[attr-defined]
    test.__name__, test.__doc__ = scenario.__name__, scenario.__doc__
    loops = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return pytest.mark.parametrize("new_loop", loops.values(), ids=loops.keys())(test)


@asynccontextmanager
async def pool_of(
    base: str,
    tls: ssl.SSLContext | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    patience: float = PATIENCE,
    connect_patience: float = PATIENCE,
) -> AsyncIterator[Connections]:
    """Connections to this node. None may be open once they were closed."""
    pool = Connections(
        URL(base),
        headers or {},
        tls or ssl.create_default_context(),
        connect_timeout=connect_patience,
        timeout=patience,
    )
    try:
        yield pool
    finally:
        await soon(pool.close())
        assert pool.open == 0


@dataclass(frozen=True, slots=True)
class Wire:
    """HTTP, or HTTPS with the certificate of a CA that we trust."""

    node_tls: ssl.SSLContext | None
    tls: ssl.SSLContext

    @asynccontextmanager
    async def open(self, *, patience: float = PATIENCE) -> AsyncIterator[tuple[ScriptedNode, Connections]]:
        """A node, and connections to it."""
        async with (
            ScriptedNode(self.node_tls) as node,
            pool_of(node.base, self.tls, patience=patience) as pool,
        ):
            yield node, pool

    @asynccontextmanager
    async def talking(self, talk: Talk, *, patience: float = PATIENCE) -> AsyncIterator[Connections]:
        """Connections to a server each of which is `talk`."""
        scheme = "https" if self.node_tls else "http"
        async with (
            raw_server(talk, tls=self.node_tls) as port,
            pool_of(f"{scheme}://127.0.0.1:{port}/genesys", self.tls, patience=patience) as pool,
        ):
            yield pool


_chats = itertools.count(1)


async def post(
    pool: Connections, path: str | None = None, body: bytes = b"", *, fresh: bool = False
) -> HttpReply:
    """The answer to a request, if nothing else is said for a chat that no other one was for."""
    async with asyncio.timeout(PATIENCE):
        path = path or f"support/chat-{next(_chats)}/refresh"
        with await pool.post(path, body, fresh=fresh) as exchange:
            return await exchange.reply()


async def ask(pool: Connections, body: bytes = b"", *, fresh: bool = False) -> bytes:
    """The body of the answer to a request."""
    return (await post(pool, body=body, fresh=fresh)).body


async def failure(pool: Connections, *, fresh: bool = False) -> ExchangeError:
    """What a request comes to that gets no answer."""
    with pytest.raises(ExchangeError) as failed:
        await ask(pool, fresh=fresh)
    assert str(failed.value) == f"{failed.value.cause}: {failed.value.detail}"
    return failed.value


async def trouble(pool: Connections) -> tuple[str, str]:
    """Cause and detail of that."""
    failed = await failure(pool)
    return failed.cause, failed.detail


async def until_open(pool: Connections, count: int) -> None:
    """Wait until there are so many connections."""
    async with asyncio.timeout(PATIENCE):
        while pool.open != count:  # noqa: ASYNC110 - it tells only those who ask
            await asyncio.sleep(0)


@asynccontextmanager
async def speechless() -> AsyncIterator[tuple[int, asyncio.Event, asyncio.Event]]:
    """A node that never answers the handshake. Its port; one connected; and is gone again."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        arrived.set()
        with suppress(ConnectionError):
            await reader.read()
        gone.set()

    arrived, gone = asyncio.Event(), asyncio.Event()
    async with raw_server(talk) as port:
        yield port, arrived, gone


class Peer:
    """A node of blocking sockets: what it says is in our socket at once, before the event loop has a turn."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE)
        self.port = self._listener.getsockname()[1]
        self.connections: list[socket.socket] = []

    async def answer(self, body: bytes) -> None:
        """Take a connection and answer the request that comes over it."""
        await asyncio.to_thread(self._answer, body)

    def _answer(self, body: bytes) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(PATIENCE)
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        self.connections.append(connection)
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    def close(self) -> None:
        for each in (self._listener, *self.connections):
            each.close()
