"""Who may use a listener: networks, and proxies that are believed.

What is known when a connection is accepted is decided then, so that a request costs nothing more.
Behind a trusted proxy the client is known only from each request's header.
"""

from __future__ import annotations

import ipaddress
import socket
from asyncio import BaseTransport
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Literal, TypeVar

import orjson
from aiohttp import HttpVersion11, hdrs, web
from aiohttp.typedefs import Handler, Middleware
from multidict import CIMultiDict, CIMultiDictProxy

from asyncchatd.config import ListenerSettings
from asyncchatd.log import Event, Gathered
from asyncchatd.model import Clock
from asyncchatd.wire import error_body

REFUSALS_LOG_SECONDS = 60.0
REMEMBERED_ADDRESSES = 4_096
SAFE_METHODS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Peer = Address | Literal["unix"]
"""The other end of a connection."""

Headers = CIMultiDictProxy[str] | CIMultiDict[str]

Heard = Callable[[str, object], None]
"""Hears of a refusal: its cause, and the client."""


class Refusals:
    """Says who was refused and why, for each cause one line a minute with the count since the last: a scan
    does not fill the log."""

    def __init__(self, listener: str, clock: Clock | None = None, heard: Heard | None = None) -> None:
        """`heard` hears of each one at once, with its cause and the client."""
        self._listener = listener
        self._gathered = Gathered(clock)
        self._heard = heard

    def before(self, app: web.Application) -> None:
        """Tell the rest when the application ends."""
        app.on_cleanup.append(self._tell_rest)

    def add(
        self,
        cause: str,
        client: object,
        *,
        event: Event = Event.CLIENT_REFUSED,
        every: float = REFUSALS_LOG_SECONDS,
        kind: str | None = None,
    ) -> None:
        """One more. `every` is the seconds between two lines; the last client stands for all of them. A cause that says
        what a client has sent belongs to a `kind`: else each would have a line of its own."""
        shown = None if client is None else address_shown(client)
        if self._heard is not None:
            self._heard(cause, client)
        self._gathered.add(kind or cause, event, every, listener=self._listener, cause=cause, client=shown)

    async def _tell_rest(self, _: web.Application) -> None:
        self._gathered.tell_rest()


