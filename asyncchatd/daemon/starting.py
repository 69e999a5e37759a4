"""The start of the daemon, which a stop that is asked for meanwhile ends wherever it waits: for another process that
migrates, for a database that does not answer, for a large file that is copied, read through or encrypted.

systemd gives a stop half a minute, and a start may wait for two. What the start has begun is undone by those who began
it, as after an error.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from asyncchatd.daemon.vitals import StopTime
from asyncchatd.log import Event, get_logger

log = get_logger()


class Start:
    """An asynchronous context for the daemon's life. Until `over` is called the task in it is cancelled once `stop` is
    set, and the context then ends without an error."""

    def __init__(self, stop: asyncio.Event, stop_time: StopTime) -> None:
        self._stop = stop
        self._stop_time = stop_time
        self._asked_at: float | None = None

    async def __aenter__(self) -> Start:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._waiting = asyncio.create_task(self._end(), name="a stop of the start")
        return self

    def over(self) -> None:
        """Begin the daemon's life proper: from now on a stop is its own affair."""
        self._waiting.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._waiting.cancel()
        self._stop_time.end()
        if self._asked_at is None or not isinstance(error, asyncio.CancelledError):
            return False
        self._task.uncancel()
        took_ms = round((asyncio.get_running_loop().time() - self._asked_at) * 1000)
        log.info(Event.DAEMON_STOPPED, took_ms=took_ms, in_flight=0)
        return True

    async def _end(self) -> None:
        await self._stop.wait()
        self._asked_at = asyncio.get_running_loop().time()
        self._stop_time.begin(0.0, lambda: 0)
        log.info(Event.DAEMON_STOPPING, cause="asked to", in_flight=0)
        self._task.cancel()
