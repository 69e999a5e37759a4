"""What held a restoration up, and which one setting to change: a judgement of measurements, without I/O.

The plant tells what GMS saw in each second, the daemon how many requests it had in flight and how long
their answers took. Whatever of these stood at its bound while the sessions were restored is the bottleneck.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from itertools import pairwise
from typing import TypeVar

from asyncchatd.model import durations

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Second:
    """One second of what GMS saw."""

    at: float
    """When it began, in seconds since the kill; negative before it."""
    requests: int
    restored: int
    """Sessions that got a Chat Server again."""


@dataclass(frozen=True, slots=True)
class Sample:
    """How the daemon was at one moment."""

    at: float
    """Seconds since the kill."""
    in_flight: int
    limit: int
    """The adaptive in-flight limit."""
    answers: int
    """Since the sample before."""
    answer_seconds: float | None
    """How long these took on average; `None` when there was none."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the requests had to keep to, and what they could not help. Durations are seconds."""

    max_rate: float
    max_in_flight: int
    slow: float
    """The daemon counts GMS as slow when an answer takes longer, and cuts its in-flight limit."""
    interval: float
    """`watcher.interval`"""
    fast_interval: float
    fall: int
    window: float
    """The restoration window: a session not restored by then is lost."""
    capacity: float | None = None
    """Plain requests per second GMS can serve; `None` is without limit."""
    restore_cost: float = 1.0
    """Plain requests' worth of capacity that one restoration takes."""

    @property
    def restorations_per_second(self) -> float | None:
        """What GMS bears when it does nothing else."""
        return None if self.capacity is None else self.capacity / max(self.restore_cost, 1e-9)

    @property
    def slowest_notice(self) -> float:
        """After so long at the latest a server that answers nothing at all is down, jitter left out."""
        return self.interval + (self.fall - 1) * self.fast_interval


@dataclass(frozen=True, slots=True)
class Measured:
    """A restoration, as far as its verdict goes by it. Shares are from 0 to 1."""

    bounds: Bounds
    concerned: int
    """Sessions on the Chat Servers that were killed."""
    lost: int
    """Those of them whose restoration window passed."""
    noticed: float | None
    """Seconds from the kill until the loss of the last server was sure; `None`: never."""
    last: float | None
    """Seconds from the kill to the last session restored; `None`: none was."""
    rate: float = 0.0
    """Requests per second while sessions were being restored, of all reasons."""
    at_max_rate: float = 0.0
    """Share of these seconds in which the rate was as high as it may be."""
    gms_busy: float = 0.0
    """Share of GMS' capacity that was used; 0 when it has no limit."""
    at_max_in_flight: float = 0.0
    """Share of the samples with as many in flight as `max_in_flight` allows."""
    at_limit: float = 0.0
    """Share of the samples with as many in flight as the limit allowed that was in force."""
    limit_cut_to: int | None = None
    """The smallest in-flight limit after it was cut; `None`: it was not. It begins low and grows, which is
    no cut."""
    answer_seconds: float = 0.0
    """How long answers took on average."""
    shed: int = 0
    """Requests GMS answered 503, or served after the daemon had given them up."""

    @property
    def restoring(self) -> float:
        """Seconds from the notice to the last session restored."""
        return max(0.0, (self.last or 0.0) - (self.noticed or 0.0))


AT_MAX_RATE = 0.93
"""Of `max_rate`, less one request: the pacer stays two hundredths below the rate, and requests on the
border of two seconds are counted in either."""

AT_MAX_IN_FLIGHT = 0.9


