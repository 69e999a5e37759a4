"""How late the event loop is, measured into the metrics."""

from __future__ import annotations

import asyncio
import time

from asyncchatd.log.metrics import CALM_CHECK_SECONDS, LAG_CHECK_SECONDS, LOOP_LAG, LOOP_LAG_MAX

LATE_SECONDS = 0.01
"""Lag from which on the loop is not calm: something held it, not the turns that threads take with the interpreter."""

CALM_AFTER_SECONDS = 10.0
"""After so long without such a lag the loop is calm."""


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


class Attention:
    """How soon the loop is to be looked at again. Fifty looks a second are half of what an idle daemon takes, and at 54
    keepalives a second one in three of its wakings."""

    def __init__(self, now: float) -> None:
        """`now` and all times here are monotonic, in seconds."""
        self._late_at = now

    def pause(self, lag: float, now: float) -> float:
        """Seconds until the next look, after one that found this lag."""
        if lag >= LATE_SECONDS:
            self._late_at = now
        return CALM_CHECK_SECONDS if now - self._late_at >= CALM_AFTER_SECONDS else LAG_CHECK_SECONDS


class _Watch:
    """A timer that sets itself again: a task that sleeps would cost twice as much."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.failed: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._longest = 0.0
        now = time.monotonic()
        self._attention = Attention(now)
        self._set(now, LAG_CHECK_SECONDS)

    def _set(self, now: float, pause: float) -> None:
        self._due = now + pause
        # The alert goes by the share of late looks: one that is seldom stands for those that were left out.
        self._stands_for = round(pause / LAG_CHECK_SECONDS)
        self.timer = self._loop.call_later(pause, self._look)

    def _look(self) -> None:
        try:
            now = time.monotonic()
            lag = max(0.0, now - self._due)
            for _ in range(self._stands_for - 1):
                LOOP_LAG.observe(0.0)
            LOOP_LAG.observe(lag)
            if lag > self._longest:
                self._longest = lag
                LOOP_LAG_MAX.set(lag)
            self._set(now, self._attention.pause(lag, now))
        except Exception as error:
            self.failed.set_exception(error)
