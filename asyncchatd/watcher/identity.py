"""Which process answers at a Chat Server's health address: the one known, another one, or one of several.

A restart throws a server's sessions out of its memory, and is told by its process id alone, as long as ids do not
repeat. Where they do (in a container every process has the same), the page's start time, uptime and counters tell.
None of them is what it seems: clocks are set, and a documented option zeroes all counters of all servers at once.
So each is asked one question that a clock cannot answer wrongly: **did this process begin after the known one was
last seen?** A restarted process did; whatever else moved, it was not a restart.

Pure functions. Times that are compared are on a steady clock: milliseconds since the epoch as they were when the
daemon started, and what passed since by the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum, auto

from asyncchatd.model import ChatServer, Ms, Process, replace
from asyncchatd.wire import HealthPage

START_TOLERANCE_SECONDS = 3.0
"""A start time wavers by rounding; a restart moves it further."""

UPTIME_TOLERANCE_SECONDS = 90.0
"""A start time computed from an uptime wavers by the uptime's unit, which may be minutes, and by the way here."""

WAYS_SECONDS = 5.0
"""By so much longer may a page be on its way to one node than to another, and seem to be of a later start."""

QUARTER_HOUR_SECONDS = 900.0
"""Time zones differ by multiples of it."""

FURTHEST_ZONE_SECONDS = 15 * 3_600.0
"""No time zone is further from another host's clock that shows UTC."""

RECENT_SECONDS = 30.0
"""How far the clocks of hosts that keep the time may be from one another."""

DRIFT = 0.001
"""How much slower the server's clock may run than ours."""

SMALL_PID = 300
"""Linux gives process ids below this to its own threads at boot and never again: a Chat Server that has such a one
lives in a container, and has the same after each start."""

MEMORY_MS = 24 * 3_600_000
"""How long another process is remembered after it was last seen. Within it a process id does not come round again
by chance, or once in some ten thousand restarts."""

MOST_OTHERS = 16

MAX_NAME = 60


class Kin(Enum):
    """How a page's process stands to the known one."""

    SAME = auto()
    STEPPED = auto()
    """Another one, or a clock was set; in any case none that began since the known one was last seen."""
    ANOTHER = auto()


def observed(page: HealthPage, at: Ms) -> Process:
    """The process that a page speaks of."""
    began = None if page.uptime is None else at / 1000 - page.uptime
    return Process(page.app_dbid, page.process_os_pid, page.started, began, at, at, settled=False)


def known(server: ChatServer) -> Process:
    """The process that is taken for this server."""
    return Process(
        server.app_dbid,
        server.process_os_pid,
        server.started,
        server.began,
        server.first_seen,
        server.last_seen,
    )


def takes(server: ChatServer, process: Process) -> ChatServer:
    """The server with this process from now on. What the process does not say stays as it was known."""
    return replace(
        server,
        app_dbid=process.app_dbid or server.app_dbid,
        process_os_pid=process.process_os_pid or server.process_os_pid,
        started=process.started,
        began=process.began,
        first_seen=process.first_seen,
        last_seen=process.last_seen,
    )


def is_one(one: Process, other: Process) -> bool:
    """Whether two sights are plainly of one process: all that both say agrees, and that is something."""
    agree = list(_agreements(one, other))
    return bool(agree) and all(agree)


def is_other(one: Process, other: Process) -> bool:
    """Whether two sights are plainly not of one process."""
    return not all(_agreements(one, other))


def _agreements(one: Process, other: Process) -> Iterator[bool]:
    if one.app_dbid is not None and other.app_dbid is not None:
        yield one.app_dbid == other.app_dbid
    if one.process_os_pid is not None and other.process_os_pid is not None:
        yield one.process_os_pid == other.process_os_pid
    if one.began is not None and other.began is not None:
        yield abs(one.began - other.began) <= UPTIME_TOLERANCE_SECONDS
    elif one.started is not None and other.started is not None:
        # Only without an uptime: a start time may be computed by a server whose clock was set.
        yield abs(one.started - other.started) <= START_TOLERANCE_SECONDS


def compare(
    before: Process,
    seen: Process,
    *,
    ahead: float = 0.0,
    slept: float = 0.0,
    way: float = 0.0,
    any_dbid: bool = False,
) -> tuple[Kin, str]:
    """How the process on a page stands to the known one, and why it is another. `ahead`: seconds by which the
    wall clock is ahead of the steady one; `slept`: by how much more than at the last page, as it is after the host
    was suspended; `way`: by how much longer the way may be on which it was read. `any_dbid`: the configuration says
    whose page it is."""
    if not any_dbid and differ(before.app_dbid, seen.app_dbid):
        return Kin.ANOTHER, f"app_dbid {before.app_dbid} became {seen.app_dbid}"
    if differ(before.process_os_pid, seen.process_os_pid):
        return Kin.ANOTHER, f"process_os_pid {before.process_os_pid} became {seen.process_os_pid}"
    if before.began is not None and seen.began is not None:
        kin = _by_uptime(before, before.began, seen, seen.began, slept, way)
        if kin is Kin.ANOTHER and _same_start(before, seen):
            return Kin.SAME, ""  # its uptime was zeroed with the counters
        return kin, "its uptime ran backwards" if kin is not Kin.SAME else ""
    if before.started is not None and seen.started is not None:
        kin = _by_start(before, before.started, seen, seen.started, ahead)
        return kin, "its start time is a later one" if kin is not Kin.SAME else ""
    return Kin.SAME, ""


