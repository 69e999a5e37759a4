"""A deadline of what is awaited, which this process does not use up by standing still.

SIGSTOP, or a VM that slept: the answer of the database has come long ago and lies in a socket, and the timer of its
deadline has run out all the same. What came is read then, and what did not come gets its time once more.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Self

PAUSED_SECONDS = 0.1
"""A timer that comes so late was held up by the process itself, which stood still."""

LOOKS = 4
"""Turns of the event loop between the end of a deadline and its effect: what has come by then is read. After a pause a
loop may run its timers before it looks at sockets, and hands over what came one turn later."""


class Deadline:
    """A deadline for what is awaited within a `with`, by one task. Raises `TimeoutError` at its end."""

    __slots__ = (
        "_again",
        "_began",
        "_cancelling",
        "_given_up",
        "_handle",
        "_loop",
        "_seconds",
        "_task",
        "stood_still",
    )

    def __init__(self, seconds: float) -> None:
        self.stood_still = 0.0
        """For so many seconds this process did meanwhile; 0 as long as nothing came late by it."""
        self._seconds = seconds
        self._again = False
        """Whether its time runs for the second time."""
        self._given_up = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._loop = asyncio.get_running_loop()
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.cancel()
        if not self._given_up:
            self._note()
        if self._given_up and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _begin(self) -> None:
        # Not the event loop's clock: uvloop's stands still for a turn.
        self._began = time.monotonic()
        self._handle: asyncio.Handle = self._loop.call_later(self._seconds, self._over)

    def _note(self) -> bool:
        """Whether it stood still: its time was over before anybody could look."""
        took = time.monotonic() - self._began
        if took > self._seconds + PAUSED_SECONDS:
            self.stood_still = max(self.stood_still, took)
            return True
        return False

    def _over(self) -> None:
        if self._note() and not self._again:
            self._again = True
            self._begin()
        else:
            self._look(LOOKS)

    def _look(self, looks: int) -> None:
        if looks:
            self._handle = self._loop.call_soon(self._look, looks - 1)
        else:
            self._given_up = True
            self._task.cancel()
