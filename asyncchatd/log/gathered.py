"""Lines that a flood must not multiply: one at once, and one for all that follow within a while."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from asyncchatd.log.events import Event
from asyncchatd.log.lines import get_logger
from asyncchatd.model import Clock, SystemClock

log = get_logger()


class Gathered:
    """Warnings of one kind, each told at once or with the `count` of those since the last line. The rest is told
    when the time is over, whether or not more comes: a crowd that came once would else be one line with 1."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._counts: dict[str, int] = {}
        """Not told yet."""
        self._last: dict[str, tuple[Event, dict[str, object]]] = {}
        self._told: dict[str, float] = {}
        self._due: dict[str, asyncio.TimerHandle] = {}

    def add(self, kind: str, event: Event, every: float, **fields: object) -> None:
        """One more. `every` is the seconds between two lines of this kind; the last one's fields are told."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._last[kind] = (event, fields)
        left = every - (self._clock.monotonic() - self._told.get(kind, float("-inf")))
        if left <= 0:
            self._tell(kind)
        elif kind not in self._due:
            with suppress(RuntimeError):  # without a loop the next one tells
                self._due[kind] = asyncio.get_running_loop().call_later(left, self._tell, kind)

    def tell_rest(self) -> None:
        """Tell at once what is left, because nothing follows."""
        for kind in list(self._counts):
            self._tell(kind)

    def _tell(self, kind: str) -> None:
        if due := self._due.pop(kind, None):
            due.cancel()
        event, fields = self._last.pop(kind)
        log.warning(event, **fields, count=self._counts.pop(kind))
        self._told[kind] = self._clock.monotonic()
