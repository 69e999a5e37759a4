"""A network on loopback: what comes through it, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from asyncchatd.standin import LoopbackProxy, Way


@asynccontextmanager
async def echo(name: bytes) -> AsyncIterator[int]:
    """A server that says its name before what it was told. Its port."""
    told: set[asyncio.StreamWriter] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.add(writer)
        while line := await reader.readline():
            writer.write(name + line)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        for each in told:
            each.close()


Asked = Callable[[LoopbackProxy], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@pytest.fixture
async def asked() -> AsyncIterator[Asked]:
    """A client that says something on a connection of its own."""
    writers = []

    async def ask(proxy: LoopbackProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writers.append(writer)
        writer.write(b"hello\n")
        return reader, writer

    yield ask
    for each in writers:
        each.transport.abort()
    await asyncio.gather(*(each.wait_closed() for each in writers), return_exceptions=True)


async def test_it_passes_bytes_on_and_the_end_of_a_side(asked: Asked) -> None:
    async with echo(b"one ") as port, LoopbackProxy("127.0.0.1", port) as proxy:
        reader, writer = await asked(proxy)
        assert await reader.readline() == b"one hello\n"
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()


async def test_what_it_holds_comes_through_when_it_is_over(asked: Asked) -> None:
    async with echo(b"one ") as port, LoopbackProxy("127.0.0.1", port) as proxy:
        old, _ = await asked(proxy)
        assert await old.readline() == b"one hello\n"
        await proxy.become(Way.HOLD)
        new, writer = await asked(proxy)
        waiting = [asyncio.create_task(reader.readline()) for reader in (old, new)]
        writer.write(b"again\n")
        done, _ = await asyncio.wait(waiting, timeout=0.1)
        assert not done
        await proxy.become(Way.PASS)
        assert await waiting[1] == b"one hello\n"
        assert await new.readline() == b"one again\n"
        waiting[0].cancel()


async def test_it_resets_connections_and_refuses_new_ones_on_the_port_that_it_keeps(asked: Asked) -> None:
    async with echo(b"one ") as port, LoopbackProxy("127.0.0.1", port) as proxy:
        reader, _ = await asked(proxy)
        assert await reader.readline() == b"one hello\n"
        await proxy.become(Way.REFUSE)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        with pytest.raises(ConnectionRefusedError):
            await asked(proxy)
        await proxy.become(Way.PASS)
        reader, _ = await asked(proxy)
        assert await reader.readline() == b"one hello\n"


async def test_it_leads_to_another_server(asked: Asked) -> None:
    async with echo(b"one ") as one, echo(b"two ") as two, LoopbackProxy("127.0.0.1", one) as proxy:
        reader, _ = await asked(proxy)
        assert await reader.readline() == b"one hello\n"
        await proxy.lead_to("127.0.0.1", two)
        reader, _ = await asked(proxy)
        assert await reader.readline() == b"two hello\n"


async def test_a_server_that_is_not_there_resets_connections(asked: Asked, tmp_path: Path) -> None:
    async with LoopbackProxy(str(tmp_path / "socket"), None) as proxy:
        reader, _ = await asked(proxy)
        with pytest.raises(ConnectionResetError):
            await reader.read()
