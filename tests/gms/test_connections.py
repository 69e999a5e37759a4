"""The pool of kept connections to a node, on real sockets: which request goes over which, and how they end."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest
from conftest import PATIENCE, Certificates, ScriptedNode, Talk, raw_server, server_tls, soon

from asyncchatd.gms import connections
from asyncchatd.gms.connections import Connections
from asyncchatd.gms.http_reply import HttpReply
from asyncchatd.gms.trouble import ExchangeError, Trouble

from .rig import Wire, ask, on_each_loop, pool_of, post, speechless, trouble, until_open

# No connection may have been left to the garbage collector, and no exception to the event loop.
pytestmark = pytest.mark.usefixtures("events")


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
