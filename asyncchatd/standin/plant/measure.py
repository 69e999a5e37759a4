"""What the plant suffered: counters, peaks and waiting times, each O(1) per request.

The plant shares its machine with the daemon under test, so nothing here may cost more as the
number of sessions grows. Percentiles are computed when somebody asks for the report.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Spread:
    """The spread of a set of durations, in seconds. All `None` when there was none."""

    p50: float | None
    p95: float | None
    max: float | None


def spread(durations: Sequence[float]) -> Spread:
    """Percentiles by nearest rank: every number reported is one that was measured."""
    return Spread(*percentiles(durations, 0.5, 0.95, 1.0))


def percentiles(durations: Sequence[float], *shares: float) -> list[float | None]:
    """Percentiles by nearest rank, of 1; all `None` where there is nothing."""
    ordered = sorted(durations)
    last = len(ordered) - 1
    return [round(ordered[int(share * last + 0.5)], 6) if ordered else None for share in shares]


class SlidingPeak:
    """The most requests seen in any window of `width` seconds, wherever the window begins.

    Counting per calendar second would let a burst across two of them pass as half its size.
    """

    __slots__ = ("_times", "peak", "width")

    def __init__(self, width: float) -> None:
        self.width = width
        self.peak = 0
        self._times: deque[float] = deque()

    def add(self, now: float) -> None:
        """Counts one request at `now`; times never go back."""
        times = self._times
        times.append(now)
        oldest = now - self.width
        while times[0] <= oldest:
            times.popleft()
        if len(times) > self.peak:
            self.peak = len(times)


class Timeline:
    """Requests and restorations per second since the plant started, for plotting."""

    __slots__ = ("_restored", "_start", "requests")

    def __init__(self, start: float) -> None:
        self._start = start
        self.requests: array[int] = array("q")
        self._restored: array[int] = array("q")

    def request(self, now: float) -> None:
        """One Chat API request arrived at any GMS node."""
        self._count(self.requests, now)

    def restored(self, now: float) -> None:
        """One session was restored."""
        self._count(self._restored, now)

    def rows(self, now: float) -> list[tuple[int, int, int]]:
        """One row per second: second since the start, requests, restored. Quiet seconds too."""
        seconds = int(now - self._start) + 1
        return [
            (second, _at(self.requests, second), _at(self._restored, second)) for second in range(seconds)
        ]

    def _count(self, series: array[int], now: float) -> None:
        second = int(now - self._start)
        if second >= len(series):
            series.extend([0] * (second + 1 - len(series)))
        series[second] += 1


def _at(series: array[int], second: int) -> int:
    return series[second] if second < len(series) else 0


def _durations() -> array[float]:
    return array("d")


@dataclass(slots=True)
class Suffering:
    """The counters behind the report. `POST /reset_report` starts a new one; sessions stay."""

    since: float
    requests: int = 0
    by_operation: Counter[str] = field(default_factory=Counter)
    per_second: SlidingPeak = field(default_factory=lambda: SlidingPeak(1.0))
    per_100_ms: SlidingPeak = field(default_factory=lambda: SlidingPeak(0.1))
    turned_away: int = 0
    """Answered 503 because the queue in front of GMS was full."""
    faulted: int = 0
    """Swallowed or spoilt by a faulty GMS node before any Chat Server saw them."""
    longest_pause: float = 0.0
    abandoned: int = 0
    """Served although the client had gone: GMS does the work all the same."""

    restored: int = 0
    without_server: array[float] = field(default_factory=_durations)
    lost: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)

    wrong_key: int = 0
    previous_key: int = 0
    wrong_user_id: int = 0
    wrong_alias: int = 0
    wrong_service: int = 0
    incomplete: int = 0
    overlapping: int = 0
    overlapping_abandoned: int = 0
    overlapping_cut_off: int = 0
    at_once: int = 0
    answers_lost: int = 0
    extra_answers: int = 0
    forgiven_key: int = 0
    refused_for_now: int = 0
    unknown_chats: int = 0
    unreadable: int = 0
    unauthorised: int = 0
    position_zero: int = 0
    closed_refreshes: int = 0
    closed_refreshes_max: int = 0
    doubled_messages: int = 0

    pushes_sent: int = 0
    pushes_swallowed: int = 0
    pushes_taken: int = 0
    pushes_failed: int = 0
    pushes_resent: int = 0
    resends_exhausted: int = 0
    acknowledged: int = 0
    ended_unacknowledged: int = 0
    acknowledgement: array[float] = field(default_factory=_durations)


@dataclass(frozen=True, slots=True)
class Report:
    """What the plant suffered since it started, or since the report was reset.

    A well-behaved client leaves every one of the rule counters at 0: `wrong_key_requests`,
    `wrong_user_id_requests`, `wrong_alias_requests`, `wrong_service_requests`,
    `incomplete_requests`, `overlapping_requests`, `repeated_at_once_requests`, `unreadable_requests`; and
    `refreshes_of_closed_chats_max` at no more than 1, because the first one may be how it learns.
    """

    seconds: float
    """How long this report covers."""
    sessions_alive: int
    sessions_without_server: int
    """Alive, but their Chat Server is gone or hangs: they wait for a client's request."""
    sessions_lost: int
    lost_by_cause: dict[str, int]
    """`restoration_window`, `silence`, `wrong_key`."""
    sessions_ended: int
    """Ended as chats do, without anybody's fault."""
    ended_by_cause: dict[str, int]
    restored: int
    without_server_seconds: Spread
    """How long each restored session had been without a Chat Server."""

    requests: int
    requests_by_operation: dict[str, int]
    peak_requests_per_second: int
    """The most in any sliding window of one second."""
    peak_requests_per_100_ms: int
    longest_pause_seconds: float
    """The longest the plant itself stood still, on a busy machine for instance. Requests that came meanwhile are
    seen only afterwards, all at once: so much the peaks may say too much."""
    requests_turned_away: int
    requests_faulted: int
    requests_abandoned: int

    wrong_key_requests: int
    previous_key_requests: int
    """Those of the wrong-key requests that carried a key replaced by a rotation."""
    wrong_user_id_requests: int
    wrong_alias_requests: int
    """With an alias this session never had. An old one of its own is no offence: it may have moved
    without the client's doing."""
    wrong_service_requests: int
    incomplete_requests: int
    overlapping_requests: int
    overlapping_abandoned_requests: int
    """A second request while GMS still worked on one whose client had given up. It risks the
    customer as well, but only a client that waits longer can avoid it."""
    overlapping_cut_off_requests: int
    """A second request while GMS still worked on one whose client was hung up on, and not at once but a while
    later. It risks the customer as well, but how long the work takes no client can know."""
    repeated_at_once_requests: int
    """One that came again within 0.1 s of the loss of its answer, without a push to acknowledge: who does so
    does it before GMS is done, one day."""
    answers_lost: int
    """Died with a node that hung up or spoilt them after the work was done."""
    extra_answers: int
    """Answers that something followed which nobody had asked for."""
    forgiven_key_requests: int
    """With a key that only a lost answer had replaced: nobody could know the new one."""
    refused_for_now: int
    """Restorations refused with statusCode 2 for a while (`restoration_refused_for`)."""
    unknown_chat_requests: int
    unreadable_requests: int
    unauthorised_requests: int
    position_zero_requests: int
    refreshes_of_closed_chats: int
    refreshes_of_closed_chats_max: int
    """The largest number for one chat."""
    doubled_messages: int
    """Messages of customers with a text that their chat had had from the customer before: sent once, they came
    twice, where nobody says the same twice."""

    pushes_sent: int
    """Notifications handed to the push URL, resent ones included."""
    pushes_failed: int
    """Answered with anything but 200, or not at all."""
    pushes_swallowed: int
    """Lost within GMS, so that the push URL never heard of them: their node was gone, or it was asked for."""
    pushes_resent: int
    pushes_unacknowledged: int
    """Sessions that owe an acknowledgement now."""
    pushes_resends_exhausted: int
    pushes_ended_unacknowledged: int
    acknowledged: int
    acknowledgement_seconds: Spread
    """From the first unacknowledged push of a session to the client request that settled it."""
