"""Takes: the custom-chat-app has a session to itself for a while, with its newest tokens. Each fault is a `BadRequest`.

{"for": "10s", "wait"?: "2s", "notified"?}    to take it; `notified` is the id of the event that asked for it
{"take_id"}                                   to release it
{"id"}                                        to acknowledge the event of that id
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta

from aiohttp import web

from asyncchatd.config import Settings
from asyncchatd.control import shapes
from asyncchatd.control.answers import json_answer
from asyncchatd.control.reading import BadRequest, kind_of, object_of, session_of, text_of, whole
from asyncchatd.control.registrations import TAKE_ID, event_of, refuse_unknown
from asyncchatd.control.shown import show_time
from asyncchatd.listening import has_left
from asyncchatd.log import Event, get_logger
from asyncchatd.model import MS, SECONDS, Clock, Value, durations
from asyncchatd.stores import LASTING, LONGEST_TAKE_MS, NotTaken, Store, Take

NOTIFIED = "notified"
"""The field of a take that names the event which asked for its Refresh."""

SHORTEST_FOR = 1 * SECONDS
LONGEST_FOR = LONGEST_TAKE_MS * MS
"""For how long a session can be taken."""

USUAL_WAIT = 2 * SECONDS
"""How long a session is waited for where the application does not say."""

LONGEST_WAIT = 10 * SECONDS

AGAIN_SECONDS = 0.05
"""Between two looks whether a session can be taken now. What is waited for takes a round trip to GMS, or a turn of the
worker."""

RETRY_AFTER = 1
"""Seconds after which a session that cannot be had now may be asked for again."""


log = get_logger()


class Takes:
    """The calls by which a session is left to the custom-chat-app: taken by it, or asked of it."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        wakeup: asyncio.Event,
        settings: Settings,
        want: Callable[[str], None] = lambda chat_id: None,
    ) -> None:
        """`wakeup` is set when a session is due; `want` is told of a chat whose session is held, and may be given
        back."""
        self._want = want
        self._store = store
        self._clock = clock
        self._wakeup = wakeup
        self._settings = settings

    def reload(self, settings: Settings) -> None:
        """Go by these from now on."""
        self._settings = settings

    def routes(self) -> list[web.RouteDef]:
        """Their routes."""
        return [
            web.post("/v1/sessions/{chat_id}/take", self.take),
            web.post("/v1/sessions/{chat_id}/release", self.release),
            web.post("/v1/sessions/{chat_id}/acknowledged", self.acknowledge),
        ]

    async def take(self, request: web.Request) -> web.Response:
        """Leave a session to the custom-chat-app, with its newest tokens. 200 `Take`, 404; 409 ended, incomplete, or
        with `Retry-After` not now."""
        how = wanted(object_of(await whole(request, self._settings)), self._store.epoch)
        taken = await take(self._store, self._clock, request, how, self._want)
        log.info(
            Event.SESSION_TAKEN,
            chat_id=taken.tokens.chat_id,
            alias=taken.tokens.alias,
            for_ms=how.length // MS,
        )
        self._wakeup.set()  # whoever waits for the next due time has to look when this ends, too
        shown = show_take(taken, self._settings.gms.service)
        return json_answer(shown, headers={"Cache-Control": "no-store"})

    async def release(self, request: web.Request) -> web.Response:
        """End a take: the session is pinged at once. 204, 404, 409 not the last take, or it has run out."""
        take_id = named(object_of(await whole(request, self._settings)))
        session = await session_of(self._store, request)
        chat_id = request.match_info["chat_id"]
        if not await self._store.release(chat_id, take_id, now=self._clock.now()):
            raise not_the_one()
        self._wakeup.set()
        log.info(Event.SESSION_RELEASED, chat_id=chat_id, alias=session.alias, cause="release")
        return web.Response(status=204)

    async def acknowledge(self, request: web.Request) -> web.Response:
        """Note that the Refresh was sent that an event asked for, and brought no other tokens. 204, 404, 409 when it
        asked for none, or its time is over."""
        event = acknowledged(object_of(await whole(request, self._settings)), self._store.epoch)
        session = await session_of(self._store, request)
        if not await self.acknowledged(request.match_info["chat_id"], event, session.alias, cause="request"):
            raise not_asked("id")
        self._wakeup.set()
        return web.Response(status=204)

    async def acknowledged(self, chat_id: str, event: int, alias: str | None, *, cause: str) -> bool:
        """Note and log an acknowledgement; harmless where a registration has done it already. Whether it was in
        time."""
        done = await self._store.acknowledge(
            chat_id,
            event,
            now=self._clock.now(),
            spread_ms=self._settings.ping.interval.total_seconds() * 1000,
        )
        if done:
            log.info(Event.ACKNOWLEDGEMENT_CAME, chat_id=chat_id, alias=alias, cause=cause)
        return done


