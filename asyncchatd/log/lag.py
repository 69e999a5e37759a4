"""How late the event loop is, measured into the metrics."""

from __future__ import annotations

import asyncio
import time

from asyncchatd.log.metrics import LAG_CHECK_SECONDS, LOOP_LAG, LOOP_LAG_MAX


async def watch_lag() -> None:
    """Root task: measure how late the event loop is, until cancelled.

    By the machine's clock and the loop's own timer, whatever clock the daemon has been given: it is
    the real loop that stands still. Why others measure too: `_watch_loop` in `daemon/run.py`.
    """
    LOOP_LAG_MAX.set(0)
    watch = _Watch(asyncio.get_running_loop())
    try:
        await watch.failed
    finally:
        watch.timer.cancel()


class _Watch:
    """A timer that sets itself again: fifty times a second, a task that sleeps would cost twice as much, which is
    a third of what an idle daemon takes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.failed: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._longest = 0.0
        self._set()

    def _set(self) -> None:
        self._due = time.monotonic() + LAG_CHECK_SECONDS
        self.timer = self._loop.call_later(LAG_CHECK_SECONDS, self._look)

    def _look(self) -> None:
        try:
            lag = max(0.0, time.monotonic() - self._due)
            LOOP_LAG.observe(lag)
            if lag > self._longest:
                self._longest = lag
                LOOP_LAG_MAX.set(lag)
            self._set()
        except Exception as error:
            self.failed.set_exception(error)
