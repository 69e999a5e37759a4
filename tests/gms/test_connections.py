"""Kept connections to a node, on real sockets: which request goes over which, and what becomes of answers that
nobody waits for any more. The daemon runs on uvloop, or on asyncio's own loop where that is not installed."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import uvloop
from aiohappyeyeballs import start_connection
from conftest import (
    PATIENCE,
    Certificates,
    ScriptedNode,
    Talk,
    Then,
    claimed_port,
    crowded_port,
    raw_server,
    server_tls,
    settle,
    soon,
)
from yarl import URL

from asyncchatd.gms import connection, connections
from asyncchatd.gms import exchange as exchanging
from asyncchatd.gms.connections import Connections
from asyncchatd.gms.http_reply import PORTION, HttpReply
from asyncchatd.gms.trouble import ExchangeError, Trouble
from asyncchatd.wire.long_reply import MAX_VALUE

# No connection may have been left to the garbage collector, and no exception to the event loop.
pytestmark = pytest.mark.usefixtures("events")

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


@pytest.fixture(params=["http", "https"])
def wire(request: pytest.FixtureRequest, certificates: Certificates) -> Wire:
    trusting = ssl.create_default_context(cafile=certificates.ca)
    return Wire(server_tls(certificates) if request.param == "https" else None, trusting)


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


# -- what is sent --------------------------------------------------------------------------------


async def test_a_request_is_these_bytes() -> None:
    async with ScriptedNode() as node, pool_of(node.base, headers={"X-Second": "2", "X-First": "1"}) as pool:
        node.answer(times=2)
        await post(pool, "support/ch%C3%A4t/refresh", "alias=ü".encode())
        await post(pool, "support/chat-2/refresh")
    first, second = node.requests
    assert first.head == (
        b"POST /genesys/support/ch%C3%A4t/refresh HTTP/1.1\r\n"
        b"Host: 127.0.0.1:" + str(node.port).encode() + b"\r\n"
        b"X-Second: 2\r\n"
        b"X-First: 1\r\n"
        b"Content-Length: 8\r\n"
        b"\r\n"
    )
    assert first.body == b"alias=\xc3\xbc"
    assert second.head == first.head.replace(b"ch%C3%A4t", b"chat-2").replace(b"Length: 8", b"Length: 0")


async def test_a_base_keeps_its_path_as_it_was_written() -> None:
    async with ScriptedNode() as node, pool_of(f"{node.base}/%C3%BCber/2/chat") as pool:
        node.answer()
        await post(pool, "support/chat-1/refresh")
    assert node.requests[0].path == "/genesys/%C3%BCber/2/chat/support/chat-1/refresh"


@on_each_loop
async def test_a_node_may_have_an_ipv6_address() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nsix")
        writer.close()

    heads: list[bytes] = []
    try:
        server = await asyncio.start_server(talk, "::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6")
    port = server.sockets[0].getsockname()[1]
    async with server, pool_of(f"http://[::1]:{port}/genesys") as pool:
        assert await ask(pool) == b"six"
    assert f"\r\nHost: [::1]:{port}\r\n".encode() in heads[0]


@on_each_loop
async def test_an_answer_is_its_status_its_body_and_its_retry_after(wire: Wire) -> None:
    async with wire.open() as (node, pool):
        node.answer(b"busy", status=503, headers={"Retry-After": "7"})
        assert await post(pool, "x") == HttpReply(503, b"busy", "7")


# -- connections are kept ----------------------------------------------------------------------------


@on_each_loop
async def test_a_connection_is_used_for_the_next_request(wire: Wire) -> None:
    async with wire.open() as (node, pool):
        bodies = [f"answer {number}".encode() for number in range(5)]
        for body in bodies:
            node.answer(body)
        assert [await ask(pool) for _ in bodies] == bodies
        assert node.connections == pool.open == 1


@on_each_loop
async def test_there_are_as_many_connections_as_requests_at_once(wire: Wire) -> None:
    go_on = asyncio.Event()
    async with wire.open() as (node, pool):
        node.answer(times=20, when=go_on)
        asking = [asyncio.create_task(ask(pool)) for _ in range(20)]
        await node.asked(20)
        assert node.connections == pool.open == 20
        go_on.set()
        await asyncio.gather(*asking)
        node.answer(times=20)
        for _ in range(20):
            await ask(pool)
        assert node.connections == pool.open == 20


@pytest.mark.slow
@on_each_loop
async def test_each_request_gets_its_own_answer(wire: Wire) -> None:
    """However many are on their way, and whichever connection each one takes."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(head.split(b"Content-Length: ")[1]))
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body):
                writer.write(bytes([byte]))
                await asyncio.sleep(0)

    async def ask_often(pool: Connections, who: int) -> None:
        for number in range(10):
            body = f"{who}/{number}".encode()
            assert await ask(pool, body) == body

    async with wire.talking(echo) as pool:
        await asyncio.gather(*(ask_often(pool, who) for who in range(10)))
        assert pool.open == 10


