"""The calls of the contract about Chat Servers and restorations. What they do in a transaction stands in
`transactions/restorations.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from asyncchatd.model import Cause, ChatServer, EventKind, Loss, Ms, Restoration
from asyncchatd.stores.answers import Noted
from asyncchatd.stores.bell import Bell
from asyncchatd.stores.postgres.opening import OpenDatabase
from asyncchatd.stores.postgres.transactions import restorations


class RestoringStore(OpenDatabase):
    """The part of the PostgreSQL store that keeps Chat Servers and restorations."""

    def __init__(self, url: str, *, directory: Path, queue: int = 10_000, keys: Sequence[bytes] = ()) -> None:
        super().__init__(url, directory=directory, queue=queue, keys=keys)
        self._marking = asyncio.Lock()
        self.bell = Bell()

    async def servers(self) -> list[ChatServer]:
        return await self._reading(restorations.servers)

    async def note(self, server: ChatServer, *, epoch: int, losses: Sequence[Loss], now: Ms) -> Noted | None:
        begun = await self._writing(lambda tx: restorations.note(tx, server, epoch, losses, now))
        if begun is None:
            return None
        started = (
            restorations.begun_of(number, loss.alias, server.name, loss.cause, now)
            for number, loss in zip(begun, losses, strict=True)
        )
        return Noted(epoch + 1, tuple(started))

    async def begin_restoration(
        self, *, alias: str, server: str | None, cause: Cause, now: Ms
    ) -> Restoration:
        number = await self._writing(lambda tx: restorations.begin_restoration(tx, alias, server, cause, now))
        return restorations.begun_of(number, alias, server, cause, now)

    async def mark(self, restoration: int, *, limit: int, now: Ms) -> bool:
        # One portion at a time, or pings would wait for those of several lost servers together. The record of the
        # restoration is durable, and says how far this went.
        async with self._marking:
            more = await self._writing(
                lambda tx: restorations.mark(tx, restoration, limit, now), durable=False
            )
        if EventKind.LOST in self.told_kinds:
            self.bell.ring()
        return more

    async def restorations(self, *, limit: int = 50, unfinished: bool = False) -> list[Restoration]:
        return await self._reading(lambda tx: restorations.restorations(tx, limit, unfinished))

    async def newly_finished(self) -> list[Restoration]:
        if not await self._reading(restorations.any_untold):
            return []  # as nearly always, and without a turn at writing
        return await self._writing(restorations.newly_finished)

    async def finish_announced(self, *, now: Ms) -> list[int]:
        return await self._writing(lambda tx: restorations.finish_announced(tx, now))
