"""An application that greets, a listener for it, and a client that writes bytes as it likes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiohttp import web
from conftest import soon
from yarl import URL

from asyncchatd.config.sections.listeners import ReceiverSettings
from asyncchatd.listening import Listener

LARGE = 32 * 2**20


class Greeter:
    """An application that greets; `/slow` waits until `go_on` is set."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.go_on = asyncio.Event()
        self.requests = 0
        self.app = web.Application()
        self.app.router.add_get("/", self.greet)
        self.app.router.add_get("/slow", self.slow)
        self.app.router.add_get("/large", self.large)
        self.over = asyncio.Event()
        self.app.router.add_post("/", self.greet)

    async def greet(self, request: web.Request) -> web.Response:
        self.requests += 1
        await request.read()
        return web.Response(text="hello")

    async def slow(self, _: web.Request) -> web.Response:
        self.arrived.set()
        await self.go_on.wait()
        return web.Response(text="at last")

    async def large(self, request: web.Request) -> web.StreamResponse:
        """More than the buffers of two sockets hold."""
        response = web.StreamResponse(headers={"Content-Length": str(LARGE)})
        with suppress(ConnectionError):
            await response.prepare(request)
            for _ in range(LARGE // 2**20):
                await response.write(bytes(2**20))
        self.over.set()
        return response


def listener(
    app: web.Application,
    listen: str = "127.0.0.1:0",
    *,
    name: str = "receiver",
    handed_over: tuple[socket.socket, ...] = (),
    **more: object,
) -> Listener:
    settings = ReceiverSettings.model_validate({"listen": listen, "secrets": ["push-secret-1"], **more})
    return Listener(app, settings, name=name, handed_over=handed_over)


class Connection:
    """A client that writes bytes as it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, path: str = "/") -> bytes:
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return await self.answer()

    async def answer(self) -> bytes:
        """One answer, head and body."""
        head = await soon(self.reader.readuntil(b"\r\n\r\n"))
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        return head + await soon(self.reader.readexactly(length))

    async def rest(self) -> bytes:
        """Everything until the connection is over, however it ends."""
        try:
            return await soon(self.reader.read())
        except ConnectionError:
            return b""


@asynccontextmanager
async def connected(base: str) -> AsyncIterator[Connection]:
    where = URL(base)
    reader, writer = await asyncio.open_connection(where.host, where.port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
