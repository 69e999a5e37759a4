"""How fast GMS may be asked: a hard rate, a bound on requests in flight, a budget for retries.

Restoring loads a session's transcript from storage, and what GMS can bear is published nowhere
(protocol section 2, danger 3). The hard rate is the operator's word and is never passed; the pacer
spaces requests evenly under it, because a burst within the rate is still a burst. Under it the
in-flight limit finds out what GMS can bear now: a rate alone, once it is above that, only makes
requests time out, and requests that time out cost GMS as much as those it answers.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from asyncchatd.log import Event, get_logger
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


PORTION_SECONDS = 0.02
"""Turns for so long are asked for at once where several daemons share the rate."""

USED_ONE_BY_ONE = 2
"""So many turns of a portion are used where requests follow each other; a single one needs no more."""

VOID_SECONDS = 0.015
"""A shared turn that was missed by so much is void: another daemon's may be next."""

ASK_AGAIN_SECONDS = 0.005
"""When there were no turns to be had."""


class Turns(Protocol):
    """The turns of all processes that share a rate, as a store hands them out for instance."""

    def __call__(self, count: int, *, rate: float) -> Awaitable[Sequence[float] | None]:
        """The next `count` moments, by the monotonic clock in seconds; `None` when nobody shares the rate."""


class Pacer:
    """Hands out turns to send, first come first served."""

    def __init__(self, rate: float, clock: Clock, shared: Turns | None = None) -> None:
        """`rate` is requests per second; less than one is allowed. `shared` is asked for turns where others have a
        part in the rate."""
        self._clock = clock
        self._next = clock.monotonic()
        self._recent: deque[float] = deque()
        self._line = asyncio.Lock()
        self._shared = shared
        self._granted: deque[float] = deque()
        self._used = 0
        """Turns that were taken since the last ones were granted."""
        self._ahead: asyncio.Task[None] | None = None
        self.reload(rate)

    def reload(self, rate: float) -> None:
        """Keep another rate from now on. What was sent lately counts: also the next second keeps it."""
        self.rate = rate
        self._spacing = STRETCH / rate
        self._most = max(1, int(min(rate, 1e6)))
        self._recent = deque(self._recent, maxlen=self._most)
        self._window = STRETCH * self._most / rate
        if self._recent:
            self._next = self._recent[-1] + self._spacing

    def try_turn(self) -> bool:
        """Take a turn if it is due now and nobody waits for one."""
        return not self._line.locked() and self._take()

    def left(self) -> float:
        """Requests per second that nobody sent through here in the last second."""
        since = self._clock.monotonic() - 1
        used = 0
        for at in reversed(self._recent):
            if at <= since:
                break
            used += 1
        return max(0.0, self.rate - used)

    async def turn(self, until: float = math.inf) -> bool:
        """Wait for the moment at which the next request may be sent. Whether there is one: who shares the rate may be
        told of each too late, and gives up after `until`, in seconds of the monotonic clock. Raises what `shared`
        raises."""
        async with self._line:
            asked = False
            while not self._take():
                if self._shared is not None and not self._granted:
                    if asked and self._clock.monotonic() > until:
                        return False
                    asked = True
                    await (self._ahead or self._ask(self._shared))
                else:
                    wait = min(self._opens() - self._clock.monotonic(), LONGEST_SLEEP_SECONDS)
                    await self._clock.sleep(max(SHORTEST_SLEEP_SECONDS, wait))
            self._look_ahead()
            return True

    async def opening(self) -> None:
        """Wait as long as there is no turn, but do not stand in the line for one: `try_turn` then tells whether nobody
        else took it. Raises what `shared` raises."""
        if self._shared is not None and not self._granted and not self._line.locked():
            async with self._line:
                await (self._ahead or self._ask(self._shared))
            return
        wait = min(self._opens() - self._clock.monotonic(), LONGEST_SLEEP_SECONDS)
        await self._clock.sleep(max(SHORTEST_SLEEP_SECONDS, wait))

    def _look_ahead(self) -> None:
        """Ask for the next turns when half of those that were asked for are used, where one is used after the other.
        Else nobody has the rate that is due while an answer is on its way."""
        if self._shared is None or self._ahead is not None:
            return
        if self._used >= USED_ONE_BY_ONE and len(self._granted) <= self.rate * PORTION_SECONDS / 2:
            self._ahead = asyncio.create_task(self._ask(self._shared))
            self._ahead.add_done_callback(self._came)

    def _came(self, ahead: asyncio.Task[None]) -> None:
        self._ahead = None
        if not ahead.cancelled():
            ahead.exception()  # whoever waits for turns hears of it, and the next one who needs some asks anew

    async def _ask(self, shared: Turns) -> None:
        granted = await shared(max(1, round(self.rate * PORTION_SECONDS)), rate=self.rate)
        if granted is None:
            self._shared = None
        elif granted:
            self._used = 0
            self._granted.extend(granted)
        else:
            await self._clock.sleep(ASK_AGAIN_SECONDS)

    def _take(self) -> bool:
        now = self._clock.monotonic()
        while self._granted and self._granted[0] < now - VOID_SECONDS:
            self._granted.popleft()
        if (self._shared is not None and not self._granted) or now < self._opens():
            return False
        self._recent.append(now)
        if self._granted:
            self._granted.popleft()
            self._used += 1
        else:
            self._next = max(self._next, now - CATCH_UP_SECONDS) + self._spacing
        return True

    def _opens(self) -> float:
        following = self._granted[0] if self._granted else self._next
        if len(self._recent) < self._most:
            return following
        return max(following, self._recent[0] + self._window)


