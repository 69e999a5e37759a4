"""A loopback port that can be open or closed and keeps its number: how a server of the plant lives,
dies and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from asyncchatd.standin.settings import SettingError, is_loopback

Answering = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

BACKLOG = 1024


class LoopbackPort:
    """One HTTP server on one loopback address.

    The number is taken when the object is made and kept until `release`, closed or not: a socket
    that is bound and never listens refuses connections, and keeps the system from giving the number
    to somebody else meanwhile. Raises `SettingError` for an address that is not loopback, `OSError`
    when the port is taken.
    """

    def __init__(self, answer: Answering, host: str = "127.0.0.1", number: int = 0) -> None:
        if not is_loopback(host):
            raise SettingError(host, "expected a loopback address: a plant answers nobody else")
        self._answer = answer
        self._host = "127.0.0.1" if host == "localhost" else host
        self._held = bound(self._host, number)
        self.number: int = self._held.getsockname()[1]
        self._listener: asyncio.Server | None = None
        self._web: web.Server | None = None
        self._at_work: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        """`http://host:port`, without a slash at its end."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.number}"

    @property
    def is_open(self) -> bool:
        """Whether it accepts connections."""
        return self._listener is not None

    async def open(self) -> None:
        """Listens. Nothing happens when it does already."""
        if self._listener is None:
            self._web = web.Server(self._tracked, access_log=None)
            listening = bound(self._host, self.number)
            loop = asyncio.get_running_loop()
            self._listener = await loop.create_server(self._web, sock=listening, backlog=BACKLOG)

    async def close(self) -> None:
        """Dies: connections are dropped, requests at work are forgotten."""
        listener, server = self._listener, self._web
        if listener is None or server is None:
            return
        self._listener = self._web = None
        await stop_listening(listener)
        for task in self._at_work:
            task.cancel()
        for connection in server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        # aiohttp takes 0 for "without limit"; everything is cancelled, so this is only a turn of the loop.
        await server.shutdown(0.05)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await listener.wait_closed()

    async def release(self) -> None:
        """Closes, and gives the number back."""
        await self.close()
        self._held.close()

    async def _tracked(self, request: web.BaseRequest) -> web.StreamResponse:
        # Known by task, because aiohttp loses sight of a handler whose client has gone.
        task = asyncio.current_task()
        assert task is not None
        self._at_work.add(task)
        try:
            return await self._answer(request)
        finally:
            self._at_work.discard(task)


async def stop_listening(server: asyncio.Server) -> None:
    """Ends a server of asyncio's own loop; connections that it accepted before are known to its protocols by then.

    asyncio gives a connection to its protocol two turns of the loop after it is accepted. One whose server
    is closed in between it drops, with a socket that nobody closes (`Server._attach` asserts that it is open).
    """
    loop = asyncio.get_running_loop()
    for each in server.sockets:
        loop.remove_reader(each.fileno())
    for _ in range(2):
        await asyncio.sleep(0)
    server.close()


def bound(host: str, number: int) -> socket.socket:
    """A socket that has a port of `host`, any for 0, and refuses connections. Another can be bound to it besides."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((host, number))
    except BaseException:
        one.close()
        raise
    one.setblocking(False)
    return one
