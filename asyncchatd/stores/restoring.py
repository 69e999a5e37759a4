"""Beginning a restoration: every session of one Chat Server becomes due.

The record comes first, durable, and then the sessions in portions, most recently active first, so
that pushes get their turn at the disk in between and a crash half-way is taken up where it stopped.
"""

from __future__ import annotations

import asyncio

from asyncchatd.log import Event, get_logger, metrics
from asyncchatd.model import Cause, Clock, Restoration
from asyncchatd.stores import STORE_PAUSE_SECONDS, Store, StoreError, tell_failure

PORTION = 3_000
"""Sessions made due in one transaction: some twenty milliseconds, for which pushes wait."""

log = get_logger()


async def begin(
    store: Store, wakeup: asyncio.Event, clock: Clock, *, alias: str, server: str | None, cause: Cause
) -> Restoration:
    """Begin to restore all sessions of `alias`; returns once every one of them is due.

    Raises `StoreError` only when nothing was begun: what is on record is marked when the store can be
    written again, and whoever asked need not ask twice.
    """
    restoration = await store.begin_restoration(alias=alias, server=server, cause=cause, now=clock.now())
    return await go_on(store, wakeup, clock, restoration)


async def go_on(store: Store, wakeup: asyncio.Event, clock: Clock, restoration: Restoration) -> Restoration:
    """A restoration that was just put on record: returns once every session of it is due."""
    metrics.RESTORATIONS.labels(restoration.cause.value).inc()
    while True:
        try:
            return await _mark(store, wakeup, clock, restoration)
        except StoreError as error:
            tell_failure(error)
            await clock.sleep(STORE_PAUSE_SECONDS)


async def resume(store: Store, wakeup: asyncio.Event, clock: Clock, *, server: str | None = None) -> None:
    """Finish the marking of restorations that are on record and that nobody marks: a stop of the daemon cut it off, or
    the store failed when it had them on record already. Only those of `server`, if one is named."""
    for restoration in await store.restorations(limit=1000, unfinished=True):
        concerned = server in (None, restoration.server) and restoration.cause is not Cause.ANNOUNCED
        if restoration.marking and concerned:
            await _mark(store, wakeup, clock, restoration)


async def _mark(store: Store, wakeup: asyncio.Event, clock: Clock, restoration: Restoration) -> Restoration:
    began = clock.monotonic()
    while await store.mark(restoration.id, limit=PORTION, now=clock.now()):
        wakeup.set()
    wakeup.set()
    marked = next(
        (each for each in await store.restorations(limit=50) if each.id == restoration.id), restoration
    )
    log.warning(
        Event.RESTORATION_STARTED,
        restoration=restoration.id,
        server=restoration.server,
        alias=restoration.alias,
        cause=restoration.cause.value,
        sessions=marked.sessions,
        took_ms=round((clock.monotonic() - began) * 1000),
    )
    return marked
