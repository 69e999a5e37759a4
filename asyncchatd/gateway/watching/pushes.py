"""The judgement of pushes: which chat is to be looked at when, and what a look says of the pushes of its session.

Chat Server binds the pushes of a session to one node of GMS, and they can stop without a word (protocol section 8).
Here is no clock and no I/O. Times are seconds of a clock that never steps back, but those of pushes and Refreshes,
which the store knows in milliseconds since the epoch.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from asyncchatd.model import Ms

POLLED_SECONDS = 60.0
"""Somebody polls a chat as long after its last poll: clients ask every 30 s at the slowest, or hold one for 25 s."""

FIRST_LOOK_SECONDS = 15.0
"""After a call; the next ones after twice as long, each: so late does Chat Server send a push again."""

LATE_PUSH_SECONDS = 5.0
"""A push that comes so long after its event was seen was only slower than the look."""

LOOK_SECONDS = 10.0
"""What comes so long after a look was seen by it."""

JUDGED_LOOKS = 500
MOST_MISSES = 0.02
FEWEST_MISSES = 5
FEW_MISSES = 0.01
"""Pushes are trusted again when no more of the looks found something."""

REMEMBERED_SECONDS = 3_600.0
"""A chat that nobody polls is remembered for so long."""


@dataclass(eq=False, slots=True)
class Look:
    """One look at a chat."""

    at: float
    refreshed_at: Ms
    """When GMS had last answered a Refresh of the session before it."""
    suspicious: bool = False
    """It showed an event that no push had announced."""
    missed: bool = False


@dataclass(eq=False, slots=True)
class Care:
    """What is remembered of a chat that is polled."""

    chat_id: str
    polled_at: float
    since: float
    """The last look, the last push, or the first poll."""
    stretch: float
    """By so much its interval is longer than the shortest, so that chats do not fall due together."""
    subscribed: bool = True
    """Whether there are pushes to expect."""
    failing: bool = False
    """Its pushes do not come."""
    called_at: float | None = None
    """The customer's last call; none once an event of somebody else came by a push."""
    looks_after_call: int = 0
    pushed_at: Ms = 0
    look: Look | None = None
    due: float = field(default=0.0)


