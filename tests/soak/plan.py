"""What goes wrong in a round: faults and their moments, drawn from the seed and the round's number alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from asyncchatd.standin import AfterWork

ACT_SECONDS = 10.0
"""In which the faults of a round begin. Most overlap."""

SHORTEST, LONGEST = 1.0, 6.0
"""How long a fault lasts that lasts at all."""


class What(StrEnum):
    """A fault. Each is taken back when its time is over."""

    KILL = "Chat Server killed"
    RESTART = "Chat Server restarted"
    RESTART_SAME_PID = "Chat Server restarted under its old pid"
    HANG = "Chat Server hangs"
    SLOW = "Chat Server slow"
    STOP = "Chat Server stopped as planned"
    SICK_PAGE = "health page unreadable"
    NODE_KILL = "GMS node killed"
    NODE_HANG = "GMS node hangs"
    NODE_SLOW = "GMS node slow"
    NODE_FAIL = "GMS node answers errors"
    NODE_GARBAGE = "GMS node answers garbage"
    NODE_LOSES = "GMS node loses answers after the work"
    NODE_PROXY = "GMS node's proxy hangs up before the work is done"
    NODE_EXTRA = "GMS node says more than it was asked"
    NODE_REDEPLOY = "GMS node redeployed"
    NODE_WAIT = "GMS node asks to wait for an hour"
    REFUSALS = "restorations refused for a while"
    COUNTERS = "counters of all Chat Servers begin anew"
    GMS_AWAY = "GMS wholly away"
    BROWN_OUT = "GMS brown-out"
    DAEMON_KILL = "daemon killed"
    DAEMON_RESTART = "daemon restarted"
    DAEMON_STALL = "daemon stands still"
    DAEMON_PAUSE = "daemon stands still for longer than gms.timeout"
    LOG_STALL = "log not read"
    STORE_GONE = "store's file gone"
    STORE_REPLACED = "store's file replaced by an old copy"
    DISK_FULL = "disk full"
    DAMAGE = "store damaged"
    CLOCK = "clock jumps"
    AWAY_TOO_LONG = "daemon away for longer than the window"


SERVER = (
    What.KILL,
    What.KILL,
    What.RESTART,
    What.RESTART_SAME_PID,
    What.HANG,
    What.SLOW,
    What.STOP,
    What.SICK_PAGE,
)
AFTER_WORK = (What.NODE_LOSES, What.NODE_LOSES, What.NODE_PROXY, What.NODE_EXTRA)
NODE = (
    *(What.NODE_KILL, What.NODE_HANG, What.NODE_SLOW, What.NODE_FAIL, What.NODE_GARBAGE),
    *(What.NODE_REDEPLOY, What.NODE_WAIT),
    *AFTER_WORK,
)
GMS = (*NODE, What.GMS_AWAY, What.BROWN_OUT, What.REFUSALS)
DAEMON = (
    *(What.DAEMON_KILL, What.DAEMON_KILL, What.DAEMON_RESTART, What.DAEMON_STALL, What.DAEMON_PAUSE),
    What.LOG_STALL,
)
DISK = (*(What.DISK_FULL, What.DISK_FULL, What.DAMAGE), *(What.STORE_GONE, What.STORE_REPLACED))

ON_THE_DAEMON = frozenset((*DAEMON, *DISK, What.CLOCK, What.AWAY_TOO_LONG))
"""There is one daemon: these come one after another."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a round."""

    at: float
    """Seconds from the round's beginning."""
    what: What
    seconds: float = 0.0
    """How long it lasts."""
    target: int = 0
    """Which Chat Server or GMS node, from 0."""
    amount: float = 0.0
    """What else it needs: a share, a status, a step of the clock in seconds."""

    def __str__(self) -> str:
        which = f" {self.target + 1}" if self.what in (*SERVER, *NODE) else ""
        amount = f" ({self.amount:g})" if self.amount else ""
        if self.what in (What.NODE_LOSES, What.NODE_EXTRA):
            kinds = LOSING if self.what is What.NODE_LOSES else FOLLOWED
            amount = f" ({kinds[int(self.amount)]})"
        return f"{self.at:.1f} s {self.what}{which}{amount} for {self.seconds:.1f} s"


