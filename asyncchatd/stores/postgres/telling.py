"""The calls of the contract about the transcript and those who are told.

Their transactions stand in `transactions/{events,deliveries,trimming}.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from functools import partial
from pathlib import Path

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
from asyncchatd.stores.bell import Bell
from asyncchatd.stores.errors import ConsumerPushed, ConsumerUnknown
from asyncchatd.stores.postgres.opening import OpenDatabase
from asyncchatd.stores.postgres.transactions import deliveries, events, trimming


class TellingStore(OpenDatabase):
    """The part of the PostgreSQL store that keeps transcripts and tells consumers."""

    def __init__(self, url: str, *, directory: Path, queue: int = 10_000, keys: Sequence[bytes] = ()) -> None:
        super().__init__(url, directory=directory, queue=queue, keys=keys)
        self._enrolled: dict[str, Consumer] = {}
        self._enrolled_at: Ms = 0
        self.bell = Bell()

    async def enrol(
        self, consumers: Sequence[Consumer], *, now: Ms, shown: Set[EventKind] = frozenset()
    ) -> None:
        kinds = frozenset(shown).union(*(consumer.kinds for consumer in consumers))
        await self._writing(lambda tx: deliveries.enrol(tx, consumers, kinds, now))
        self._enrolled_at = now
        self._enrolled = {consumer.name: consumer for consumer in consumers}
        self._shown = frozenset(shown)
        self.told_kinds = kinds

    async def _begin(self) -> None:
        await super()._begin()
        if self.told_kinds:  # it was open before, and another database may be there now
            await self.enrol(list(self._enrolled.values()), now=self._enrolled_at, shown=self._shown)

    async def fetch(
        self, consumer: str, *, after: int | None, limit: int, now: Ms, beyond: int | None = None
    ) -> Portion:
        who = self._consumer(consumer)
        if who.pushes:
            raise ConsumerPushed(consumer)
        return await self._writing(lambda tx: deliveries.fetch(tx, who, after, limit, now, beyond))

    async def news(self, after: int, *, limit: int) -> tuple[Sequence[StoredEvent], int]:
        return await self._reading(lambda tx: events.news(tx, after, limit))

    async def transcript(self, chat_id: str, *, limit: int) -> Sequence[StoredEvent]:
        return await self._reading(lambda tx: events.transcript(tx, chat_id, limit))

    async def batches(
        self, consumer: str, *, now: Ms, limit: int, busy: Collection[int], most_events: int, most_bytes: int
    ) -> list[Batch]:
        who = self._consumer(consumer)
        while await self._writing(lambda tx: deliveries.share_out(tx, who), durable=False):
            pass
        return await self._writing(
            lambda tx: deliveries.batches(tx, who, now, limit, busy, most_events, most_bytes)
        )

    async def delivered(self, batches: Sequence[Batch], *, now: Ms) -> None:
        for name in sorted({batch.consumer for batch in batches}):
            who = self._consumer(name)
            done = [batch for batch in batches if batch.consumer == name]
            await self._writing(
                partial(deliveries.delivered, consumer=who, done=done, now=now), durable=False
            )

    async def undelivered(
        self, batch: Batch, *, due_at: Ms, failing_since: Ms | None, parked: bool = False
    ) -> None:
        who = self._consumer(batch.consumer)
        await self._writing(
            lambda tx: deliveries.undelivered(tx, who, batch, due_at, failing_since, parked), durable=False
        )

    async def next_batch(self, consumer: str, *, busy: Collection[int] = ()) -> Ms | None:
        return await self._reading(lambda tx: deliveries.next_due(tx, consumer, busy))

    async def consumers(self) -> list[ConsumerState]:
        return [
            replace(state, pushes=known.pushes, acknowledges=known.acknowledges_ms is not None)
            if (known := self._enrolled.get(state.name)) is not None
            else state
            for state in await self._reading(deliveries.states)
        ]

    async def pause(self, consumer: str, *, paused: bool) -> bool:
        done = await self._writing(lambda tx: deliveries.pause(tx, consumer, paused))
        self.bell.ring()
        return done

    async def replay(self, consumer: str, *, parked: bool) -> int:
        act = deliveries.replay if parked else deliveries.hurry
        count = await self._writing(lambda tx: act(tx, consumer))
        self.bell.ring()
        return count

    async def kept(self) -> Kept:
        return await self._reading(events.kept)

    async def trim(self, bounds: Bounds, *, now: Ms) -> Trimmed:
        gone, trimmed = await self._writing(lambda tx: trimming.trim(tx, bounds, now), durable=False)
        if gone or trimmed.dropped or trimmed.more:  # gaps may have been written
            self.bell.ring()
        return trimmed

    def _consumer(self, name: str) -> Consumer:
        try:
            return self._enrolled[name]
        except KeyError:
            raise ConsumerUnknown(name) from None
