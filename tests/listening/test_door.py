"""A connection before its first request: a head that does not end, and what is no HTTP."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest
from conftest import Events, listening, settle

from asyncchatd.listening.door import Door
from asyncchatd.log.events import Event

from .rig import Greeter, connected, listener

pytestmark = pytest.mark.usefixtures("events")


# -- slow clients, and others that never send a head ---------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [b"", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n"],
    ids=["nothing", "a letter", "a line", "all but the end"],
)
async def test_a_connection_that_finishes_no_head_is_cut_off(said: bytes) -> None:
    async with listening(Greeter().app, header_seconds=0.05) as base, connected(base) as connection:
        connection.writer.write(said)
        assert await connection.rest() == b""


async def test_a_head_that_trickles_in_is_cut_off_too() -> None:
    """The time-out is for the whole head, not from byte to byte."""
    async with listening(Greeter().app, header_seconds=0.1) as base, connected(base) as connection:

        async def trickle() -> None:
            while True:
                connection.writer.write(b"x")
                await asyncio.sleep(0.01)

        connection.writer.write(b"GET / HTTP/1.1\r\nX: ")
        trickling = asyncio.create_task(trickle())
        assert await connection.rest() == b""
        trickling.cancel()


async def test_a_head_in_pieces_is_a_head() -> None:
    async with listening(Greeter().app) as base, connected(base) as connection:
        for piece in (b"GE", b"T / HTTP/1.1\r\nHo", b"st: x\r", b"\n\r", b"\n"):
            connection.writer.write(piece)
            await connection.writer.drain()
            await settle()
        assert (await connection.answer()).endswith(b"hello")


async def test_what_is_not_http_is_refused_and_not_worth_a_line_in_the_log(events: Events) -> None:
    """A port scan would fill it."""
    async with listening(Greeter().app) as base, connected(base) as connection:
        connection.writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        assert b" 400 " in (await connection.rest())[:20]
    assert events.all() == []


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS on a port without tls_certificate"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 80\r\nGET / HTTP/1.1\r\n\r\n", "PROXY protocol"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", "PROXY protocol"),
    ],
    ids=["TLS", "PROXY 1", "PROXY 2"],
)
async def test_what_an_operator_may_have_set_up_one_line_short_is_told_what_it_is(
    said: bytes, cause: str, events: Events
) -> None:
    async with listening(Greeter().app) as base:
        for _ in range(3):
            async with connected(base) as connection:
                connection.writer.write(said)
                assert b" 400 " in (await connection.rest())[:20]
        async with connected(base) as connection:
            with suppress(ConnectionError):
                for letter in said[:16]:
                    connection.writer.write(bytes([letter]))
                    await connection.writer.drain()
                    await settle()
            assert (await connection.rest())[:12] in (b"", b"HTTP/1.1 400")
    refused = events.of(Event.CLIENT_REFUSED)[0]
    assert str(refused["cause"]).startswith(cause)
    assert refused["client"] == "127.0.0.1"


async def test_a_connection_that_says_nothing_and_goes_is_not_worth_a_line(events: Events) -> None:
    """So a load balancer sees whether the port is open."""
    async with listening(Greeter().app) as base:
        for _ in range(3):
            async with connected(base):
                pass
        async with connected(base) as connection:
            assert (await connection.ask()).endswith(b"hello")
    assert events.all() == []


async def test_a_head_larger_than_any_is_refused() -> None:
    async with listening(Greeter().app) as base, connected(base) as connection:
        connection.writer.write(b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000)
        assert b" 400 " in (await connection.rest())[:20]


# -- a head in pieces ------------------------------------------------------------------------------------


async def test_a_head_that_comes_byte_by_byte_costs_no_more_the_longer_it_is() -> None:
    """What was looked through once is not looked through again with every byte."""

    async def seconds(size: int) -> float:
        door = Door(ours)
        door._transport = asyncio.Transport()
        used = time.process_time()
        for _ in range(size):
            door.data_received(b"x")
        return time.process_time() - used

    ours = listener(Greeter().app)
    await seconds(1_000)
    assert await seconds(60_000) < 12 * max(await seconds(15_000), 0.01)  # it was 16 times as much, and more
