"""A kept connection to a node: when it serves no other request, and is closed."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohappyeyeballs import start_connection
from conftest import Then, soon

from asyncchatd.gms import connection, connections
from asyncchatd.gms.trouble import Trouble

from .rig import Peer, Wire, ask, failure, on_each_loop, pool_of, until_open

# No connection may have been left to the garbage collector, and no exception to the event loop.
pytestmark = pytest.mark.usefixtures("events")


# -- connections are kept ----------------------------------------------------------------------------


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


# -- no answer ---------------------------------------------------------------------------------------


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


# -- what was not asked for ----------------------------------------------------------------------------


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


# -- the end -----------------------------------------------------------------------------------------


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