class Landing(Enum):
    """How a request came back, as the in-flight limit must know it."""

    ANSWERED = auto()
    BUSY = auto()
    """`statusCode` 1: the session's Chat Server, or GMS short of something."""
    FAILED = auto()
    """No answer in time, or an error: too much for GMS."""
    UNSENT = auto()
    """No connection. That is one node's affair, and says nothing of how much GMS can bear."""


# Looked up in its class a member costs ten times as much, and that several times a ping.
ANSWERED, BUSY, FAILED, UNSENT = Landing


FIRST_LIMIT = 16
SMALLEST_LIMIT = 1
SLOW_FACTOR = 0.8
FAILED_FACTOR = 0.5
AGAIN_SHARE = 0.9
FAILED_AGAIN_SHARE = 0.75
"""After a cut the limit grows fast up to this share of what it was before, and slowly from there."""
BUSY_SHARE = 0.3
"""Above this share of `statusCode` 1 among the recent answers GMS counts as slow."""
FAILED_SHARE = 0.12
"""Above this share of failures among the recent answers they are GMS' and no affair of one session or node: at the
third one if they come together and the limit is low."""
FEWEST_RECENT, MOST_RECENT = 20, 100
"""About so many answers are recent; in between as many as the limit allows. Among few, three in a hundred that are lost
come together every few seconds. Of a GMS that has too much, those in flight fail together, however many they are."""

SMALLEST_ROUND, LARGEST_ROUND = 5, 64
"""Requests in a round, which are as many as the limit allows in between."""
JUDGED_SHARE = 0.75
"""A round is judged when so many of it were answered: the rest is taken for slower than all of these."""

TRIED_SHARE = 0.6
"""A limit cut to this share shows whether cutting helps: what queues at GMS gets shorter with it."""
VAIN_SHARE = 0.85
"""Cutting was in vain when answers then still take this share of their time before. Until then it goes on."""
SLOWER = 1.5
"""Answers that take so many times what they take by themselves do wait for one another."""
VAIN_MEMORY_SECONDS = 600.0
"""How long it is believed that answers take their time by themselves. Then it is found out again."""
TOLD_AGAIN_SECONDS = 60.0
"""A limit that finds its place is cut every few seconds, which is told no more often than that."""