def measure(
    bounds: Bounds,
    *,
    concerned: int,
    lost: int,
    noticed: float | None,
    last: float | None,
    seconds: Sequence[Second],
    samples: Sequence[Sample],
    shed: int = 0,
) -> Measured:
    """Look at the time in which sessions were being restored; `seconds` and `samples` may be longer."""
    begin, end = noticed or 0.0, last or 0.0
    inside = [each for each in seconds if begin <= each.at and each.at + 1 <= end]
    # A restoration of less than two seconds may have no whole one of its own: then the busiest it touched.
    inside = (
        inside
        or sorted(
            (each for each in seconds if begin < each.at + 1 and each.at < end),
            key=lambda each: each.requests,
        )[-1:]
    )
    requests = sum(each.requests for each in inside)
    restored = sum(each.restored for each in inside)
    work = requests + restored * (bounds.restore_cost - 1)
    full = AT_MAX_RATE * bounds.max_rate - 1
    # A sample tells of the time since the one before, so the first after the notice is half of it.
    during = [each for each in samples if begin < each.at <= end + 1]
    answers = sum(each.answers for each in during)
    waited = sum(each.answers * (each.answer_seconds or 0.0) for each in during)
    restoring = [each for each in during if each.at <= end]
    at_bound = AT_MAX_IN_FLIGHT * bounds.max_in_flight
    return Measured(
        bounds=bounds,
        concerned=concerned,
        lost=lost,
        noticed=noticed,
        last=last,
        rate=requests / len(inside) if inside else 0.0,
        at_max_rate=_share(inside, lambda each: each.requests >= full),
        gms_busy=work / (bounds.capacity * len(inside)) if bounds.capacity and inside else 0.0,
        at_max_in_flight=_share(restoring, lambda each: each.in_flight >= at_bound),
        at_limit=_share(restoring, lambda each: each.in_flight >= AT_MAX_IN_FLIGHT * each.limit),
        limit_cut_to=_lowest_after_a_fall([each.limit for each in during]),
        answer_seconds=waited / answers if answers else 0.0,
        shed=shed,
    )


def _lowest_after_a_fall(limits: Sequence[int]) -> int | None:
    falls = [now for before, now in pairwise(limits) if now < before]
    return min(falls, default=None)


class Bottleneck(StrEnum):
    """What a restoration waited for most."""

    NOTHING = "nothing"
    """No session was concerned."""
    DETECTION = "detection"
    """The watcher, to be sure."""
    RATE = "rate"
    """`restoration.max_rate`."""
    BALANCED = "balanced"
    """`restoration.max_rate` and GMS alike: it is as high as GMS bears."""
    GMS = "gms"
    """GMS' answers."""
    IN_FLIGHT = "in_flight"
    """`restoration.max_in_flight`."""
    LATENCY = "latency"
    """The way to GMS: its answers take long by themselves."""
    WINDOW = "window"
    """GMS' answers, and the restoration window passed before they came."""
    FAILURES = "failures"
    """Answers that failed, or that GMS could not give, while it had not too much to do."""
    MACHINE = "machine"
    """None of these: whatever else daemon and plant had to do."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do about it."""

    bottleneck: Bottleneck
    why: str
    """What was measured, in words."""
    advice: str
    """The one thing to change, and what to expect of it."""
    setting: str | None = None
    """The key to change; `None` when no setting of asyncchatd helps."""
    value: str | None = None
    """As the configuration file writes it."""


DETECTION_SHARE = 0.5
RATE_SHARE = 0.5
BUSY = 0.85
HALF_BUSY = 0.5
"""With less to do its answers do not wait for one another."""
TIMES_SLOW = 15
"""`gms.timeout` in terms of what answers take: a tenth of it is slow, and some take longer than most."""
SPARE = 0.9
"""Of GMS' capacity, the most that an advice counts on."""
WORTH = 1.15
"""By less than this `max_rate` need not be changed."""


def judge(measured: Measured) -> Verdict:
    """The bottleneck, from what was measured."""
    if not measured.concerned:
        return Verdict(
            Bottleneck.NOTHING, "No session was on the lost servers.", "Rehearse with more sessions."
        )
    if measured.noticed is None or measured.noticed >= DETECTION_SHARE * (measured.last or 0.0):
        return _detection(measured)
    if measured.at_max_rate >= RATE_SHARE:
        return _rate(measured)
    overrun = measured.gms_busy >= BUSY or (measured.limit_cut_to is not None and measured.shed > 0)
    if overrun:
        return _gms(measured)
    if measured.at_max_in_flight >= RATE_SHARE:
        return _in_flight(measured)
    if measured.limit_cut_to is not None and measured.answer_seconds >= 0.8 * measured.bounds.slow:
        return _gms(measured) if measured.gms_busy >= HALF_BUSY else _far_away(measured)
    if measured.at_limit >= RATE_SHARE:
        return _failures(measured)
    return Verdict(
        Bottleneck.MACHINE,
        f"Neither the rate ({measured.rate:.0f} of {_of(measured.bounds.max_rate)} requests/s), nor the in-flight"
        f" limit, nor GMS ({_percent(measured.gms_busy)} busy) held the restoration up.",
        "The machine did, on which daemon and stand-in share the processors: no setting would make it faster"
        " here.",
    )


