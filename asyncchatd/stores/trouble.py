"""When the disk takes nothing any more: told once when it begins and once when it is over.

A full disk fails every push, every claim and every settlement, hundreds of times a second; an operator
needs two lines of it. So the store keeps one account of it here, and whoever calls the store leaves these
failures untold (`tell_failure`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from asyncchatd.log import Event, get_logger
from asyncchatd.stores.errors import StoreDamaged, StoreError, StoreMoved, StoreUnwritable

CALM_SECONDS = 5.0
"""Nothing may have failed for so long before the trouble counts as over: a full disk takes little, and not much."""

STORE_PAUSE_SECONDS = 1.0
"""From one try to the next of whoever has to write and cannot: the disk is full, for instance."""

log = get_logger()


class StoreTrouble:
    """The account of what goes wrong with one open store."""

    def __init__(
        self, store: str, *, calm: float | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """`store` is how the log calls it. `calm`: the seconds of its own in place of `CALM_SECONDS`."""
        self._store = store
        self._calm = calm
        self._monotonic = monotonic
        self._began = self._failed = 0.0
        self.cause: str | None = None
        """Why nothing can be written at present."""
        self.damage: StoreDamaged | None = None
        """Nothing may be written any more: what is there is damaged."""
        self.moved: StoreMoved | None = None
        """Nothing may be written until what is open is what lies at the store's address."""
        self.begun = asyncio.Event()
        """Set while there is trouble of any kind."""

    def heard(self, error: StoreError) -> None:
        """Take in an error that a call of the store came to."""
        if isinstance(error, StoreDamaged):
            self.damage = self.damage or error
            self.begun.set()
        elif isinstance(error, StoreUnwritable) and not error.stood_still:
            self._failed = self._monotonic()
            if isinstance(error, StoreMoved):
                if str(error) == str(self.moved):
                    return
                if self.moved is None and self.cause is not None:  # the log has told of something less
                    log.error(Event.STORE_UNWRITABLE, store=self._store, cause=str(error))
                self.moved = error
            elif self.moved is not None:
                return  # which explains it
            if self.cause is None:
                self._began = self._failed
                log.error(Event.STORE_UNWRITABLE, store=self._store, cause=str(error))
            self.cause = str(error)
            self.begun.set()

    def lasts(self) -> float:
        """Seconds for which nothing could be written; 0 when all is well."""
        return 0.0 if self.cause is None else self._monotonic() - self._began

    def went_well(self) -> None:
        """Note that writing works: there is room again for more than the few bytes that also a full disk may take."""
        calm = CALM_SECONDS if self._calm is None else self._calm
        if self.moved is None and self._monotonic() - self._failed >= calm:
            self._over()

    def explain(self, saved: Path | None, more: str = "") -> None:
        """Say what was done about a store that was moved."""
        done = more or f"all of it is saved in {saved}: stop asyncchatd and choose, as docs/backup.md says"
        self.cause = f"{self.moved}; {done}"

    def back(self) -> None:
        """Note that what is open lies at the store's address again."""
        self.moved = None
        self._over()

    def mended(self) -> None:
        """Note that what was damaged was replaced by what is sound."""
        self.damage = None
        if self.cause is None:
            self.begun.clear()

    def _over(self) -> None:
        if self.cause is None:
            return
        self.cause = None
        if self.damage is None:
            self.begun.clear()
        outage = self._monotonic() - self._began
        log.info(Event.STORE_WRITABLE, store=self._store, outage_ms=round(outage * 1000))


def pause_left(seconds: float) -> float:
    """What is left of `STORE_PAUSE_SECONDS` after a try that failed and took so long: nothing where it had to wait long
    enough, or where this process stood still in the middle of it."""
    return max(0.0, STORE_PAUSE_SECONDS - seconds)


def tell_failure(error: Exception) -> None:
    """Put a failed call into the log, unless the store itself tells of what is behind it."""
    if not isinstance(error, StoreUnwritable | StoreDamaged):
        log.error(Event.STORE_FAILED, cause=str(error) or type(error).__name__)
