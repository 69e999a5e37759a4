"""The open line to a Chat Server: an idle connection to its health port, by whose end its own shows at once.

A process that dies closes its connections, where a look every few seconds finds it gone seconds later. The end of
the line is a reason to look, and never a proof: listeners close idle connections by habit, and balancers for
reasons of their own. So it is opened at most once in the time between two looks, and costs one look in that time.

It must do no harm either. A listener that serves one connection after the other, or refuses a second one, would answer
nobody while the line is open: the first look after it was opened tells (`is_unborne_by`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import cast

from asyncchatd.model import Clock
from asyncchatd.watcher.page import Seen, Unreachable, Unseen

GIVEN_UP_SECONDS = 3600.0
"""How long there is no line to a server that answers nobody beside it."""

MOST_SAID = 64 * 1024
"""Bytes that are read of what was never asked for. Who says more is no health port."""

Connect = Callable[[Callable[[], asyncio.Protocol]], Awaitable[asyncio.BaseTransport]]
"""Opens a connection for a protocol. Raises `OSError`."""


class OpenLine:
    """The line to one server."""

    def __init__(self, clock: Clock, rang: Callable[[], None]) -> None:
        """`rang` is called when the line ends by itself; `ended` is set then."""
        self.ended = asyncio.Event()
        """It ended, and nobody has looked since."""
        self._clock = clock
        self._rang = rang
        self._opening: asyncio.Task[None] | None = None
        self._end: _End | None = None
        self._beside: _End | None = None
        """What was open when the look began."""
        self._borne = False
        """A look was answered while it was open, from beginning to end."""
        self._not_before = float("-inf")

    @property
    def is_open(self) -> bool:
        """Whether there is a connection now."""
        return self._end is not None

    def keep(self, connect: Connect) -> None:
        """Open it, if it is not open and may be. Nobody waits for it. Not while an end is to be looked into: the look
        would have it beside it, and might cost the next one too."""
        if self._end is not None or self._opening is not None or self.ended.is_set():
            return
        if self._clock.monotonic() >= self._not_before:
            self._opening = asyncio.create_task(self._open(connect), name="open line")

    def look_begins(self, interval: float) -> bool:
        """Somebody looks at the server. Whether the end of the line is the reason; then it is opened again when so many
        seconds are over, at the earliest."""
        ended, self._beside = self.ended.is_set(), self._end
        if ended:
            self.ended.clear()
            self._rest(interval)
        return ended

    def is_unborne_by(self, seen: Seen) -> bool:
        """Whether a look reached nobody, late or at once, while the line was open, for the first time: then the line
        may be the cause, and is given up."""
        if self._end is None or isinstance(seen, Unseen):
            return False
        if not isinstance(seen, Unreachable):
            self._borne = self._borne or self._end is self._beside
        elif not self._borne:
            self.close()
            self._rest(GIVEN_UP_SECONDS)
            return True
        return False

    def told_the_truth(self) -> None:
        """It ended with the process: the next one's line may be opened at once."""
        self._not_before = float("-inf")

    def close(self) -> None:
        """End it; that is no reason to look."""
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        if self._end is not None:
            self._end.hang_up()
            self._end = None
        self.ended.clear()

    def _rest(self, seconds: float) -> None:
        self._not_before = self._clock.monotonic() + seconds

    async def _open(self, connect: Connect) -> None:
        end = _End(self._lost)
        try:
            with suppress(OSError):  # the next look tells what is the matter
                await connect(lambda: end)
                self._end = end
                if end.is_over:  # whoever took it was about to go
                    self._lost(end)
        finally:
            if self._opening is asyncio.current_task():
                self._opening = None
            if self._end is not end:
                end.hang_up()

    def _lost(self, end: _End) -> None:
        if self._end is end:
            self._end = None
            self.ended.set()
            self._rang()


class _End(asyncio.Protocol):
    """Our end of it. What the other says is not looked at."""

    def __init__(self, lost: Callable[[_End], None]) -> None:
        self.is_over = False
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._said = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._said += len(data)
        if self._said > MOST_SAID:
            self.hang_up()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_over = True
        self._lost(self)

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()
