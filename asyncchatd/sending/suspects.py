"""Which Chat Servers are under suspicion, by the pings of their sessions that get no answer."""

from __future__ import annotations

import math
from collections.abc import Callable

from asyncchatd.gms import Landing
from asyncchatd.model import Clock

STRIKES = 3
"""So many unanswered pings in a row for one alias are evidence against its Chat Server."""

STRUCK_SHARE = 0.5
"""Of the in-flight limit, for an alias under suspicion: the others' sessions need the rest."""

SILENT_SECONDS = 2.0
"""So long without an answer to any of several pings is evidence, too: a time-out takes longer."""

LATELY_SECONDS = 30.0
"""A Chat Server whose session was answered within this time is one that GMS reaches."""


class Aliases:
    """Which Chat Servers' sessions get no answers, and how many of their pings are on their way.

    A hanging Chat Server lets GMS hang for its sessions alone. Without a bound of their own they would
    fill the in-flight limit, and the sessions of healthy servers would wait behind them.
    """

    def __init__(self, suspect: Callable[[str], None], clock: Clock) -> None:
        self.suspect = suspect
        self._clock = clock
        self._answered: dict[str, float] = {}
        self._strikes: dict[str, int] = {}
        self._in_flight: dict[str, int] = {}
        self._waits_since: dict[str, float] = {}
        """When one of its pings last came back, or the first of those on their way was sent."""

    def has_room(self, alias: str, limit: int) -> bool:
        """Whether one more ping for this alias may be sent: a suspect has a share of the in-flight limit."""
        return not self._is_suspect(alias) or self._in_flight.get(alias, 0) < _share(limit)

    def stuck(self, limit: int) -> int:
        """Pings that hang beyond their Chat Server's share, while the sessions of others are answered: they
        came before anybody could know, and others need not wait until they time out."""
        return sum(
            count - _share(limit)
            for alias, count in self._in_flight.items()
            if count > _share(limit) and self._is_suspect(alias) and self._others_are_answered(alias)
        )

    def is_alone(self, alias: str) -> bool:
        """Whether this alias is in trouble while the sessions of another are answered."""
        return self._strikes.get(alias, 0) >= STRIKES and self._others_are_answered(alias)

    def _others_are_answered(self, alias: str) -> bool:
        lately = self._clock.monotonic() - LATELY_SECONDS
        return any(
            at > lately and other != alias and other not in self._strikes
            for other, at in self._answered.items()
        )

    def sent(self, alias: str) -> None:
        """Note that a ping for this alias is on its way."""
        self._in_flight[alias] = self._in_flight.get(alias, 0) + 1
        self._waits_since.setdefault(alias, self._clock.monotonic())

    def landed(self, alias: str, how: Landing) -> None:
        """Note how a ping for this alias came back."""
        if self._in_flight[alias] > 1:
            self._in_flight[alias] -= 1
            self._waits_since[alias] = self._clock.monotonic()
        else:
            del self._in_flight[alias], self._waits_since[alias]
        if how is Landing.ANSWERED:
            self._strikes.pop(alias, None)
            self._answered[alias] = self._clock.monotonic()
        elif how is not Landing.UNSENT:
            strikes = self._strikes[alias] = self._strikes.get(alias, 0) + 1
            if strikes % STRIKES == 0 and strikes <= STRIKES * 10:
                self.suspect(alias)

    def _is_suspect(self, alias: str) -> bool:
        if self._strikes.get(alias, 0) >= STRIKES:
            return True
        if self._in_flight.get(alias, 0) < STRIKES:
            return False
        return self._clock.monotonic() - self._waits_since[alias] > SILENT_SECONDS


def _share(limit: int) -> int:
    return max(1, math.floor(limit * STRUCK_SHARE))
