"""Events for consumers that fetch them: `GET /v1/events`, held until there are some, or as server-sent events.

What is fetched comes again until it is acknowledged: by `after` of the next request, or by `Last-Event-ID` of the next
stream. So a consumer that dies with a portion in its hands gets it once more, and none is lost.

No cursor of this epoch is too old. How far a consumer is stands in the store, so the store knows what it did not get
and tells it as gaps, each of one chat and with a count. A 410 would say less, and its client would have to drop a
cursor that is right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta

import msgspec
from aiohttp import hdrs, web

from asyncchatd.config import Settings
from asyncchatd.control import shapes
from asyncchatd.control.answers import json_answer
from asyncchatd.control.described.openapi import LARGEST_PORTION
from asyncchatd.control.reading import BadRequest, no_consumer, number_of
from asyncchatd.control.registrations import refuse_strange
from asyncchatd.listening import event_stream, has_left, heard_leaving
from asyncchatd.log import metrics
from asyncchatd.model import SECONDS, Clock, EventKind, Portion, durations
from asyncchatd.stores import ConsumerPushed, ConsumerUnknown, CursorAhead, Store, StoreError, tell_asked
from asyncchatd.wire import ToldEvent, event_id, read_event_id, told_event

USUAL_PORTION = 100

LAST_EVENT_ID = "Last-Event-ID"
"""The header by which a stream that comes back acknowledges, as `EventSource` sends it."""

LONGEST_WAIT = 60 * SECONDS
"""What stands between closes a connection that is silent for so long: nginx does after 60 s."""

HELD_SHARE = 4
"""One in so many of `control.max_connections` may be held at once, polls and streams together: 50 by default. Consumers
are few, and as a rule each has one; operators and monitoring come through the same door and find room in any case."""

RETRY_SECONDS = 5
"""After so long a client that found no place may come again."""

RECONNECT_MS = 500
"""After so long a client whose stream has ended comes back."""

COMES_AGAIN_SECONDS = 2.0
"""So long after its last answer a consumer counts as listening: it deals with what it has, and asks again."""

ACKNOWLEDGE_SECONDS = 60.0
"""So long after the first event that is not acknowledged a stream ends, and its client comes back and acknowledges. Or
one that dies would get again all since its stream began, and what was kept for it would be given up as undelivered."""


@dataclass(frozen=True, slots=True)
class _Query:
    """A request for events, as it was read."""

    consumer: str
    after: int | None
    """The event up to which it acknowledges."""
    after_field: str
    """What said so: the query, or the header of a stream that comes back."""
    limit: int
    wait: float
    """Seconds."""
    streams: bool
    strayed: bool
    """It goes by ids of another epoch."""


class _Hold:
    """A request that is held."""

    def __init__(self, request: web.Request, consumer: str) -> None:
        self._request = request
        self.consumer = consumer
        self.news = asyncio.Event()
        self._parted = False

    def part(self) -> None:
        """Have it answered now."""
        self._parted = True
        self.news.set()

    @property
    def over(self) -> bool:
        """Whether nobody waits any more."""
        return self._parted or has_left(self._request)


class Events:
    """The events that consumers fetch. `serve` is a request's handler; `end` belongs to the application's shutdown."""

    def __init__(self, store: Store, clock: Clock, settings: Settings, wakeup: asyncio.Event) -> None:
        """`wakeup` is set when a session is due."""
        self._store = store
        self._clock = clock
        self._wakeup = wakeup
        self._heard: dict[str, float] = {}
        """By consumer: until when it counts as listening after its last answer."""
        self._most = _most(settings)
        self._holds: set[_Hold] = set()
        self._ending = False

    @property
    def held(self) -> int:
        """How many polls and streams are held."""
        return len(self._holds)

    def listening(self) -> list[str]:
        """The consumers that are held, or were a moment ago and come again."""
        now = self._clock.monotonic()
        self._heard = {name: until for name, until in self._heard.items() if until > now}
        return [*{hold.consumer for hold in self._holds if not hold.over}, *self._heard]

    def _comes_again(self, consumer: str) -> None:
        """Count a consumer as listening for a moment: it was answered, and deals with what it has."""
        self._heard[consumer] = self._clock.monotonic() + COMES_AGAIN_SECONDS

    def reload(self, settings: Settings) -> None:
        """Answer whoever is held, who may come again: consumers, and who may read what, can be others now."""
        self._most = _most(settings)
        self._part()

    async def end(self, _: web.Application) -> None:
        """Answer whoever is held, and hold nobody any more."""
        self._ending = True
        self._part()

    def _part(self) -> None:
        for hold in self._holds:
            hold.part()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """The events behind what is acknowledged with this. 200 `Events`, or a stream; 400, 404, 409, 410;
        503 when there is no place to hold it."""
        query = self._query_of(request)
        if query.strayed and not query.streams:
            return await self._other_epoch()
        with ExitStack() as held:
            hold = (
                held.enter_context(self._held(request, query.consumer))
                if query.streams or query.wait
                else None
            )
            # What comes from here on is heard, so nothing that is written meanwhile is missed.
            portion = await self._fetch(query, after=query.after)
            if hold is not None and query.streams:
                return await self._stream(request, hold, query, portion)
            if hold is not None and not portion.events:
                portion = await self._wait(hold, query, portion)
        if hold is None:
            self._comes_again(query.consumer)
        return await self._answer(query.consumer, portion)

    def _query_of(self, request: web.Request) -> _Query:
        """Raises `BadRequest`."""
        given = request.query
        refuse_strange(given, ("consumer", "after", "wait", "limit"))
        consumer = given.get("consumer")
        if not consumer:
            raise BadRequest("bad_value", "expected the name of one consumer", "consumer")
        streams = "text/event-stream" in request.headers.get(hdrs.ACCEPT, "").lower()
        last = request.headers.get(LAST_EVENT_ID) if streams else None
        said, field = (last, LAST_EVENT_ID) if last else (given.get("after"), "after")
        after = read_event_id(said) if said else None
        if said and after is None:
            raise BadRequest("bad_value", 'expected the id of an event, or a "cursor"', field)
        strayed = after is not None and after[0] != self._store.epoch
        return _Query(
            consumer=consumer,
            after=None if after is None or strayed else after[1],
            after_field=field,
            limit=number_of(given.get("limit") or str(USUAL_PORTION), "limit", LARGEST_PORTION),
            wait=_wait_of(given.get("wait") or "0s").total_seconds(),
            streams=streams,
            strayed=strayed,
        )

    async def _other_epoch(self) -> web.Response:
        kept = await self._store.kept()
        problem = shapes.Problem(
            code="other_epoch",
            message="this id is of another history of the store, which was begun anew or put back from a copy;"
            " ask without after to go on behind what this consumer acknowledged in this one",
            field="after",
        )
        epoch = self._store.epoch
        oldest = event_id(epoch, kept.oldest) if kept.events else None
        newest = event_id(epoch, kept.newest)
        return json_answer(shapes.OtherEpoch(error=problem, oldest=oldest, newest=newest), 410, _NO_STORE)

    @contextmanager
    def _held(self, request: web.Request, consumer: str) -> Iterator[_Hold]:
        if self._ending:
            raise BadRequest("stopping", "the daemon stops", status=503, retry_after=RETRY_SECONDS)
        if len(self._holds) >= self._most:
            raise BadRequest(
                "too_many_held",
                f"{self._most} polls and streams are held already, one in {HELD_SHARE} of control.max_connections",
                status=503,
                retry_after=RETRY_SECONDS,
            )
        hold = _Hold(request, consumer)
        self._holds.add(hold)
        try:
            with self._store.bell.heard_by(hold.news), heard_leaving(request, hold.news):
                yield hold
        finally:
            self._holds.discard(hold)
            if not has_left(request):
                self._comes_again(consumer)

    async def _fetch(self, query: _Query, *, after: int | None = None, beyond: int | None = None) -> Portion:
        """The events behind what is acknowledged, or behind `beyond`. Raises `BadRequest` and `StoreError`."""
        try:
            return await self._store.fetch(
                query.consumer, after=after, limit=query.limit, now=self._clock.now(), beyond=beyond
            )
        except ConsumerUnknown:
            names = [each.name for each in await self._store.consumers()]
            raise no_consumer(query.consumer, names, "consumer") from None
        except ConsumerPushed:
            message = "this consumer is told by its webhook; to fetch, name one without url"
            raise BadRequest("has_webhook", message, "consumer", 409) from None
        except CursorAhead as error:
            given = event_id(self._store.epoch, error.given)
            message = f"expected at most {given}, the last that this consumer was given"
            raise BadRequest("ahead", message, query.after_field) from None

    # -- polls -----------------------------------------------------------------------------------------

    async def _wait(self, hold: _Hold, query: _Query, portion: Portion) -> Portion:
        """The first portion with something in it; an empty one when the time is over, or nobody waits."""
        until = self._clock.monotonic() + query.wait
        while not portion.events and not hold.over and (left := until - self._clock.monotonic()) > 0:
            await self._clock.wait(hold.news, left)
            hold.news.clear()
            if not hold.over:
                portion = await self._fetch(query)
        return portion

    async def _answer(self, consumer: str, portion: Portion) -> web.Response:
        _count(portion, "fetched")
        told = await self._told(consumer, portion)
        answer = shapes.Events(events=told, cursor=event_id(self._store.epoch, portion.cursor))
        return json_answer(answer, headers=_NO_STORE)

    async def _told(self, consumer: str, portion: Portion) -> list[ToldEvent]:
        """The events as they are told in this moment, in which they may ask for Refreshes."""
        handed = await self._store.hand_out(consumer, portion.events, now=self._clock.now())
        if handed.withdrawn:
            self._wakeup.set()
        tell_asked(consumer, portion.events, handed)
        epoch = self._store.epoch
        return [told_event(event, epoch, handed.asked.get(event.id)) for event in portion.events]

    # -- streams ---------------------------------------------------------------------------------------

    async def _stream(
        self, request: web.Request, hold: _Hold, query: _Query, portion: Portion
    ) -> web.StreamResponse:
        """Send events until the client goes, the daemon stops, or it is time to acknowledge."""
        response = web.StreamResponse(headers=event_stream.HEADERS)
        try:
            await response.prepare(request)
            await response.write(event_stream.retry(RECONNECT_MS))
            if query.strayed:
                await response.write(await self._gap(portion))
            await self._send_on(response, hold, query, portion)
        except ConnectionError:
            pass  # gone: what it did not acknowledge it gets when it comes back
        except (StoreError, BadRequest):
            # Whoever was to be told of the disk was told. The client comes back and hears why.
            response.force_close()
        return response

    async def _send_on(
        self, response: web.StreamResponse, hold: _Hold, query: _Query, portion: Portion
    ) -> None:
        ends: float | None = None
        while True:
            if portion.events:
                if ends is None:
                    ends = self._clock.monotonic() + ACKNOWLEDGE_SECONDS
                told = await self._told(query.consumer, portion)
                await response.write(b"".join(map(_event, told)))
                _count(portion, "streamed")
            else:
                pause = event_stream.HEARTBEAT_SECONDS
                left = pause if ends is None else ends - self._clock.monotonic()
                heard = await self._clock.wait(hold.news, max(0.0, min(left, pause)))
                if not heard and not hold.over:
                    await response.write(event_stream.ALIVE)
            if hold.over or (ends is not None and self._clock.monotonic() >= ends):
                return
            hold.news.clear()
            portion = await self._fetch(query, beyond=portion.cursor)

    async def _gap(self, portion: Portion) -> bytes:
        """What a stream begins with that goes by ids of another epoch: which events there are is said, as far as
        that is known, and what is missing is not."""
        kept, epoch = await self._store.kept(), self._store.epoch
        begins = portion.events[0].id - 1 if portion.events else portion.cursor
        missing = {
            "oldest": event_id(epoch, kept.oldest) if kept.events else None,
            "newest": event_id(epoch, kept.newest),
        }
        return _event(
            ToldEvent(
                id=event_id(epoch, begins),
                kind=EventKind.GAP.value,
                chat_id=None,
                service=None,
                device_id=None,
                at=self._clock.now(),
                event=msgspec.Raw(msgspec.json.encode(missing)),
            )
        )


def _most(settings: Settings) -> int:
    return settings.control.max_connections // HELD_SHARE


def _wait_of(text: str) -> timedelta:
    try:
        wait = durations.parse(text)
    except ValueError as error:
        raise BadRequest("bad_value", str(error), "wait") from None
    if wait > LONGEST_WAIT:
        raise BadRequest("bad_value", f"expected at most {durations.text(LONGEST_WAIT)}", "wait")
    return wait


def _count(portion: Portion, outcome: str) -> None:
    for event in portion.events:
        metrics.EVENTS_TOLD.labels(event.kind.value, outcome).inc()


def _event(event: ToldEvent) -> bytes:
    return event_stream.event(msgspec.json.encode(event), event_id=event.id)


_NO_STORE = {"Cache-Control": "no-store"}
