"""A connection before its first request: until the head of that is complete, or somebody speaks something else."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Protocol, cast

from asyncchatd.listening.access import Peer, peer_named

LARGEST_HEAD = 64 * 1024
TLS_CLOSE_SECONDS = 2.0
"""How long a client may take to agree that a TLS connection is over."""


class House(Protocol):
    """The listener, as a door knows it."""

    @property
    def header_seconds(self) -> float:
        """Seconds that a connection may take to its first request, and before that to agree on TLS."""

    def comes(self, door: Door) -> bool:
        """Whether the connection may stay."""

    def goes(self, door: Door) -> None:
        """The connection has gone, or is served now."""

    def refused(self, cause: str, door: Door) -> None:
        """The connection was hung up on, and why."""

    def serve(self) -> asyncio.Protocol:
        """The protocol that takes the door's place."""


class Door(asyncio.Protocol):
    """A connection until its first request head is complete; then aiohttp's protocol takes its place.

    aiohttp would wait for ever for it. A slow head of a later request is bounded by the keep-alive
    time-out, because that runs on until a request is complete.
    """

    def __init__(self, listener: House) -> None:
        self._listener = listener
        self._head = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._accepted: socket.socket | None = None
        self._opening: asyncio.Task[None] | None = None
        self._tls = False
        self.client: Peer | None = None

    def open_to(self, accepted: socket.socket, peername: object, context: ssl.SSLContext | None) -> None:
        """Listen to a connection that was just accepted, and speak TLS with it where there is a `context`."""
        self.client = peer_named(accepted.family, peername)
        if not self._listener.comes(self):
            accepted.close()
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._listener.header_seconds, self._late)
        self._accepted = accepted
        self._tls = context is not None
        self._opening = loop.create_task(self._open(context))

    async def _open(self, context: ssl.SSLContext | None) -> None:
        accepted, self._accepted = self._accepted, None
        assert accepted is not None
        patience = self._listener.header_seconds if context else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self,
                accepted,
                ssl=context,
                ssl_handshake_timeout=patience,
                ssl_shutdown_timeout=TLS_CLOSE_SECONDS if context else None,
            )
        except OSError as error:
            if isinstance(error, ssl.SSLError):
                self._listener.refused(_tls_trouble(error), self)
            self._leave()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self._opening = None

    def data_received(self, data: bytes) -> None:
        head, new = self._head, len(self._head)
        head += data
        transport = self._transport
        assert transport is not None
        if new < LONGEST_MARK and not self._tls and (mark := _no_http(head)):
            self._listener.refused(mark, self)
            self._leave()
            transport.write(NO_HTTP)
            transport.close()
            return
        # What was looked through before is not looked through again: a head may come byte by byte.
        start = max(0, new - 3)
        if head.find(b"\r\n\r\n", start) >= 0 or head.find(b"\n\n", start) >= 0 or len(head) > LARGEST_HEAD:
            self._leave()
            served = self._listener.serve()
            transport.set_protocol(served)
            served.connection_made(transport)
            served.data_received(bytes(head))

    def _late(self) -> None:
        if self._tls and self._opening is not None:
            self._listener.refused("TLS: no handshake in time", self)
        self.shut()

    def shut(self) -> None:
        """Hang up."""
        self._leave()
        if self._accepted is not None:
            self._accepted.close()
        if self._opening is not None:
            self._opening.cancel()
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        self._leave()

    def _leave(self) -> None:
        self._listener.goes(self)
        if self._timer is not None:
            self._timer.cancel()


NO_HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

MARKS = {
    b"\x16\x03": "TLS on a port without tls_certificate",
    b"PROXY ": "PROXY protocol, which is not spoken here: have the proxy send X-Forwarded-For",
    b"\r\n\r\n\0\r\nQUIT\n": "PROXY protocol, which is not spoken here: have the proxy send X-Forwarded-For",
}
"""How what is no HTTP begins, and what it is: an operator's own, set up one line short."""

LONGEST_MARK = max(map(len, MARKS))


def _no_http(head: bytearray) -> str | None:
    return next((said for mark, said in MARKS.items() if head.startswith(mark)), None)


def _tls_trouble(error: ssl.SSLError) -> str:
    reason = error.reason or "FAILED"
    return {
        "HTTP_REQUEST": "plain HTTP on a port with tls_certificate",
        "HTTPS_PROXY_REQUEST": "plain HTTP on a port with tls_certificate",
        "WRONG_VERSION_NUMBER": "TLS: wrong version number: no TLS at all, plain HTTP or a PROXY header perhaps",
    }.get(reason, f"TLS: {reason.lower().replace('_', ' ')}")
