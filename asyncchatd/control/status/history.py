"""What the daemon did in each of the last seconds, kept whether anybody looks or not.

Whoever opens the status page in the middle of an incident sees how it began, and whoever loads it anew sees the same.
The seconds are those since the start, by the monotonic clock: who sets the host's clock moves no bar. With each goes
the limit that was in force. Counted is what was sent: answers are written down in groups, and a group after a stall
would stand above a limit that nothing passed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.samples import Sample

from asyncchatd.control.shapes import SENT, Moment
from asyncchatd.control.shown import show_time
from asyncchatd.log import metrics
from asyncchatd.model import Clock, Ms

PERIOD_SECONDS = 1.0
KEPT = 900
"""Moments that are kept: 15 minutes, in which 180,000 sessions are restored at 200 a second. They take 0.5 MB."""

FRESH_SECONDS = 3 * PERIOD_SECONDS
"""What is older than this is not what happens now."""


class _Second(NamedTuple):
    """A moment, with rates in the order of their names."""

    time: Ms
    until: float
    seconds: float
    limit: float
    rates: tuple[float, ...]


def counted() -> dict[str, float]:
    """All that is counted for it, since the process began."""
    return {
        **_requests_sent(),
        "pushes": _pushes_taken(),
        "told": _events_told(),
    }


def _requests_sent() -> dict[str, float]:
    """How many requests were sent to GMS so far, by reason; those of chat clients under `call`."""
    return {sample.labels["reason"]: sample.value for sample in _samples(metrics.REQUESTS_SENT, "_total")}


def _events_told() -> float:
    """How many events consumers were told so far, whatever they were."""
    return sum(sample.value for sample in _samples(metrics.EVENTS_TOLD, "_total"))


def _pushes_taken() -> float:
    """How many pushes were kept so far, whatever they were."""
    return sum(sample.value for sample in _samples(metrics.PUSH_SECONDS, "_count"))


def _samples(metric: MetricWrapperBase, ending: str) -> Iterator[Sample]:
    """The samples of a metric whose names end so."""
    return (
        sample for family in metric.collect() for sample in family.samples if sample.name.endswith(ending)
    )


class History:
    """The moments of the last quarter of an hour. `run` is its root task."""

    def __init__(
        self, clock: Clock, limit: Callable[[], float], count: Callable[[], Mapping[str, float]] = counted
    ) -> None:
        """`limit` says how many requests a second may be sent now, `count` what was done so far, by name."""
        self._clock = clock
        self._limit = limit
        self._count = count
        self._began = self._looked = clock.monotonic()
        self._counted = dict(count())
        self._names = tuple(self._counted)
        self._limit_before = limit()
        self._reaches: dict[str, float] = {}
        """What was sent at the end of the last moment and fills the beginning of the next one."""
        self._kept: deque[_Second] = deque(maxlen=KEPT)
        self._taken = 0

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return self._clock.monotonic() - self._began

    @property
    def rates(self) -> dict[str, float | None]:
        """What happens now, per second; nothing where that is not known."""
        newest = self._kept[-1] if self._kept else None
        if newest is None or self.uptime - newest.until > FRESH_SECONDS:
            return dict.fromkeys(self._names)
        return dict(zip(self._names, newest.rates, strict=True))

    def after(self, seen: int) -> tuple[list[Moment], int]:
        """The moments behind the first `seen` of all, those of them that are kept; and how many there are now."""
        new = min(self._taken - seen, len(self._kept))
        return [self._shown(each) for each in islice(self._kept, len(self._kept) - new, None)], self._taken

    async def run(self) -> None:
        """Take a moment each second, until cancelled."""
        while True:
            # On whole seconds: what a turn is late is not added up.
            rest = PERIOD_SECONDS - self.uptime % PERIOD_SECONDS
            await self._clock.sleep(rest if rest > PERIOD_SECONDS / 2 else rest + PERIOD_SECONDS)
            self.take()

    def take(self) -> None:
        """Keep what was done since the last time."""
        now, count, limit = self._clock.monotonic(), self._count(), self._limit()
        seconds = now - self._looked
        if seconds <= 0:
            return
        done = {name: count[name] - self._counted[name] for name in self._names}
        # A limit that was changed in between was another one for a part of it.
        highest = max(limit, self._limit_before)
        self._spread(done, highest * seconds)
        rates = tuple(round(done[name] / seconds, 2) for name in self._names)
        self._kept.append(_Second(self._clock.now(), now - self._began, seconds, highest, rates))
        self._taken += 1
        self._looked, self._counted, self._limit_before = now, dict(count), limit

    def _spread(self, done: dict[str, float], most: float) -> None:
        """Leave to the next moment what of the last request reaches into it. Requests leave at even distances: a limit
        of one in ten seconds is not passed tenfold in the second of the request. More is shown as it was."""
        for name, part in self._reaches.items():
            done[name] += part
        self._reaches = {}
        beyond = sum(done[name] for name in SENT) - most
        if 0 < beyond < 1:
            for name in sorted(SENT, key=lambda name: -done[name]):
                part = min(beyond, done[name])
                if part > 0:
                    self._reaches[name] = part
                    done[name] -= part
                    beyond -= part

    def _shown(self, second: _Second) -> Moment:
        return Moment(
            time=show_time(second.time),
            uptime_seconds=round(second.until, 3),
            seconds=round(second.seconds, 3),
            max_rate=second.limit,
            rates=dict(zip(self._names, second.rates, strict=True)),
        )
