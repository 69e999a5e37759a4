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
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from asyncchatd.config import Listen, ListenerSettings, Settings
from asyncchatd.listening.access import Access, Heard, Refusals, must_go, peer, waits_for_go_on
from asyncchatd.listening.door import Door
from asyncchatd.listening.served import Served, asks_no_more, idle_until, is_idle
from asyncchatd.listening.sockets import (
    BACKLOG,
    ListenError,
    address_of,
    affordable_connections,
    bind,
    check_handed_over,
    somebody_waits,
)
from asyncchatd.listening.tls import Certificates, TlsError
from asyncchatd.log import Event, get_logger

DRAIN_POLL_SECONDS = 0.02
CUT_OFF_SECONDS = 0.1
"""How long a request that was still being answered after the grace may take to be broken off."""
LINGER_SECONDS = 1.0
"""How long the rest of a refused body is still read, so that its sender gets to see the answer."""
TLS_LOOK_SECONDS = 5.0
"""Between two looks at the TLS files."""
ACCEPTED_AT_ONCE = 64
"""Connections accepted in one turn of the event loop."""
ACCEPT_PAUSE_SECONDS = 0.25
"""After an accept that failed, for want of file descriptors for instance."""
ROOM_SECONDS = 0.001
"""After one was hung up on for it: his descriptor is free by then."""
ACCEPT_LOG_SECONDS = 60.0

log = get_logger()

_server_log = logging.getLogger("asyncchatd.http")


@_server_log.addFilter
def _is_ours(record: logging.LogRecord) -> bool:
    """aiohttp reports whatever is not HTTP as an error with a traceback; a port scan would fill the log."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


class Listener:
    """An aiohttp application on its sockets."""

    def __init__(
        self,
        app: web.Application,
        settings: ListenerSettings,
        *,
        name: str,
        handed_over: Sequence[socket.socket] = (),
        beside: Sequence[int] = (),
        answer_longest: Callable[[], bool] = lambda: False,
        heard: Heard | None = None,
    ) -> None:
        """`name` is the section of the configuration. `handed_over` are sockets from systemd; they take
        the place of `listen`. `beside`: how many connections the other listeners of this process want.
        `answer_longest` is for an application that holds answers until there is something to say: it gives the one that
        it has held longest, and says whether it held any. `heard` hears of each connection that is refused."""
        self._settings = settings
        self._listen = settings.listen
        self._name = name
        self._handed_over = list(handed_over)
        self._beside = beside
        self._answer_longest = answer_longest
        self._draining = False
        self._refusals = Refusals(name, heard=heard)
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
        self._doors: dict[Door, None] = {}
        """Those who have not finished a request's head, the longest waiting first."""
        self._looking: asyncio.TimerHandle | None = None
        self._too_many = 0
        """Those who were let in for whom another's held answer is given: so many of the next answers are last ones."""

    async def start(self) -> None:
        """Begin to accept. Raises `ListenError`."""
        await self._runner.setup()
        try:
            self._sockets = self._handed_over or bind(self._listen, self._name)
            for each in self._handed_over:
                check_handed_over(each, self._name)
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
        self._beside = settings.connections_beside(self._name)
        self._access.reload(self._settings)
        self._most = self._affordable()

    async def stop(self, grace: float) -> None:
        """Accept nothing more and answer what comes on open connections for up to `grace` seconds."""
        self._draining = True
        self._forget_socket_file()  # while it is ours: a successor may make its own as soon as we let go
        self._accept_who_waits()
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
                if somebody_waits(listening):  # without a descriptor it fails in any case
                    self._cannot_accept(error)
                return
            accepted.setblocking(False)
            context = None if self._certificates is None else self._certificates.context
            Door(self).open_to(accepted, peername, context)

    def _accept_who_waits(self) -> None:
        """The kernel has let them in and taken their request: it resets them when the socket closes. With a socket from
        systemd they wait there for the successor. Without a descriptor nobody is accepted any more."""
        self._forget_retry()
        for each in [] if self._handed_over else self._sockets:
            for _ in range(0, BACKLOG, ACCEPTED_AT_ONCE):
                if each.fileno() >= 0 and self._retry is None and somebody_waits(each):
                    self._accept(each)

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
        self._forget_retry()
        self._pause_accepting()
        for each in self._sockets:
            each.close()

    def _forget_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _affordable(self) -> int:
        """`max_connections`, or this listener's share of what the file descriptors of this process allow."""
        most = self._settings.max_connections
        affordable, message, advice = affordable_connections(most, self._beside)
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

    def comes(self, door: Door) -> bool:
        """A connection was accepted: whether it may stay at the door."""
        if not self._access.admits(door.client):
            return False
        served = (
            0 if self._runner.server is None else len(self._runner.server._connections)
        )  # not a list of them
        if len(self._doors) + served >= self._most and not self._make_room(self._served):
            self._refusals.add("all busy", door.client, event=Event.CONNECTIONS_FULL)
            return False
        self._doors[door] = None
        return True

    def goes(self, door: Door) -> None:
        """A connection left the door, to be served or because it is lost."""
        self._doors.pop(door, None)

    def refused(self, cause: str, door: Door) -> None:
        """A connection was hung up on."""
        self._refusals.add(cause, door.client)

    def serve(self) -> asyncio.Protocol:
        """The protocol that goes on with a connection whose first head is complete."""
        server = self._runner.server
        assert server is not None
        return Served(server, loop=server._loop, **server._kwargs)

    @property
    def header_seconds(self) -> float:
        """Seconds that each connection may stand at the door."""
        return self._settings.header_timeout.total_seconds()

    def _make_room(self, served: Sequence[RequestHandler]) -> bool:
        """Let the one go that has been silent longest; those who have asked for something go last. Whoever is being
        answered stays, unless the answer is only held: then it is given, and the connection closed after it, as
        there are too many until then."""
        for door in self._doors:
            self._refusals.add("silent", door.client, event=Event.CONNECTIONS_FULL)
            door.shut()
            return True
        idle = [each for each in served if is_idle(each)]
        if not idle:
            answered = self._answer_longest()
            self._too_many += answered
            return answered
        longest = min(idle, key=idle_until)
        self._refusals.add("idle", peer(longest.transport), event=Event.CONNECTIONS_FULL)
        longest.force_close()
        return True

    @property
    def addresses(self) -> list[str]:
        """The addresses where it really listens, with the port the system chose for port 0."""
        return [address_of(each) for each in self._sockets]

    async def _before_the_answer(self, request: web.Request, response: web.StreamResponse) -> None:
        # Which library of which version answers is nobody's business.
        response.headers.popall("Server", None)
        if request.content.exception() is not None:
            # After the answer aiohttp reads on to the end of the body. In one that could not be decoded it
            # would only find the same error again, and log it as its own.
            request.content.feed_eof()
            _close_after(response)
        elif self._too_many:
            self._too_many -= 1
            _close_after(response)
        elif self._draining or must_go(response) or asks_no_more(request.protocol):
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
