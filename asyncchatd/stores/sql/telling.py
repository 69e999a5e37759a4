"""The calls about transcripts and those who are told."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from functools import partial

from asyncchatd.model import (
    Batch,
    Consumer,
    ConsumerState,
    EventKind,
    Ms,
    Portion,
    StoredEvent,
    replace,
)
from asyncchatd.stores.answers import Bounds, Kept, Trimmed
from asyncchatd.stores.errors import ConsumerPushed, ConsumerUnknown
from asyncchatd.stores.sql.calls import Calls, Tx
from asyncchatd.stores.transcripts import written


class TellingStore(Calls[Tx]):
    """The part of a store that keeps transcripts and tells consumers."""

    def __init__(self) -> None:
        super().__init__()
        self._enrolled: dict[str, Consumer] = {}
        self._enrolled_at: Ms = 0

    async def enrol(
        self, consumers: Sequence[Consumer], *, now: Ms, shown: Set[EventKind] = frozenset()
    ) -> None:
        await self._write(lambda tx: self._deliveries.enrol(tx, consumers, shown, now))
        self._enrolled_at = now
        self._enrolled = {consumer.name: consumer for consumer in consumers}
        self._shown = frozenset(shown)
        self.told_kinds = written(consumers, shown)

    async def fetch(
        self, consumer: str, *, after: int | None, limit: int, now: Ms, beyond: int | None = None
    ) -> Portion:
        who = self._consumer(consumer)
        if who.pushes:
            raise ConsumerPushed(consumer)
        return await self._write(lambda tx: self._deliveries.fetch(tx, who, after, limit, now, beyond))

    async def news(self, after: int, *, limit: int) -> tuple[Sequence[StoredEvent], int]:
        return await self._read(lambda tx: self._events.news(tx, after, limit))

    async def transcript(self, chat_id: str, *, limit: int) -> Sequence[StoredEvent]:
        return await self._read(lambda tx: self._events.transcript(tx, chat_id, limit))

    async def batches(
        self, consumer: str, *, now: Ms, limit: int, busy: Collection[int], most_events: int, most_bytes: int
    ) -> list[Batch]:
        who = self._consumer(consumer)
        while await self._write(lambda tx: self._deliveries.share_out(tx, who), durable=False):
            pass
        return await self._write(
            lambda tx: self._deliveries.batches(tx, who, now, limit, busy, most_events, most_bytes)
        )

    async def delivered(self, batches: Sequence[Batch], *, now: Ms) -> None:
        for name in sorted({batch.consumer for batch in batches}):
            who = self._consumer(name)
            done = [batch for batch in batches if batch.consumer == name]
            await self._write(
                partial(self._deliveries.delivered, consumer=who, done=done, now=now), durable=False
            )

    async def undelivered(
        self, batch: Batch, *, due_at: Ms, failing_since: Ms | None, parked: bool = False
    ) -> None:
        who = self._consumer(batch.consumer)
        await self._write(
            lambda tx: self._deliveries.undelivered(tx, who, batch, due_at, failing_since, parked),
            durable=False,
        )

    async def next_batch(self, consumer: str, *, busy: Collection[int] = ()) -> Ms | None:
        return await self._read(lambda tx: self._deliveries.next_due(tx, consumer, busy))

    async def consumers(self) -> list[ConsumerState]:
        return [
            replace(state, pushes=known.pushes, acknowledges=known.acknowledges_ms is not None)
            if (known := self._enrolled.get(state.name)) is not None
            else state
            for state in await self._read(self._deliveries.states)
        ]

    async def pause(self, consumer: str, *, paused: bool) -> bool:
        done = await self._write(lambda tx: self._deliveries.pause(tx, consumer, paused))
        self.bell.ring()
        return done

    async def replay(self, consumer: str, *, parked: bool) -> int:
        act = self._deliveries.replay if parked else self._deliveries.hurry
        count = await self._write(lambda tx: act(tx, consumer))
        self.bell.ring()
        return count

    async def kept(self) -> Kept:
        return await self._read(self._events.kept)

    async def trim(self, bounds: Bounds, *, now: Ms) -> Trimmed:
        gone, trimmed = await self._write(lambda tx: self._trimming.trim(tx, bounds, now), durable=False)
        if gone or trimmed.dropped or trimmed.more:  # gaps may have been written
            self.bell.ring()
        return trimmed

    def _consumer(self, name: str) -> Consumer:
        try:
            return self._enrolled[name]
        except KeyError:
            raise ConsumerUnknown(name) from None