log = get_logger()


class _Round:
    """Requests sent one after the other, and what the answers to them typically take.

    Judged is the whole of them: the answers that come first are the quickest, and say how long a quick one takes.
    """

    def __init__(self, size: int) -> None:
        self._missing = size
        """So many are still to be sent."""
        self._from = self._until = float("inf")
        """When the first was sent, and the last one so far."""
        self._sent = 0
        self._took: list[float] = []

    def sent(self, at: float) -> None:
        """A request leaves, perhaps one of the round."""
        if self._missing or at == self._until:  # what leaves in the same moment cannot be told apart
            self._missing -= self._missing > 0
            self._from = min(self._from, at)
            self._until = at
            self._sent += 1

    def has(self, sent_at: float) -> bool:
        """Whether a request that was sent then is one of the round."""
        return self._from <= sent_at <= self._until

    def failed(self) -> bool:
        """One of it will not be answered. Whether that leaves nothing to be told."""
        self._sent -= 1
        return not self._missing and len(self._took) >= self._sent

    def landed(self, took: float) -> float | None:
        """One of it was answered. The seconds of the one in the middle, once that can be told."""
        self._took.append(took)
        if self._missing or len(self._took) < JUDGED_SHARE * self._sent:
            return None
        return sorted(self._took)[self._sent // 2]


@dataclass(slots=True)
class _Trial:
    """Whether cutting the limit shortens the answers."""

    limit: float
    """Before the first cut: a round that happens to be quicker seems to show that a cut helped, and is no reason to
    return to less."""
    fast_until: float
    """The same as it was then."""
    seconds: float = float("inf")
    """What the answers took before the last cut; unknown while what queues at GMS may not have come to its length."""


class InFlight:
    """How many requests may be on their way: additive increase, multiplicative decrease.

    While GMS answers within `target` seconds and the limit is what holds us back, it grows: by one
    for each answer until the first setback, later by one for each round of answers. A setback are slow answers, or
    several that do not come. Then it is cut, grows fast to nine tenths of what it was (three quarters after failures),
    and slowly from there. It is cut at most once for what was sent before the last change took effect. It never passes
    `ceiling`.

    Answers that wait for one another get faster when fewer are in flight. Those that do not, because the way to
    GMS or its work takes so long by itself, are not waiting for us: the limit returns to where it was, and
    slow is from then on what takes half as long again. (TCP Vegas tells a long way from a queue like this.)
    """

    def __init__(self, ceiling: int, target: float, clock: Clock) -> None:
        self.ceiling = ceiling
        self.count = 0
        self._target = target
        self._clock = clock
        self._limit = float(min(ceiling, FIRST_LIMIT))
        self._fast_until = float(ceiling)
        self._full_at = float("-inf")
        """When the limit was last reached."""
        self._cut_at = float("-inf")
        self._busy = self._failed = 0.0
        self._typical = 0.0
        """Seconds an answer of the last round took."""
        self._round = self._next_round()
        self._trial: _Trial | None = None
        self._by_itself = 0.0
        """Seconds an answer takes however few are in flight; 0 is unknown."""
        self._believed_until = float("-inf")
        self._told_at = float("-inf")

    def reload(self, ceiling: int, target: float) -> None:
        """Keep another ceiling and target from now on; what was found out about GMS still holds."""
        if self._fast_until >= self.ceiling:
            self._fast_until = float(ceiling)  # no setback so far
        self.ceiling = ceiling
        self._target = target
        self._limit = min(self._limit, float(ceiling))
        self._round = self._next_round()
        self._trial = None

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
        """Count a request that leaves; what is returned goes to `landed`."""
        self.count += 1
        now = self._clock.monotonic()
        if self.count >= self.limit:
            self._full_at = now
        self._round.sent(now)
        return now

    def landed(self, sent_at: float, how: Landing) -> None:
        """Count a request that came back, or was given up."""
        # While it was on its way: answers that come all at once find none but the first at the limit.
        full = sent_at <= self._full_at
        self.count -= 1
        of_round = self._round.has(sent_at)
        if how is UNSENT or how is FAILED:
            if of_round and self._round.failed():
                self._round = self._next_round()
            if how is UNSENT:
                return
        now = self._clock.monotonic()
        self._busy += ((how is BUSY) - self._busy) / FEWEST_RECENT
        self._failed += ((how is FAILED) - self._failed) / min(MOST_RECENT, max(FEWEST_RECENT, self._limit))
        if sent_at < self._cut_at:
            return  # it was sent under the limit before, and says nothing of this one
        if how is FAILED:
            if self._failed > FAILED_SHARE:
                self._trial = None
                self._cut(FAILED_FACTOR, FAILED_AGAIN_SHARE, now)
            return
        took = now - sent_at
        slow = self._slow_after(now)
        typical = self._round.landed(took) if of_round else None
        if typical is not None:
            self._typical = typical
            self._round = self._next_round()
            if typical > slow:
                self._slow(typical, now)
                return
            self._trial = None
        if how is BUSY and self._busy > BUSY_SHARE:
            self._cut(SLOW_FACTOR, AGAIN_SHARE, now)
        elif full and how is ANSWERED and max(took, self._typical) <= slow and self._trial is None:
            self._grow()

    def _next_round(self) -> _Round:
        return _Round(max(SMALLEST_ROUND, min(LARGEST_ROUND, self.limit)))

    def _slow_after(self, now: float) -> float:
        """Seconds from which on an answer is slow."""
        return max(self._target, SLOWER * self._by_itself) if now < self._believed_until else self._target

    def _slow(self, typical: float, now: float) -> None:
        """Answers are slow: fewer are sent, unless fewer have not made them faster."""
        trial = self._trial
        if trial is None:
            self._trial = _Trial(self._limit, self._fast_until)
            self._cut(SLOW_FACTOR, AGAIN_SHARE, now)
        elif typical < VAIN_SHARE * trial.seconds:
            trial.seconds = typical
            self._cut(TRIED_SHARE, AGAIN_SHARE, now)
        else:
            self._in_vain(trial, typical, now)
            return
        self._tell(Event.GMS_SLOW, typical, now)

    def _in_vain(self, trial: _Trial, typical: float, now: float) -> None:
        self._by_itself, self._believed_until = max(typical, trial.seconds), now + VAIN_MEMORY_SECONDS
        self._limit = min(trial.limit, float(self.ceiling))
        self._fast_until = trial.fast_until
        self._trial = None
        self._told_at = float("-inf")
        self._tell(Event.GMS_SLOW_BY_ITSELF, typical, now)

    def _tell(self, event: Event, took: float, now: float) -> None:
        if now - self._told_at >= TOLD_AGAIN_SECONDS:
            self._told_at = now
            log.warning(event, in_flight_limit=self.limit, took_ms=round(took * 1000))

    def _grow(self) -> None:
        step = 1.0 if self._limit < self._fast_until else 1.0 / self._limit
        self._limit = min(float(self.ceiling), self._limit + step)

    def _cut(self, factor: float, again: float, now: float) -> None:
        """To `factor` of what it was; up to `again` of that it grows fast."""
        before = self._limit
        self._limit = max(float(SMALLEST_LIMIT), before * factor)
        self._fast_until = before * again
        self._cut_at = now
        self._typical = 0.0
        self._round = self._next_round()


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
        """Pay in for a first try, or for an answer."""
        self._saved = min(self._most, self._saved + 1)

    def spend(self) -> bool:
        """Pay for one retry; whether it may be made now."""
        now = self._clock.monotonic()
        self._saved = min(self._most, self._saved + (now - self._at) * self._trickle)
        self._at = now
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
