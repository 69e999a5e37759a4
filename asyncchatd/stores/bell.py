"""The bell that tells all who wait of news."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from asyncchatd.model import Clock


class Bell:
    """Rings for all who wait at that moment, and for all who listen."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self._listening: set[asyncio.Event] = set()

    def ring(self) -> None:
        """Wake everybody who waits, and set the events of those who listen."""
        self._rung.set()
        self._rung = asyncio.Event()
        for each in self._listening:
            each.set()

    @contextmanager
    def heard_by(self, event: asyncio.Event) -> Iterator[None]:
        """Set the event whenever it rings: also while its owner looks for news and does not wait, which would else miss
        what comes right after the look."""
        self._listening.add(event)
        try:
            yield
        finally:
            self._listening.discard(event)

    async def wait(self, clock: Clock, seconds: float) -> bool:
        """Return when it rings (True), or when the time is over (False)."""
        return await clock.wait(self._rung, seconds)
