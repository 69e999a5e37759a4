"""The endpoint of a webhook, as it fares: a judgement of its answers, which sends nothing itself.

A failure of the endpoint (no connection, no answer in time, 5xx, 429) is nobody's batch's fault: everything waits, one
probe goes out after a second, then each after twice the time, a minute at most. A batch that is refused (another 4xx)
while the endpoint answers is the batch's: it is tried again with a backoff of its own, and put aside in the end. No
endpoint is ever given up for its silence; one that answers 410 wants nothing any more.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from enum import Enum, auto

from asyncchatd.model import Clock, Ms
from asyncchatd.stores import LONGEST_BACKOFF_MS
from asyncchatd.wire import read_retry_after

FIRST_PAUSE_SECONDS = 1.0
"""After the first failure of the endpoint, and after the first refusal of a batch."""

LONGEST_PAUSE_SECONDS = 60.0
"""Between two probes of an endpoint that is down."""

LONGEST_RETRY_AFTER_SECONDS = 600.0
"""So long an endpoint may ask us to wait."""

JITTER = 0.25
"""A refused batch is tried again by so large a share of its pause earlier or later."""

LONGEST_BACKOFF_SECONDS = LONGEST_BACKOFF_MS / 1000 / (1 + JITTER)
"""Between two tries of a batch that is refused."""

NEVER = float("-inf")
"""A monotonic time before all others."""


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
    """The fate of a try by its HTTP status; none where there was no answer."""
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
    """The endpoint of one webhook: whether it is up, and when something may be sent. Times are monotonic, in
    seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.failures = 0
        """In a row; those that were on their way together are one."""
        self._failed_at = self._closed_until = NEVER
        self._asked_at = self._asked_until = NEVER
        """When it last asked for a pause, and until when."""

    @property
    def is_down(self) -> bool:
        """Whether its last answer was a failure: then one probe at a time goes out."""
        return self.failures > 0

    def wait(self) -> float:
        """Seconds until something may be sent."""
        return max(0.0, self._closed_until - self._clock.monotonic())

    def hurry(self) -> None:
        """Let something be sent now: an operator says so."""
        self._closed_until = self._asked_until = NEVER

    def answered(self, sent_at: float) -> None:
        """Note that it answered for itself, whatever it said of a batch: it is up. A pause that it asked for after that
        request was sent lasts on."""
        self.failures = 0
        self._closed_until = self._asked_until if sent_at <= self._asked_at else NEVER

    def failed(self, headers: Mapping[str, str], sent_at: float) -> None:
        """Note that it did not. Requests that were on their way when it failed last say nothing new: twenty that fail
        together would else close it for a minute."""
        now = self._clock.monotonic()
        asked = read_retry_after(headers.get("Retry-After"))
        if asked is not None:
            self._asked_at = now
            self._asked_until = max(self._asked_until, now + min(asked, LONGEST_RETRY_AFTER_SECONDS))
            self._closed_until = max(self._closed_until, self._asked_until)
        if self.is_down and sent_at <= self._failed_at:
            return
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * float(1 << min(self.failures, 10)))
        self.failures += 1
        self._failed_at = now
        self._closed_until = max(self._closed_until, now + pause)


def backoff_ms(refused_ms: Ms) -> float:
    """The pause of a batch that has been refused for so long: as long again, so it doubles; and no two alike."""
    seconds = min(LONGEST_BACKOFF_SECONDS, max(FIRST_PAUSE_SECONDS, refused_ms / 1000))
    return 1000 * seconds * random.uniform(1 - JITTER, 1 + JITTER)
