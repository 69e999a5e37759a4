"""The calls about Chat Servers and restorations."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from asyncchatd.model import Cause, ChatServer, EventKind, Loss, Ms, Restoration
from asyncchatd.stores.answers import Noted
from asyncchatd.stores.sql.calls import Calls, Tx


class RestoringStore(Calls[Tx]):
    """The part of a store that keeps Chat Servers and restorations."""

    def __init__(self) -> None:
        super().__init__()
        self._marking = asyncio.Lock()

    async def servers(self) -> list[ChatServer]:
        return await self._read(self._restorations.servers)

    async def note(self, server: ChatServer, *, epoch: int, losses: Sequence[Loss], now: Ms) -> Noted | None:
        begun = await self._write(lambda tx: self._restorations.note(tx, server, epoch, losses, now))
        if begun is None:
            return None
        started = (_begun_of(number, loss.alias, server.name, loss.cause, now) for number, loss in begun)
        return Noted(epoch + 1, tuple(started))

    async def begin_restoration(
        self, *, alias: str, server: str | None, cause: Cause, now: Ms
    ) -> Restoration:
        number = await self._write(
            lambda tx: self._restorations.begin_restoration(tx, alias, server, cause, now)
        )
        return _begun_of(number, alias, server, cause, now)

    async def mark(self, restoration: int, *, limit: int, now: Ms) -> bool:
        # One portion at a time, or pings and pushes would wait for those of several lost servers together.
        # The record of the restoration is durable, and says how far this went.
        async with self._marking:
            more = await self._write(
                lambda tx: self._restorations.mark(tx, restoration, limit, now), durable=False
            )
        if EventKind.LOST in self.told_kinds:
            self.bell.ring()
        return more

    async def restorations(self, *, limit: int = 50, unfinished: bool = False) -> list[Restoration]:
        return await self._read(lambda tx: self._restorations.restorations(tx, limit, unfinished))

    async def newly_finished(self) -> list[Restoration]:
        if not await self._read(self._restorations.any_untold):
            return []  # as nearly always, and without a turn at writing
        return await self._write(self._restorations.newly_finished)

    async def finish_announced(self, *, now: Ms) -> list[int]:
        return await self._write(lambda tx: self._restorations.finish_announced(tx, now))


def _begun_of(number: int, alias: str, server: str | None, cause: Cause, now: Ms) -> Restoration:
    """A restoration that has just begun, with no session in it yet."""
    return Restoration(number, alias, server, cause, now, True, 0, 0, 0, 0, 0, None)
