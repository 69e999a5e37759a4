"""A bell: whoever waits for news hears it, however many they are."""

from __future__ import annotations

import asyncio

from asyncchatd.model import Clock


class Bell:
    """Rings for all who wait at that moment."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake everybody who waits."""
        self._rung.set()
        self._rung = asyncio.Event()

    async def wait(self, clock: Clock, seconds: float) -> bool:
        """Return when it rings (True), or when the time is over (False)."""
        return await clock.wait(self._rung, seconds)
