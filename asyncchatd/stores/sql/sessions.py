"""The calls about sessions: those that are registered, looked at, and removed by hand or by age."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asyncchatd.model import EventKind, Ms, Reason, Registration, Session, SessionState
from asyncchatd.stores.answers import Counts, Registered
from asyncchatd.stores.rules import EVERY_REASON
from asyncchatd.stores.sql.calls import Calls, Tx

ABSORB_CHUNK = 1_000
"""Pushes that take effect in one transaction where all have to."""


class SessionStore(Calls[Tx]):
    """The part of a store that keeps sessions."""

    async def register(
        self, registrations: Sequence[Registration], *, now: Ms, spread_ms: float
    ) -> list[Registered]:
        self._held.hear_registrations(registrations)
        told = EventKind.CHAT in self.told_kinds
        done = await self._write(
            lambda tx: self._sessions.register(tx, registrations, now, spread_ms, told=told), large=True
        )
        if Registered.OVER in done:
            self.bell.ring()
        return done

    async def get(self, chat_id: str) -> Session | None:
        return await self._read(lambda tx: self._sessions.get(tx, chat_id))

    async def sessions(
        self,
        *,
        alias: str | None = None,
        state: SessionState | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Session]:
        return await self._read(lambda tx: self._sessions.listed(tx, alias, state, limit, after))

    async def remove(self, chat_id: str, *, now: Ms) -> bool:
        return await self._write(lambda tx: self._sessions.remove(tx, chat_id, now))

    async def make_due(self, chat_id: str, reason: Reason, *, now: Ms) -> bool:
        return await self._write(lambda tx: self._sessions.make_due(tx, chat_id, reason, now))

    async def gateway_keys(self, ids: Sequence[str]) -> bool:
        return await self._write(lambda tx: self._sessions.gateway_keys(tx, ids))

    async def counts(self, *, now: Ms) -> Counts:
        return await self._read(lambda tx: self._sessions.counts(tx, now, len(self._held)))

    async def counts_by_alias(self) -> Mapping[str, int]:
        return await self._read(self._sessions.counts_by_alias)

    async def next_due(self, *, now: Ms, reasons: Sequence[Reason] = EVERY_REASON) -> float | None:
        return await self._read(lambda tx: self._work.next_due(tx, now, reasons))

    async def purge(self, *, ended_before: Ms, limit: int) -> int:
        return await self._write(lambda tx: self._sessions.purge(tx, ended_before, limit))

    async def distrust(self, *, before: Ms, dry_run: bool = False) -> int:
        if not dry_run:
            await self._absorb_all()  # what waits there is as old
        count = await self._write(lambda tx: self._sessions.distrust(tx, before, dry_run))
        if not dry_run:
            self.epoch = await self._write(lambda tx: self._events.epoch(tx, anew=True))
        return count

    async def _absorb_all(self) -> None:
        """Let every push that waits take effect."""
        empty = False
        while not empty:
            _, empty = await self._write(lambda tx: self._pushes.absorb(tx, ABSORB_CHUNK))
