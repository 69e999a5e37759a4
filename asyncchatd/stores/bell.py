"""The bell that tells all who wait of news."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Bell:
    """The bell of one store: rings for all who listen, however many they are."""

    def __init__(self) -> None:
        self._listening: set[asyncio.Event] = set()

    def ring(self) -> None:
        """Set the events of all who listen."""
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
