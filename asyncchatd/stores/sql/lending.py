"""The calls by which a session is left to the custom-chat-app: taken by it, or asked of it.

What this process was told and has not written yet, its held claims know. What others who share the database were told
is in it before they answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from asyncchatd.model import EventKind, HandedOut, Ms, StoredEvent, Unacknowledged
from asyncchatd.stores.answers import NotTaken, RanOut, Take
from asyncchatd.stores.asking import Asking
from asyncchatd.stores.sql.calls import Tx
from asyncchatd.stores.sql.telling import TellingStore


class LendingStore(TellingStore[Tx]):
    """The part of a store that leaves sessions to the custom-chat-app."""

    # -- takes -----------------------------------------------------------------------------------

    async def take(self, chat_id: str, *, until: Ms, now: Ms, notified: int | None = None) -> Take | NotTaken:
        why = await self._obstacle(chat_id, now, notified)
        if why is not None:
            return why
        with self._held.claiming():
            taken: tuple[Take, str | None] | NotTaken
            taken = await self._write(lambda tx: self._takes.take(tx, chat_id, until, now, notified))
            if isinstance(taken, NotTaken):
                return taken
            take, device_id = taken
            if not self._held.told_since(take.tokens, device_id):
                return take
        await self._write(lambda tx: self._takes.forget(tx, take.take_id))
        return NotTaken.PUSHES

    async def _obstacle(self, chat_id: str, now: Ms, notified: int | None = None) -> NotTaken | None:
        """Why a session cannot be taken now, if anything is known against it. Whoever waits asks again and again, and
        most times in vain: without a turn at writing."""
        if self._held.holds(chat_id):
            return NotTaken.IN_FLIGHT
        return await self._read(lambda tx: self._takes.obstacle(tx, chat_id, now, notified))

    async def release(self, chat_id: str, take_id: str, *, now: Ms) -> bool:
        return await self._write(lambda tx: self._takes.release(tx, chat_id, take_id, now))

    async def ran_out(self, *, now: Ms) -> list[RanOut]:
        if not await self._read(lambda tx: self._takes.any_ran_out(tx, now)):
            return []
        return await self._write(lambda tx: self._takes.ran_out(tx, now))

    # -- asks ------------------------------------------------------------------------------------

    async def hand_out(self, consumer: str, events: Sequence[StoredEvent], *, now: Ms) -> HandedOut:
        notified = self._notified(consumer, events)
        if not notified:
            return HandedOut()
        with self._held.claiming():
            keyed = self._enrolled[consumer].send_keys
            handed, due = await self._write(
                lambda tx: self._asks.hand_out(tx, consumer, notified, now, self._held.holds, keyed=keyed)
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
        return await self._write(lambda tx: self._asks.withdraw(tx, consumer, notified, now))

    async def acknowledge(self, chat_id: str, event: int, *, now: Ms, spread_ms: float) -> bool:
        return await self._write(lambda tx: self._asks.acknowledge(tx, chat_id, event, now, spread_ms))

    async def unacknowledged(self) -> list[Unacknowledged]:
        if not await self._read(self._asks.any_unacknowledged):
            return []
        return await self._write(self._asks.unacknowledged)

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
