"""The clock of those who share a database: the database's. Those of the nodes may be hours wrong.

The token rules compare times that different nodes took down, so all of them go by one clock: that of the process, which
never jumps, and what the database's is ahead of it. That is measured again and again: the quickest of several round
trips says it best.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from asyncchatd.model import Clock, Ms

ROUND_TRIPS = 5

SLEWED_SECONDS = 1.0
"""A smaller difference is made up for little by little, a larger one at once: another server has taken over, or the
database's clock was set."""

SLEW = 0.1
"""The share of a small difference that each measurement makes up for."""


class SharedClock:
    """The database's clock, as one process reads it."""

    def __init__(self, local: Clock) -> None:
        self._local = local
        self._ahead = local.now() / 1000 - local.monotonic()
        """Seconds that the database's clock is ahead of this process' monotonic one."""
        self._measured = False
        self.round_trip = 0.0
        """Seconds of the quickest round trip, when it was measured last."""

    async def measure(self, ask: Callable[[], Awaitable[float]]) -> float:
        """Measure it anew. `ask`: what the database's clock says, in seconds. Returns how far this clock was off."""
        best, ahead = float("inf"), 0.0
        for _ in range(ROUND_TRIPS):
            began = self._local.monotonic()
            said = await ask()
            ended = self._local.monotonic()
            if ended - began < best:
                best, ahead = ended - began, said - (began + ended) / 2
        off = ahead - self._ahead
        self._ahead = ahead if not self._measured or abs(off) >= SLEWED_SECONDS else self._ahead + SLEW * off
        self.round_trip, self._measured = best, True
        return off

    def read_by(self, local: Clock) -> SharedClock:
        """The same clock, for whoever reads it by another clock of this process."""
        other = SharedClock(local)
        other._ahead = self._ahead + self._local.monotonic() - local.monotonic()
        other._measured, other.round_trip = self._measured, self.round_trip
        return other

    @property
    def ahead_of_host(self) -> float:
        """Seconds that it is ahead of this host's wall clock, which may be set at any time."""
        return (self.now() - self._local.now()) / 1000

    def at(self, database: float) -> float:
        """When it is so late by the database's clock, in seconds of `monotonic`."""
        return database - self._ahead

    def now(self) -> Ms:
        return round((self._local.monotonic() + self._ahead) * 1000)

    def monotonic(self) -> float:
        return self._local.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._local.sleep(seconds)

    async def wait(self, event: asyncio.Event, seconds: float) -> bool:
        return await self._local.wait(event, seconds)
