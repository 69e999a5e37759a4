"""Listening: an aiohttp application on a TCP address, a Unix socket, or sockets from systemd.

A connection stands at the door until its first request's head is complete: refused there if its network
is not welcome, made to speak TLS, hung up on when it takes too long. Only then aiohttp gets to see it. So
those who are silent or slow cost a few hundred bytes and a file descriptor, and when these run short they
are the first to go: they cannot keep anybody else out.

Stopping first stops accepting, then answers what still comes on open connections with `Connection: close`,
so that the next request goes to the daemon's successor (with a systemd socket nobody notices).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import select
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from asyncchatd.config import Listen, ListenerSettings, Settings
from asyncchatd.listening.access import Access, Peer, Refusals, must_go, peer, peer_named, waits_for_go_on
from asyncchatd.listening.tls import Certificates, TlsError
from asyncchatd.log import Event, get_logger

BACKLOG = 1024
SOCKET_MODE = 0o660
LARGEST_HEAD = 64 * 1024
DRAIN_POLL_SECONDS = 0.02
CUT_OFF_SECONDS = 0.1
"""How long a request that was still being answered after the grace may take to be broken off."""
LINGER_SECONDS = 1.0
"""How long the rest of a refused body is still read, so that its sender gets to see the answer."""
WRITE_SECONDS = 60.0
"""How long a client may take to read what waits for him, beyond what the kernel holds."""
TLS_LOOK_SECONDS = 5.0
"""Between two looks at the TLS files."""
TLS_CLOSE_SECONDS = 2.0
"""How long a client may take to agree that a TLS connection is over."""
ACCEPTED_AT_ONCE = 64
"""Connections accepted in one turn of the event loop."""
ACCEPT_PAUSE_SECONDS = 0.25
"""After an accept that failed, for want of file descriptors for instance."""
ROOM_SECONDS = 0.001
"""After one was hung up on for it: his descriptor is free by then."""
ACCEPT_LOG_SECONDS = 60.0
LEAST_CONNECTIONS = 8
FILES_KEPT = 256
"""File descriptors that no client gets: for the store, for GMS and for health pages."""

log = get_logger()

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
        settings: ListenerSettings,
        *,
        name: str,
        handed_over: Sequence[socket.socket] = (),
    ) -> None:
        """`name` is the section of the configuration. `handed_over` are sockets from systemd; they take
        the place of `listen`."""
        self._settings = settings
        self._listen = settings.listen
        self._name = name
        self._handed_over = list(handed_over)
        self._draining = False
        self._refusals = Refusals(name)
        self._access = Access(settings, self._refusals)
        self._certificates: Certificates | None = None
        self._most = settings.max_connections
        for middleware in reversed(self._access.middlewares()):
            app.middlewares.insert(0, middleware)
        self._refusals.before(app)
        app.on_response_prepare.append(self._before_the_answer)
        self._runner = web.AppRunner(
            app,
            logger=_server_log,
            access_log=None,  # it halves the throughput; the receiver logs its own event
            keepalive_timeout=settings.keepalive_timeout.total_seconds(),
            handle_signals=False,
            shutdown_timeout=CUT_OFF_SECONDS,
            lingering_time=LINGER_SECONDS,
            auto_decompress=False,  # nothing is unpacked before it is known who sends it: bodies.py
        )
        self._retry: asyncio.TimerHandle | None = None
        """Accepting goes on then."""
        self._accept_failed_at = float("-inf")
        self._sockets: list[socket.socket] = []
        self._doors: dict[_Door, None] = {}
        """Those who have not finished a request's head, the longest waiting first."""
        self._looking: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Begin to accept. Raises `ListenError`."""
        await self._runner.setup()
        try:
            self._sockets = self._handed_over or _bind(self._listen, self._name)
            for each in self._handed_over:
                _check_handed_over(each, self._name)
            if objection := self._objection(self._settings):
                raise ListenError(objection)
            self._most = self._affordable()
            if self._settings.tls_certificate is not None:
                self._certificates = Certificates(self._settings, self._name)
                self._look_at_certificates()
            for each in self._sockets:
                each.setblocking(False)
                each.listen(BACKLOG)
            self._accept_on()
        except BaseException as error:
            self._stop_accepting()
            await self._runner.cleanup()
            if isinstance(error, TlsError):
                raise ListenError(str(error)) from error
            raise

    def objection(self, settings: Settings) -> str | None:
        """Why it may not serve under these settings, when it may not: what `listen` may not be, a socket
        from systemd may not be either."""
        return self._objection(settings.listener(self._name))

    def _objection(self, its: ListenerSettings) -> str | None:
        for each in self._handed_over:
            if each.family != socket.AF_UNIX:
                host, port = each.getsockname()[:2]
                if objection := its.objection(Listen(host=host, port=port)):
                    return f"{self._name}: the socket from systemd: {objection}"
        return None

    def reload(self, settings: Settings) -> None:
        """Take over `allow` and `max_connections` for those who come from now on."""
        self._settings = settings.listener(self._name)
        self._access.reload(self._settings)
        self._most = self._affordable()

    async def stop(self, grace: float) -> None:
        """Accept nothing more and answer what comes on open connections for up to `grace` seconds."""
        self._draining = True
        self._forget_socket_file()  # while it is ours: a successor may make its own as soon as we let go
        self._stop_accepting()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                # aiohttp has no event for the last connection's end.
                while self._doors or self._served:  # noqa: ASYNC110
                    await asyncio.sleep(DRAIN_POLL_SECONDS)
        for door in list(self._doors):
            door.shut()
        await self._runner.cleanup()

    def _accept_on(self) -> None:
        loop = asyncio.get_running_loop()
        self._retry = None
        for each in self._sockets:
            # A server of asyncio's tells nobody of a connection before its handshake is done, and uvloop's accepts
            # nothing more once file descriptors ran out.
            loop.add_reader(each.fileno(), self._accept, each)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                accepted, peername = listening.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # gone already
            except OSError as error:
                if _somebody_waits(listening):  # without a descriptor it fails in any case
                    self._cannot_accept(error)
                return
            accepted.setblocking(False)
            context = None if self._certificates is None else self._certificates.context
            _Door(self).open_to(accepted, peername, context)

    def _cannot_accept(self, error: OSError) -> None:
        """Who comes waits in the kernel. One that is silent or idle makes room, if there is any."""
        loop = asyncio.get_running_loop()
        self._pause_accepting()
        pause = ROOM_SECONDS if self._make_room(self._served) else ACCEPT_PAUSE_SECONDS
        self._retry = loop.call_later(pause, self._accept_on)
        if loop.time() - self._accept_failed_at >= ACCEPT_LOG_SECONDS:
            self._accept_failed_at = loop.time()
            log.error(Event.ACCEPT_FAILED, listener=self._name, cause=error.strerror or repr(error))

    def _pause_accepting(self) -> None:
        loop = asyncio.get_running_loop()
        for each in self._sockets:
            if each.fileno() >= 0:
                loop.remove_reader(each.fileno())

    def _stop_accepting(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        if self._retry is not None:
            self._retry.cancel()
        self._pause_accepting()
        for each in self._sockets:
            each.close()

    def _affordable(self) -> int:
        """`max_connections`, or what the file descriptors of this process allow: half of them is left to
        another listener."""
        most = self._settings.max_connections
        affordable, message, advice = affordable_connections(most)
        if affordable < most:
            log.warning(
                Event.CONFIG_WARNING,
                key=f"{self._name}.max_connections",
                message=message,
                advice=advice,
            )
        return affordable

    def _look_at_certificates(self) -> None:
        assert self._certificates is not None
        self._certificates.look()
        self._looking = asyncio.get_running_loop().call_later(TLS_LOOK_SECONDS, self._look_at_certificates)

    # -- for those at the door --

    @property
    def _served(self) -> list[RequestHandler]:
        return self._runner.server.connections if self._runner.server else []

    def comes(self, door: _Door) -> bool:
        """A connection was accepted: whether it may stay at the door."""
        if not self._access.admits(door.client):
            return False
        served = self._served
        if len(self._doors) + len(served) >= self._most and not self._make_room(served):
            self._refusals.add("all busy", door.client, event=Event.CONNECTIONS_FULL)
            return False
        self._doors[door] = None
        return True

    def goes(self, door: _Door) -> None:
        """It left the door, to be served or because it is lost."""
        self._doors.pop(door, None)

    def refused(self, cause: str, door: _Door) -> None:
        """It was hung up on."""
        self._refusals.add(cause, door.client)

    def serve(self) -> asyncio.Protocol:
        """Who goes on with a connection whose first head is complete."""
        server = self._runner.server
        assert server is not None
        return _Served(server, loop=server._loop, **server._kwargs)

    @property
    def header_seconds(self) -> float:
        """How long each may stand at the door."""
        return self._settings.header_timeout.total_seconds()

    def _make_room(self, served: Sequence[RequestHandler]) -> bool:
        """Let the one go that has been silent longest; those who have asked for something go last, and
        whoever is being answered stays."""
        for door in self._doors:
            self._refusals.add("silent", door.client, event=Event.CONNECTIONS_FULL)
            door.shut()
            return True
        idle = [each for each in served if _is_idle(each)]
        if not idle:
            return False
        longest = min(idle, key=_idle_until)
        self._refusals.add("idle", peer(longest.transport), event=Event.CONNECTIONS_FULL)
        longest.force_close()
        return True

    @property
    def addresses(self) -> list[str]:
        """Where it really listens, with the port the system chose for port 0."""
        return [_address(each) for each in self._sockets]

    async def _before_the_answer(self, request: web.Request, response: web.StreamResponse) -> None:
        # Which library of which version answers is nobody's business.
        response.headers.popall("Server", None)
        if request.content.exception() is not None:
            # After the answer aiohttp reads on to the end of the body. In one that could not be decoded it
            # would only find the same error again, and log it as its own.
            request.content.feed_eof()
            _close_after(response)
        elif self._draining or must_go(response) or _ends(request.protocol):
            _close_after(response)
            if must_go(response) and waits_for_go_on(request):
                request.content.feed_eof()  # nobody asked for a body: none is waited for

    def _forget_socket_file(self) -> None:
        if self._listen.path is not None and self._sockets and not self._handed_over:
            with suppress(FileNotFoundError):
                os.unlink(self._listen.path)


def _close_after(response: web.StreamResponse) -> None:
    """At this point aiohttp has made the headers already: `force_close` alone would hang up on a client
    that was not told."""
    response.force_close()
    response.headers["Connection"] = "close"


def _ends(connection: RequestHandler) -> bool:
    return isinstance(connection, _Served) and connection.ends


def _is_idle(connection: RequestHandler) -> bool:
    """No request is being answered or waits. aiohttp tells it nowhere else."""
    return not (connection._request_in_progress or connection._messages or connection.transport is None)


def _idle_until(connection: RequestHandler) -> float:
    return connection._next_keepalive_close_time


class _Door(asyncio.Protocol):
    """A connection until its first request head is complete; then aiohttp's protocol takes its place.

    aiohttp would wait for ever for it. A slow head of a later request is bounded by the keep-alive
    time-out, because that runs on until a request is complete.
    """

    def __init__(self, listener: Listener) -> None:
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


class _Served(RequestHandler):
    """aiohttp's protocol, but for two things.

    It would keep an answer that nobody reads, and its connection, for ever: closing it waits for the reader, too.
    And it would hang up on a client that says that it has asked all it wants to (`shutdown(SHUT_WR)`, as `nc -N`
    does) before it was answered.
    """

    __slots__ = ("_asks_no_more", "_patience")

    _asks_no_more: bool
    _patience: asyncio.TimerHandle | None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._asks_no_more = False
        self._patience = None
        super().connection_made(transport)

    def eof_received(self) -> Any:  # aiohttp's own answers nothing
        """Whether the connection stays, to be closed after the answer. TLS has no half of a connection."""
        transport, idle = self.transport, self._waiter is not None and not self._waiter.done()
        if idle or transport is None or transport.get_extra_info("sslcontext") is not None:
            return False
        try:
            if self._parser is not None:
                self._parser.feed_eof()
        except HttpProcessingError:
            return False  # in the middle of a body
        self._asks_no_more = True
        if not self._messages:
            self.close()
        return True

    @property
    def ends(self) -> bool:
        """Whether the answer that begins now is the last one."""
        return self._asks_no_more and not self._messages

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def force_close(self) -> None:
        self._wait_for_reader()
        super().force_close()

    def _wait_for_reader(self) -> None:
        transport = self.transport
        if self._patience is None and transport is not None and transport.get_write_buffer_size():
            self._patience = asyncio.get_running_loop().call_later(WRITE_SECONDS, transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._wait_no_more()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._wait_no_more()

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def _somebody_waits(listening: socket.socket) -> bool:
    look = select.poll()
    look.register(listening, select.POLLIN)
    return bool(look.poll(0))


def affordable_connections(most: int) -> tuple[int, str, str]:
    """How many of `most` connections one listener may have with the file descriptors of this process, half of which
    are left to another listener; if not all, why in words, and what to do."""
    files = raise_file_limit()
    affordable = min(most, max(LEAST_CONNECTIONS, (files - FILES_KEPT) // 2))
    message = f"{most}, but with {files} open files allowed it can only be {affordable}"
    needed = 2 * most + FILES_KEPT
    return affordable, message, f"raise LimitNOFILE= in the unit (or ulimit -Hn) to {needed}, or set it lower"


def raise_file_limit() -> int:
    """Allow this process as many open files as it may allow itself; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft


