"""The calls of the contract by which a session is left to the custom-chat-app: taken by it, or asked of it.

Their transactions stand in `transactions/takes.py` and `transactions/asks.py`. What other nodes were told is in the
database before they answer; what this one was told and has not written yet, its held claims know.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from asyncchatd.model import EventKind, HandedOut, Ms, StoredEvent, Unacknowledged
from asyncchatd.stores.answers import NotTaken, RanOut, Take
from asyncchatd.stores.asking import Asking
from asyncchatd.stores.base import Store
from asyncchatd.stores.held import HeldClaims
from asyncchatd.stores.postgres.telling import TellingStore
from asyncchatd.stores.postgres.transactions import asks, takes


class LendingStore(TellingStore, Store):
    """The part of the PostgreSQL store that leaves sessions to the custom-chat-app."""

    def __init__(self, url: str, *, directory: Path, queue: int = 10_000, keys: Sequence[bytes] = ()) -> None:
        super().__init__(url, directory=directory, queue=queue, keys=keys)
        self._held = HeldClaims()

    # -- takes -----------------------------------------------------------------------------------

    async def take(self, chat_id: str, *, until: Ms, now: Ms, notified: int | None = None) -> Take | NotTaken:
        if self._held.holds(chat_id):
            return NotTaken.IN_FLIGHT
        # Whoever waits asks again and again, and most times in vain: without a turn at writing.
        why = await self._reading(lambda tx: takes.obstacle(tx, chat_id, now, notified))
        if why is not None:
            return why
        with self._held.claiming():
            taken = await self._writing(lambda tx: takes.take(tx, chat_id, until, now, notified))
            if isinstance(taken, NotTaken):
                return taken
            take, device_id = taken
            if not self._held.told_since(take.tokens, device_id):
                return take
        await self._writing(lambda tx: takes.forget(tx, take.take_id))
        return NotTaken.PUSHES

    async def release(self, chat_id: str, take_id: str, *, now: Ms) -> bool:
        return await self._writing(lambda tx: takes.release(tx, chat_id, take_id, now))

    async def ran_out(self, *, now: Ms) -> list[RanOut]:
        if not await self._reading(lambda tx: takes.any_ran_out(tx, now)):
            return []
        return await self._writing(lambda tx: takes.ran_out(tx, now))

    # -- asks ------------------------------------------------------------------------------------

    async def hand_out(self, consumer: str, events: Sequence[StoredEvent], *, now: Ms) -> HandedOut:
        notified = self._notified(consumer, events)
        if not notified:
            return HandedOut()
        with self._held.claiming():
            keyed = self._enrolled[consumer].send_keys
            handed, due = await self._writing(
                lambda tx: asks.hand_out(tx, consumer, notified, now, self._held.holds, keyed=keyed)
            )
            outdated = {
                each.event for each in handed if self._held.told_since(each.asked.tokens, each.device_id)
            }
        if outdated:  # a push has told other tokens since these were read
            due |= await self.withdraw(
                consumer, [event for event in notified if event.id in outdated], now=now
            )
        asked = {each.event: each.asked for each in handed if each.event not in outdated}
        return HandedOut(asked, withdrawn=due)

    async def withdraw(self, consumer: str, events: Sequence[StoredEvent], *, now: Ms) -> bool:
        notified = self._notified(consumer, events)
        if not notified:
            return False
        return await self._writing(lambda tx: asks.withdraw(tx, consumer, notified, now))

    async def acknowledge(self, chat_id: str, event: int, *, now: Ms, spread_ms: float) -> bool:
        return await self._writing(lambda tx: asks.acknowledge_alone(tx, chat_id, event, now, spread_ms))

    async def unacknowledged(self) -> list[Unacknowledged]:
        if not await self._reading(asks.any_unacknowledged):
            return []
        return await self._writing(asks.unacknowledged)

    def _notified(self, consumer: str, events: Sequence[StoredEvent]) -> list[StoredEvent]:
        """Those events that may ask this consumer for something."""
        who = self._enrolled.get(consumer)
        if who is None or who.acknowledges_ms is None:
            return []
        return [event for event in events if event.kind is EventKind.NOTIFIED]

    def _asking(self, listening: Collection[str], now: Ms) -> Asking | None:
        """Who may be asked now."""
        consumers = [
            who
            for who in self._enrolled.values()
            if who.name in listening and who.acknowledges_ms is not None and EventKind.NOTIFIED in who.kinds
        ]
        return Asking(consumers, now, self._held.holds) if consumers else None
