"""Who may do what at the control API: tokens and their rights, and no page of another site.

What a client needs for a call is declared in a table of the application. It is looked at before the handler is
called and before a body is read, so that a handler cannot forget to ask.

Against browsers that carry foreign pages (cross-site requests and DNS rebinding) it looks at headers that scripts
do not send, and a script notices nothing.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import orjson
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from aiohttp.web_urldispatcher import AbstractRoute

from asyncchatd.config import ALL_RIGHTS, ORDINARY_RIGHTS, ControlSettings, Right, Rights, Settings
from asyncchatd.listening.access import Headers, Refusals, address_in, may_stay, peer, refusal
from asyncchatd.model import Clock
from asyncchatd.visible import visible
from asyncchatd.wire import error_body

LONGEST_NAME = 64
"""Of a consumer that is named back, characters."""

SAFE_METHODS = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS})


@dataclass(frozen=True, slots=True)
class Need:
    """What a client needs for one call.

    For `Right.EVENTS` the consumers are those that the query names as `consumer`, and the right has to be to each of
    them.
    """

    right: Right | None = None
    """`None`: any token will do."""
    token: bool = True
    """Whether one is needed, where there are any."""
    same_site: bool = False
    """Whether no page of another site may ask for it although the method is safe: because it acknowledges, or because
    what is read goes on and on. Such a page could not see it, but take every place."""


Needs = Mapping[tuple[str, str], Need]
"""By method and path, as the routes have them. What is declared for GET holds for HEAD too."""


class Guard:
    """What each request to the control API has to pass: a token with the right to it, and no foreign page."""

    def __init__(self, settings: ControlSettings, clock: Clock | None = None) -> None:
        self._refusals = Refusals("control", clock)
        self._tls = settings.tls_certificate is not None
        self._needs: Needs = {}
        self._open_paths: frozenset[str] = frozenset()
        self._take(settings)

    def reload(self, settings: Settings) -> None:
        """Ask for these tokens, with these rights, from now on."""
        self._take(settings.control)

    def _take(self, settings: ControlSettings) -> None:
        self._grants = tuple(
            (grant.token.get_secret_value().encode(), grant.rights) for grant in settings.grants
        )
        self._trust_socket = settings.trust_socket

    def before(self, app: web.Application, needs: Needs) -> web.Application:
        """The application, guarded. Raises `ValueError` when `needs` lacks one of its routes: nobody would know who may
        use it."""
        self._needs = needs
        self._open_paths = frozenset(path for (_, path), need in needs.items() if not need.token)
        undeclared = [" ".join(key) for key in map(_key, app.router.routes()) if key and key not in needs]
        if undeclared:
            raise ValueError(f"expected what a client needs for {', '.join(undeclared)}")
        app.middlewares.insert(0, self._guard)
        self._refusals.before(app)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        rights = self._rights_of(request)
        if request.path in self._open_paths:
            response = await handler(request)
            if rights is None:
                response.force_close()
            return response
        if not (self._any_name(request) or is_ours(request.headers.get(hdrs.HOST))):
            return self._refused(request, "host", 403, "foreign_host", FOREIGN_HOST)
        need = self._need_of(request)
        acts = request.method not in SAFE_METHODS or need.same_site
        if acts and not same_site(request.headers):
            return self._refused(request, "origin", 403, "foreign_origin", FOREIGN_ORIGIN)
        if rights is None:
            return self._refused(request, "token", 401, "unauthorized", NO_TOKEN)
        consumers = request.query.getall("consumer", ())
        if need.right and not rights.allow(need.right, consumers):
            self._refusals.add(f"right {need.right}", request.remote)
            missing = self._missing(need.right, rights, consumers)
            return missing if request.can_read_body else may_stay(missing)  # nobody reads that body
        return may_stay(await handler(request))

    def _rights_of(self, request: web.Request) -> Rights | None:
        """The rights of whoever asks; `None` for a stranger."""
        if self._grants:
            return rights_of(request.headers.get(hdrs.AUTHORIZATION), self._grants)
        trusted = self._trust_socket and peer(request.transport) == "unix" and not _came_by(request.headers)
        return ALL_RIGHTS if trusted else ORDINARY_RIGHTS

    def _need_of(self, request: web.Request) -> Need:
        key = _key(request.match_info.route)
        return Need() if key is None else self._needs[key]

    def _any_name(self, request: web.Request) -> bool:
        """Whether it may be called by any name: with a token or TLS a foreign one is of no use, as the
        browser has no token and the daemon no certificate for it; and no browser uses a Unix socket."""
        return bool(self._grants) or self._tls or peer(request.transport) == "unix"

    def _refused(
        self, request: web.Request, cause: str, status: int, code: str, message: str
    ) -> web.Response:
        self._refusals.add(cause, request.remote)
        return refusal(status, code, message)

    def _missing(self, right: Right, rights: Rights, consumers: Sequence[str]) -> web.Response:
        """The answer to somebody who may use the listener, but not for this."""
        field = None
        message = f'expected a token with the right "{right}"'
        if right is Right.EVENTS and right not in rights.held and len(consumers) == 1:
            message += f', or "{right}:{visible(consumers[0][:LONGEST_NAME])}"'
        if right in rights.held:
            field, message = "consumer", f"{message} to this consumer: events, or events:NAME with its name"
        elif self._grants:
            message += f"; this one has {rights}"
        else:
            message += (
                f" of control.token_file, or a Unix socket with control.trust_socket; without, {NO_SECRETS}"
            )
        body = orjson.dumps(error_body("missing_right", message, field), option=orjson.OPT_APPEND_NEWLINE)
        return web.Response(body=body, status=403, content_type="application/json")


NO_TOKEN = (
    "expected a token of control.token_file, or control.token, as Authorization: Bearer or as the password of"
    " HTTP Basic"
)
NO_SECRETS = "neither keys nor texts are told"
FOREIGN_ORIGIN = "expected a request that no page of another site has sent"
FOREIGN_HOST = (
    "expected localhost or an address in the Host header: without control.token_file, the control API is not"
    " served under other names"
)


def _key(route: AbstractRoute) -> tuple[str, str] | None:
    """The route in a table of needs; `None` for what answers that there is none."""
    if route.resource is None:
        return None
    method = hdrs.METH_GET if route.method == hdrs.METH_HEAD else route.method
    return method, route.resource.canonical


def _came_by(headers: Headers) -> bool:
    """Whether a proxy says that it passed this on for somebody else."""
    return hdrs.X_FORWARDED_FOR in headers or hdrs.FORWARDED in headers


def rights_of(authorization: str | None, grants: Sequence[tuple[bytes, Rights]]) -> Rights | None:
    """The rights of the token that the header carries, if it carries one. Every token is looked at, whichever fits, and
    each in constant time."""
    scheme, _, said = (authorization or "").partition(" ")
    told = said.strip().encode("utf-8", "surrogateescape")
    if scheme.lower() == "basic":
        try:
            told = base64.b64decode(told, validate=True).partition(b":")[2]
        except binascii.Error:
            return None
    elif scheme.lower() != "bearer":
        return None
    found = None
    for token, rights in grants:
        if hmac.compare_digest(told, token):
            found = rights
    return found


def is_ours(host: str | None) -> bool:
    """Whether this `Host` can only be this one. Names can be made to point here by whoever owns them; an
    address cannot, and nobody owns localhost."""
    try:
        name = urlsplit(f"//{host or ''}").hostname or ""
    except ValueError:
        return False
    return name == "localhost" or name.endswith(".localhost") or address_in(name) is not None


def same_site(headers: Headers) -> bool:
    """Whether a browser sent this for a page of ours, or no browser did. Browsers say it, and pages cannot
    change what they say."""
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in {"same-origin", "none"}
    origin = headers.get(hdrs.ORIGIN)
    if origin is None:
        return True
    try:
        authority = urlsplit(origin).netloc
    except ValueError:
        return False
    return bool(authority) and authority == headers.get(hdrs.HOST)
