"""Reading a Chat Server's health page over HTTP: one way, for the watcher and for `asyncchatd check`.

What is asked is whether a process listens there and which one it is. So whoever answers is alive, whatever
the answer (protocol section 5): a refusal, a page of something else, TLS that does not fit, a redirect. A
redirect is followed only within the server that was configured: what another host says is of another process,
and our client certificate is not for it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import aiohttp
from aiohappyeyeballs import start_connection
from yarl import URL

from asyncchatd.config import ChatServerSettings
from asyncchatd.lacks import own_lack, resolver_words, system_words
from asyncchatd.names import Names, NamesForAiohttp
from asyncchatd.wire import MAX_PAGE, HealthError, HealthPage, read_health

MAX_REDIRECTS = 3

EYEBALLS_SECONDS = 0.25
"""A server with several addresses: when the next one is tried beside one that does not answer (RFC 8305)."""

KEEPALIVE_SECONDS = 30
"""Between two signs of life on a connection on which nothing is said."""

OFF_LOOP_BYTES = 16 * 1024
"""A larger page is taken apart in a thread: 1 MiB of the worst takes half a second, and pushes would wait for it."""

REDIRECTS = {301, 302, 303, 307, 308}


@dataclass(frozen=True, slots=True)
class Page:
    """A look that read the health page."""

    page: HealthPage


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A look that somebody answered, but not with a health page: the server is alive."""

    why: str
    status: int | None = None
    """Of the answer, where it is what is wrong."""
    error: Exception | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A look that nobody answered."""

    why: str
    error: Exception | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Unseen:
    """A look that could not be made: the daemon had no descriptor left, or nothing tells where the server is. That says
    nothing of the server."""

    why: str
    error: Exception | None = field(default=None, compare=False)


Seen = Page | Unreadable | Unreachable | Unseen


class HealthPages:
    """Reads health pages; an asynchronous context manager."""

    def __init__(self) -> None:
        self._names = Names()
        self._session: aiohttp.ClientSession | None = None
        self._readers = ThreadPoolExecutor(max_workers=1, thread_name_prefix="health page")

    async def __aenter__(self) -> Self:
        # A new connection each time: that the port accepts is half of what is asked.
        connector = aiohttp.TCPConnector(
            limit=0, force_close=True, use_dns_cache=False, resolver=NamesForAiohttp(self._names)
        )
        self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def look(
        self, server: ChatServerSettings, seconds: float, tls: ssl.SSLContext | None = None
    ) -> Seen:
        """Read one health page; it must come within so many seconds. `tls` is how to speak to an `https` one."""
        try:
            async with asyncio.timeout(seconds):
                body = await self._fetch(URL(server.health_url), seconds, tls)
        except TimeoutError as error:
            seen: Seen = self._late(server, error)
        except (aiohttp.ClientError, OSError, UnicodeError, ValueError) as error:
            seen = _failure(error)
        else:
            return body if isinstance(body, Unreadable) else await self._read(server, body)
        if isinstance(seen, Unreachable):
            self._names.doubt(URL(server.health_url).raw_host or "")
        return seen

    async def connect(
        self, server: ChatServerSettings, seconds: float, protocol: Callable[[], asyncio.Protocol]
    ) -> asyncio.BaseTransport:
        """A connection to the port of a health page, within so many seconds, on which nothing is said: without TLS, as
        that would be something. Raises `OSError`, also where half of the file descriptors are in use: pushes, GMS
        and the looks themselves go first."""
        if _short_of_files():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        url, loop = URL(server.health_url), asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                addresses = await self._names.addresses(url.raw_host or "", url.port or 0)
                reached = await start_connection(addresses, happy_eyeballs_delay=EYEBALLS_SECONDS, loop=loop)
        except UnicodeError as error:
            raise OSError(str(error)) from error
        # A firewall forgets connections on which nothing is said.
        reached.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        reached.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
        transport, _ = await loop.create_connection(protocol, sock=reached)
        return transport

    def _late(self, server: ChatServerSettings, error: TimeoutError) -> Seen:
        if self._names.is_sought(URL(server.health_url).raw_host or ""):
            return Unseen("its name cannot be resolved: the name server does not answer", error)
        return Unreachable("no answer in time", error)

    async def _fetch(self, url: URL, seconds: float, tls: ssl.SSLContext | None) -> bytes | Unreadable:
        assert self._session is not None
        limit, trust = aiohttp.ClientTimeout(total=seconds), True if tls is None else tls
        for _ in range(1 + MAX_REDIRECTS):
            async with self._session.get(url, allow_redirects=False, ssl=trust, timeout=limit) as response:
                status = response.status
                if status not in REDIRECTS:
                    body = await _beginning(response)
                    return body if status == 200 else Unreadable(f"HTTP {status}", status)
                target = _within(url, response.headers.get("Location"))
            if target is None:
                return Unreadable(f"HTTP {status}: it redirects elsewhere, which is not followed", status)
            url = target
        return Unreadable(f"HTTP {status}: it redirects without end", status)

    async def _read(self, server: ChatServerSettings, body: bytes) -> Seen:
        try:
            if len(body) <= OFF_LOOP_BYTES:
                return _page(server, body)
            return await asyncio.get_running_loop().run_in_executor(self._readers, _page, server, body)
        except HealthError as error:
            return Unreadable(str(error))


def _short_of_files() -> bool:
    """Whether half of the file descriptors are in use. Raises `OSError` where all are."""
    with socket.socket() as lowest_free:
        return lowest_free.fileno() >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


def _page(server: ChatServerSettings, body: bytes) -> Page:
    return Page(read_health(body, start_counter=server.start_counter, uptime_counter=server.uptime_counter))


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """The body. Of a very long one what is looked at, and a byte more, which tells that it was cut off."""
    body = bytearray()
    while len(body) <= MAX_PAGE and (more := await response.content.read(MAX_PAGE + 1 - len(body))):
        body += more
    return bytes(body)


def _within(url: URL, location: str | None) -> URL | None:
    """Where a redirect leads, if that is another page of the same server."""
    try:
        target = url.join(URL(location or ""))
        same = (target.scheme, target.raw_host, target.port) == (url.scheme, url.raw_host, url.port)
    except ValueError:
        return None
    return target.with_fragment(None) if location and same and target.raw_user is None else None


def _failure(error: Exception) -> Seen:
    if _somebody_answered(error):
        return Unreadable(type(error).__name__, error=error)
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if (lack := own_lack(cause)) is not None:
        return Unseen(f"this daemon lacks something for a connection: {lack}", error)
    # A label that is empty or too long is no question for a name server: Python refuses to ask.
    if isinstance(error, aiohttp.ClientConnectorDNSError | UnicodeError):
        words = resolver_words(cause)
        return Unseen(f"its name cannot be resolved{words and ': '}{words}", error)
    return Unreachable(_network_cause(error), error)


def _somebody_answered(error: Exception) -> bool:
    """A certificate that is not trusted, TLS that does not fit, an answer that began and is none: a false
    Content-Encoding, a body cut short, another protocol."""
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        # Who hangs up in the middle of a handshake may just be going.
        return not isinstance(error.os_error, ssl.SSLEOFError | ssl.SSLZeroReturnError)
    return isinstance(
        error,
        aiohttp.ClientConnectorCertificateError
        | aiohttp.ClientPayloadError
        | aiohttp.ClientResponseError
        | aiohttp.InvalidURL,
    )


def _network_cause(error: Exception) -> str:
    words = system_words(error.os_error) if isinstance(error, aiohttp.ClientConnectorError) else None
    return words.lower() if words else type(error).__name__