@on_each_loop
async def test_a_fresh_request_uses_no_connection_that_was_idle(wire: Wire) -> None:
    async with wire.open() as (node, pool):
        node.answer(times=2)
        await ask(pool)
        await ask(pool, fresh=True)
        assert node.connections == pool.open == 2


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nfirst",
        b"HTTP/1.1 200 OK\r\n\r\nfirst",
        b"HTTP/1.0 200 OK\r\n\r\nfirst",
    ],
    ids=["Connection: close", "no length", "HTTP/1.0"],
)
@on_each_loop
async def test_a_connection_that_the_node_will_close_is_not_used_again(wire: Wire, said: bytes) -> None:
    async with wire.open() as (node, pool):
        node.say(said, Then.HANG_UP)
        node.answer(b"second")
        assert [await ask(pool), await ask(pool)] == [b"first", b"second"]
        assert node.connections == 2
        await until_open(pool, 1)


@on_each_loop
async def test_a_connection_that_its_node_does_not_close_after_all_is_closed(wire: Wire) -> None:
    async with wire.open() as (node, pool):
        node.answer(b"first", headers={"Connection": "close"})
        assert await ask(pool) == b"first"
        await until_open(pool, 0)


@on_each_loop
async def test_a_connection_that_the_node_closed_while_it_was_idle_is_not_used(wire: Wire) -> None:
    async with wire.open() as (node, pool):
        node.answer(times=2)
        await ask(pool)
        node.leave()
        await until_open(pool, 0)
        await ask(pool)
        assert node.connections == 2


