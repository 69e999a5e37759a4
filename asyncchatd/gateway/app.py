"""The door of the gateway: which requests of chat clients are served, and what browsers have to be told.

Who is refused is refused before anything is looked up and before a body is read: the page of a foreign origin, a path
that is none of the Chat API, a client without an apikey where one is asked for. What is left goes on to whoever serves
the chats. No cookie is set, and none is read.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import unquote

import orjson
from aiohttp import hdrs, web

from asyncchatd.config import GatewaySettings, Settings
from asyncchatd.listening import Body, BodyError, Refusals, alive, go_on, go_on_later, may_stay
from asyncchatd.model import Clock
from asyncchatd.wire import error_body

LARGEST_FORM = 128 * 1024
"""Bytes of a form, unpacked. What a customer writes and what a page knows of him is far shorter."""

PREFLIGHT_SECONDS = 7_200
"""How long a browser goes by the answer to an OPTIONS: as long as any of them does. Each request says its origin again,
and is asked for it again."""

MOST_HEADERS = 32
"""Of those that a browser asks for, so many are allowed at most."""

EXPOSED = "Content-Disposition, Retry-After"
"""What a page may read of an answer beside its body, and what is no secret of ours."""


class GatewayRequest:
    """One request of a chat client that may be served."""

    __slots__ = ("form", "http", "parts", "stranger", "tail")

    def __init__(self, http: web.Request, tail: str, *, stranger: bool) -> None:
        self.http = http
        """What came, for who streams, or holds an answer. The body has been read, unless it `is_upload`."""
        self.tail = tail
        """The path behind `.../2/chat/`, percent-encoded as it was sent."""
        self.parts = tuple(part for part in tail.split("/") if part)
        """The segments of the path, service, chat id and operation, as they were sent; empty ones do not count."""
        self.form = b""
        """The body, unpacked; nothing of an upload."""
        self.stranger = stranger
        """Whether it lacks an apikey. Then it is a poll, which never gets an HTTP error: it is answered without
        news."""

    @property
    def client(self) -> str | None:
        """Address of the client, as trusted proxies tell it; `None` on a Unix socket."""
        return self.http.remote or None

    @property
    def content_type(self) -> str:
        """The header, with its parameters; empty without one."""
        return self.http.headers.get(hdrs.CONTENT_TYPE, "")

    @property
    def is_upload(self) -> bool:
        """Whether a file is sent, which is read by whoever takes it, up to `gateway.max_upload`."""
        return len(self.parts) == 3 and self.parts[2] == "file"

    @property
    def is_poll(self) -> bool:
        """Whether it only asks for news."""
        return len(self.parts) == 3 and self.parts[2] == "refresh"

    @property
    def is_stream(self) -> bool:
        """Whether it asks for a stream of events, which only the gateway has."""
        return len(self.parts) == 3 and self.parts[2] == "events"

    @property
    def asks_ticket(self) -> bool:
        """Whether it asks for a ticket to such a stream."""
        return len(self.parts) == 4 and self.parts[2:] == ("events", "ticket")

    @property
    def begins_chat(self) -> bool:
        """Whether a chat is asked for."""
        return len(self.parts) == 1


class Serving(Protocol):
    """Whoever serves the chats."""

    async def serve(self, request: GatewayRequest) -> web.StreamResponse:
        """The answer to a request. aiohttp does not cancel it when the client has gone: who holds it, listens for that
        with `heard_leaving`."""


class Gateway:
    """The gateway's aiohttp application: who may, and who not."""

    def __init__(
        self,
        settings: GatewaySettings,
        chats: Serving | None = None,
        clock: Clock | None = None,
        *,
        instance: str = "",
    ) -> None:
        """Without `chats` nobody serves any. `instance` is that of the configuration, which probes are told."""
        self._instance = instance
        self._chats = chats
        self._body_seconds = settings.body_timeout.total_seconds()
        self._refusals = Refusals("gateway", clock)
        self._take(settings)

    def reload(self, settings: Settings) -> None:
        """Serve these origins, apikeys and services, and no others, from now on."""
        assert settings.gateway is not None, "to have none takes a start"
        self._take(settings.gateway)

    def _take(self, settings: GatewaySettings) -> None:
        self._origins = frozenset(settings.origins)
        self._apikeys = tuple(key.encode() for key in settings.apikeys)
        self._services = frozenset(settings.services)
        self._api = _under(settings.path)

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=LARGEST_FORM)
        self._refusals.before(app)
        app.on_response_prepare.append(self._for_browsers)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_route("*", "/{path:(?s:.*)}", self._answer, expect_handler=go_on_later)
        return app

    async def _healthz(self, _: web.Request) -> web.Response:
        """For load balancers: this port is served."""
        return alive(self._instance)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        """Whatever comes. 403 a foreign page, 404 no call of the Chat API, 405 another method, 403 no apikey; of what a
        client sends, 408 too slow, 413 too large, 400 and 415 unreadable."""
        if not self._is_served(request):
            return _refused(403, "foreign_origin", "expected a page of an origin in gateway.origins")
        found = self._api.fullmatch(request.rel_url.raw_path)
        if found is None:
            self._refusals.add("no such path", request.remote)
            return _refused(404, "not_found", "expected a call of the Chat API: .../2/chat/SERVICE")
        asked = GatewayRequest(request, found[1], stranger=not self._has_apikey(request))
        methods = (hdrs.METH_GET, hdrs.METH_POST) if asked.is_stream else (hdrs.METH_POST,)
        if request.method == hdrs.METH_OPTIONS:
            return _preflight(request, methods)
        if request.method not in methods:
            refused = _refused(405, "method_not_allowed", f"expected {' or '.join(methods)}")
            refused.headers[hdrs.ALLOW] = ", ".join((*methods, hdrs.METH_OPTIONS))
            return refused
        return await self._call(asked)

    async def _call(self, request: GatewayRequest) -> web.StreamResponse:
        """A call of the Chat API."""
        shows_ticket = request.http.method == hdrs.METH_GET  # which was given to somebody with an apikey
        if request.stranger and not request.is_poll and not shows_ticket:
            self._refusals.add("apikey", request.http.remote)
            # Not 401, which wants a challenge: browsers ask people for a password then, and some clients fail without.
            return refused_call(403, "expected a header apikey with a value of gateway.apikeys_file")
        if request.begins_chat and self._services and unquote(request.parts[0]) not in self._services:
            self._refusals.add("service", request.http.remote)
            return refused_call(404, "expected one of the chat services that are served here")
        try:
            await go_on(request.http)
            if not request.is_upload:
                request.form = await self._form(request.http)
        except web.HTTPRequestEntityTooLarge:
            return cut_off(413, f"expected a form of at most {LARGEST_FORM} bytes")
        except TimeoutError:
            return cut_off(408, f"expected the whole form within {self._body_seconds:g} s")
        except BodyError as error:
            return refused_call(error.status, str(error))
        except (web.HTTPException, web.RequestPayloadError, ValueError, OSError) as error:
            return refused_call(400, f"the form cannot be read: {type(error).__name__}")
        if self._chats is None:
            return refused_call(404, "expected no call: no chats are served here")
        return may_stay(await self._chats.serve(request))

    async def _form(self, request: web.Request) -> bytes:
        if request.content.is_eof():
            body = await request.read()  # all of it is here, as nearly always: no timer for it
        else:
            async with asyncio.timeout(self._body_seconds):
                body = await request.read()
        if hdrs.CONTENT_ENCODING not in request.headers:
            return body
        # What its charset is, is said by who reads the form: it concerns what stands behind the percent signs, too.
        packed = Body({hdrs.CONTENT_ENCODING: request.headers[hdrs.CONTENT_ENCODING]})
        whole = packed.whole(body, LARGEST_FORM)
        if whole is None:
            raise web.HTTPRequestEntityTooLarge(max_size=LARGEST_FORM, actual_size=len(body))
        return whole

    def _is_served(self, request: web.Request) -> bool:
        """Whether no page sent it, or one of an origin that is served."""
        origins = request.headers.getall(hdrs.ORIGIN, [])
        foreign = [origin for origin in origins if origin not in self._origins]
        if foreign or len(origins) > 1:
            cause = f"the origin {(foreign or origins)[0][:100]!a}, which gateway.origins does not name"
            self._refusals.add(cause, request.remote, kind="origin")
            return False
        return True

    def _has_apikey(self, request: web.Request) -> bool:
        """Whether it shows one, where one is asked for. Each is looked at in constant time, whichever fits."""
        if not self._apikeys:
            return True
        told = request.headers.get("apikey", "").encode("utf-8", "surrogateescape")
        known = False
        for apikey in self._apikeys:
            known |= hmac.compare_digest(told, apikey)
        return known

    async def _for_browsers(self, request: web.Request, response: web.StreamResponse) -> None:
        """What every answer says, also one that is streamed."""
        headers = response.headers
        headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
        headers.setdefault("X-Content-Type-Options", "nosniff")
        if hdrs.VARY not in headers:
            headers[hdrs.VARY] = hdrs.ORIGIN
        origin = request.headers.get(hdrs.ORIGIN)
        if origin in self._origins:
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
            headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED


