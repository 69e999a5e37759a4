"""The push endpoint: what GMS posts its notifications to.

A push is answered with 200 once it is on disk, and not a moment earlier: GMS does not send it again
by itself. Who does not know the secret learns nothing, not even that there is something here.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Sequence
from typing import Protocol

from aiohttp import hdrs, web

from asyncchatd.config import ReceiverSettings, Settings
from asyncchatd.listening import (
    SAFE_METHODS,
    BodyError,
    Refusals,
    Senders,
    address_shown,
    alive,
    go_on,
    go_on_later,
    is_plain,
    may_stay,
    push_text,
)
from asyncchatd.log import Event, Gathered, get_logger, metrics
from asyncchatd.model import Clock, Failing, Ms, Reason
from asyncchatd.stores import StoreError, StoreFull, Taken, tell_failure
from asyncchatd.wire import Push, PushError, error_body, read_push

RETRY_AFTER_SECONDS = 1
WRONG_SECRET_LOG_SECONDS = 60.0
PROBES_LOG_SECONDS = 3_600.0
"""A load balancer asks every few seconds; that it asks the wrong question need not be said as often."""

WRONG_SECRET = "what stands behind /push/ is none of the push secrets"
MISPLACED = "a push secret is in its path, but not right behind /push/"

log = get_logger()

_TAKEN = {taken: (taken.value, metrics.PUSHES.labels(taken.value).inc) for taken in Taken}
_ACKNOWLEDGE, _RESTORE = Reason.ACKNOWLEDGE.word, Reason.RESTORE.word
_PUSH_SECONDS = metrics.PUSH_SECONDS.observe


class Keeps(Protocol):
    """What a receiver needs of a store."""

    async def take_push(self, push: Push, *, now: Ms) -> Taken:
        """Keep a push for good. Raises `StoreError`, and `StoreFull` where there is no room for it."""


class Receiver:
    """Serves `POST /push/{secret}`, and `GET /healthz` to whoever asks."""

    def __init__(
        self,
        store: Keeps,
        settings: ReceiverSettings,
        clock: Clock,
        wakeup: asyncio.Event,
        senders: Senders | None = None,
        *,
        instance: str = "",
    ) -> None:
        """`senders` is told of whom pushes come from, and of whom they were refused. `instance` is that of the
        configuration, which probes are told."""
        self._instance = instance
        self._store = store
        self._senders = senders or Senders(clock)
        self._clock = clock
        self._wakeup = wakeup
        self._max_body = settings.max_body
        self._body_seconds = settings.body_timeout.total_seconds()
        self._know(settings)
        self._refusals = Refusals("receiver", clock)
        self._wrong = Gathered(clock)
        self._full = False
        """Said once until a push is taken again."""

    def reload(self, settings: Settings) -> None:
        """Take pushes with these secrets, and no others, from now on."""
        self._know(settings.receiver)

    def _know(self, settings: ReceiverSettings) -> None:
        self._secrets = tuple(secret.get_secret_value().encode() for secret in settings.secrets)
        self._log = log.bind()  # spares the look for the logger with every push

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=self._max_body)
        app.on_cleanup.append(self._tell_rest)
        self._refusals.before(app)
        app.router.add_post("/push/{secret}", self.take, expect_handler=go_on_later)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_route("*", "/{path:(?s:.*)}", self._elsewhere, expect_handler=go_on_later)
        return app

    async def _tell_rest(self, _: web.Application) -> None:
        self._wrong.tell_rest()

    async def take(self, request: web.Request) -> web.Response:
        """One push. 200 durable, 400 unusable body, 408 too slow, 413 too large, 415 packed, and neither by gzip nor
        by deflate, 503 not now."""
        if not _known(request.match_info["secret"], self._secrets):
            return self._unknown(request, WRONG_SECRET)
        return may_stay(await self._take(request))

    async def _take(self, request: web.Request) -> web.Response:
        """Whoever sends it knows the secret."""
        started = time.perf_counter()
        try:
            await go_on(request)
            body = await self._read(request)
        except web.HTTPRequestEntityTooLarge:
            return self._refused(
                request, 413, "too_large", None, self._max_body, f"more than {self._max_body} bytes"
            )
        except TimeoutError:
            return self._refused(
                request, 408, "too_slow", None, 0, f"no whole body within {self._body_seconds:g} s"
            )
        except BodyError as error:
            return self._refused(request, error.status, error.code, None, 0, str(error))
        except (web.HTTPException, web.RequestPayloadError, ValueError, OSError) as error:
            return self._refused(
                request, 400, "unreadable", None, 0, f"the body cannot be read: {type(error).__name__}"
            )
        try:
            push = read_push(body)
        except PushError as error:
            return self._refused(request, 400, error.code, error.field, len(body), str(error))
        return await self._keep(request, push, len(body), started)

    async def _read(self, request: web.Request) -> bytes:
        if request.content.is_eof():
            body = await request.read()  # all of it is here, as nearly always: no timer for it
        else:
            async with asyncio.timeout(self._body_seconds):
                body = await request.read()
        if is_plain(request.headers):
            return body
        whole = push_text(request.headers, body, self._max_body)
        if whole is None:
            raise web.HTTPRequestEntityTooLarge(max_size=self._max_body, actual_size=len(body))
        return whole

    async def _keep(self, request: web.Request, push: Push, size: int, started: float) -> web.Response:
        try:
            taken = await self._store.take_push(push, now=self._clock.now())
        except StoreFull as error:
            if not self._full:
                log.error(Event.STORE_FULL, cause=str(error))
            self._full = True
            return self._not_now(request, "full")
        except StoreError as error:
            tell_failure(error)
            return self._not_now(request, "store_failed")
        self._full = False
        self._wakeup.set()
        known, count = _TAKEN[taken]
        count()
        self._senders.kept(request.remote)
        _PUSH_SECONDS(time.perf_counter() - started)
        last = push.events[-1] if push.events else None
        self._log.info(
            Event.PUSH_RECEIVED,
            chat_id=push.news.chat_id,
            device_id=push.device_id,
            known=known,
            type=last and last.type,
            sender=last and last.participant_type,
            quit_code=last and last.quit_reason_code,
            reason=_RESTORE if push.leaving else _ACKNOWLEDGE,
            resend=push.resend,
            bytes=size,
        )
        return web.Response()

    def _unknown(self, request: web.Request, message: str) -> web.Response:
        metrics.PUSHES.labels("wrong_secret").inc()
        self._senders.refused(request.remote, Failing.SECRET, message)
        client = request.remote and address_shown(request.remote)
        self._wrong.add("secret", Event.PUSH_SECRET_WRONG, WRONG_SECRET_LOG_SECONDS, client=client)
        return _nothing()

    async def _healthz(self, _: web.Request) -> web.Response:
        """For load balancers: this port is served."""
        return alive(self._instance)

    async def _elsewhere(self, request: web.Request) -> web.Response:
        """Any other path or method. A push is taken whatever slashes are too many in its URL. All others get the
        same nothing; the log tells an operator's own try with a browser, and a probe, from a stranger."""
        named = [part for part in request.path.split("/") if part]
        if named[:1] != ["push"]:
            probe = not named and request.method in SAFE_METHODS
            self._refusals.add(
                "a probe of /; the page for probes is /healthz" if probe else "no such path",
                request.remote,
                every=PROBES_LOG_SECONDS if probe else WRONG_SECRET_LOG_SECONDS,
            )
            if request.method == hdrs.METH_POST:
                misplaced = sum(_known(part, self._secrets) for part in named)  # each is looked at
                message = MISPLACED if misplaced else "its path does not begin with /push/"
                self._senders.refused(request.remote, Failing.PATH, message)
            return _nothing()
        if len(named) != 2 or not _known(named[1], self._secrets):
            return self._unknown(request, self._what_is_wrong(named[1:]))
        if request.method != hdrs.METH_POST:
            self._senders.refused(request.remote, Failing.METHOD, f"it was {request.method} instead of POST")
            log.warning(
                Event.PUSH_REFUSED, code="method_not_allowed", message=f"{request.method}, expected POST"
            )
            return _nothing()
        return may_stay(await self._take(request))

    def _what_is_wrong(self, behind: Sequence[str]) -> str:
        """With the path behind `/push/`, for an operator."""
        if not behind:
            return "no secret stands behind /push/"
        return "something stands behind the push secret" if _known(behind[0], self._secrets) else WRONG_SECRET

    def _refused(
        self, request: web.Request, status: int, code: str, field: str | None, size: int, message: str
    ) -> web.Response:
        metrics.PUSHES.labels("refused").inc()
        self._senders.refused(request.remote, Failing.BODY, f"its body was refused: {code}")
        log.warning(Event.PUSH_REFUSED, code=code, field=field, bytes=size, message=message)
        response = web.json_response(error_body(code, message, field), status=status)
        if status in (408, 413):
            response.force_close()  # the rest of the body may be still under way
        return response

    def _not_now(self, request: web.Request, why: str) -> web.Response:
        metrics.PUSHES.labels(why).inc()
        self._senders.refused(request.remote, Failing.NOT_KEPT, f"the push could not be kept: {why}")
        return web.json_response(
            error_body(why, "the notification was not kept; send it again"),
            status=503,
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        )


def _nothing() -> web.Response:
    """Only those who know a secret may keep a connection."""
    response = web.Response(status=404)
    response.force_close()
    return response


def _known(said: str, secrets: Sequence[bytes]) -> bool:
    """Compared in constant time, on bytes: `compare_digest` refuses text beyond ASCII. Every secret is
    looked at, whichever fits."""
    told = said.encode("utf-8", "surrogateescape")
    known = False
    for secret in secrets:
        known |= hmac.compare_digest(told, secret)
    return known