@on_each_loop
async def test_what_a_node_says_on_an_idle_connection_is_no_answer(wire: Wire) -> None:
    """A proxy may say so when it tires of a connection. The next request would take it for its answer."""
    async with wire.open() as (node, pool):
        node.answer(b"first")
        assert await ask(pool) == b"first"
        node.interject(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 3\r\n\r\nbye")
        await until_open(pool, 0)
        node.answer(b"second")
        assert await ask(pool) == b"second"


@on_each_loop
async def test_two_answers_to_one_request_are_one(wire: Wire) -> None:
    async with wire.open() as (node, pool):
        node.say(b"".join(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number for number in (1, 2)))
        node.answer(b"3")
        assert [await ask(pool), await ask(pool)] == [b"1", b"3"]


@pytest.mark.slow
@on_each_loop
async def test_idle_connections_grow_old_and_are_closed(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that a burst needed go, and the one that is used stays."""
    monkeypatch.setattr(connections, "KEPT_SECONDS", 0.4)
    go_on = asyncio.Event()
    async with wire.open() as (node, pool):
        node.answer(times=5, when=go_on)
        node.answer(times=None)
        asking = [asyncio.create_task(ask(pool)) for _ in range(5)]
        await node.asked(5)
        go_on.set()
        await asyncio.gather(*asking)
        async with asyncio.timeout(PATIENCE):
            while pool.open > 1:
                await ask(pool)
        assert node.connections == 5
        await until_open(pool, 0)


# -- no answer ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("begun", [b"", HALF], ids=["nothing", "a beginning"])
@on_each_loop
async def test_an_answer_that_is_late_reaches_nobody(wire: Wire, begun: bytes) -> None:
    """It would be another session's reply, with another session's key."""
    late = asyncio.Event()
    async with wire.open(patience=0.5) as (node, pool):
        node.say(begun)
        node.answer(b"too late", when=late)
        node.answer(b"second")
        node.answer(b"third")
        assert await trouble(pool) == (Trouble.TIMEOUT, "no answer in time")
        assert await trouble(pool) == (Trouble.TIMEOUT, "no answer in time")
        await until_open(pool, 0)
        late.set()
        assert [await ask(pool), await ask(pool)] == [b"second", b"third"]
        assert (node.connections, pool.open) == (3, 1)


@on_each_loop
async def test_the_time_for_an_answer_is_not_prolonged_by_pieces_of_it(wire: Wire) -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with wire.talking(trickle, patience=0.1) as pool:
        assert await trouble(pool) == (Trouble.TIMEOUT, "no answer in time")


async def test_the_time_for_an_answer_begins_with_its_own_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a kept connection the time of a request before it must not run on."""
    loop, ahead = asyncio.get_running_loop(), 0.0
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + ahead)
    go_on = asyncio.Event()
    async with ScriptedNode() as node, pool_of(node.base, patience=PATIENCE) as pool:
        node.answer(b"first")
        node.answer(b"second", when=go_on)
        assert await ask(pool) == b"first"
        ahead += 0.75 * PATIENCE
        asking = asyncio.create_task(ask(pool))
        await node.asked(2)
        ahead += 0.5 * PATIENCE
        await settle()
        go_on.set()
        assert await asking == b"second"
        assert node.connections == 1


@on_each_loop
async def test_the_connection_of_a_cancelled_request_is_closed(wire: Wire) -> None:
    late = asyncio.Event()
    async with wire.open() as (node, pool):
        node.answer(b"first", when=late)
        node.answer(b"second")
        asking = asyncio.create_task(ask(pool))
        await node.asked(1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until_open(pool, 0)
        late.set()
        assert await ask(pool) == b"second"
        assert node.connections == 2


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


@on_each_loop
async def test_a_request_that_is_cancelled_while_it_connects_leaves_nothing_open() -> None:
    async with (
        speechless() as (port, arrived, gone),
        pool_of(f"https://127.0.0.1:{port}/x") as pool,
    ):
        asking = asyncio.create_task(ask(pool))
        await soon(arrived.wait())
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await soon(gone.wait())
        assert pool.open == 0


@pytest.mark.parametrize(
    ("said", "then", "cause", "detail"),
    [
        (b"", Then.HANG_UP, Trouble.DISCONNECTED, "hung up"),
        (b"", Then.RESET, Trouble.DISCONNECTED, "ConnectionResetError"),
        (b"HTTP/1.1 102 Processing\r\n\r\n", Then.HANG_UP, Trouble.CUT_SHORT, "hung up"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", Then.HANG_UP, Trouble.CUT_SHORT, "hung up"),
        (HALF, Then.HANG_UP, Trouble.CUT_SHORT, "hung up"),
        (HALF, Then.RESET, Trouble.CUT_SHORT, "ConnectionResetError"),
        (b"HTTP/1.1 200 OK\r\n\r\n{", Then.RESET, Trouble.CUT_SHORT, "ConnectionResetError"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", Then.STAY, Trouble.PROTOCOL, "Expected HTTP/, RTSP/ or ICE/"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
            Then.STAY,
            Trouble.PROTOCOL,
            "HTTP 200, not encoded as it says",
        ),
        (
            b"HTTP/1.1 200 OK\r\n\r\n" + b'{"a":"' + b"x" * (MAX_VALUE + 2 * PORTION),
            Then.STAY,
            Trouble.REPLY_TOO_LARGE,
            f"HTTP 200, one value of more than {MAX_VALUE} bytes",
        ),
    ],
    ids=[
        "hung up",
        "reset",
        "hung up after an interim answer",
        "cut short in the head",
        "cut short",
        "cut short by a reset",
        "of unsaid length, cut short by a reset",
        "not HTTP",
        "false gzip",
        "too large",
    ],
)
@on_each_loop
async def test_what_is_no_answer_says_why_and_its_connection_is_closed(
    wire: Wire, said: bytes, then: Then, cause: str, detail: str
) -> None:
    async with wire.open() as (node, pool):
        node.say(said, then)
        assert await trouble(pool) == (cause, detail)
        await until_open(pool, 0)
        node.answer(b"well again")
        assert await ask(pool) == b"well again"


@on_each_loop
async def test_a_kept_connection_that_the_node_drops_with_the_next_request_is_told_as_such(
    wire: Wire,
) -> None:
    async with wire.open() as (node, pool):
        node.answer()
        node.hang_up()
        node.answer(b"here again")
        await ask(pool)
        assert (await trouble(pool))[0] == Trouble.DISCONNECTED
        assert await ask(pool, fresh=True) == b"here again"


@on_each_loop
async def test_no_connection_says_why() -> None:
    with claimed_port() as claim:
        closed = claim.getsockname()[1]
        async with pool_of(f"http://127.0.0.1:{closed}/x") as pool:
            assert await trouble(pool) == (Trouble.CONNECT, "connection refused")
        for host in ("a" * 64 + ".example", "gms..example"):
            async with pool_of(f"http://{host}:{closed}/x") as pool:
                assert (await trouble(pool))[0] == Trouble.CONNECT


async def test_a_name_without_an_address_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with pool_of("http://gms.example/x") as pool:
        assert await trouble(pool) == (
            Trouble.CONNECT,
            "its name cannot be resolved: name or service not known",
        )


@on_each_loop
async def test_a_node_that_takes_no_connection_is_given_up_soon() -> None:
    with crowded_port() as port:
        async with pool_of(f"http://127.0.0.1:{port}/x", connect_patience=0.1) as pool:
            assert await trouble(pool) == (Trouble.CONNECT, "no connection within 0.1 s")


@on_each_loop
async def test_a_node_that_never_answers_the_handshake_is_given_up_soon() -> None:
    async with (
        speechless() as (port, _, gone),
        pool_of(f"https://127.0.0.1:{port}/x", connect_patience=0.1) as pool,
    ):
        assert await trouble(pool) == (Trouble.CONNECT, "no connection within 0.1 s")
        await soon(gone.wait())


async def test_a_node_with_several_addresses_is_reached_by_the_one_that_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And its name is looked up once, however often it is connected to."""
    asked: list[object] = []

    def found(host: object, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, node.port))
            for address in ("127.0.0.2", "127.0.0.1")  # the node listens on one of them
        ]

    async with ScriptedNode() as node:
        monkeypatch.setattr(socket, "getaddrinfo", found)
        node.answer(b"here", times=3)
        async with pool_of(f"http://gms.example:{node.port}/genesys") as pool:
            together = asyncio.gather(*(ask(pool, fresh=True) for _ in range(3)))
            assert await together == [b"here"] * 3
    assert asked == ["gms.example"]


# -- Trouble.TLS ---------------------------------------------------------------------------------------------


@on_each_loop
async def test_a_certificate_that_nobody_vouches_for_is_told_as_such(certificates: Certificates) -> None:
    async with ScriptedNode(server_tls(certificates)) as node, pool_of(node.base) as pool:
        cause, detail = await trouble(pool)
        assert cause == Trouble.TLS
        assert "self-signed certificate" in detail
        assert node.requests == []


@on_each_loop
async def test_a_certificate_of_another_host_is_told_as_such(certificates: Certificates) -> None:
    async with (
        ScriptedNode(server_tls(certificates)) as node,
        pool_of(
            f"https://localhost:{node.port}/genesys", ssl.create_default_context(cafile=certificates.ca)
        ) as pool,
    ):
        cause, detail = await trouble(pool)
        assert cause == Trouble.TLS
        assert "certificate is not valid for 'localhost'" in detail
        assert node.requests == []


@on_each_loop
async def test_a_node_that_speaks_no_tls_is_told_as_such() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with raw_server(plain) as port, pool_of(f"https://127.0.0.1:{port}/x") as pool:
        assert await trouble(pool) == (Trouble.TLS, "wrong version number")


@on_each_loop
async def test_secrets_are_in_no_error(certificates: Certificates) -> None:
    secret = "4ee15d7e1c343c8e"
    said = [f"HTTP/1.1 {secret}\r\n\r\n", f"{secret}\r\n\r\n", f"HTTP/1.1 200 OK\r\n{secret}\r\n\r\n"]
    async with (
        ScriptedNode() as node,
        ScriptedNode(server_tls(certificates)) as distrusted,
        pool_of(node.base, headers={"apikey": secret}) as pool,
        pool_of(distrusted.base, headers={"apikey": secret}) as tls_pool,
    ):
        node.hang_up()
        for words in said:
            node.say(words.encode(), Then.HANG_UP)
        for asked in (*[pool] * 4, tls_pool):
            with pytest.raises(ExchangeError) as failed:
                await post(asked, f"support/{secret}/refresh", f"secureKey={secret}".encode())
            assert secret not in f"{failed.value!r} {failed.value} {failed.value.__cause__!r}"
        assert secret not in repr(pool)


# -- what was not asked for ----------------------------------------------------------------------------


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "unread", [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale", b""], ids=["answer", "end"]
)
@on_each_loop
async def test_a_connection_with_something_unread_is_not_used(wire: Wire, unread: bytes) -> None:
    """The event loop has not seen it yet: it would become the answer to the next request."""
    peer = Peer(wire.node_tls)
    scheme = "https" if wire.node_tls else "http"
    try:
        async with pool_of(f"{scheme}://127.0.0.1:{peer.port}/genesys", wire.tls) as pool:
            _, first = await asyncio.gather(peer.answer(b"first"), ask(pool))
            answering = asyncio.create_task(peer.answer(b"second"))
            if unread:
                peer.connections[0].sendall(unread)
            else:
                peer.connections[0].shutdown(socket.SHUT_WR)
            assert (first, await ask(pool)) == (b"first", b"second")
            await answering
            assert len(peer.connections) == 2
    finally:
        peer.close()


async def test_a_fresh_connection_that_says_something_unasked_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A proxy without room says so and hangs up. Nothing was sent, so another node may be asked."""

    async def reach(*arguments: object, **more: object) -> socket.socket:
        reached = await start_connection(*arguments, **more)  # type: ignore[arg-type]
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"HTTP/1.1 503 Full\r\nContent-Length: 0\r\n\r\n")
        return reached

    monkeypatch.setattr(connections, "start_connection", reach)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with pool_of(f"http://127.0.0.1:{listener.getsockname()[1]}/x") as pool:
            failed = await failure(pool)
            assert (failed.cause, failed.sent) == (Trouble.CONNECT, False)


@pytest.mark.parametrize("apart", [False, True], ids=["in one piece", "apart"])
@on_each_loop
async def test_who_is_told_another_ones_answer_waits_for_the_next(wire: Wire, apart: bool) -> None:
    """And afterwards the connection is not used any more."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for body in (b"stale", b"right"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + body)
            if apart:
                await asyncio.sleep(0.01)
        await reader.read()

    async with wire.talking(talk) as pool:
        with await pool.post("support/chat-1/refresh", b"") as exchange:
            assert [(await soon(exchange.reply())).body for _ in range(2)] == [b"stale", b"right"]
        await until_open(pool, 0)


@on_each_loop
async def test_answers_without_an_end_are_given_up(wire: Wire) -> None:
    async with wire.open() as (node, pool):
        node.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx" * 1000)
        with await pool.post("support/chat-1/refresh", b"") as exchange:
            for _ in range(exchanging.MOST_REPLIES):
                assert (await soon(exchange.reply())).body == b"x"
            with pytest.raises(ExchangeError) as failed:
                await soon(exchange.reply())
        assert failed.value.cause == Trouble.PROTOCOL
        await until_open(pool, 0)


@on_each_loop
async def test_a_connection_whose_answer_is_not_certain_serves_no_other_request(wire: Wire) -> None:
    async with wire.open() as (node, pool):
        node.answer(b"whose?", times=2)
        for _ in range(2):
            with await pool.post("support/chat-1/refresh", b"") as exchange:
                await soon(exchange.reply())
                exchange.reusable = False
        assert node.connections == 2
        await until_open(pool, 0)


@on_each_loop
async def test_what_an_exchange_came_to_says_what_is_known_of_it(wire: Wire) -> None:
    def told(error: ExchangeError) -> tuple[bool, bool, bool, bool]:
        return error.sent, error.kept, error.begun, error.stale

    async with wire.open() as (node, pool):
        node.hang_up()
        assert told(await failure(pool)) == (True, False, False, False)
        node.say(HALF, Then.HANG_UP)
        assert told(await failure(pool)) == (True, False, True, False)
        node.answer()
        node.hang_up()
        await ask(pool)
        assert told(await failure(pool)) == (True, True, False, False)
        node.answer()
        node.hang_up()
        await ask(pool)
        pool._idle[0]._round_trip = PATIENCE
        assert told(await failure(pool)) == (True, True, False, True)


# -- deadlines -------------------------------------------------------------------------------------------


class Waiter:
    """In place of an `Exchange`, on a loop whose only timer goes off when the test says so."""

    def __init__(
        self, deadlines: exchanging.Deadlines, timers: list[float], told: list[str], name: str
    ) -> None:
        self.loop = self
        self.again_at: float | None = None
        """When its time is over it has it once more from then on."""
        self._deadlines, self._timers, self._told, self._name = deadlines, timers, told, name

    def call_later(self, seconds: float, _: Callable[[], None]) -> object:
        self._timers.append(seconds)
        return object()

    def time_out(self) -> None:
        self._told.append(self._name)
        if self.again_at is not None:
            self._deadlines.begin(self, self.again_at)  # type: ignore[arg-type]


class Deadlines:
    """Deadlines of ten seconds, and a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.timers: list[float] = []
        self.told: list[str] = []
        self._deadlines = exchanging.Deadlines(10.0)
        monkeypatch.setattr(exchanging, "time", SimpleNamespace(monotonic=lambda: self.now))

    def begin(self, name: str) -> Waiter:
        waiter = Waiter(self._deadlines, self.timers, self.told, name)
        self._deadlines.begin(waiter, self.now)  # type: ignore[arg-type]
        return waiter

    def end(self, waiter: Waiter) -> None:
        self._deadlines.end(waiter)  # type: ignore[arg-type]

    def go_off_at(self, now: float) -> None:
        self.now = now
        self._deadlines._look()


def test_one_timer_tells_each_request_at_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines = Deadlines(monkeypatch)
    deadlines.begin("first")
    deadlines.now = 104.0
    deadlines.begin("second")
    assert deadlines.timers == [10.0]
    deadlines.go_off_at(110.0)
    assert deadlines.told == ["first"]
    assert deadlines.timers == [10.0, 4.0]
    deadlines.go_off_at(114.0)
    assert deadlines.told == ["first", "second"]
    assert deadlines.timers == [10.0, 4.0]  # nobody waits


def test_a_request_that_was_answered_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines = Deadlines(monkeypatch)
    answered = deadlines.begin("answered")
    deadlines.end(answered)
    deadlines.go_off_at(110.0)
    assert deadlines.told == []
    deadlines.begin("next")
    assert deadlines.timers == [10.0, 10.0]


def test_a_timer_that_goes_off_early_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines = Deadlines(monkeypatch)
    deadlines.begin("first")
    deadlines.go_off_at(109.9999)
    assert deadlines.told == []
    assert deadlines.timers == [10.0, exchanging.SHORTEST_SECONDS]


def test_who_has_his_time_again_does_not_put_off_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines = Deadlines(monkeypatch)
    deadlines.begin("paused").again_at = 110.5
    deadlines.now = 104.0
    deadlines.begin("other")
    deadlines.go_off_at(110.5)
    assert deadlines.told == ["paused"]
    assert deadlines.timers == [10.0, 3.5]
    deadlines.go_off_at(114.0)
    assert deadlines.told == ["paused", "other"]
    assert deadlines.timers == [10.0, 3.5, 6.5]


# -- pauses ----------------------------------------------------------------------------------------------

PAUSED = """
import asyncio, ssl, sys, uvloop
from yarl import URL
from asyncchatd.gms.connections import Connections
from asyncchatd.gms.trouble import ExchangeError

async def main() -> None:
    tls = ssl.create_default_context(cafile=sys.argv[3])
    pool = Connections(URL(sys.argv[2]), {}, tls, connect_timeout=20, timeout=1.5)

    async def ask(number: int) -> int:
        try:
            with await pool.post(f"support/chat-{number}/refresh", b"") as exchange:
                return len((await exchange.reply()).body) > 0
        except ExchangeError as error:
            print(error, file=sys.stderr)
            return 0

    print(sum(await asyncio.gather(*map(ask, range(20)))))
    await pool.close()

loops = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
with asyncio.Runner(loop_factory=loops[sys.argv[1]]) as runner:
    runner.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_answers_that_came_during_a_pause_beyond_the_time_out_are_read(
    loop: str, wire: Wire, certificates: Certificates
) -> None:
    """SIGSTOP, or a VM that sleeps: both loops may run their timers before they look at their sockets."""
    go_on = asyncio.Event()
    async with ScriptedNode(wire.node_tls) as node:
        node.answer(b"x" * 1000, times=20, when=go_on)
        paused = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PAUSED, loop, node.base, str(certificates.ca)),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            await node.asked(20)
            paused.send_signal(signal.SIGSTOP)
            go_on.set()
            await asyncio.sleep(
                2.0
            )  # longer than its time-out, and long enough for what was said to get there
            paused.send_signal(signal.SIGCONT)
            said, _ = await soon(paused.communicate())
        finally:
            if paused.returncode is None:
                paused.kill()
                await paused.wait()
    assert said == b"20\n"


@pytest.mark.slow
@on_each_loop
async def test_answers_that_came_while_the_event_loop_stood_still_are_read(wire: Wire) -> None:
    peer = Peer(wire.node_tls)
    scheme = "https" if wire.node_tls else "http"
    try:
        async with pool_of(f"{scheme}://127.0.0.1:{peer.port}/x", wire.tls, patience=0.3) as pool:
            asking = asyncio.create_task(ask(pool))
            answering = asyncio.create_task(
                peer.answer(b'{"messages":["%s"],"alias":"118"}' % (b"x" * 200_000))
            )
            async with asyncio.timeout(PATIENCE):
                while not peer.connections or pool.open == 0:  # noqa: ASYNC110 - they tell only those who ask
                    await asyncio.sleep(0)
            time.sleep(0.5)  # noqa: ASYNC251 - everything stands still
            assert await asking == b'{"alias":"118"}'
            await answering
    finally:
        peer.close()


# -- the end -----------------------------------------------------------------------------------------


@on_each_loop
async def test_a_retired_pool_closes_what_is_idle_and_lets_the_rest_finish(wire: Wire) -> None:
    go_on = asyncio.Event()
    async with wire.open() as (node, pool):
        node.answer(times=2, when=go_on)
        node.answer(b"in time", when=(later := asyncio.Event()))
        idle = [asyncio.create_task(ask(pool)) for _ in range(2)]
        await node.asked(2)
        asking = asyncio.create_task(ask(pool))
        await node.asked(3)
        go_on.set()
        await asyncio.gather(*idle)
        assert pool.open == 3
        pool.retire()
        await until_open(pool, 1)
        later.set()
        assert await asking == b"in time"
        await until_open(pool, 0)


@on_each_loop
async def test_a_request_that_still_connects_when_its_pool_is_retired_is_answered(
    certificates: Certificates,
) -> None:
    async with (
        ScriptedNode(server_tls(certificates)) as node,
        pool_of(node.base, ssl.create_default_context(cafile=certificates.ca)) as pool,
    ):
        node.answer(b"answered")
        asking = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)  # it begins
        assert (pool.open, node.requests) == (0, [])
        pool.retire()
        assert await asking == b"answered"
        await until_open(pool, 0)


@on_each_loop
async def test_closing_ends_everything_also_where_an_answer_is_awaited(wire: Wire) -> None:
    async with wire.open() as (node, pool):
        node.answer(b"idle soon")
        node.say(b"", times=5)
        await ask(pool)
        asking = [asyncio.create_task(trouble(pool)) for _ in range(5)]
        await node.asked(6)
        await soon(pool.close())
        assert pool.open == 0
        assert await asyncio.gather(*asking) == [(Trouble.DISCONNECTED, "hung up")] * 5


@on_each_loop
async def test_closing_what_was_never_used_is_nothing() -> None:
    async with pool_of("http://127.0.0.1:1/x") as pool:
        await soon(pool.close())


@on_each_loop
async def test_a_time_out_in_the_turn_in_which_a_connection_is_made_leaves_nothing_open(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop then closes what it has made, and tells nobody."""

    class Untimely(connection.Connection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            asking.cancel()

    monkeypatch.setattr(connections, "Connection", Untimely)
    async with wire.open() as (node, pool):
        asking = asyncio.create_task(ask(pool))
        with pytest.raises(asyncio.CancelledError):
            await asking
        await soon(pool.close())
        assert (pool.open, pool.in_use, node.requests) == (0, False, [])


# -- names -------------------------------------------------------------------------------------------


def addresses_of(*hosts: str, port: int) -> list[tuple[object, ...]]:
    return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port)) for host in hosts]


