"""The delivery of events to all consumers, as the configuration names them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from asyncchatd.config import ConsumerSettings, Settings
from asyncchatd.delivery.webhook import Webhook
from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import MS, Clock, Consumer, EventKind
from asyncchatd.stores import STORE_PAUSE_SECONDS, Bounds, Store, StoreError, Why, tell_failure

TRIM_SECONDS = 60.0
"""Between two looks at what is beyond the bounds of transcripts."""

SHOWN = frozenset((EventKind.CHAT, EventKind.ENDED, EventKind.GAP, EventKind.NOTIFIED))
"""What the gateway answers polls from, and what tells it that pushes come."""

log = get_logger()


class _By(NamedTuple):
    """What a webhook goes by: another one begins where any of it is another."""

    settings: ConsumerSettings
    authorities: bytes | None
    """What stands in its `ca_file`, which may be renewed under the same name."""


class _Kept(NamedTuple):
    """A webhook that is kept."""

    webhook: Webhook
    by: _By
    task: asyncio.Task[None]


class Delivery:
    """The consumers, and what is kept for them. `open` first; its root tasks are `lives`."""

    def __init__(
        self, store: Store, settings: Settings, clock: Clock, wakeup: asyncio.Event | None = None
    ) -> None:
        """`wakeup` is set when a session is due."""
        self._wakeup = wakeup or asyncio.Event()
        self._store = store
        self._clock = clock
        self._changed = asyncio.Event()
        self._webhooks: dict[str, _Kept] = {}
        """By the consumer's name."""
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Tell these consumers, within these bounds, from now on."""
        self._settings = settings
        self._changed.set()

    async def open(self) -> None:
        """Name the consumers to the store: what is written from then on is told them. Raises `StoreError`."""
        told = [_named(each) for each in self._settings.consumers]
        shown = frozenset() if self._settings.gateway is None else SHOWN
        await self._store.enrol(told, now=self._clock.now(), shown=shown)

    def lives(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Its root tasks by name."""
        return {"delivery": self.run(), "transcript": self.trim()}

    def hurry(self, consumer: str) -> None:
        """Try at once what waits for the webhook of this consumer, also where it is down."""
        if consumer in self._webhooks:
            self._webhooks[consumer].webhook.hurry()

    def listening(self) -> list[str]:
        """The consumers with a webhook that hear at once what they are told."""
        return [name for name, kept in self._webhooks.items() if kept.webhook.listens]

    def trouble(self, consumer: str) -> str | None:
        """Why the webhook of this consumer did not take the last batch, if it did not."""
        kept = self._webhooks.get(consumer)
        return None if kept is None else kept.webhook.trouble

    async def run(self) -> None:
        """Keep a webhook for each consumer that has one, until cancelled."""
        try:
            while True:
                self._changed.clear()
                self._raise_failure()
                wanted = await self._wanted()
                others = [name for name, kept in self._webhooks.items() if wanted.get(name) != kept.by]
                await self._end(*others)  # first: the store knows no more of them then
                try:
                    await self.open()
                except StoreError as error:
                    tell_failure(error)
                    await self._clock.sleep(STORE_PAUSE_SECONDS)
                    continue
                self._begin(wanted)
                await self._changed.wait()
        finally:
            await self._end(*self._webhooks)

    async def _wanted(self) -> Mapping[str, _By]:
        """What webhooks there are to be, by the consumers' names."""
        with_url = [each for each in self._settings.consumers if each.url is not None]
        authorities = await asyncio.to_thread(lambda: [_content(each.ca_file) for each in with_url])
        return {each.name: _By(each, held) for each, held in zip(with_url, authorities, strict=True)}

    def _begin(self, wanted: Mapping[str, _By]) -> None:
        """Begin the webhooks that are new or changed; those that stay as they are go on."""
        for name, by in wanted.items():
            if name not in self._webhooks:
                webhook = Webhook(self._store, by.settings, self._clock, self._wakeup)
                task = asyncio.create_task(webhook.run(), name=f"webhook {name}")
                task.add_done_callback(lambda _: self._changed.set())
                self._webhooks[name] = _Kept(webhook, by, task)

    def _raise_failure(self) -> None:
        """Raise what a webhook ended with: none ends by itself."""
        for kept in self._webhooks.values():
            if kept.task.done():
                kept.task.result()

    async def _end(self, *names: str) -> None:
        tasks = [self._webhooks.pop(name).task for name in names]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def trim(self) -> None:
        """Keep transcripts within their bounds, until cancelled."""
        while True:
            await self._clock.sleep(TRIM_SECONDS)
            dropped: Counter[tuple[str, Why]] = Counter()
            try:
                if await self._store.duty("trim", seconds=TRIM_SECONDS):
                    while await self._trim(dropped):
                        await self._clock.sleep(0.1)
            except StoreError as error:
                tell_failure(error)
            for (consumer, why), count in dropped.items():
                log.warning(Event.EVENTS_DROPPED, consumer=consumer, count=count, cause=why.value)

    async def _trim(self, dropped: Counter[tuple[str, Why]]) -> bool:
        """One portion. Whether there is more to look at."""
        trimmed = await self._store.trim(self._bounds(), now=self._clock.now())
        dropped.update(trimmed.dropped)
        for (consumer, why), count in trimmed.dropped.items():
            metrics.EVENTS_DROPPED.labels(consumer, why.value).inc(count)
        return trimmed.more

    def _bounds(self) -> Bounds:
        settings = self._settings
        return Bounds(
            max_events=settings.transcript.max_events,
            max_bytes=settings.transcript.max_bytes,
            max_total=settings.transcript.max_total,
            keep_ms=settings.transcript.keep // MS,
        )


def _content(file: Path | None) -> bytes | None:
    with suppress(OSError):  # the webhook tells, and tries again
        return None if file is None else file.read_bytes()
    return None


def _named(settings: ConsumerSettings) -> Consumer:
    """A consumer as the store knows it."""
    return Consumer(
        settings.name,
        settings.kinds,
        frozenset(settings.services),
        pushes=settings.url is not None,
        from_oldest=settings.begin == "oldest",
        keep_ms=settings.keep // MS,
        acknowledges_ms=None if settings.acknowledges is None else settings.acknowledges // MS,
        max_backlog=settings.max_backlog,
        send_keys=settings.send_keys,
    )