def refused_call(status: int, advice: str) -> web.Response:
    """A call of the Chat API that goes no further, in the form of its replies: they say 2, that it is of no use to
    repeat it, and nothing that a client could take over."""
    reply = {
        "statusCode": 2,
        "errors": [{"code": status, "advice": advice}],
        "messages": [],
        "chatEnded": False,
    }
    return _json(status, reply)


def cut_off(status: int, advice: str) -> web.Response:
    """The rest of the body may be still under way."""
    response = refused_call(status, advice)
    response.force_close()
    return response


def _refused(status: int, code: str, message: str) -> web.Response:
    """What is no call of the Chat API."""
    return _json(status, error_body(code, message))


def as_response(body: bytes, status: int = 200) -> web.Response:
    """The answer with this reply. Widgets take it for JSON only when its type says so."""
    return web.Response(body=body, status=status, content_type="application/json", charset="utf-8")


def _json(status: int, value: object) -> web.Response:
    return as_response(orjson.dumps(value), status)


def _preflight(request: web.Request, methods: Sequence[str]) -> web.Response:
    """What a browser asks before it sends something that a form could not. Clients in the field send headers of their
    own, and the origin is trusted, so whatever can be the name of a header is allowed."""
    response = web.Response(status=204, headers={hdrs.ALLOW: ", ".join((*methods, hdrs.METH_OPTIONS))})
    if hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
        asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
        names = [name for name in map(str.strip, asked.split(",")) if _HEADER.fullmatch(name)]
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = ", ".join(methods)
        response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(PREFLIGHT_SECONDS)
        if names:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = ", ".join(names[:MOST_HEADERS])
        response.headers[hdrs.VARY] = ", ".join(
            (hdrs.ORIGIN, hdrs.ACCESS_CONTROL_REQUEST_METHOD, hdrs.ACCESS_CONTROL_REQUEST_HEADERS)
        )
    return response


_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
"""The name of a header (RFC 9110, section 5.6.2)."""


def _under(path: str) -> re.Pattern[str]:
    """What the paths of the Chat API look like below this base path. Clients in the field have slashes too many."""
    named = [re.escape(part) for part in path.split("/") if part]
    return re.compile("".join(f"/+{part}" for part in (*named, "2", "chat")) + r"/+([^/].*)", re.DOTALL)