async def test_hosts_behind_one_name_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    async with raw_server(_say("one")) as port, raw_server(_say("two"), host="127.0.0.2", port=port):
        found = addresses_of("127.0.0.1", "127.0.0.2", port=port)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        async with pool_of(f"http://gms.example:{port}/x") as pool:
            said = [await ask(pool, fresh=True) for _ in range(4)]
    assert sorted(said) == [b"one", b"one", b"two", b"two"]


def _say(body: str) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())

    return talk


@pytest.mark.parametrize(
    ("written", "asked"),
    [("xn--strae-oqa.example", "xn--strae-oqa.example"), ("gms.example.", "gms.example.")],
)
async def test_a_name_is_looked_up_as_it_is_written(
    written: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded and encoded again, an international name may become another host's. The dot that ends a full name
    keeps the search list of this host out."""
    names: list[object] = []

    def look(name: object, *_: object, **__: object) -> list[tuple[object, ...]]:
        names.append(name)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look)
    async with pool_of(f"http://{written}/x") as pool:
        await trouble(pool)
    assert names == [asked]


@on_each_loop
async def test_nothing_is_sent_once_they_are_closed() -> None:
    """Also not by who was still connecting."""
    async with ScriptedNode() as node, pool_of(node.base) as pool:
        connecting = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        await soon(pool.close())
        assert (pool.open, pool.in_use) == (0, False)
        with pytest.raises(ExchangeError):
            await connecting
        assert await trouble(pool) == (Trouble.CONNECT, "closed")
        assert node.requests == []