def differ(one: str | None, other: str | None) -> bool:
    """Whether both values are known, and not the same."""
    return one is not None and other is not None and one != other


def _by_uptime(before: Process, was: float, seen: Process, began: float, slept: float, way: float) -> Kin:
    gap = max((seen.last_seen - before.last_seen) / 1000, way)
    # From look to look an uptime runs backwards only when it is another one; in units of hours it may stand
    # still for long. Over a long gap a young process may have become older than the one before it was.
    if began - was <= min(gap, UPTIME_TOLERANCE_SECONDS):
        return Kin.SAME
    since = began + slept >= before.last_seen / 1000 - UPTIME_TOLERANCE_SECONDS
    return Kin.ANOTHER if since else Kin.STEPPED


def _same_start(before: Process, seen: Process) -> bool:
    return (
        before.started is not None
        and seen.started is not None
        and abs(before.started - seen.started) <= START_TOLERANCE_SECONDS
    )


def _by_start(before: Process, was: float, seen: Process, started: float, ahead: float) -> Kin:
    """By the server's own clock, which may show another time than ours and be set. But whatever it shows: the
    known process was there for as long as we saw it, and one that began after that did so that much later."""
    moved = started - was
    if abs(moved) <= START_TOLERANCE_SECONDS:
        return Kin.SAME
    watched = (before.last_seen - before.first_seen) / 1000
    later = moved >= watched * (1 - DRIFT) - START_TOLERANCE_SECONDS
    # That a clock is set is far more likely than that a process id comes round again, where they are not small.
    believed = later and (is_small(seen.process_os_pid) or _is_recent(before, seen, started - ahead))
    return Kin.ANOTHER if believed else Kin.STEPPED


def _is_recent(before: Process, seen: Process, started: float) -> bool:
    """Whether it may have started since the last look, by a clock of any time zone."""
    last = before.last_seen / 1000
    if abs(started - last) > FURTHEST_ZONE_SECONDS:
        return False
    after = (started - last + RECENT_SECONDS) % QUARTER_HOUR_SECONDS
    return after <= seen.last_seen / 1000 - last + 2 * RECENT_SECONDS


def named(process: Process) -> str:
    """A process in the words of the log."""
    since = process.started or process.began
    born = ""
    if since is not None:
        with suppress(ValueError, OverflowError, OSError):  # an uptime in another unit, for instance: no date
            born = f" started {datetime.fromtimestamp(since, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return f"process_os_pid {process.process_os_pid} of app_dbid {process.app_dbid}{born}"


def is_small(pid: str | None) -> bool:
    """Whether a process id may be the same after each start; none at all says as little."""
    return pid is None or int(pid) < SMALL_PID


# -- counters ------------------------------------------------------------------------------------


def ran_backwards(before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    """The name of a counter that did, when at least half of them did: a new process begins all of them anew,
    while a single one that falls was none."""
    common = [name for name, value in after.items() if before.get(name, 0) > 0 and value >= 0]
    fell = [name for name in common if after[name] < before[name]]
    return fell[0][:MAX_NAME] if fell and 2 * len(fell) >= len(common) else None


def counters_may_tell(process: Process) -> bool:
    """Whether counters that run backwards may mean a restart: where nothing else can tell one."""
    if process.started is not None or process.began is not None:
        return False
    return is_small(process.process_os_pid)


# -- several processes at one address ------------------------------------------------------------------


def remembered(others: Sequence[Process], *, now: Ms) -> tuple[Process, ...]:
    """The processes that are not forgotten yet, the one seen last first."""
    recent = [each for each in others if now - each.last_seen <= MEMORY_MS]
    return tuple(sorted(recent, key=lambda each: -each.last_seen)[:MOST_OTHERS])


def find(others: Sequence[Process], seen: Process) -> Process | None:
    """The process of these that was seen before."""
    return next((each for each in others if is_one(each, seen) and _had_begun(each, seen)), None)


def _had_begun(before: Process, seen: Process) -> bool:
    """One after another that both live for less than the tolerance are not one and the same."""
    if seen.began is None or not before.settled:
        return True
    return seen.began <= before.last_seen / 1000 + START_TOLERANCE_SECONDS


def is_rather(process: Process, one: Process, other: Process | None) -> bool:
    """Whether a process is that one, and not the other, whose uptime may be within the tolerance, too."""
    if other is None or process.began is None or one.began is None or other.began is None:
        return is_one(one, process)
    nearer = abs(process.began - one.began) <= abs(process.began - other.began)
    return is_one(one, process) and (nearer or not is_one(other, process))


def came_back(server: ChatServer, process: Process) -> bool:
    """Whether somebody else answered at this address since this process last did. Processes do not come back."""
    return any(
        each.last_seen > process.last_seen
        for each in (known(server), *server.others)
        if not is_one(each, process)
    )
