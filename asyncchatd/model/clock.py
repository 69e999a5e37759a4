"""Time, so that tests can hold it still.

Due times are wall-clock time, because they outlive the process; pauses and rates are monotonic,
because the wall clock may be set.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from asyncchatd.model.data import Ms

if TYPE_CHECKING:
    import asyncio


class Clock(Protocol):
    """The clock that the daemon reads and waits by."""

    def now(self) -> Ms:
        """Milliseconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary point, never set back."""

    async def sleep(self, seconds: float) -> None:
        """Return after that time."""

    async def wait(self, event: asyncio.Event, seconds: float) -> bool:
        """Return when the event is set (True) or the time is over (False)."""


class SystemClock:
    """The machine's clocks. asyncio is imported by who waits: many a command never does, and reading asyncio would take
    as long as the rest of it."""

    def now(self) -> Ms:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        import asyncio

        await asyncio.sleep(seconds)

    async def wait(self, event: asyncio.Event, seconds: float) -> bool:
        import asyncio

        try:
            async with asyncio.timeout(seconds):
                return await event.wait()
        except TimeoutError:
            return False
