"""One webhook: the events of each chat posted in their order, chats beside each other.

At most one request of a chat is on its way. A batch has its name and its events before its first try, and keeps them
until it is taken; how far each chat is stands in the store, so a restart tells a batch again and not hours.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping

import aiohttp
from aiohttp.http import SERVER_SOFTWARE

from asyncchatd import __version__
from asyncchatd.config import ConsumerSettings, tls_context, webhook_key
from asyncchatd.delivery.endpoint import Endpoint, Fate, backoff_ms, fate_of
from asyncchatd.delivery.signing import body_of, signed
from asyncchatd.lacks import system_words
from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import Batch, Clock, EventKind
from asyncchatd.stores import Store, StoreError, tell_failure

MOST_EVENTS = 50
MOST_BYTES = 256 * 1024
"""Of one batch."""

LARGEST_ANSWER = 64 * 1024
"""Bytes of an answer that are read, so that its connection may serve again. What it says does not matter."""

LOOK_SECONDS = 1.0
"""The longest look-away: what others who share the store wrote rings no bell here."""

STORE_PAUSE_SECONDS = 1.0

TLS_PAUSE_SECONDS = 60.0
"""Between two tries to read the file of authorities."""

log = get_logger()


class Webhook:
    """The delivery to one consumer. Its root task is `run`, until cancelled."""

    def __init__(self, store: Store, settings: ConsumerSettings, clock: Clock) -> None:
        assert settings.url is not None
        self.name = settings.name
        self._store = store
        self._settings = settings
        self._url = settings.url
        self._keys = [
            webhook_key(secret.get_secret_value())
            for secret in (settings.secret_file.values if settings.secret_file else ())
        ]
        self._clock = clock
        self._endpoint = Endpoint(clock)
        self._down_since: float | None = None
        self._busy: dict[int, asyncio.Task[None]] = {}
        """Requests on their way, by session."""
        self._landed = asyncio.Event()

    async def run(self) -> None:
        """Deliver what there is, as it comes."""
        tls = await self._tls() if self._url.startswith("https:") else False
        http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=self._settings.max_in_flight),
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout.total_seconds()),
            headers={"User-Agent": f"asyncchatd/{__version__} {SERVER_SOFTWARE}"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        try:
            async with http:
                while True:
                    try:
                        await self._look(http)
                    except StoreError as error:
                        tell_failure(error)
                        await self._clock.sleep(STORE_PAUSE_SECONDS)
        finally:
            for task in self._busy.values():
                task.cancel()
            await asyncio.gather(*self._busy.values(), return_exceptions=True)

    async def _tls(self) -> ssl.SSLContext:
        """Waits while the authorities cannot be read."""
        while True:
            try:
                return await asyncio.to_thread(lambda: tls_context(authorities=self._settings.ca_file))
            except OSError as error:
                log.warning(Event.CONSUMER_DOWN, consumer=self.name, cause=f"ca_file: {_in_words(error)}")
                await self._clock.sleep(TLS_PAUSE_SECONDS)

    async def _look(self, http: aiohttp.ClientSession) -> None:
        """Send what may be sent now, and wait until there may be more."""
        self._landed.clear()
        if wait := self._endpoint.wait():
            await self._clock.sleep(wait)
        most = 1 if self._endpoint.is_down else self._settings.max_in_flight
        free = most - len(self._busy)
        batches = []
        if free > 0:
            batches = await self._store.batches(
                self.name,
                now=self._clock.now(),
                limit=free,
                busy=self._busy.keys(),
                most_events=MOST_EVENTS,
                most_bytes=MOST_BYTES,
            )
        for batch in batches:
            self._busy[batch.row] = asyncio.create_task(self._deliver(http, batch))
        if not batches:
            await self._pause(full=free <= 0)

    async def _pause(self, *, full: bool) -> None:
        """Until an answer has come, an event was written, or a batch is due again."""
        seconds = LOOK_SECONDS
        if not full and (due := await self._store.next_batch(self.name)) is not None:
            seconds = min(seconds, max(0.0, (due - self._clock.now()) / 1000))
        waits = [self._clock.wait(self._landed, seconds)]
        if not full:
            waits.append(self._store.bell.wait(self._clock, seconds))
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver(self, http: aiohttp.ClientSession, batch: Batch) -> None:
        try:
            body = body_of(batch, self._store.epoch, await self._tokens(batch))
            began = self._clock.monotonic()
            status, headers, why = await self._post(http, batch, body)
            fate = fate_of(status)
            metrics.DELIVERIES.labels(self.name, fate.name.lower()).inc()
            took_ms = round((self._clock.monotonic() - began) * 1000)
            await self._note(batch, fate, why, headers, took_ms)
        except StoreError as error:
            tell_failure(error)  # it is due still, and is told again: at least once
        finally:
            self._busy.pop(batch.row, None)
            self._landed.set()

    async def _tokens(self, batch: Batch) -> Mapping[str, str] | None:
        """The newest tokens of the chat, for a consumer that has them; not frozen with the batch, as they may be old by
        its next try."""
        if not self._settings.send_keys or all(event.kind is not EventKind.TOKENS for event in batch.events):
            return None
        session = await self._store.get(batch.events[0].chat_id)
        if session is None or session.secure_key is None or session.user_id is None or session.alias is None:
            return None
        return {"user_id": session.user_id, "secure_key": session.secure_key, "alias": session.alias}

    async def _post(
        self, http: aiohttp.ClientSession, batch: Batch, body: bytes
    ) -> tuple[int | None, Mapping[str, str], str]:
        """The status and headers of the answer, and why it was not taken; no status without an answer."""
        headers = {
            "Content-Type": "application/json",
            **signed(self._keys, batch.number, self._clock.now() // 1000, body),
        }
        try:
            async with http.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
                await response.content.read(LARGEST_ANSWER)
                return response.status, response.headers, f"HTTP {response.status}"
        except TimeoutError:
            return None, {}, "no answer in time"
        except (aiohttp.ClientError, OSError) as error:
            return None, {}, _in_words(error)

    async def _note(
        self, batch: Batch, fate: Fate, why: str, headers: Mapping[str, str], took_ms: int
    ) -> None:
        now = self._clock.now()
        about = {"chat_id": batch.events[0].chat_id, "consumer": self.name, "count": len(batch.events)}
        if fate is Fate.FAILED:
            self._endpoint.failed(headers)
            if self._down_since is None:
                self._down_since = self._clock.monotonic()
                log.warning(Event.CONSUMER_DOWN, consumer=self.name, cause=why)
            await self._store.undelivered(batch, due_at=now, failing_since=batch.failing_since)
            return
        self._endpoint.answered()
        if self._down_since is not None:
            down_ms = round((self._clock.monotonic() - self._down_since) * 1000)
            self._down_since = None
            log.info(Event.CONSUMER_UP, consumer=self.name, took_ms=down_ms)
        if fate is Fate.TAKEN:
            await self._store.delivered([batch], now=now)
            for event in batch.events:
                metrics.EVENTS_TOLD.labels(event.kind.value, "delivered").inc()
            lag_ms = now - batch.events[0].at
            log.info(Event.EVENTS_DELIVERED, **about, tries=batch.tries + 1, took_ms=took_ms, lag_ms=lag_ms)
        elif fate is Fate.GONE:
            await self._store.undelivered(batch, due_at=now, failing_since=batch.failing_since)
            await self._store.pause(self.name, paused=True)
            advice = f"when it is back: asyncchatd consumers resume {self.name}"
            log.error(Event.CONSUMER_GONE, consumer=self.name, cause=why, advice=advice)
        else:
            since = now if batch.failing_since is None else batch.failing_since
            parked = now - since >= self._settings.park_after.total_seconds() * 1000
            due_at = round(now + backoff_ms(batch.tries))
            await self._store.undelivered(batch, due_at=due_at, failing_since=since, parked=parked)
            if parked:
                advice = f"mend the consumer, then asyncchatd consumers replay {self.name}"
                log.error(Event.EVENTS_PARKED, **about, tries=batch.tries + 1, cause=why, advice=advice)
            elif batch.tries == 0:
                log.warning(Event.EVENTS_REFUSED, **about, cause=why)


def _in_words(error: Exception) -> str:
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    words = system_words(cause) if isinstance(cause, OSError) else None
    return (words or type(cause).__name__).lower() if words else type(cause).__name__
