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
    longest = 0.0
    while True:
        before = time.monotonic()
        await asyncio.sleep(LAG_CHECK_SECONDS)
        lag = max(0.0, time.monotonic() - before - LAG_CHECK_SECONDS)
        LOOP_LAG.observe(lag)
        if lag > longest:
            longest = lag
            LOOP_LAG_MAX.set(lag)
