"""Restorations that are left half marked, where several nodes begin them."""

from __future__ import annotations

import asyncio

from asyncchatd.model import Cause, Clock
from asyncchatd.stores import Store, StoreError, restoring, tell_failure

LOOK_SECONDS = 1.0
"""How often it is looked whether it is this node's turn."""

MARKING_SECONDS = 5.0
"""A restoration whose sessions are not all due after so long may have lost who marks them."""


async def mark_for_others(store: Store, wakeup: asyncio.Event, clock: Clock) -> None:
    """Go on with restorations whose node has died, for ever; one node at a time."""
    while True:
        await clock.sleep(LOOK_SECONDS)
        try:
            if await store.duty("marking", seconds=MARKING_SECONDS) and await _is_any_left(store, clock):
                await restoring.resume(store, wakeup, clock)
        except StoreError as error:
            tell_failure(error)


async def _is_any_left(store: Store, clock: Clock) -> bool:
    late = clock.now() - round(MARKING_SECONDS * 1000)
    return any(
        each.marking and each.cause is not Cause.ANNOUNCED and each.started_at < late
        for each in await store.restorations(limit=1000, unfinished=True)
    )
