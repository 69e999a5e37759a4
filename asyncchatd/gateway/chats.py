"""Whoever serves the chats of the gateway: which request goes where, and who may."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from functools import lru_cache
from typing import Any

import orjson
from aiohttp import hdrs, web

from asyncchatd.config import GatewaySettings, Settings
from asyncchatd.gateway.app import GatewayRequest, as_response, cut_off, refused_call
from asyncchatd.gateway.beginning.adopting import Adopting
from asyncchatd.gateway.beginning.opening import Opening
from asyncchatd.gateway.calling.calls import Calls, Fate, Outcome
from asyncchatd.gateway.calling.files import Files, NoRoom, TooLarge, TooMany, Upload
from asyncchatd.gateway.calling.history import History
from asyncchatd.gateway.calling.previews import Previews
from asyncchatd.gateway.event_streams import EventStreams
from asyncchatd.gateway.keys import Keys
from asyncchatd.gateway.polls import Beside, Polls
from asyncchatd.gateway.replies import (
    RETRY,
    SUCCESS,
    Names,
    call_reply,
    errors_of,
    notices_of,
    passed_on,
    wrong_key_reply,
)
from asyncchatd.gateway.subscription import unsubscribed
from asyncchatd.gateway.tickets import TICKET_SECONDS, Tickets
from asyncchatd.gateway.watching.looks import Looks
from asyncchatd.gateway.watching.watched import Watched, Watching
from asyncchatd.gms import Pacer, Streams
from asyncchatd.listening import Refusals
from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import Clock
from asyncchatd.sending import Sending
from asyncchatd.stores import STORE_PAUSE_SECONDS, Store, StoreError, tell_failure
from asyncchatd.wire import WAIT, ChatApiError, ClientCall, Operation, Pair, client_call, read_body

LOOK_SECONDS = 1.0
"""So often news are looked for that nobody rang for: those of others who share the store."""

POLLS_REMEMBERED = 20_000
"""Polls whose forms are read already: until there are news a page sends the same one again and again."""

LARGEST_REMEMBERED = 512
"""Bytes of such a form. One with a preview in it is another one each time."""

log = get_logger()


class Chats:
    """The chats of the gateway, a `Serving`. `open` first; its root tasks are `lives`."""

    def __init__(
        self, store: Store, sending: Sending, settings: GatewaySettings, clock: Clock, wakeup: asyncio.Event
    ) -> None:
        self._store = store
        self._clock = clock
        self._remembered: tuple[str, ...] = ()
        self._looks = Looks(store, sending.pacer, settings, clock, wakeup)
        self._watching = Watching(store, heard=self._looks.heard)
        beside = Beside()
        self._polls = Polls(beside, clock)
        rate = settings.rate(sending.pacer.rate)
        self._sending = sending
        self._calls = Calls(store, sending, Pacer(rate, clock), clock, wakeup)
        self._previews = Previews(self._calls, clock)
        self._history = History(self._calls, self._watching, sending, clock)
        self._events = EventStreams(self._watching, self._looks, self._history, beside, clock)
        self._tickets = Tickets(clock)
        self._adopting = Adopting(store, sending, clock, wakeup, self.digest)
        self._streams = Streams(sending.gms, clock)
        self._files = Files(self._calls, self._streams, sending.settling.safe_until)
        self._opening = Opening(store, sending, settings, clock, wakeup, digest=self.digest)
        self._refusals = Refusals("gateway", clock)
        self._take(settings)
        metrics.POLLS_HELD.set_function(lambda: self.polls_held)
        metrics.STREAMS_OPEN.set_function(lambda: self.streams_open)
        metrics.CHATS_WATCHED.set_function(lambda: len(self._watching))
        metrics.CHATS_WATCHED_BYTES.set_function(lambda: self._watching.size)

    def reload(self, settings: Settings) -> None:
        """Go by these from now on."""
        if settings.gateway is None:
            return
        if _admitted(self._settings) != _admitted(settings.gateway):
            self._events.part()
            self._tickets.forget()
        self._take(settings.gateway)

    def _take(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._keys = Keys(settings.keys)
        self._opening.settings = settings
        self._looks.reload(settings)
        self._polls.hold = settings.hold.total_seconds()
        self._calls.patience = settings.patience.total_seconds()
        self._adopting.patience = self._calls.patience
        self._adopting.most = settings.max_adoptions if settings.adopt else 0
        self._calls.max_waiting = settings.max_waiting
        self._calls.lane.reload(settings.rate(self._sending.pacer.rate))

    async def open(self) -> None:
        """Begin to follow what is written. Raises `StoreError`, also when the keys are those of another gateway."""
        if objection := await self.objection(self._settings):
            raise StoreError(f"{objection}; {KEY_ADVICE}")
        await self._watching.begin()

    async def objection(self, settings: GatewaySettings) -> str | None:
        """What live chats speak against, if anything: their clients would all be refused. What is not spoken against is
        remembered. Raises `StoreError`."""
        ids = Keys(settings.keys).ids
        if ids != self._remembered:
            if not await self._store.gateway_keys(ids):
                return OTHER_KEYS
            self._remembered = ids
        return None

    def lives(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Its root tasks by name."""
        return {"gateway": self.run(), "looks": self._looks.run()}

    async def run(self) -> None:
        """Have the windows follow the store, until cancelled."""
        news = asyncio.Event()
        with self._store.bell.heard_by(news):
            while True:
                news.clear()
                try:
                    await self._watching.follow()
                except StoreError as error:
                    tell_failure(error)
                    await self._clock.sleep(STORE_PAUSE_SECONDS)
                    continue
                await self._clock.wait(news, LOOK_SECONDS)

    @property
    def polls_held(self) -> int:
        """Polls that wait for news."""
        return self._polls.held

    @property
    def streams_open(self) -> int:
        """Streams of events that are open."""
        return len(self._events)

    @property
    def pushes_missing(self) -> bool:
        """Whether so many pushes are missing that GMS is asked about all chats."""
        return self._looks.pushes_missing

    def answer_longest(self) -> bool:
        """Answer the poll that is held for longest, to have its connection; without one end the stream that is open for
        longest. False where there is neither."""
        return self._polls.answer_longest() or self._events.end_longest()

    async def drain(self, grace: float) -> None:
        """Answer what is held, send nothing more, and return when all that left is answered, or after `grace`
        seconds."""
        self._polls.stop()
        self._events.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await asyncio.gather(self._calls.drain(), self._opening.drain(), self._adopting.drain())
        await self._streams.close()

    # -- requests ------------------------------------------------------------------------------------

    async def serve(self, request: GatewayRequest) -> web.StreamResponse:
        """The answer to a request of the Chat API. 404 for what is none, 429 when too much is asked at once."""
        if request.is_upload:
            return await self._upload(request)
        if request.is_stream or request.asks_ticket:
            return await self._stream(request)
        try:
            call = _call_of(request)
        except ChatApiError as error:
            return refused_call(404 if error.code == "unknown_operation" else 400, str(error))
        if call.operation is Operation.REQUEST_CHAT:
            return await self._begin(call)
        if request.stranger:
            return await self._polls.empty(call, request.http)
        try:
            chat = await self._chat_of(call, request)
        except StoreError as error:
            tell_failure(error)
            return await self._unserved(call, request.http)
        if isinstance(chat, web.Response):
            return chat
        if call.operation is Operation.REFRESH:
            if chat.is_known:
                self._looks.polled(chat)
                self._previews.show(call, chat)
                self._history.show(call, chat)
                return await self._polls.answer(call, chat, request.http)
            return await self._polls.empty(call, request.http)
        if not chat.is_known:
            return await self._unserved(call, request.http)
        call = unsubscribed(call)
        if call.operation is Operation.FILE_DOWNLOAD:
            return await self._download(call, chat, request.http)
        return self._told(call, chat, self._after(chat, await self._calls.answer(call, chat)))

    async def _chat_of(self, call: ClientCall, request: GatewayRequest) -> Watched | web.Response:
        """The chat of a client with its key, or the answer to one without. Raises `StoreError`."""
        chat = await self._watching.get(call.chat_id or "")
        has_key = await self._has_key(call, chat)
        if not has_key and await self._adopting.adopt(call, chat, request.client):
            # It may have been taken over with the tokens of another client, which came at the same time.
            chat = await self._watching.get(chat.chat_id)
            has_key = await self._has_key(call, chat)
        return chat if has_key else self._stranger(call, request.client)

    async def _stream(self, request: GatewayRequest) -> web.StreamResponse:
        """A stream of events, or a ticket to one. A client is refused as it would be with a poll, but with an HTTP
        error, which ends an `EventSource`: 400, 403, and 503 with `Retry-After`."""
        shows_ticket = request.http.method == hdrs.METH_GET
        if any(name.lower() == "securekey" for name in request.http.query):
            return refused_call(400, "expected no secureKey in an address, which others write down: POST it")
        try:
            said = list(request.http.query.items()) if shows_ticket else _said(request)
            call = client_call(f"{'/'.join(request.parts[:2])}/refresh", said)
        except ChatApiError as error:
            return refused_call(400, str(error))
        try:
            found = await (self._chat_of_ticket if shows_ticket else self._chat_of)(call, request)
        except StoreError as error:
            tell_failure(error)
            return _come_again()
        if isinstance(found, web.Response):
            found.set_status(403)
            return found
        if not found.is_known:
            return _come_again()
        if request.asks_ticket:
            ticket = self._tickets.give(self._keys, call.service, found.chat_id)
            return as_response(orjson.dumps({"ticket": ticket, "expiresIn": round(TICKET_SECONDS)}))
        return await self._events.serve(call, found, request.http)

    async def _chat_of_ticket(self, call: ClientCall, request: GatewayRequest) -> Watched | web.Response:
        """The chat that a ticket is for, or the answer to one without. Raises `StoreError`."""
        chat_id = call.chat_id or ""
        if not self._tickets.take(self._keys, call.service, chat_id, call.get("ticket") or ""):
            self._refusals.add("a ticket that is not good", request.client)
            return refused_call(
                403,
                f"expected a ticket of the last {TICKET_SECONDS:g} s that was not used: POST to events/ticket",
            )
        return await self._watching.get(chat_id)

    def _after(self, chat: Watched, outcome: Outcome) -> Outcome:
        """What others may answer has them looked for."""
        if outcome.fate in (Fate.DONE, Fate.UNKNOWN):
            self._looks.called(chat)
        return outcome

    async def _upload(self, request: GatewayRequest) -> web.StreamResponse:
        """A file is taken in first: the key may stand behind it. A refused one is HTTP 400 with `errors`."""
        upload = Upload()
        try:
            with self._files.taken_in.place():
                seconds = self._settings.body_timeout.total_seconds()
                await upload.read(request.http, self._settings.max_upload, seconds)
            call = client_call(request.tail, upload.pairs)
            chat = await self._watching.get(call.chat_id or "")
            if not await self._has_key(call, chat):
                return self._stranger(call, request.client)
            if not chat.is_known:
                return await self._unserved(call, request.http)
            with self._files.transfers.place():
                outcome = self._after(chat, await self._files.send(call, chat, upload))
            return self._told(call, chat, outcome, 400 if outcome.fate is Fate.REFUSED else 200)
        except TooMany:
            return cut_off(429, TOO_MANY_FILES)
        except TooLarge:
            most = self._settings.max_upload
            return cut_off(400, f"expected a file of at most {most} bytes")
        except TimeoutError:
            return cut_off(408, "expected the file without so long a pause, and faster")
        except ChatApiError as error:
            return cut_off(400, str(error))
        except (web.RequestPayloadError, ConnectionError):
            return cut_off(400, "expected the whole file")  # it hung up, or sent no HTTP
        except NoRoom as error:
            log.error(Event.UPLOAD_FAILED, cause=str(error), advice=NO_ROOM_ADVICE)
            return _come_again()
        except StoreError as error:
            tell_failure(error)
            return _come_again()
        finally:
            upload.close()

    async def _download(self, call: ClientCall, chat: Watched, http: web.Request) -> web.StreamResponse:
        try:
            with self._files.transfers.place():
                fetched = await self._files.fetch(call, chat, http)
        except TooMany:
            return refused_call(429, TOO_MANY_FILES)
        return self._told(call, chat, fetched) if isinstance(fetched, Outcome) else fetched

    async def _has_key(self, call: ClientCall, chat: Watched) -> bool:
        """Whether the client tells a key of the gateway's, or the one that it came with. Raises `StoreError`."""
        if call.secure_key is None:
            return False
        if self._came_with(call, chat):
            return True
        service = chat.service if chat.service is not None else call.service
        which = self._keys.which(service, chat.chat_id, call.secure_key)
        if which is not None:
            (_NEWEST if which == 0 else _OLDER).inc()
            return True
        if chat.came_with is not None:
            return False
        await self._watching.look_again(chat)
        return self._came_with(call, chat)

    def _came_with(self, call: ClientCall, chat: Watched) -> bool:
        """Whether it is the key that the client came with."""
        known = chat.came_with is not None and self._keys.came_with(
            chat.came_with, chat.chat_id, call.secure_key
        )
        if known:
            _CAME_WITH.inc()
        return known

    async def forget(self, chat_id: str) -> None:
        """Show nothing more of a chat that was ended over the control API, with its transcript."""
        await self._watching.forget(chat_id)

    def digest(self, chat_id: str, secure_key: str) -> str:
        """What is kept of the key that a client came with, to know it again."""
        return self._keys.digest(chat_id, secure_key)

    def _stranger(self, call: ClientCall, client: str | None) -> web.Response:
        """A wrong key never reaches Chat Server, which would throw the customer out."""
        metrics.GATEWAY_KEYS.labels("wrong").inc()
        self._refusals.add("a secureKey that is none of the chat's", client)
        return as_response(wrong_key_reply(Names.of(call)))

    async def _unserved(self, call: ClientCall, http: web.Request) -> web.Response:
        """Nothing can be known of the chat now: polls are empty, calls are told to come again."""
        if call.operation is Operation.REFRESH:
            return await self._polls.empty(call, http)
        reply = call_reply(
            Names.of(call), status_code=RETRY, next_position=max(1, call.asked_from), errors=[NOT_NOW]
        )
        return as_response(reply)

    async def _begin(self, call: ClientCall) -> web.Response:
        opened = await self._opening.open(call)
        if opened.tokens is None:
            names = Names("", None, None, None)
            errors = errors_of(opened.body) or [NOT_NOW]
            reply = call_reply(names, status_code=opened.status_code, next_position=1, errors=errors)
            return as_response(reply, 429 if opened.too_many else 200)
        tokens = opened.tokens
        self._looks.opened(tokens.chat_id)
        # The key that was registered is told, whatever the settings say by now.
        key = tokens.secure_key if opened.with_its_key else self._keys.of(call.service, tokens.chat_id)
        names = Names(tokens.chat_id, tokens.user_id, key, tokens.alias)
        reply = call_reply(names, status_code=SUCCESS, next_position=1, others=passed_on(opened.body))
        return as_response(reply)

    def _told(self, call: ClientCall, chat: Watched, outcome: Outcome, status: int = 200) -> web.Response:
        """The reply to a call. It carries no event of the transcript, and moves no position: most clients take over the
        position of any reply, and read events from polls alone."""
        codes = {Fate.DONE: SUCCESS, Fate.ENDED: SUCCESS, Fate.REFUSED: outcome.status_code}
        status_code = codes.get(outcome.fate, RETRY)
        reply = call_reply(
            Names.of(call),
            status_code=status_code,
            next_position=chat.position_given or max(1, call.asked_from),
            ended=outcome.fate is Fate.ENDED,
            errors=errors_of(outcome.body) or [NOT_NOW],
            notices=notices_of(outcome.body),
            others=passed_on(outcome.body),
        )
        return as_response(reply, 429 if outcome.fate is Fate.TOO_MANY else status)


