"""Listening: an aiohttp application on a TCP address, a Unix socket, or sockets from systemd.

What aiohttp leaves open is closed here: a client that connects and never finishes its first request
head, and a stop that takes the answer away from a request just sent. Stopping first stops accepting,
then answers what still comes on open connections with `Connection: close`, so that the next request
goes to the daemon's successor (with a systemd socket nobody notices).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from asyncchatd.config import Listen

BACKLOG = 1024
SOCKET_MODE = 0o660
LARGEST_HEAD = 64 * 1024
DRAIN_POLL_SECONDS = 0.02
CUT_OFF_SECONDS = 0.1
"""How long a request that was still being answered after the grace may take to be broken off."""
LINGER_SECONDS = 1.0
"""How long the rest of a refused body is still read, so that its sender gets to see the answer."""


_server_log = logging.getLogger("asyncchatd.http")


@_server_log.addFilter
def _is_ours(record: logging.LogRecord) -> bool:
    """aiohttp reports whatever is not HTTP as an error with a traceback; a port scan would fill the log."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


class ListenError(Exception):
    """The address cannot be had; the text says why and what to do."""


class Listener:
    """One application on its sockets."""

    def __init__(
        self,
        app: web.Application,
        listen: Listen,
        *,
        name: str,
        header_timeout: timedelta,
        keepalive_timeout: timedelta,
        handed_over: Sequence[socket.socket] = (),
    ) -> None:
        """`handed_over` are sockets from systemd; they take the place of `listen`."""
        self._listen = listen
        self._name = name
        self._header_seconds = header_timeout.total_seconds()
        self._handed_over = list(handed_over)
        self._draining = False
        app.on_response_prepare.append(_end_broken_body)
        app.on_response_prepare.append(self._before_the_answer)
        self._runner = web.AppRunner(
            app,
            logger=_server_log,
            access_log=None,  # it halves the throughput; the receiver logs its own event
            keepalive_timeout=keepalive_timeout.total_seconds(),
            handle_signals=False,
            shutdown_timeout=CUT_OFF_SECONDS,
            lingering_time=LINGER_SECONDS,
        )
        self._servers: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []

    async def start(self) -> None:
        """Begin to accept. Raises `ListenError`."""
        await self._runner.setup()
        try:
            self._sockets = self._handed_over or _bind(self._listen, self._name)
            for each in self._sockets:
                self._servers.append(
                    await asyncio.get_running_loop().create_server(self._protocol, sock=each, backlog=BACKLOG)
                )
        except BaseException:
            for server in self._servers:
                server.close()
            for each in self._sockets:
                each.close()
            await self._runner.cleanup()
            raise

    async def stop(self, grace: float) -> None:
        """Accept nothing more and answer what comes on open connections for up to `grace` seconds."""
        self._draining = True
        self._forget_socket_file()  # while it is ours: a successor may make its own as soon as we let go
        for server in self._servers:
            server.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                # aiohttp has no event for the last connection's end.
                while self._runner.server is not None and self._runner.server.connections:  # noqa: ASYNC110
                    await asyncio.sleep(DRAIN_POLL_SECONDS)
        await self._runner.cleanup()

    @property
    def addresses(self) -> list[str]:
        """Where it really listens, with the port the system chose for port 0."""
        return [_address(each) for each in self._sockets]

    def _protocol(self) -> asyncio.Protocol:
        server = self._runner.server
        assert server is not None
        return _FirstHead(server(), self._header_seconds)

    async def _before_the_answer(self, _: web.Request, response: web.StreamResponse) -> None:
        # Which library of which version answers is nobody's business.
        response.headers.popall("Server", None)
        if self._draining:
            _close_after(response)

    def _forget_socket_file(self) -> None:
        if self._listen.path is not None and self._sockets and not self._handed_over:
            with suppress(FileNotFoundError):
                os.unlink(self._listen.path)


async def _end_broken_body(request: web.Request, response: web.StreamResponse) -> None:
    """After the answer aiohttp reads on to the end of the body. In one that could not be decoded it
    would only find the same error again, and log it as its own."""
    if request.content.exception() is not None:
        request.content.feed_eof()
        _close_after(response)


def _close_after(response: web.StreamResponse) -> None:
    """At this point aiohttp has made the headers already: `force_close` alone would hang up on a client
    that was not told."""
    response.force_close()
    response.headers["Connection"] = "close"


class _FirstHead(asyncio.Protocol):
    """Stands before aiohttp's protocol until the first request head is complete, then steps aside.

    aiohttp waits for ever for it. A slow head of a later request is bounded by the keep-alive
    time-out, because that runs on until a request is complete.
    """

    def __init__(self, inner: asyncio.Protocol, seconds: float) -> None:
        self._inner = inner
        self._seconds = seconds
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._head += data
        if b"\r\n\r\n" in self._head or b"\n\n" in self._head or len(self._head) > LARGEST_HEAD:
            self._timer.cancel()
            self._transport.set_protocol(self._inner)
        self._inner.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._inner.connection_lost(exc)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


def _bind(listen: Listen, name: str) -> list[socket.socket]:
    try:
        return [_bind_unix(listen.path)] if listen.path is not None else _bind_tcp(listen)
    except OSError as error:
        reason = {
            errno.EADDRINUSE: "is in use; is another asyncchatd running?",
            errno.EADDRNOTAVAIL: "is no address of this host",
            errno.EACCES: "may not be used by this user",
        }.get(error.errno or 0, f"cannot be used: {error.strerror or error}")
        raise ListenError(f"{name}.listen: {listen} {reason}") from error


def _bind_tcp(listen: Listen) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    found = socket.getaddrinfo(
        listen.host or None, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):  # the same address may be found twice
            each = socket.socket(family, kind, protocol)
            sockets.append(each)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            each.setblocking(False)
            each.bind(address)
    except OSError:
        for each in sockets:
            each.close()
        raise
    return sockets


def _bind_unix(path: str) -> socket.socket:
    each = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        each.setblocking(False)
        _remove_stale(path)
        each.bind(path)
        os.chmod(path, SOCKET_MODE)
    except OSError:
        each.close()
        raise
    return each


def _remove_stale(path: str) -> None:
    """A socket file outlives a killed daemon; one that somebody listens on is left alone."""
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            os.unlink(path)


def _address(each: socket.socket) -> str:
    name = each.getsockname()
    if each.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if each.family == socket.AF_INET6 else name[0]
    return f"{host}:{name[1]}"
