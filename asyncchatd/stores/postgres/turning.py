"""The change of store keys while several processes use the database.

Another key comes into force once all of them would write with it first, and what is under those of before is sealed
anew by one of them, beside everything else.

The order in which it is done: on each node in turn the new key is put above the old ones and the node started again.
When the last of them has it, it comes into force by itself. Whoever still writes under the old one in that moment does
no harm: all can open both, until nothing is under the old one any more and nobody can write it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from asyncchatd.log import Event, get_logger
from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.postgres.shared import resealing, settings
from asyncchatd.stores.postgres.shared.resealing import Portion
from asyncchatd.stores.postgres.sharing import SharingStore
from asyncchatd.stores.postgres.wire import Tx

TURN_SECONDS = 5.0
"""How often is looked whether there is something to do."""

RESEAL_SECONDS = 60.0
"""So long one process seals anew for all."""

log = get_logger()


class TurningStore(SharingStore):
    """The part of the PostgreSQL store that changes the key under which secure keys are sealed."""

    _resealed = 0
    """How much, for the change of keys that is under way."""
    _resealing_since: float | None = None

    async def watch(self) -> None:
        async with asyncio.TaskGroup() as both:
            both.create_task(super().watch())
            both.create_task(self._watch_keys())

    async def _watch_keys(self) -> None:
        while True:
            await asyncio.sleep(TURN_SECONDS)
            with suppress(StoreError):  # its life tells of it
                await self.turn_keys()

    async def turn_keys(self) -> None:
        """Do what there is to do now for a change of keys. Raises `StoreError`."""
        first = self._sealing.own[0]
        if first is not None and first != self._sealing.key_id:
            await self._writing(lambda tx: settings.turn(tx, first))
            return  # its life hears that it is in force, as the others do
        former = (await self._looking(settings.keys)).former
        if not former or not await self.duty("reseal", seconds=RESEAL_SECONDS):
            return
        self._resealing_since = self._resealing_since or time.monotonic()
        all_have_heard = await self._looking(settings.heard)
        changed = await self._reseal()
        self._resealed += changed
        if changed or not all_have_heard:
            return
        if await self._writing(lambda tx: settings.forget_former(tx, former)):
            took_ms = round((time.monotonic() - self._resealing_since) * 1000)
            log.info(Event.STORE_RESEALED, store=self._place.shown, count=self._resealed, took_ms=took_ms)
            self._resealed, self._resealing_since = 0, None

    async def _reseal(self) -> int:
        """Seal anew what is under a key of before: how much it was. Others take their turns between the portions."""
        return sum([await self._reseal_all(portion) for portion in resealing.ALL])

    async def _reseal_all(self, portion: Portion) -> int:
        changed, after = 0, 0
        while True:
            last, count = await self._writing(_behind(portion, after))
            changed += count
            await self.duty("reseal", seconds=RESEAL_SECONDS)
            if last is None:
                return changed
            after = last


def _behind(portion: Portion, after: int) -> resealing.Step:
    async def step(tx: Tx) -> tuple[int | None, int]:
        return await portion(tx, after)

    return step
