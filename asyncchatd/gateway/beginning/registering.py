"""Registering: a session whose tokens came in a reply, and that nobody else will tell, is written down."""

from __future__ import annotations

import asyncio

from asyncchatd.model import Clock, Reason, Registration
from asyncchatd.stores import STORE_PAUSE_SECONDS, Store, StoreError, tell_failure


class Registering:
    """Writes sessions down, however long it takes."""

    def __init__(self, store: Store, clock: Clock, wakeup: asyncio.Event) -> None:
        self._store = store
        self._clock = clock
        self._wakeup = wakeup

    async def keep(self, registration: Registration) -> None:
        """Return when the session is in the store. It is due then: a ping writes its events."""
        chat_id = registration.tokens.chat_id
        assert chat_id is not None, "GMS has named it"
        while True:
            now = self._clock.now()
            try:
                await self._store.register([registration], now=now, spread_ms=0)
                await self._store.make_due(chat_id, Reason.REQUEST, now=now)
            except StoreError as error:
                tell_failure(error)
                await self._clock.sleep(STORE_PAUSE_SECONDS)
                continue
            self._wakeup.set()
            return
