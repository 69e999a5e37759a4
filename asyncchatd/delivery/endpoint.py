"""The endpoint of a webhook, as it fares: a pure judgement of its answers.

A failure of the endpoint (no connection, no answer in time, 5xx, 429) is nobody's batch's fault: everything waits, one
probe goes out after a second, then each after twice the time, a minute at most. A batch that is refused (another 4xx)
while the endpoint answers is the batch's: it is tried again with a backoff of its own, and put aside in the end. No
endpoint is ever given up for its silence; one that answers 410 wants nothing any more.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from enum import Enum, auto

from asyncchatd.model import Clock
from asyncchatd.stores import LONGEST_BACKOFF_MS
from asyncchatd.wire import read_retry_after

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0

LONGEST_RETRY_AFTER_SECONDS = 600.0
"""So long an endpoint may ask us to wait."""

JITTER = 0.25
LONGEST_BACKOFF_SECONDS = LONGEST_BACKOFF_MS / 1000 / (1 + JITTER)
"""Between two tries of a batch that is refused."""


class Fate(Enum):
    """What became of one try."""

    TAKEN = auto()
    REFUSED = auto()
    """The batch's fault."""
    FAILED = auto()
    """The endpoint's."""
    GONE = auto()
    """The endpoint wants no more of anything."""


def fate_of(status: int | None) -> Fate:
    """By the HTTP status; none where there was no answer."""
    match status:
        case None | 408 | 425 | 429:
            return Fate.FAILED
        case 410:
            return Fate.GONE
        case _ if 200 <= status < 300:
            return Fate.TAKEN
        case _ if 400 <= status < 500:
            return Fate.REFUSED
    return Fate.FAILED


class Endpoint:
    """How an endpoint fares."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.failures = 0
        """In a row; those that were on their way together are one."""
        self._failed_at = self._closed_until = float("-inf")

    @property
    def is_down(self) -> bool:
        """Whether its last answer was a failure: then one probe at a time goes out."""
        return self.failures > 0

    def wait(self) -> float:
        """Seconds until something may be sent."""
        return max(0.0, self._closed_until - self._clock.monotonic())

    def hurry(self) -> None:
        """Something may be sent now: an operator says so."""
        self._closed_until = float("-inf")

    def answered(self) -> None:
        """It answered for itself, whatever it said of a batch."""
        self.failures = 0
        self._closed_until = float("-inf")

    def failed(self, headers: Mapping[str, str], sent_at: float) -> None:
        """It did not, to a request of that monotonic time. Those that were on their way when it failed last say nothing
        new: twenty that fail together would else close it for a minute."""
        asked = read_retry_after(headers.get("Retry-After"))
        if asked is not None:
            self._close(min(asked, LONGEST_RETRY_AFTER_SECONDS))
        if self.is_down and sent_at <= self._failed_at:
            return
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * float(1 << min(self.failures, 10)))
        self.failures += 1
        self._failed_at = self._clock.monotonic()
        self._close(pause)

    def _close(self, seconds: float) -> None:
        self._closed_until = max(self._closed_until, self._clock.monotonic() + seconds)


def backoff_ms(tries: int) -> float:
    """The pause of a batch that was refused so often: doubled each time, and no two alike."""
    longest = min(LONGEST_BACKOFF_SECONDS, FIRST_PAUSE_SECONDS * float(1 << min(tries, 10)))
    return 1000 * longest * random.uniform(1 - JITTER, 1 + JITTER)