class Wanted(Value, frozen=True):
    """A take as the custom-chat-app asks for it."""

    length: timedelta
    wait: timedelta
    notified: int | None = None
    """The number of the event that asked for the Refresh it is for."""


def wanted(body: Mapping[str, object], epoch: str) -> Wanted:
    """A take from a JSON object; `epoch` is the store's. Raises `BadRequest`."""
    refuse_unknown(body, ("for", "wait", NOTIFIED))
    if "for" not in body:
        raise BadRequest("missing", 'expected for, a duration such as "10s"', "for")
    return Wanted(
        length=_length(body["for"], "for", SHORTEST_FOR, LONGEST_FOR),
        wait=_length(body["wait"], "wait", timedelta(0), LONGEST_WAIT) if "wait" in body else USUAL_WAIT,
        notified=_event(body, NOTIFIED, epoch) if body.get(NOTIFIED) is not None else None,
    )


def acknowledged(body: Mapping[str, object], epoch: str) -> int:
    """The number of the event that asked for the Refresh which was sent. Raises `BadRequest`."""
    refuse_unknown(body, ("id",))
    return _event(body, "id", epoch)


def _event(body: Mapping[str, object], field: str, epoch: str) -> int:
    return event_of(text_of(body, field, "the id of an event of kind notified"), epoch, field)


def _length(value: object, field: str, least: timedelta, most: timedelta) -> timedelta:
    expected = f"expected {field}, a duration from {durations.text(least)} to {durations.text(most)}"
    if not isinstance(value, str):
        raise BadRequest("bad_type", f'{expected}, such as "10s", got {kind_of(value)}', field)
    try:
        length = durations.parse(value)
    except ValueError:
        raise BadRequest("bad_value", f'{expected}, such as "10s"', field) from None
    if not least <= length <= most:
        raise BadRequest("bad_value", expected, field)
    return length


def named(body: Mapping[str, object]) -> str:
    """The id of the take that is to be released. Raises `BadRequest`."""
    refuse_unknown(body, (TAKE_ID,))
    return text_of(body, TAKE_ID, "as the take was answered with")


async def take(
    store: Store,
    clock: Clock,
    request: web.Request,
    how: Wanted,
    want: Callable[[str], None] = lambda chat_id: None,
) -> Take:
    """Take the session of the path as soon as it can be had. Raises `BadRequest`."""
    chat_id = request.match_info["chat_id"]
    give_up = clock.monotonic() + how.wait.total_seconds()
    while True:
        now = clock.now()
        taken = await store.take(chat_id, until=now + how.length // MS, now=now, notified=how.notified)
        if isinstance(taken, Take):
            return taken
        if taken is NotTaken.IN_FLIGHT:
            want(chat_id)
        left = give_up - clock.monotonic()
        if taken in LASTING or left <= 0:
            raise _refusal(taken)
        await clock.sleep(min(AGAIN_SECONDS, left))
        if has_left(request):  # what nobody hears of must not be taken: it would have to run out
            raise _refusal(taken)


def _refusal(why: NotTaken) -> BadRequest:
    match why:
        case NotTaken.UNKNOWN:
            return BadRequest("not_found", "no such session", "chat_id", 404)
        case NotTaken.NOT_ASKED:
            return not_asked(NOTIFIED)
        case NotTaken.ENDED | NotTaken.INCOMPLETE:
            return BadRequest(f"session_{why.value}", _WORDS[why], "chat_id", 409)
        case _:
            return BadRequest(why.value, _WORDS[why], "chat_id", 409, retry_after=RETRY_AFTER)


_WORDS = {
    NotTaken.ENDED: "this session has ended",
    NotTaken.INCOMPLETE: "tokens of this session are missing; register it to complete it",
    NotTaken.IN_FLIGHT: "a request of this session is on its way, and may bring another key; ask again",
    NotTaken.PUSHES: "a push of this session waits that may tell another key; ask again",
    NotTaken.RESTORING: "this session has to be restored first; ask again",
    NotTaken.TAKEN: "this session is taken, until its tokens are put back, it is released, or its time is over",
    NotTaken.RAN_OUT: "the take before ran out; ask again when a ping has shown which key is right",
}


def not_the_one() -> BadRequest:
    """The answer to a take id that is not that of the session's last take."""
    return BadRequest("not_taken", "this take is not the session's last one, or is over", TAKE_ID, 409)


def not_asked(field: str) -> BadRequest:
    """The answer to an event that asks for no Refresh of this session."""
    message = "this event asked for no Refresh of this session, or its time is over: it is pinged"
    return BadRequest("not_asked", message, field, 409)


def show_take(taken: Take, service: str) -> shapes.Take:
    """A take; `service` is the configured one."""
    tokens = taken.tokens
    return shapes.Take(
        take_id=taken.take_id,
        until=show_time(taken.until),
        chat_id=tokens.chat_id,
        user_id=tokens.user_id,
        secure_key=tokens.secure_key,
        alias=tokens.alias,
        service=taken.service or service,
        next_position=taken.next_position,
    )
