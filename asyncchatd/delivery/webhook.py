"""One webhook: the events of each chat posted in their order, chats beside each other.

At most one request of a chat is on its way. A batch has its name and its events before its first try, and keeps them
until it is taken; how far each chat is stands in the store, so a restart tells a batch again and not hours.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import aiohttp

from asyncchatd.config import ConsumerSettings, tls_context
from asyncchatd.delivery.endpoint import Endpoint, Fate, backoff_ms, fate_of
from asyncchatd.delivery.posting import keys_of, new_session, post
from asyncchatd.delivery.signing import body_of, id_of, signed
from asyncchatd.lacks import system_words
from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import Asked, Batch, Clock, EventKind, Ms
from asyncchatd.stores import STORE_PAUSE_SECONDS, Store, StoreError, tell_asked, tell_failure
from asyncchatd.wire import transcript_index

MOST_EVENTS = 50
"""Of one batch."""

MOST_BYTES = 256 * 1024
"""Of the events of one batch together."""

LOOK_SECONDS = 1.0
"""The longest look-away: what others who share the store wrote rings no bell here."""

T = TypeVar("T")

log = get_logger()


class _Answer(NamedTuple):
    """What came of one request."""

    status: int | None
    """None without an answer."""
    headers: Mapping[str, str]
    why: str
    """Why the batch was not taken, where it was not."""
    heard: bool = True
    """Whether the endpoint may have heard it."""


class Webhook:
    """The delivery to one consumer. Its root task is `run`, until cancelled."""

    def __init__(
        self, store: Store, settings: ConsumerSettings, clock: Clock, wakeup: asyncio.Event | None = None
    ) -> None:
        """`wakeup` is set when a session is due."""
        assert settings.url is not None
        self.name = settings.name
        self._store = store
        self._settings = settings
        self._url = settings.url
        self._keys = keys_of(settings)
        self._clock = clock
        self._wakeup = wakeup or asyncio.Event()
        self._endpoint = Endpoint(clock)
        self._down_since: float | None = None
        self._taken_at: Ms | None = None
        self.trouble: str | None = None
        """Why the last batch was not taken; none once one is."""
        self._busy: dict[int, asyncio.Task[None]] = {}
        """Requests on their way, by session."""
        self._news = asyncio.Event()
        """An answer has come, or an event was written."""
        self._failure: BaseException | None = None

    @property
    def listens(self) -> bool:
        """Whether its endpoint answered the last time, and so hears at once what happens."""
        return not self._endpoint.is_down

    def hurry(self) -> None:
        """Try now, also where the endpoint is down and its next probe has its time yet to come."""
        self._endpoint.hurry()
        self._news.set()

    async def run(self) -> None:
        """Deliver what there is, as it comes. Raises what no delivery should."""
        tls: ssl.SSLContext | Literal[False] = False
        if self._url.startswith("https:"):
            tls = await self._tls()
        http = new_session(self._settings, tls)
        try:
            with self._store.bell.heard_by(self._news):
                while True:
                    await self._insist(lambda: self._look(http))
        finally:
            tasks = list(self._busy.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await http.close()

    async def _tls(self) -> ssl.SSLContext:
        """The context for its connections; waits while the authorities cannot be read, which is a failure of the
        endpoint."""
        while True:
            try:
                return await asyncio.to_thread(lambda: tls_context(authorities=self._settings.ca_file))
            except OSError as error:
                self._failed({}, self._clock.monotonic(), f"ca_file: {_in_words(error)}")
                self._news.clear()
                await self._clock.wait(self._news, self._endpoint.wait())

    async def _look(self, http: aiohttp.ClientSession) -> None:
        """Send what may be sent now, and wait until there may be more."""
        self._news.clear()
        if self._failure is not None:
            raise self._failure
        if wait := self._endpoint.wait():
            await self._clock.wait(self._news, wait)
            return
        most = 1 if self._endpoint.is_down else self._settings.max_in_flight
        free = most - len(self._busy)
        batches = []
        if free > 0:
            batches = await self._store.batches(
                self.name,
                now=self._clock.now(),
                limit=free,
                busy=self._busy_now(),
                most_events=MOST_EVENTS,
                most_bytes=MOST_BYTES,
            )
        for batch in batches:
            task = self._busy[batch.row] = asyncio.create_task(self._deliver(http, batch))
            task.add_done_callback(partial(self._landed, batch.row))
        if not batches:
            await self._pause(full=free <= 0)

    async def _pause(self, *, full: bool) -> None:
        """Wait until there is news, or a batch is due again."""
        seconds = LOOK_SECONDS
        due = None if full else await self._store.next_batch(self.name, busy=self._busy_now())
        if due is not None:
            seconds = min(seconds, max(0.0, (due - self._clock.now()) / 1000))
        await self._clock.wait(self._news, seconds)

    def _busy_now(self) -> Collection[int]:
        """The sessions with a request on its way, as they are now: the store looks from a thread of its own."""
        return frozenset(self._busy)

    async def _insist(self, act: Callable[[], Awaitable[T]]) -> T:
        """Have the store do something as soon as it can."""
        while True:
            try:
                return await act()
            except StoreError as error:
                tell_failure(error)
                await self._clock.sleep(STORE_PAUSE_SECONDS)

    def _landed(self, row: int, task: asyncio.Task[None]) -> None:
        del self._busy[row]
        if not task.cancelled():
            self._failure = self._failure or task.exception()
        self._news.set()

    async def _deliver(self, http: aiohttp.ClientSession, batch: Batch) -> None:
        """Try a batch, and write down what came of it: until then nothing else of its chat is sent, and an answer that
        a full disk does not take is not asked for again and again."""
        tokens = await self._insist(lambda: self._tokens(batch))
        asked = await self._insist(lambda: self._ask(batch))
        body = body_of(batch, self._store.epoch, tokens, asked, keys=self._settings.send_keys)
        began = self._clock.monotonic()
        answer = await self._post(http, batch, body)
        took_ms = round((self._clock.monotonic() - began) * 1000)
        fate, why = fate_of(answer.status), answer.why
        if asked and (fate in (Fate.REFUSED, Fate.GONE) or not answer.heard):
            await self._insist(lambda: self._ask_no_more(batch))
        metrics.DELIVERIES.labels(self.name, fate.name.lower()).inc()
        if fate is Fate.FAILED:
            self._failed(answer.headers, began, why)
        else:
            self._answered(began, trouble=None if fate is Fate.TAKEN else why)
        await self._insist(lambda: self._note(batch, fate, why, took_ms))

    async def _tokens(self, batch: Batch) -> Mapping[str, str] | None:
        """The newest tokens of the chat, for a consumer that has them; not frozen with the batch, as they may be old by
        its next try."""
        if not self._settings.send_keys or all(event.kind is not EventKind.TOKENS for event in batch.events):
            return None
        session = await self._store.get(batch.events[0].chat_id or "")
        if session is None or session.secure_key is None or session.user_id is None or session.alias is None:
            return None
        return {"user_id": session.user_id, "secure_key": session.secure_key, "alias": session.alias}

    async def _ask(self, batch: Batch) -> Mapping[int, Asked]:
        """The Refreshes that its events ask for at this try."""
        if self._settings.acknowledges is None:
            return {}
        handed = await self._store.hand_out(self.name, batch.events, now=self._clock.now())
        if handed.withdrawn:
            self._wakeup.set()
        tell_asked(self.name, batch.events, handed)
        return handed.asked

    async def _ask_no_more(self, batch: Batch) -> None:
        """Take back what the batch asked for: the consumer was not reached, or wants nothing of it."""
        if await self._store.withdraw(self.name, batch.events, now=self._clock.now()):
            self._wakeup.set()

    async def _post(self, http: aiohttp.ClientSession, batch: Batch, body: bytes) -> _Answer:
        headers = signed(self._keys, id_of(batch, body), self._clock.now() // 1000, body)
        try:
            status, answered = await post(http, self._url, headers, body)
            return _Answer(status, answered, f"HTTP {status}")
        except TimeoutError:
            return _Answer(None, {}, "no answer in time")
        except aiohttp.ClientConnectorError as error:
            return _Answer(None, {}, _in_words(error.os_error), heard=False)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _Answer(None, {}, _in_words(error))

    def _failed(self, headers: Mapping[str, str], began: float, why: str) -> None:
        self.trouble = why
        self._endpoint.failed(headers, began)
        if self._down_since is None:
            self._down_since = self._clock.monotonic()
            log.warning(Event.CONSUMER_DOWN, consumer=self.name, cause=why)

    def _answered(self, began: float, *, trouble: str | None) -> None:
        self.trouble = trouble
        self._endpoint.answered(began)
        if self._down_since is not None:
            down_ms = round((self._clock.monotonic() - self._down_since) * 1000)
            self._down_since = None
            log.info(Event.CONSUMER_UP, consumer=self.name, took_ms=down_ms)

    async def _note(self, batch: Batch, fate: Fate, why: str, took_ms: int) -> None:
        """Write down and log what came of a try. Raises `StoreError`; it may be repeated then."""
        match fate:
            case Fate.TAKEN:
                await self._note_taken(batch, took_ms)
            case Fate.REFUSED:
                await self._note_refused(batch, why)
            case Fate.GONE:
                await self._store.pause(self.name, paused=True)
                await self._note_untold(batch)
                advice = f"when it is back: asyncchatd consumers resume {self.name}"
                log.error(Event.CONSUMER_GONE, consumer=self.name, cause=why, advice=advice)
            case Fate.FAILED:
                await self._note_untold(batch)

    async def _note_taken(self, batch: Batch, took_ms: int) -> None:
        now = self._clock.now()
        self._taken_at = now
        await self._store.delivered([batch], now=now)
        for event in batch.events:
            metrics.EVENTS_TOLD.labels(event.kind.value, "delivered").inc()
        log.info(
            Event.EVENTS_DELIVERED,
            **_about(batch),
            tries=batch.tries + 1,
            took_ms=took_ms,
            lag_ms=max(0, now - batch.events[0].at),  # the clock may have been set back
        )

    async def _note_refused(self, batch: Batch, why: str) -> None:
        now = self._clock.now()
        since = now if batch.failing_since is None else batch.failing_since
        parked = self._is_parked(since, now)
        due_at = round(now + backoff_ms(now - since))
        await self._store.undelivered(batch, due_at=due_at, failing_since=since, parked=parked)
        if parked:
            advice = f"mend the consumer, then asyncchatd consumers replay {self.name}"
            log.error(Event.EVENTS_PARKED, **_about(batch), tries=batch.tries + 1, cause=why, advice=advice)
        elif batch.failing_since is None:
            log.warning(Event.EVENTS_REFUSED, **_about(batch), cause=why)

    async def _note_untold(self, batch: Batch) -> None:
        """It is due again as soon as the endpoint takes anything."""
        await self._store.undelivered(batch, due_at=self._clock.now(), failing_since=batch.failing_since)

    def _is_parked(self, since: Ms, now: Ms) -> bool:
        """Whether a batch that is refused since then is put aside. Not while all are: that is the endpoint's fault,
        such as a secret that it does not know."""
        lasts = now - since >= self._settings.park_after.total_seconds() * 1000
        return lasts and self._taken_at is not None and self._taken_at >= since


def _about(batch: Batch) -> Mapping[str, object]:
    """Which events a line of the log is about, and where in the transcript they stand."""
    indexes = [index for event in batch.events if (index := transcript_index(event)) is not None]
    return {
        "chat_id": batch.events[0].chat_id,
        "consumer": batch.consumer,
        "count": len(batch.events),
        "first_index": min(indexes, default=None),
        "last_index": max(indexes, default=None),
    }


def _in_words(error: Exception) -> str:
    """An error in the system's words, else by its name: its text may have the address in it."""
    words = system_words(error)
    return type(error).__name__ if words is None else words.lower()