def by_listener(
    handed_over: Mapping[str, Sequence[socket.socket]], listens: Mapping[str, Listen]
) -> dict[str, list[socket.socket]]:
    """Sockets from systemd for the listeners of these names. One that is called otherwise, as it is when the unit
    lacks `FileDescriptorName=`, is taken by the listener that is configured for its port or path. Raises
    `ListenError` when there is none: else it would stand open, and nobody would answer there."""
    found = {name: list(handed_over.get(name, ())) for name in listens}
    for label, sockets in handed_over.items():
        for each in sockets if label not in listens else ():
            fits = [name for name, listen in listens.items() if _is_at(each, listen) and not found[name]]
            unit = label if label.endswith(".socket") else "the socket unit"
            if len(fits) != 1:
                raise ListenError(
                    f"systemd hands over {_address(each)} under the name {label!r}: {unit} needs, in its [Socket]"
                    f" section, {' or '.join(f'FileDescriptorName={name}' for name in listens)}"
                )
            [name] = fits
            found[name].append(each)
            log.warning(
                Event.CONFIG_WARNING,
                key=f"{name}.listen",
                message=f"{_address(each)} from systemd has the name {label!r}; it is taken for the {name}'s",
                advice=f"add FileDescriptorName={name} to the [Socket] section of {unit}",
            )
    return found


def _check_handed_over(each: socket.socket, name: str) -> None:
    """Raises `ListenError` for a socket on which nothing can be accepted."""
    if each.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) != socket.SOCK_STREAM:
        trouble = "takes datagrams: its socket unit needs ListenStream= instead of ListenDatagram="
    elif _is_connection(each):
        trouble = "is a single connection: its socket unit needs Accept=no, or no Accept= at all"
    else:
        return
    raise ListenError(f"{name}: the socket from systemd at {_address(each)} {trouble}")


def _is_connection(each: socket.socket) -> bool:
    """As systemd hands them over, one to each service, under `Accept=yes`."""
    try:
        each.getpeername()
    except OSError as error:
        return error.errno != errno.ENOTCONN
    return True


def _is_at(each: socket.socket, listen: Listen) -> bool:
    if each.family == socket.AF_UNIX:
        return listen.path is not None and each.getsockname() == listen.path
    return listen.port not in (None, 0) and each.getsockname()[1] == listen.port


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
        os.fchmod(each.fileno(), SOCKET_MODE)  # so that it is never wider, not even for a moment
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
