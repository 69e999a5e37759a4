"""A connection that is served: slow readers, idle connections, bodies."""

from __future__ import annotations

import asyncio
import gzip

import aiohttp
import pytest
from aiohttp import web
from conftest import listening, soon

from asyncchatd.listening import has_left, heard_leaving

from .rig import LARGE, Greeter, connected

pytestmark = pytest.mark.usefixtures("events")


# -- slow readers and idle connections -----------------------------------------------------------------


async def test_who_does_not_read_his_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncchatd.listening.served.WRITE_SECONDS", 0.1)
    served = Greeter()
    async with listening(served.app) as base, connected(base) as connection:
        connection.writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await soon(served.over.wait())
        assert len(await connection.rest()) < LARGE


@pytest.mark.slow
async def test_who_reads_his_answer_keeps_his_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncchatd.listening.served.WRITE_SECONDS", 1.0)
    async with listening(Greeter().app) as base, connected(base) as connection:
        assert len(await connection.ask("/large")) > LARGE
        later = asyncio.Event()  # than when he would have been cut off
        asyncio.get_running_loop().call_later(1.0, later.set)
        await soon(later.wait())
        assert (await connection.ask()).endswith(b"hello")


async def test_an_answer_may_take_longer_than_the_head() -> None:
    served = Greeter()
    async with listening(served.app, header_seconds=0.05) as base, connected(base) as connection:
        connection.writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await soon(served.arrived.wait())
        async with connected(base) as silent:  # its end shows that the time is over
            assert await silent.rest() == b""
        served.go_on.set()
        assert (await connection.answer()).endswith(b"at last")


async def test_a_kept_connection_serves_after_its_first_heads_time() -> None:
    async with listening(Greeter().app, header_seconds=0.05) as base, connected(base) as connection:
        assert (await connection.ask()).endswith(b"hello")
        async with connected(base) as silent:
            assert await silent.rest() == b""
        for _ in range(3):
            assert (await connection.ask()).endswith(b"hello")


async def test_two_requests_in_one_packet_are_both_answered() -> None:
    async with listening(Greeter().app) as base, connected(base) as connection:
        connection.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        assert (await connection.answer()).endswith(b"hello")
        assert (await connection.answer()).endswith(b"hello")


async def test_an_idle_connection_is_closed_after_its_time() -> None:
    async with listening(Greeter().app, keepalive_seconds=0.05) as base, connected(base) as connection:
        await connection.ask()
        assert await connection.rest() == b""


async def test_a_client_that_hangs_up_early_leaves_nothing_behind() -> None:
    async with listening(Greeter().app) as base:
        for said in (b"", b"GET / HT"):
            async with connected(base) as connection:
                connection.writer.write(said)
                await connection.writer.drain()
        async with connected(base) as connection:
            assert (await connection.ask()).endswith(b"hello")


# -- clients that leave ----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["closes", "breaks off", "asks no more"])
async def test_a_handler_that_waits_is_told_that_its_client_has_left(way: str) -> None:
    arrived, ended = asyncio.Event(), asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        leaving = asyncio.Event()
        with heard_leaving(request, leaving):
            assert not has_left(request)
            arrived.set()
            await leaving.wait()
        assert has_left(request)
        ended.set()
        return web.Response(text="farewell")

    app = web.Application()
    app.router.add_get("/", wait)
    async with listening(app) as base, connected(base) as connection:
        connection.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await soon(arrived.wait())
        match way:
            case "closes":
                connection.writer.close()
            case "breaks off":
                connection.writer.transport.abort()
            case _:
                connection.writer.write_eof()
                assert (await connection.rest()).endswith(b"farewell")
        await soon(ended.wait())


# -- bodies ----------------------------------------------------------------------------------------------


async def test_a_body_reaches_its_handler_as_it_was_sent() -> None:
    """`auto_decompress` of aiohttp's is no public name. If this fails, a stranger's body is unpacked again before
    anybody has asked for his secret: see bodies.py."""
    packed = gzip.compress(b"unpacked")

    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    app = web.Application()
    app.router.add_post("/", echo)
    async with listening(app) as base, aiohttp.ClientSession() as http:
        for encoding in ("gzip", "deflate", "br", "zstd"):
            async with http.post(base, data=packed, headers={"Content-Encoding": encoding}) as response:
                assert await response.read() == packed