_NEWEST, _OLDER, _CAME_WITH = map(metrics.GATEWAY_KEYS.labels, ("newest", "older", "came_with"))

OTHER_KEYS = "gateway.key_file has none of the keys that live chats were begun with: their clients would all be refused"
KEY_ADVICE = "put the line that was in use into the file again"

NO_ROOM_ADVICE = (
    "make room in the temporary directory of the service (TMPDIR), for what gateway.max_upload allows"
)

TOO_MANY_FILES = "too many files are on their way, try again"

RETRY_SECONDS = 5


def _admitted(settings: GatewaySettings) -> tuple[object, ...]:
    """Who may have a stream: when this changes each client has to show again that it may."""
    return settings.keys, settings.origins, settings.apikeys


def _come_again() -> web.Response:
    """Nothing can be known of the chat now, or nothing be kept."""
    response = refused_call(503, "cannot be done now, try again")
    response.headers[hdrs.RETRY_AFTER] = str(RETRY_SECONDS)
    return response


NOT_NOW = {"code": 503, "advice": "cannot be done now, try again"}


def _call_of(request: GatewayRequest) -> ClientCall:
    """What a request asks. Raises `ChatApiError`."""
    if request.is_poll and len(request.form) <= LARGEST_REMEMBERED and not request.http.query_string:
        return _poll_of(request.tail, request.form, request.content_type)
    return client_call(request.tail, _said(request))


@lru_cache(maxsize=POLLS_REMEMBERED)
def _poll_of(tail: str, form: bytes, content_type: str) -> ClientCall:
    return client_call(tail, _poll_said(form, content_type))


def _said(request: GatewayRequest) -> list[Pair]:
    """The parameters of a request. Raises `ChatApiError`, but not for a poll."""
    if not request.is_poll:
        return read_body(request.form, request.content_type)
    said = _poll_said(request.form, request.content_type)
    if request.http.query_string and (wait := request.http.query.get(WAIT)) is not None:
        said.append((WAIT, wait))  # alone of all parameters: it is no secret, and GMS never hears of it
    return said


def _poll_said(form: bytes, content_type: str) -> list[Pair]:
    """The parameters of a poll, which never gets an HTTP error: one that cannot be read has no key."""
    try:
        return read_body(form, content_type)
    except ChatApiError:
        return []