LOSING = tuple(what for what in AfterWork if what.loses_the_answer)
FOLLOWED = tuple(what for what in AfterWork if not what.loses_the_answer)

Theme = Callable[[random.Random], list[What]]

THEMES: dict[str, Theme] = {
    "Chat Servers": lambda chance: [chance.choice(SERVER) for _ in range(chance.randint(2, 4))],
    "GMS": lambda chance: [What.KILL, *(chance.choice(GMS) for _ in range(chance.randint(1, 3)))],
    "daemon": lambda chance: [What.KILL, *(chance.choice(DAEMON) for _ in range(chance.randint(1, 2)))],
    "after work": lambda chance: [What.KILL, *(chance.choice(AFTER_WORK) for _ in range(2)), What.NODE_REDEPLOY],
    "disk": lambda chance: [chance.choice(SERVER), chance.choice(DISK)],
    "counters": lambda chance: [What.COUNTERS, chance.choice(AFTER_WORK)],
    "clock": lambda chance: [What.KILL, What.CLOCK],
    "everything": lambda chance: [
        *(chance.choice(SERVER) for _ in range(2)),
        *(chance.choice(GMS) for _ in range(2)),
        chance.choice((*DAEMON, What.DISK_FULL)),
        chance.choice(AFTER_WORK),
    ],
    "away": lambda chance: [What.KILL, What.AWAY_TOO_LONG],
}  # fmt: skip
TURNS = (
    *("Chat Servers", "daemon", "after work", "disk", "everything", "clock"),
    *("daemon", "everything", "GMS", "disk", "Chat Servers", "away"),
    *("counters", "daemon", "after work", "disk"),
)
"""Which theme comes when: all of them in sixteen rounds, whatever the seed."""


def plan(seed: int, number: int, *, servers: int, nodes: int) -> tuple[str, Sequence[Fault]]:
    """The theme of a round and its faults in the order of their moments."""
    chance = random.Random(f"{seed}/{number}")
    theme = TURNS[number % len(TURNS)]
    faults = [_fault(chance, what, servers, nodes) for what in THEMES[theme](chance)]
    return theme, _one_daemon(sorted(faults, key=lambda fault: fault.at))


def _fault(chance: random.Random, what: What, servers: int, nodes: int) -> Fault:
    amount = 0.0
    match what:
        case What.NODE_SLOW | What.SLOW:
            amount = round(chance.uniform(0.2, 1.2), 1)
        case What.NODE_FAIL:
            amount = chance.choice((429, 500, 502, 503))
        case What.NODE_REDEPLOY:
            amount = chance.choice((404, 404, 403, 400))
        case What.NODE_LOSES:
            amount = chance.randrange(len(LOSING))
        case What.NODE_EXTRA:
            amount = chance.randrange(len(FOLLOWED))
        case What.NODE_GARBAGE:
            amount = round(chance.uniform(0.2, 1.0), 1)
        case What.CLOCK:
            amount = chance.choice((-3600, -60, 60, 3600))
    shortest, longest = SHORTEST, LONGEST
    if what is What.DAEMON_PAUSE:
        shortest, longest = 8.5, 11.0
    if what is What.NODE_HANG:
        # Either it answers before a client gives up, or the client is gone when it goes on. In between it
        # would answer nobody, and no client could know what.
        shortest, longest = chance.choice(((1.0, 3.0), (9.0, 11.0)))
    return Fault(
        at=round(chance.uniform(0.0, ACT_SECONDS), 1),
        what=what,
        seconds=round(chance.uniform(shortest, longest), 1),
        target=chance.randrange(nodes if what in NODE else servers),
        amount=amount,
    )


def _one_daemon(faults: Sequence[Fault]) -> list[Fault]:
    """What is done to the daemon waits until the thing before is over."""
    free = 0.0
    moved = []
    for fault in faults:
        if fault.what in ON_THE_DAEMON:
            at = max(fault.at, free)
            free = at + fault.seconds + 1.0
            fault = Fault(round(at, 1), fault.what, fault.seconds, fault.target, fault.amount)
        moved.append(fault)
    return sorted(moved, key=lambda fault: fault.at)
