"""The control API: how operators, their tools and the custom-chat-app talk to the daemon. JSON.

Which calls there are says `described/needs.py`; what each takes and answers says `described/openapi.py`.

Errors are `{"error": {"code", "message", "field"}}`. A secure key comes out with a take alone: a session says
`has_secure_key`. What is written in chats comes out at `/v1/events` alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from aiohttp import web

from asyncchatd.config import Settings
from asyncchatd.control import shapes, takes
from asyncchatd.control.answers import errors_as_json, json_answer
from asyncchatd.control.consumers import Consumers
from asyncchatd.control.described import openapi
from asyncchatd.control.described.needs import NEEDS
from asyncchatd.control.described.openapi import LARGEST_PAGE
from asyncchatd.control.described.schemas import RegisteredSession
from asyncchatd.control.events import Events
from asyncchatd.control.exposition import Exposition
from asyncchatd.control.reading import (
    LARGEST_LINE,
    BadRequest,
    number_of,
    object_of,
    objects_of,
    session_of,
    whole,
)
from asyncchatd.control.registrations import (
    ACKNOWLEDGED,
    Beside,
    beside_of,
    read_registration,
    registration_of,
    with_its_key,
)
from asyncchatd.control.shown import show_counted_server, show_restoration, show_session
from asyncchatd.control.status import page
from asyncchatd.control.status.history import History
from asyncchatd.control.status.live import Live, TooManyListeners
from asyncchatd.control.status.picture import Pictures, Surroundings
from asyncchatd.listening import INSTANCE, go_on_later
from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import (
    Cause,
    Clock,
    Reason,
    Registration,
    Session,
    SessionState,
)
from asyncchatd.stores import Registered, Store
from asyncchatd.stores import restoring as restoration

PORTION = 500
"""Sessions registered in one transaction, out of many lines."""
ERRORS_SHOWN = 1_000
KEPT_SHOWN = 100
"""Lines with old tokens that are named. Each is read from the store once more."""
AT_ONCE = 200
"""Sessions shown between two turns of the event loop."""

_REGISTRATIONS = {done: metrics.REGISTRATIONS.labels(done.value) for done in Registered}
"""Each from the start on: a rate wants to have seen the zero."""

log = get_logger()


class Control:
    """The control API: its handlers of requests."""

    needs = NEEDS
    """What a client needs for each of them."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        wakeup: asyncio.Event,
        around: Surroundings,
        settings: Settings,
    ) -> None:
        self._store = store
        self._clock = clock
        self._wakeup = wakeup
        self._around = around
        self._history = History(clock, limit=lambda: around.pings().max_rate)
        self._pictures = Pictures(store, clock, around, self._history)
        self._live = Live(self._pictures.take, self._history, clock)
        self._events = Events(store, clock, settings, wakeup)
        self._consumers = Consumers(store, clock, around)
        self._takes = takes.Takes(store, clock, wakeup, settings, around.want)
        self.exposition = Exposition(store, clock, around.servers)
        """The metrics; they have an application of their own, too."""
        self._settings = settings

    def reload(self, settings: Settings) -> None:
        """Answer by these from now on. When other tokens or rights count, answers that go on for ever end: each request
        is asked for its token when it comes."""
        others_may = settings.control.grants != self._settings.control.grants
        self._settings = settings
        self._events.reload(settings)
        self._takes.reload(settings)
        if others_may:
            self._live.part()

    def lives(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Its root tasks by name."""
        return {"history": self._history.run()}

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[errors_as_json], client_max_size=LARGEST_LINE)
        app.on_shutdown.append(self._live.end)
        app.on_shutdown.append(self._events.end)
        app.on_cleanup.append(self._live.ended)
        for route in self._routes():
            route.kwargs["expect_handler"] = go_on_later
            route.register(app.router)
        return app

    def _routes(self) -> list[web.RouteDef]:
        return [
            web.put("/v1/sessions/{chat_id}", self.put_session),
            web.get("/v1/sessions/{chat_id}", self.get_session),
            web.delete("/v1/sessions/{chat_id}", self.delete_session),
            web.post("/v1/sessions/{chat_id}/ping", self.ping_session),
            *self._takes.routes(),
            web.post("/v1/sessions", self.post_sessions),
            web.get("/v1/sessions", self.list_sessions),
            web.get("/v1/servers", self.list_servers),
            web.post("/v1/servers/{name}/restore", self.restore_server),
            web.get("/v1/restorations", self.list_restorations),
            web.get("/v1/events", self._events.serve, allow_head=False),
            *self._consumers.routes(),
            web.post("/v1/store/accept", self.accept_store),
            web.get("/v1/status", self.status),
            web.get("/v1/live", self.live, allow_head=False),
            web.get("/", self.page),
            web.get("/openapi.json", self.openapi),
            web.get("/healthz", self.healthz),
            web.get("/readyz", self.readyz),
            web.get("/metrics", self.exposition.serve),
        ]

    # -- sessions ------------------------------------------------------------------------------------

    async def put_session(self, request: web.Request) -> web.Response:
        """Register one session, or tell its newest tokens, which ends the take that is named and acknowledges the push
        of the event that is. 201 new, 200 known, 409 ended, or not the last take, or not asked."""
        chat_id = request.match_info["chat_id"]
        beside = beside_of(request.query, self._settings.gms.service, self._store.epoch, chat_id)
        registration = registration_of(object_of(await whole(request, self._settings)), beside)
        (done,) = await self._register([registration])
        if done is Registered.ENDED:
            raise _over(registration)
        if done is Registered.NOT_TAKEN:
            raise takes.not_the_one()
        if done is Registered.NOT_ASKED:
            raise takes.not_asked(ACKNOWLEDGED)
        session = await session_of(self._store, request)
        if done is Registered.OVER:
            log.info(Event.SESSION_ENDED, chat_id=chat_id, alias=session.alias, cause="registration")
        else:
            log.info(
                Event.SESSION_REGISTERED,
                chat_id=chat_id,
                alias=session.alias,
                service=registration.service,
                outcome=done.value,
            )
        if registration.take_id is not None:
            log.info(Event.SESSION_RELEASED, chat_id=chat_id, alias=session.alias, cause="registration")
        if registration.acknowledged is not None and done is not Registered.OVER:
            await self._takes.acknowledged(
                chat_id, registration.acknowledged, session.alias, cause="registration"
            )
        shown = RegisteredSession(
            **shapes.fields_of(show_session(session)),
            outcome=done.value,
            note=_note_of_kept(session) if done is Registered.KEPT else None,
        )
        return json_answer(shown, 201 if done is Registered.CREATED else 200)

    async def post_sessions(self, request: web.Request) -> web.Response:
        """Register many: good lines are taken, bad ones are told with their numbers. `kept` of those that were
        taken had an old or doubted key and changed no tokens; they are told with their numbers, too."""
        started = time.monotonic()
        taken = refused = created = kept = 0
        errors: list[shapes.LineError] = []
        old: list[tuple[int, str]] = []
        beside = beside_of(request.query, self._settings.gms.service, self._store.epoch)
        waiting: list[tuple[int, Registration]] = []

        def refuse(line: int, error: BadRequest) -> None:
            nonlocal refused
            refused += 1
            if len(errors) < ERRORS_SHOWN:
                problem = shapes.Problem(code=error.code, message=str(error), field=error.field)
                errors.append(shapes.LineError(line=line, error=problem))

        async def flush() -> None:
            nonlocal taken, created, kept
            done_with = await self._register([each for _, each in waiting])
            for (line, registration), done in zip(waiting, done_with, strict=True):
                if done is Registered.ENDED:
                    refuse(line, _over(registration))
                elif done is Registered.NOT_TAKEN:
                    refuse(line, takes.not_the_one())
                elif done is Registered.NOT_ASKED:
                    refuse(line, takes.not_asked(ACKNOWLEDGED))
                else:
                    taken += 1
                    created += done is Registered.CREATED
                    kept += done is Registered.KEPT
                    if done is Registered.KEPT and len(old) < KEPT_SHOWN:
                        old.append((line, registration.tokens.chat_id or ""))
            waiting.clear()

        async for number, line in self._objects(request, beside):
            try:
                if line is None:
                    raise BadRequest("too_long", f"expected at most {LARGEST_LINE} bytes in a line")
                waiting.append((number, read_registration(line, beside)))
            except BadRequest as error:
                refuse(number, error)
            if len(waiting) >= PORTION:
                await flush()
        if waiting:
            await flush()
        log.info(
            Event.SESSIONS_REGISTERED,
            count=taken,
            created=created,
            kept=kept,
            refused=refused,
            took_ms=round((time.monotonic() - started) * 1000),
        )
        status = 400 if refused and not taken else 200
        errors.sort(key=lambda each: each.line)
        told = shapes.Registered(
            taken=taken,
            refused=refused,
            kept=kept,
            kept_lines=[line async for line in self._kept_lines(old)],
            errors=errors,
        )
        return json_answer(told, status)

    async def _objects(self, request: web.Request, beside: Beside) -> AsyncIterator[tuple[int, bytes | None]]:
        """The objects of a body; no more than one where the query names a device, as no two sessions share one."""
        objects = objects_of(request, self._settings.control.body_timeout.total_seconds())
        if beside.device_id is not None and (first := await anext(objects, None)) is not None:
            if await anext(objects, None) is not None:
                message = "expected one session, as the query names the device of one"
                raise BadRequest("several_sessions", message, "device_id")
            yield first
        async for each in objects:
            yield each

    async def _kept_lines(self, old: list[tuple[int, str]]) -> AsyncIterator[shapes.KeptLine]:
        """What is said of the lines whose tokens were old, by line and chat id."""
        for line, chat_id in old:
            session = await self._store.get(chat_id)
            if session is not None:
                yield shapes.KeptLine(
                    line=line, chat_id=chat_id, state=session.state.value, note=_note_of_kept(session)
                )

    async def _register(self, registrations: list[Registration]) -> list[Registered]:
        done_with = await self._store.register(
            [with_its_key(each, self._around.digest) for each in registrations],
            now=self._clock.now(),
            spread_ms=self._settings.ping.interval.total_seconds() * 1000,
        )
        for done in done_with:
            _REGISTRATIONS[done].inc()
        self._wakeup.set()
        return done_with

    async def get_session(self, request: web.Request) -> web.Response:
        """One session. 200 `Session`, 404."""
        return json_answer(show_session(await session_of(self._store, request)))

    async def delete_session(self, request: web.Request) -> web.Response:
        """End a session: it is pinged no more. Its story is kept for `store.keep_ended`."""
        session = await session_of(self._store, request)
        chat_id = request.match_info["chat_id"]
        if await self._store.remove(chat_id, now=self._clock.now()):
            if self._around.forget is not None:
                await self._around.forget(chat_id)
            log.info(Event.SESSION_REMOVED, chat_id=chat_id, alias=session.alias, cause="request")
        return web.Response(status=204)

    async def ping_session(self, request: web.Request) -> web.Response:
        """Make one session due. 202: the worker pings it as soon as the rate allows."""
        session = await session_of(self._store, request)
        chat_id = request.match_info["chat_id"]
        if not await self._store.make_due(chat_id, Reason.REQUEST, now=self._clock.now()):
            session = await session_of(self._store, request)
            message = {
                SessionState.ENDED: "this session has ended",
                SessionState.INCOMPLETE: "tokens of this session are missing; register it to complete it",
            }.get(session.state, "this session was just completed; ask again")
            raise BadRequest(f"session_{session.state.value}", message, "chat_id", 409)
        self._wakeup.set()
        log.info(Event.PING_REQUESTED, chat_id=chat_id, alias=session.alias)
        due = await self._store.get(chat_id)
        return json_answer(show_session(due or session), 202)

    def listening(self) -> list[str]:
        """The consumers that fetch, and hear at once what there is."""
        return self._events.listening()

    async def list_sessions(self, request: web.Request) -> web.Response:
        """Sessions in the order of their chat ids, a page at a time. 200 `SessionPage`."""
        query = request.query
        state = query.get("state") or None
        if state is not None and state not in list(SessionState):
            raise BadRequest("bad_value", f"expected one of {', '.join(SessionState)}", "state")
        limit = number_of(query.get("limit") or "100", "limit", LARGEST_PAGE)
        sessions = await self._store.sessions(
            alias=query.get("alias") or None,
            state=None if state is None else SessionState(state),
            limit=limit,
            after=query.get("after") or None,
        )
        # Those known by their device alone come last; there is no chat id to go on from.
        more = sessions[-1].chat_id if len(sessions) == limit else None
        shown: list[shapes.Session] = []
        for start in range(0, len(sessions), AT_ONCE):
            shown += map(show_session, sessions[start : start + AT_ONCE])
            await asyncio.sleep(0)  # the largest page takes a fifth of a second; pushes do not wait for it
        return json_answer(shapes.SessionPage(sessions=shown, next=more))

    # -- Chat Servers and restorations -----------------------------------------------------------------

    async def list_servers(self, _: web.Request) -> web.Response:
        """All configured Chat Servers. 200 `Servers`."""
        sessions = dict(await self._store.counts_by_alias())
        servers = [
            show_counted_server(server, sessions.pop(server.app_dbid or "", 0))
            for server in self._around.servers()
        ]
        return json_answer(shapes.Servers(servers=servers, sessions_elsewhere=sessions))

    async def restore_server(self, request: web.Request) -> web.Response:
        """Ping all sessions of one Chat Server, as if it had been lost."""
        name = request.match_info["name"]
        server = next((each for each in self._around.servers() if each.name == name), None)
        if server is None:
            raise BadRequest("not_found", "no Chat Server of this name is configured", "name", 404)
        if server.app_dbid is None:
            raise BadRequest(
                "no_alias", "its app_dbid is not known yet; configure chat_server.app_dbid", "name", 409
            )
        begun = await restoration.begin(
            self._store, self._wakeup, self._clock, alias=server.app_dbid, server=name, cause=Cause.OPERATOR
        )
        return json_answer(show_restoration(begun, self._clock.now()), 202)

    async def list_restorations(self, request: web.Request) -> web.Response:
        """The newest restorations. 200 `Restorations`."""
        limit = number_of(request.query.get("limit") or "50", "limit", LARGEST_PAGE)
        found = await self._store.restorations(limit=limit)
        now = self._clock.now()
        return json_answer(shapes.Restorations(restorations=[show_restoration(each, now) for each in found]))

    # -- the daemon --------------------------------------------------------------------------------------

    async def accept_store(self, _: web.Request) -> web.Response:
        """Take the store as it is, where an empty or older one took the place of the one of before. 200 `Accepted`."""
        return json_answer(shapes.Accepted(changed=await self._store.accept()))

    async def status(self, _: web.Request) -> web.Response:
        """How the daemon is, in one look. 200 `Status`."""
        return json_answer(await self._pictures.status())

    async def live(self, request: web.Request) -> web.StreamResponse:
        """What the status page shows, once a second, as server-sent events."""
        try:
            return await self._live.serve(request)
        except TooManyListeners as error:
            raise BadRequest("too_many_listeners", str(error), status=503) from None

    async def page(self, _: web.Request) -> web.Response:
        """The status page. 200, HTML."""
        return web.Response(text=page.HTML, content_type="text/html", charset="utf-8", headers=page.HEADERS)

    async def openapi(self, _: web.Request) -> web.Response:
        """The OpenAPI document. 200."""
        return json_answer(openapi.document())

    async def healthz(self, _: web.Request) -> web.Response:
        """Whether the daemon lives. 200 `Alive`."""
        answer = json_answer(shapes.Alive(alive=True))
        answer.headers[INSTANCE] = self._settings.instance
        return answer

    async def readyz(self, _: web.Request) -> web.Response:
        """Whether the daemon takes pushes. `Ready`: 200 if it does, else 503."""
        ready = self._around.ready()
        return json_answer(shapes.Ready(ready=ready), 200 if ready else 503)


def _note_of_kept(session: Session) -> str:
    """What to know of a session that was registered with an old or a doubted key."""
    if session.state is SessionState.INCOMPLETE:
        return "this key may be an old one: the session waits for a push or a registration with newer tokens"
    return "this key is an old one: the newer tokens that are known were kept"


def _over(registration: Registration) -> BadRequest:
    """The answer to one of a chat that is over, of which nothing is known or nothing changes."""
    if registration.ended:
        message = "the reply says that this chat is over: nothing to look after"
        return BadRequest("session_ended", message, "chatEnded", 409)
    return BadRequest("session_ended", "GMS said that this chat is over", "chat_id", 409)
