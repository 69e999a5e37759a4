"""How fast GMS may be asked: a hard rate, a bound on requests in flight, a budget for retries.

Restoring loads a session's transcript from storage, and what GMS can bear is published nowhere
(protocol section 2, danger 3). The hard rate is the operator's word and is never passed; the pacer
spaces requests evenly under it, because a burst within the rate is still a burst. Under it the
in-flight limit finds out what GMS can bear now: a rate alone, once it is above that, only makes
requests time out, and requests that time out cost GMS as much as those it answers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import Enum, auto

from asyncchatd.model import Clock

STRETCH = 1.018
"""The pacer stays this much below the rate: requests that left evenly do not arrive evenly, and the rate
must hold where they arrive. It buys 18 ms of unevenness for less than two hundredths of the time."""

CATCH_UP_SECONDS = 0.01
"""A turn that came late because a timer did is made up for within this time, not later."""


SHORTEST_SLEEP_SECONDS = 0.001
"""Event loops count in milliseconds; asked for less they return at once, and the wait would spin."""

LONGEST_SLEEP_SECONDS = 1.0
"""Until it is looked whether there is another rate now."""


class Pacer:
    """Hands out turns to send, first come first served."""

    def __init__(self, rate: float, clock: Clock) -> None:
        """`rate` is requests per second; less than one is allowed."""
        self._clock = clock
        self._next = clock.monotonic()
        self._recent: deque[float] = deque()
        self._line = asyncio.Lock()
        self.reload(rate)

    def reload(self, rate: float) -> None:
        """Keep another rate from now on. What was sent lately counts: also the next second keeps it."""
        self.rate = rate
        self._spacing = STRETCH / rate
        self._recent = deque(self._recent, maxlen=max(1, int(min(rate, 1e6))))
        self._window = STRETCH * (self._recent.maxlen or 1) / rate
        if self._recent:
            self._next = self._recent[-1] + self._spacing

    def try_turn(self) -> bool:
        """Take a turn if it is due now and nobody waits for one."""
        return not self._line.locked() and self._take()

    async def turn(self) -> None:
        """Return when the next request may be sent."""
        async with self._line:
            while not self._take():
                wait = min(self._opens() - self._clock.monotonic(), LONGEST_SLEEP_SECONDS)
                await self._clock.sleep(max(SHORTEST_SLEEP_SECONDS, wait))

    def _take(self) -> bool:
        now = self._clock.monotonic()
        if now < self._opens():
            return False
        self._recent.append(now)
        self._next = max(self._next, now - CATCH_UP_SECONDS) + self._spacing
        return True

    def _opens(self) -> float:
        if len(self._recent) < (self._recent.maxlen or 1):
            return self._next
        return max(self._next, self._recent[0] + self._window)


class Landing(Enum):
    """How a request came back, as the in-flight limit must know it."""

    ANSWERED = auto()
    BUSY = auto()
    """`statusCode` 1: the session's Chat Server, or GMS short of something."""
    FAILED = auto()
    """No answer in time, or an error: too much for GMS."""
    UNSENT = auto()
    """No connection. That is one node's affair, and says nothing of how much GMS can bear."""


FIRST_LIMIT = 16
SMALLEST_LIMIT = 1
SLOW_FACTOR = 0.9
FAILED_FACTOR = 0.5
BUSY_SHARE = 0.3
"""Above this share of `statusCode` 1 among the recent answers GMS counts as slow."""
BUSY_MEMORY = 0.05
"""Weight of one answer in that share: about the last twenty count."""


class InFlight:
    """How many requests may be on their way: additive increase, multiplicative decrease.

    While GMS answers within `target` seconds and the limit is what holds us back, it grows: by one
    for each answer until the first setback, later by one for each round of answers. It shrinks to
    nine tenths when answers come slower, to half when they do not come, and at most once for what
    was sent before the last change took effect. It never passes `ceiling`.
    """

    def __init__(self, ceiling: int, target: float, clock: Clock) -> None:
        self.ceiling = ceiling
        self.count = 0
        self._target = target
        self._clock = clock
        self._limit = float(min(ceiling, FIRST_LIMIT))
        self._fast_until = float(ceiling)
        self._cut_at = clock.monotonic() - 1
        self._busy = 0.0

    def reload(self, ceiling: int, target: float) -> None:
        """Keep another ceiling and target from now on; what was found out about GMS still holds."""
        if self._fast_until >= self.ceiling:
            self._fast_until = float(ceiling)  # no setback so far
        self.ceiling = ceiling
        self._target = target
        self._limit = min(self._limit, float(ceiling))

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return int(self._limit)

    @property
    def free(self) -> int:
        """How many more may be sent."""
        return max(0, self.limit - self.count)

    def has_room(self) -> bool:
        """Whether one more may be sent."""
        return self.count + 1 <= self._limit

    def sent(self) -> float:
        """A request leaves; what is returned goes to `landed`."""
        self.count += 1
        return self._clock.monotonic()

    def landed(self, sent_at: float, how: Landing) -> None:
        """It came back, or was given up."""
        full = self.count >= self.limit
        self.count -= 1
        if how is Landing.UNSENT:
            return
        took = self._clock.monotonic() - sent_at
        self._busy += BUSY_MEMORY * ((how is Landing.BUSY) - self._busy)
        if how is Landing.FAILED:
            self._cut(sent_at, FAILED_FACTOR)
        elif took > self._target or (how is Landing.BUSY and self._busy > BUSY_SHARE):
            self._cut(sent_at, SLOW_FACTOR)
        elif full and how is Landing.ANSWERED:
            step = 1.0 if self._limit < self._fast_until else 1.0 / self._limit
            self._limit = min(float(self.ceiling), self._limit + step)

    def _cut(self, sent_at: float, factor: float) -> None:
        if sent_at < self._cut_at:
            return  # sent under the limit before; it says nothing of this one
        self._limit = max(float(SMALLEST_LIMIT), self._limit * factor)
        self._fast_until = self._limit
        self._cut_at = self._clock.monotonic()


class RetryBudget:
    """Retries must not outnumber first tries: each first try and each answer pays for one retry,
    time pays for a trickle, and no more is saved up than one second's rate."""

    def __init__(self, rate: float, clock: Clock) -> None:
        self._clock = clock
        self._saved = max(1.0, rate)
        self._at = clock.monotonic()
        self.reload(rate)

    def reload(self, rate: float) -> None:
        """Keep another rate from now on."""
        self._trickle = rate * 0.1
        self._most = max(1.0, rate)
        self._saved = min(self._saved, self._most)

    def earn(self) -> None:
        """A first try, or an answer."""
        self._saved = min(self._most, self._saved + 1)

    def spend(self) -> bool:
        """Whether one retry may be made now."""
        now = self._clock.monotonic()
        self._saved = min(self._most, self._saved + (now - self._at) * self._trickle)
        self._at = now
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