def _detection(measured: Measured) -> Verdict:
    bounds, noticed = measured.bounds, measured.noticed
    if noticed is None:
        why = f"The loss was not noticed within {bounds.window:.0f} s."
    else:
        why = (
            f"Most of the time went by before the watcher was sure: {durations.measured(noticed)} of the"
            f" {durations.measured(max(measured.last or 0.0, noticed))} that the last customer waited."
        )
    waiting = (bounds.fall - 1) * bounds.fast_interval
    if waiting > bounds.interval and bounds.fall > 2:
        fewer = bounds.fall - 1
        key, value, latest = "watcher.fall", str(fewer), bounds.slowest_notice - bounds.fast_interval
    else:
        key, value = "watcher.interval", durations.text(timedelta(seconds=bounds.interval / 2))
        derived = math.isclose(bounds.fast_interval, bounds.interval / 4)
        fast = bounds.fast_interval / 2 if derived else min(bounds.fast_interval, bounds.interval / 2)
        latest = bounds.interval / 2 + (bounds.fall - 1) * fast
    advice = (
        f"Shorten it: with {_assignment(key, value)} a loss is noticed within about {durations.measured(latest)}"
        f" (now {durations.measured(bounds.slowest_notice)})."
    )
    return Verdict(Bottleneck.DETECTION, why, advice, key, value)


def _rate(measured: Measured) -> Verdict:
    """Twice the rate, or what saves all sessions, but no more than GMS bears."""
    bounds = measured.bounds
    why = (
        f"The rate was at max_rate ({_of(bounds.max_rate)}/s) for {_percent(measured.at_max_rate)} of the restoration"
        + (f", and GMS was busy to {_percent(measured.gms_busy)}." if bounds.capacity else ".")
    )
    wanted = 2 * bounds.max_rate
    if measured.lost < measured.concerned:
        wanted = max(
            wanted, 1.1 * bounds.max_rate * measured.concerned / (measured.concerned - measured.lost)
        )
    bearable = _bearable(measured)
    rate = min(wanted, bearable)
    if rate < WORTH * bounds.max_rate:
        if measured.lost:
            return _window(measured, why)
        return Verdict(
            Bottleneck.BALANCED, why, "max_rate is right: it is about as much as GMS bears. Leave it.",
        )  # fmt: skip
    rate = math.floor(rate) if rate >= 2 else rate
    then = measured.restoring * bounds.max_rate / rate
    if measured.lost:
        then *= measured.concerned / max(1, measured.concerned - measured.lost)
    total = (measured.noticed or 0.0) + then
    saves = (
        ""
        if not measured.lost
        else f", within the window of {bounds.window:.0f} s"
        if total < bounds.window
        else f", which is still beyond the window of {bounds.window:.0f} s"
    )
    caution = "" if bounds.capacity else " Rehearse it with --gms-capacity to see whether GMS bears that."
    advice = (
        f"With restoration.max_rate = {_of(rate)} the restoration would take about {then:.0f} s instead of"
        f" {'more than ' if measured.lost else ''}{measured.restoring:.0f} s{saves}.{caution}"
    )
    return Verdict(Bottleneck.RATE, why, advice, "restoration.max_rate", _of(rate))


def _bearable(measured: Measured) -> float:
    """The rate at which GMS is busy but not overrun, when all that is added are restorations."""
    bounds = measured.bounds
    if bounds.capacity is None:
        return math.inf
    spare = max(0.0, SPARE - measured.gms_busy) * bounds.capacity
    return measured.rate + spare / max(bounds.restore_cost, 1e-9)


