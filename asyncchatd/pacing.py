"""How fast GMS may be asked: a hard rate with even spacing, and a bound on requests in flight.

Restoring loads a session's transcript from storage, and what GMS can bear is published nowhere
(protocol section 2, danger 3). The hard rate is the operator's word and is never passed; the pacer
spaces requests evenly under it, because a burst within the rate is still a burst. The in-flight
limit keeps a slow GMS from being handed more than it answers.
"""

from __future__ import annotations

import asyncio
from collections import deque

from asyncchatd.clock import Clock

STRETCH = 1.01
"""The pacer aims one hundredth below the rate: requests that left evenly do not arrive evenly, and
the rate must hold where they arrive."""

CATCH_UP_SECONDS = 0.01
"""A turn that came late because a timer did is made up for within this time, not later."""


class Pacer:
    """Hands out turns to send, first come first served."""

    def __init__(self, rate: float, clock: Clock) -> None:
        """`rate` is requests per second; less than one is allowed."""
        self._clock = clock
        self._spacing = STRETCH / rate
        self._next = clock.monotonic()
        self._recent: deque[float] = deque(maxlen=max(1, int(rate)))
        self._window = STRETCH * self._recent.maxlen / rate if self._recent.maxlen else STRETCH
        self._line = asyncio.Lock()

    async def turn(self) -> None:
        """Return when the next request may be sent."""
        async with self._line:
            while (pause := self._opens() - self._clock.monotonic()) > 0:
                await self._clock.sleep(pause)
            now = self._clock.monotonic()
            self._recent.append(now)
            self._next = max(self._next, now - CATCH_UP_SECONDS) + self._spacing

    def _opens(self) -> float:
        if len(self._recent) < (self._recent.maxlen or 1):
            return self._next
        return max(self._next, self._recent[0] + self._window)


class InFlight:
    """Counts requests on their way and says how many more may be sent."""

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.count = 0

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return self.ceiling

    @property
    def free(self) -> int:
        """How many more may be sent."""
        return max(0, self.limit - self.count)
