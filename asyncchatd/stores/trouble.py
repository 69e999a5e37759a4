"""When the disk takes nothing any more: told once when it begins and once when it is over.

A full disk fails every push, every claim and every settlement, hundreds of times a second; an operator
needs two lines of it. So the store keeps one account of it here, and whoever calls the store leaves these
failures untold (`tell_failure`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from asyncchatd.log import Event, get_logger
from asyncchatd.stores.base import StoreDamaged, StoreError, StoreUnwritable

CALM_SECONDS = 5.0
"""Nothing may have failed for so long before the trouble counts as over."""

log = get_logger()


class Trouble:
    """The account of one open store."""

    def __init__(self, store: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`store` is how the log calls it."""
        self._store = store
        self._monotonic = monotonic
        self._began = self._failed = 0.0
        self.cause: str | None = None
        """Why nothing can be written at present."""
        self.damage: StoreDamaged | None = None
        """Nothing may be written any more: what is there is damaged."""
        self.begun = asyncio.Event()
        """Set while there is trouble of either kind."""

    def heard(self, error: StoreError) -> None:
        """A call came to this."""
        if isinstance(error, StoreDamaged):
            self.damage = self.damage or error
            self.begun.set()
        elif isinstance(error, StoreUnwritable):
            self._failed = self._monotonic()
            if self.cause is None:
                self._began = self._failed
                log.error(Event.STORE_UNWRITABLE, store=self._store, cause=str(error))
            self.cause = str(error)
            self.begun.set()

    def went_well(self) -> None:
        """There is room again for more than the few bytes that also a full disk may take."""
        if self.cause is None or self._monotonic() - self._failed < CALM_SECONDS:
            return
        self.cause = None
        if self.damage is None:
            self.begun.clear()
        outage = self._monotonic() - self._began
        log.info(Event.STORE_WRITABLE, store=self._store, outage_ms=round(outage * 1000))


def tell_failure(error: StoreError) -> None:
    """Put a failed call into the log, unless the store itself tells of what is behind it."""
    if not isinstance(error, StoreUnwritable | StoreDamaged):
        log.error(Event.STORE_FAILED, cause=str(error))