class PushJudge:
    """Says which chat is due for a look, and whether pushes are missing."""

    def __init__(
        self,
        check_interval: float,
        fallback_interval: float,
        stretch: Callable[[], float] = lambda: random.uniform(1, 1.1),
    ) -> None:
        self.check_interval = check_interval
        self.fallback_interval = fallback_interval
        self.missing = False
        """Whether so many pushes are missing that none is relied on."""
        self._stretch = stretch
        self._chats: dict[str, Care] = {}
        self._due: list[tuple[float, int, Care]] = []
        self._order = itertools.count()
        self._judged: deque[Look] = deque()
        self._misses = 0
        self._suspects: deque[tuple[float, Care, Look]] = deque()

    @property
    def failing(self) -> int:
        """Chats whose pushes do not come."""
        return sum(care.failing for care in self._chats.values())

    @property
    def misses(self) -> int:
        """Of the looks that are judged, those that saw what no push had announced."""
        return self._misses

    @property
    def looks(self) -> int:
        """The looks that are judged."""
        return len(self._judged)

    def minds(self, chat_id: str) -> bool:
        """Whether what happens in this chat is of interest."""
        return chat_id in self._chats

    # -- what happens ------------------------------------------------------------------------------

    def polled(self, chat_id: str, now: float, *, subscribed: bool = True) -> None:
        """Somebody looks at the chat."""
        care = self._chats.get(chat_id)
        if care is None:
            care = self._chats[chat_id] = Care(chat_id, now, now, self._stretch(), subscribed)
            self._schedule(care)
            return
        slept = not self._is_polled(care, now)
        care.polled_at = now
        care.subscribed |= subscribed
        if slept:
            self._schedule(care)

    def called(self, chat_id: str, now: float) -> None:
        """The customer did something that others may answer."""
        care = self._chats.get(chat_id)
        if care is None:
            self.polled(chat_id, now)
            care = self._chats[chat_id]
        care.called_at, care.looks_after_call = now, 0
        self._schedule(care)

    def pushed(self, chat_id: str, at: Ms, now: float) -> None:
        """A push of the session came."""
        care = self._chats.get(chat_id)
        if care is None:
            return
        care.pushed_at = max(care.pushed_at, at)
        care.since = now
        care.subscribed = True
        care.failing = False
        if care.look is not None and care.look.suspicious:
            care.look.suspicious = False  # the push was slower than the look
            care.called_at = None

    def came(self, chat_id: str, now: float) -> None:
        """An event of somebody else was seen."""
        care = self._chats.get(chat_id)
        if care is None or not care.subscribed:
            return
        look = care.look
        if look is None or now - look.at > LOOK_SECONDS:
            if now - care.since <= LOOK_SECONDS and care.pushed_at:
                care.called_at = None
        elif care.pushed_at > look.refreshed_at:
            care.called_at = None
        elif not look.suspicious and not look.missed:
            look.suspicious = True
            self._suspects.append((now + LATE_PUSH_SECONDS, care, look))

    def looked(self, chat_id: str, now: float, refreshed_at: Ms) -> None:
        """A look at the chat begins."""
        care = self._chats.get(chat_id)
        if care is None:
            return  # over meanwhile
        care.since = now
        if care.called_at is not None:
            while FIRST_LOOK_SECONDS * 2**care.looks_after_call <= now - care.called_at:
                care.looks_after_call += 1  # also past those that were missed while nobody polled
        if care.subscribed:
            care.look = Look(now, refreshed_at)
            self._judged.append(care.look)
            if len(self._judged) > JUDGED_LOOKS:
                self._misses -= self._judged.popleft().missed
            self._judge()
        self._schedule(care)

    def put_off(self, chat_id: str, now: float) -> None:
        """The chat could not be looked at."""
        care = self._chats.get(chat_id)
        if care is not None:
            care.since = now
            self._schedule(care)

    def forget(self, chat_id: str) -> None:
        """The chat is over."""
        care = self._chats.pop(chat_id, None)
        if care is not None:
            care.due = -1.0

    def pass_on(self, now: float) -> int:
        """Time passes: what no push announced up to now was missed. How many looks found such a thing."""
        found = 0
        while self._suspects and self._suspects[0][0] <= now:
            _, care, look = self._suspects.popleft()
            if not look.suspicious:
                continue
            look.suspicious, look.missed = False, True
            care.failing = True
            found += 1
            self._misses += any(look is each for each in self._judged)
            self._schedule(care)
        if found:
            self._judge()
        return found

    # -- what is due -------------------------------------------------------------------------------

    def next(self, now: float) -> str | None:
        """The chat that is longest due for a look; it is given once, until it is `looked` at or `put_off`."""
        while self._due and self._due[0][0] <= now:
            due, _, care = heapq.heappop(self._due)
            if care.due != due:
                continue  # there is another entry of it, or it is over
            if not self._is_polled(care, now):
                if now - care.polled_at >= REMEMBERED_SECONDS:
                    self.forget(care.chat_id)
                else:
                    self._schedule_at(care, care.polled_at + REMEMBERED_SECONDS)
            elif self._when(care) > now:
                self._schedule(care)
            else:
                return care.chat_id
        return None

    def _is_polled(self, care: Care, now: float) -> bool:
        return now - care.polled_at <= POLLED_SECONDS

    def _when(self, care: Care) -> float:
        if care.failing or self.missing or not care.subscribed:
            return care.since + self.fallback_interval
        regular = care.since + self.check_interval * care.stretch
        if care.called_at is None:
            return regular
        after = FIRST_LOOK_SECONDS * 2**care.looks_after_call
        return regular if after > self.check_interval else min(regular, care.called_at + after)

    def _schedule(self, care: Care) -> None:
        self._schedule_at(care, self._when(care))

    def _schedule_at(self, care: Care, due: float) -> None:
        if care.chat_id not in self._chats:
            return
        care.due = due
        heapq.heappush(self._due, (due, next(self._order), care))
        if len(self._due) > 1_000 + 4 * len(self._chats):  # entries that are void
            self._due = [(each.due, next(self._order), each) for each in self._chats.values()]
            heapq.heapify(self._due)

    def _judge(self) -> None:
        share = self._misses / max(1, len(self._judged))
        if not self.missing and self._misses >= FEWEST_MISSES and share > MOST_MISSES:
            self.missing = True
            for care in self._chats.values():
                self._schedule(care)
        elif self.missing and share <= FEW_MISSES:
            self.missing = False