def _gms(measured: Measured) -> Verdict:
    bounds = measured.bounds
    why = f"GMS was slow, its answers took {durations.measured(measured.answer_seconds)} on average"
    if bounds.capacity:
        why += f", and it was busy to {_percent(measured.gms_busy)}"
    if measured.limit_cut_to is not None:
        why += f"; the in-flight limit was cut to {measured.limit_cut_to}"
    why += f"; the rate was {measured.rate:.0f} of {_of(bounds.max_rate)} requests/s."
    if measured.lost:
        return _window(measured, why)
    best = bounds.restorations_per_second
    takes = (
        f", where {measured.concerned:,} restorations take {measured.concerned / best:.0f} s at best"
        if best
        else ""
    )
    advice = f"Raising max_rate will not help: GMS is the limit{takes}. Only more capacity there is faster."
    return Verdict(Bottleneck.GMS, why, advice)


def _far_away(measured: Measured) -> Verdict:
    """GMS has little to do, and its answers take long all the same: they do not wait for one another."""
    bounds = measured.bounds
    seconds = TIMES_SLOW * max(measured.answer_seconds, bounds.slow)
    value = durations.text(timedelta(seconds=math.ceil(seconds)))
    busy = (
        f"was busy to no more than {_percent(measured.gms_busy)}" if bounds.capacity else "has no limit here"
    )
    return Verdict(
        Bottleneck.LATENCY,
        f"Answers took {durations.measured(measured.answer_seconds)} on average, while GMS {busy}. The daemon took it"
        f" for slow, which it does when answers take over {bounds.slow:g} s (a tenth of gms.timeout), and cut"
        f" its in-flight limit to {measured.limit_cut_to} until it was sure; the rate was {measured.rate:.0f} of"
        f" {_of(bounds.max_rate)} requests/s.",
        f"With {_assignment('gms.timeout', value)} such answers are not slow, and the limit is not cut.",
        "gms.timeout",
        value,
    )


def _window(measured: Measured, why: str) -> Verdict:
    bounds = measured.bounds
    share = (measured.concerned - measured.lost) / measured.concerned
    needed = "" if not share else (
        f": at what GMS bears all of it takes about {(measured.noticed or 0) + measured.restoring / share:.0f} s"
    )  # fmt: skip
    return Verdict(
        Bottleneck.WINDOW,
        f"{measured.lost:,} sessions were lost when the restoration window of {bounds.window:.0f} s ended. {why}",
        f"The window is too short{needed}. No setting of asyncchatd helps: a longer window in Chat Server, fewer"
        " sessions on each one, or more capacity of GMS does.",
    )


def _in_flight(measured: Measured) -> Verdict:
    bounds = measured.bounds
    per_second = bounds.max_in_flight / max(measured.answer_seconds, 1e-3)
    twice = 2 * bounds.max_in_flight
    return Verdict(
        Bottleneck.IN_FLIGHT,
        f"For {_percent(measured.at_max_in_flight)} of the restoration {bounds.max_in_flight} requests were in flight,"
        f" as many as max_in_flight allows; with answers that take {measured.answer_seconds:.2f} s that makes"
        f" {per_second:.0f} requests/s, and max_rate was not reached.",
        f"With restoration.max_in_flight = {twice} the restoration may be up to"
        f" {min(2.0, bounds.max_rate / max(measured.rate, 1.0)):.1f} times as fast.",
        "restoration.max_in_flight",
        str(twice),
    )


def _failures(measured: Measured) -> Verdict:
    """The limit that was in force held it up, and neither its ceiling nor slow answers did."""
    cut = "had to grow first" if measured.limit_cut_to is None else f"was cut to {measured.limit_cut_to}"
    return Verdict(
        Bottleneck.FAILURES,
        f"For {_percent(measured.at_limit)} of the restoration as many requests were in flight as the in-flight limit"
        f" allowed. It {cut}, though GMS had not too much to do: answers took {measured.answer_seconds:.2f} s, the rate"
        f" was {measured.rate:.0f} of {_of(measured.bounds.max_rate)} requests/s.",
        "Answers that fail cut it: see gms_node_resting and ping_failed in the log. No setting of asyncchatd is in"
        " the way.",
    )


def _share(items: Sequence[T], holds: Callable[[T], bool]) -> float:
    return sum(map(holds, items)) / len(items) if items else 0.0


def _assignment(key: str, value: str) -> str:
    return f"{key} = {value}" if value.isdecimal() else f'{key} = "{value}"'


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def _of(rate: float) -> str:
    return f"{rate:g}" if rate < 1e6 else f"{rate:.0f}"
