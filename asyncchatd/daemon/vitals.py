"""What systemd is told of the running daemon: that it moves, how it is, and that its stop takes a while.

systemd kills a daemon that does not feed the watchdog, and starts it anew. So the watchdog is fed only
while the daemon does what it is for: its event loop turns, its store writes, its Chat Servers are looked
at. `ailments` is that judgement, a pure function. A daemon that only waits for others, for a GMS that is
away or a disk that is full, is well: to start it anew would mend nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from asyncchatd.daemon import systemd
from asyncchatd.daemon.reloading import Reloading
from asyncchatd.log import Event, get_logger
from asyncchatd.model import ChatServer, Clock, Restoration, ServerState, SessionState
from asyncchatd.stores import Counts, Store, StoreError
from asyncchatd.watcher import Watcher
from asyncchatd.worker import Worker

LAG_SECONDS = 5.0
"""An event loop that comes so late, time after time, does its work no more."""

STUCK_SECONDS = 10.0
"""A commit takes milliseconds, on an ailing disk a second or two."""

OVERDUE_SECONDS = 10.0
"""How much later than it should a Chat Server may be looked at."""

TICK_SECONDS = 1.0
TICKS = 4
"""At least so many judgements fall into the time systemd waits."""

STATUS_SECONDS = 10.0
RESTORING_STATUS_SECONDS = 2.0
NAMED = 3
"""So many Chat Servers or restorations are named, the others counted."""

EXTENSION_SECONDS = 10.0
CLOSING_SECONDS = 60.0
"""The longest that emptying the write-ahead log into the file should take."""

log = get_logger()


@dataclass(frozen=True, slots=True)
class Vitals:
    """How the daemon moves, in seconds; 0 is best."""

    loop_lag: float = 0.0
    """How late the event loop was when it was last due, by the task that feeds the watchdog."""
    store_stuck: float = 0.0
    """How long there has been something to write without anything being written."""
    watch_overdue: float = 0.0
    """How late the tardiest look at a Chat Server is."""


def ailments(vitals: Vitals) -> list[str]:
    """What keeps the daemon from its work, in words; nothing when it is well."""
    limits = (
        (vitals.loop_lag, LAG_SECONDS, "the event loop is {:.0f} s late"),
        (vitals.store_stuck, STUCK_SECONDS, "the store has written nothing for {:.0f} s"),
        (vitals.watch_overdue, OVERDUE_SECONDS, "a Chat Server should have been looked at {:.0f} s ago"),
    )
    return [words.format(seconds) for seconds, most, words in limits if seconds > most]


def status_line(
    counts: Counts, servers: Sequence[ChatServer], restorations: Sequence[Restoration], in_flight: int
) -> str:
    """What `systemctl status` shows: sessions, Chat Servers, and how far running restorations are."""
    live, due = counts.states[SessionState.LIVE], sum(counts.due.values())
    parts = [f"{live:,} sessions, {due:,} due, {in_flight:,} pings in flight"]
    if servers:
        parts.append(f"Chat Servers: {_standing(servers)}")
    if running := [each for each in restorations if each.waiting]:
        parts.append(f"restoring {_listed([_progress(each) for each in running])}")
    # A line end would begin another message to systemd; a name may hold one.
    return " ".join("; ".join(parts).split())


def _standing(servers: Sequence[ChatServer]) -> str:
    words = []
    for state in ServerState:
        names = [server.name for server in servers if server.state is state]
        if names:
            words.append(f"{len(names)} {state.value}")
        if names and state in (ServerState.SUSPECT, ServerState.DOWN):
            words[-1] += f" ({_listed(names)})"
    return ", ".join(words)


def _progress(restoration: Restoration) -> str:
    done = restoration.sessions - restoration.waiting
    name = restoration.server or f"alias {restoration.alias}"
    return f"{name}: {done:,} of {restoration.sessions:,}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


class Reporting:
    """What systemd is told of a running daemon. Its root tasks are `feed` and `tell`. Without systemd they do nothing
    that anybody sees."""

    def __init__(
        self, store: Store, worker: Worker, watcher: Watcher, reloading: Reloading, clock: Clock
    ) -> None:
        self._store = store
        self._worker = worker
        self._watcher = watcher
        self._reloading = reloading
        self._clock = clock

    async def feed(self) -> None:
        """Feed the watchdog while the daemon is well; say once when it is not fed any more."""
        interval = systemd.watchdog_interval()
        if interval is None:
            await asyncio.Event().wait()
            return
        seconds = interval.total_seconds()
        pause = min(TICK_SECONDS, seconds / TICKS)
        fed_at, sick, starved, lag = self._clock.monotonic(), 0, False, 0.0
        while True:
            found = ailments(Vitals(lag, self._store.stuck_for(), self._watcher.overdue()))
            now = self._clock.monotonic()
            if not found:
                systemd.notify("WATCHDOG=1")
                fed_at = now
                if starved:
                    log.info(Event.WATCHDOG_FED)
                sick, starved = 0, False
            else:
                sick += 1
            if not starved and sick > 1 and now - fed_at >= seconds / 2:  # not for a single late turn
                log.error(Event.WATCHDOG_STARVED, cause="; ".join(found))
                starved = True
            await self._clock.sleep(pause)
            lag = self._clock.monotonic() - now - pause

    async def tell(self) -> None:
        """Keep the status line current."""
        while True:
            refused = "the changed configuration was refused, see the log; " * (
                self._reloading.refused is not None
            )
            trouble = f"{' '.join(self._store.trouble.split())}; " if self._store.trouble else ""
            line, restoring = await self._line()
            systemd.notify(f"STATUS={trouble}{refused}{line}")
            await self._clock.sleep(RESTORING_STATUS_SECONDS if restoring else STATUS_SECONDS)

    async def _line(self) -> tuple[str, bool]:
        try:
            counts = await self._store.counts(now=self._clock.now())
            running = await self._store.restorations(unfinished=True)
        except StoreError as error:
            return " ".join(str(error).split()), False
        line = status_line(counts, self._watcher.servers(), running, self._worker.in_flight)
        return line, any(each.waiting for each in running)


class StopTime:
    """Keeps systemd from losing its patience while the daemon stops: an answer of GMS that is on its way
    may carry a new key, and is waited for as long as `gms.timeout` says."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    def begin(self, grace: float, in_flight: Callable[[], int]) -> None:
        """Begin the stop; it should take at most `grace` seconds, and what the store needs."""
        systemd.notify("STOPPING=1")
        self.end()
        self._task = asyncio.create_task(_extend(grace + CLOSING_SECONDS, in_flight), name="stop time")

    def end(self) -> None:
        """End the stop, which is over."""
        if self._task is not None:
            self._task.cancel()


async def _extend(most: float, in_flight: Callable[[], int]) -> None:
    until = asyncio.get_running_loop().time() + most
    while asyncio.get_running_loop().time() < until:
        waiting = in_flight()
        what = f"waiting for {waiting:,} answers of GMS" if waiting else "closing the store"
        more = f"EXTEND_TIMEOUT_USEC={round(EXTENSION_SECONDS * 1e6)}"
        # `feed` ends before the store is closed; this ends in any case.
        systemd.notify(f"{more}\nWATCHDOG=1\nSTATUS=Stopping: {what}")
        await asyncio.sleep(EXTENSION_SECONDS / 10)