class Access:
    """The networks of one listener."""

    def __init__(self, settings: ListenerSettings, refusals: Refusals) -> None:
        self._refusals = refusals
        self._proxies = settings.trusted_proxies
        self.reload(settings)

    def reload(self, settings: ListenerSettings) -> None:
        """Let these networks in from now on."""
        self._allow = settings.allow
        self._welcome = lru_cache(REMEMBERED_ADDRESSES)(self._may_connect)

    def admits(self, who: Peer | None) -> bool:
        """Whether a connection from there is served at all."""
        if not self._allow or self._welcome(who):
            return True
        self._refusals.add("network", who)
        return False

    def _may_connect(self, who: Peer | None) -> bool:
        return who == "unix" or self._trusted(who) or _within(who, self._allow)

    def middlewares(self) -> list[Middleware]:
        """What looks at each request: nothing, unless there are proxies."""
        return [self._behind_proxies] if self._proxies else []

    @web.middleware
    async def _behind_proxies(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The client as the trusted proxies tell it, from here on `request.remote`."""
        who = peer(request.transport)
        if not self._trusted(who):
            return await handler(request)
        client = self._client(request, who)
        if client is None or not (client == "unix" or not self._allow or _within(client, self._allow)):
            self._refusals.add("network" if client else "forwarded header", client or who)
            return refusal(403, "forbidden", "this client may not use this listener")
        return await handler(request if client == "unix" else request.clone(remote=str(client)))

    def _client(self, request: web.Request, proxy: Peer | None) -> Peer | None:
        """The last address of the way here that is no trusted proxy's. A client can put anything before
        it; where the two headers tell different stories, one of them is the client's own."""
        told = [
            _last_stranger(chain, self._trusted)
            for chain in (x_forwarded_for(request.headers), forwarded(request.headers))
            if chain
        ]
        if not told:
            return proxy  # a request of its own
        return told[0] if len(set(told)) == 1 else None

    def _trusted(self, who: Peer | None) -> bool:
        return ("unix" in self._proxies) if who == "unix" else _within(who, self._proxies)


def _within(who: Peer | None, networks: Iterable[object]) -> bool:
    return isinstance(who, Address) and any(
        who in network
        for network in networks
        if isinstance(network, ipaddress.IPv4Network | ipaddress.IPv6Network)
    )


def peer(transport: BaseTransport | None) -> Peer | None:
    """Who is at the other end; `None` when nobody is any more."""
    connected = None if transport is None else transport.get_extra_info("socket")
    if transport is None or connected is None:
        return None
    return peer_named(connected.family, transport.get_extra_info("peername"))


def peer_named(family: int, peername: object) -> Peer | None:
    """Who that is whom a socket of this family calls so."""
    if family == socket.AF_UNIX:
        return "unix"
    return address_in(str(peername[0])) if isinstance(peername, tuple) else None


def address_in(text: str) -> Address | None:
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def address_shown(client: object) -> str:
    """An address as an operator writes it: `::ffff:10.0.0.7`, as a socket for both kinds has it, is 10.0.0.7."""
    text = str(client)
    return str(address_in(text) or text)


# The way a request came, as proxies tell it: the client first, the last proxy's own client at the end.


def x_forwarded_for(headers: Headers) -> list[Address | None]:
    """Addresses in `X-Forwarded-For`; `None` for what is none."""
    return [_node(part.strip()) for line in headers.getall("X-Forwarded-For", ()) for part in line.split(",")]


def forwarded(headers: Headers) -> list[Address | None]:
    """Addresses in `Forwarded` (RFC 7239); `None` for what is none, such as `unknown`."""
    found: list[Address | None] = []
    for line in headers.getall(hdrs.FORWARDED, ()):
        for hop in line.split(","):
            pairs = [pair.partition("=") for pair in hop.split(";")]
            told = [value.strip() for name, _, value in pairs if name.strip().lower() == "for"]
            found.append(_node(told[0].strip('"')) if len(told) == 1 else None)
    return found


def _node(text: str) -> Address | None:
    """An address, perhaps with a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return address_in(text)


def _last_stranger(chain: Sequence[Address | None], trusted: Callable[[Peer | None], bool]) -> Address | None:
    for address in reversed(chain):
        if not trusted(address):
            return address
    return chain[0]


# Who keeps a connection.

_STAY = web.ResponseKey("asyncchatd.stay", bool)

Answer = TypeVar("Answer", bound=web.StreamResponse)


def may_stay(response: Answer) -> Answer:
    """The answer to somebody who has shown that he may use this listener. Strangers get theirs and go, whatever
    they asked for in which way: else they could take every place without knowing anything."""
    response[_STAY] = True
    return response


def must_go(response: web.StreamResponse) -> bool:
    """Whether the connection ends with this answer: a refusal of somebody who has shown nothing."""
    return response.status >= 400 and _STAY not in response


# Who is told to send his body (Expect: 100-continue).


async def go_on_later(request: web.Request) -> None:
    """The expectation is met by `go_on`, once it is known who asks: a stranger is told nothing, and goes. For
    aiohttp's `expect_handler`. Raises `HTTPExpectationFailed`."""
    if not waits_for_go_on(request) and request.version >= HttpVersion11:
        raise web.HTTPExpectationFailed(text="expected 100-continue")


async def go_on(request: web.Request) -> None:
    """Ask for the body of somebody who waits to be asked."""
    if waits_for_go_on(request) and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # nothing of the answer itself


def waits_for_go_on(request: web.Request) -> bool:
    """Whether no body comes before it is asked for."""
    return request.headers.get(hdrs.EXPECT, "").lower() == "100-continue"


def refusal(status: int, code: str, message: str) -> web.Response:
    """A stranger gets his answer, and his connection is closed: only those who may use it keep one."""
    headers: CIMultiDict[str] = CIMultiDict()
    if status == 401:
        for challenge in ('Basic realm="asyncchatd", charset="UTF-8"', 'Bearer realm="asyncchatd"'):
            headers.add(hdrs.WWW_AUTHENTICATE, challenge)
    response = web.Response(
        body=orjson.dumps(error_body(code, message), option=orjson.OPT_APPEND_NEWLINE),
        status=status,
        content_type="application/json",
        headers=headers,
    )
    response.force_close()
    return response
