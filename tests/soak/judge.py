"""What must hold after a round, whatever went wrong in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asyncchatd.control import shapes
from asyncchatd.rehearsing.trial import most_requests, rules
from asyncchatd.standin import Report

NOTICE_SECONDS = 4.0
"""What even a perfect client needs to notice that a Chat Server is gone, and that GMS is back."""

UNSEEN_SECONDS = 1.5
"""Three looks at a health page, 0.5 s each: a plant that stands still for so long is gone for whoever looks."""

SLACK = 1.5
"""How much more than the shortest time possible is granted to ping everybody."""


@dataclass(frozen=True, slots=True)
class Hindered:
    """A time in which no client could have done anything: it was forced away, or nobody would answer."""

    start: float
    end: float
    why: str


@dataclass(frozen=True, slots=True)
class Loss:
    """A session that the plant lost."""

    chat_id: str
    cause: str
    since: float
    """From when on a request would have saved it: its Chat Server's end, or its own last request."""
    until: float


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen of a round when it was over."""

    report: Report
    rate: float
    sessions: int
    interval: float
    """Of keepalives, seconds."""
    losses: Sequence[Loss] = ()
    hindered: Sequence[Hindered] = ()
    closed_refreshes: int = 0
    """The most for one chat, without those whose answer died with the daemon."""
    calm: str | None = None
    """What was still to be done when the patience was over."""
    unanswered_pushes: int = 0
    """Sessions whose push was answered with 200 and that no request followed."""
    strangers: Sequence[str] = ()
    """Live sessions that the daemon does not know, or knows otherwise."""
    restorations: Sequence[shapes.Restoration] = ()
    taken_without_disk: int = 0
    """Pushes answered with 200 while nothing could be written."""
    taken_without_store: int = 0
    """The same while the store's file was another one."""
    storms: Sequence[shapes.Restoration] = ()
    """Restorations in a round in which nothing happened to any Chat Server."""
    untold: int = 0
    """Events of live chats that a consumer was not told, nor a gap in their place."""
    last_words: int = 0
    """Chats that ended in this round with something that a consumer was not told."""
    answers_lost: int = 0
    """Answers that never came to the daemon, or died with it: where one told an end, the last words went with it."""
    told_wrongly: Sequence[str] = ()
    """Events that were told out of order, in other bytes, without a signature."""
    complaints: Sequence[str] = ()
    """What the daemon's log should not have, and exits that were none of ours."""


def saveable(loss: Loss, observed: Observed) -> bool:
    """Whether a perfect client would have saved this session."""
    free = loss.until - loss.since - _covered(observed.hindered, loss.since, loss.until)
    wait = observed.interval if loss.cause == "silence" else NOTICE_SECONDS
    return loss.cause == "wrong_key" or free >= wait + SLACK * observed.sessions / observed.rate


def judge(observed: Observed) -> list[str]:
    """The promises that were broken, in words; none when all is well."""
    report = observed.report
    load = most_requests(report, observed.rate)
    saved = [loss for loss in observed.losses if saveable(loss, observed)]
    storms = observed.storms if report.longest_pause_seconds < UNSEEN_SECONDS else ()
    findings: dict[str, object] = {
        f"{len(saved)} sessions lost that a perfect client would have saved: {saved[:3]}": saved,
        f"{report.wrong_key_requests} requests with a wrong key": report.wrong_key_requests,
        f"{observed.closed_refreshes} refreshes of one closed chat": observed.closed_refreshes > 1,
        f"{observed.unanswered_pushes} acknowledged pushes that no request followed": observed.unanswered_pushes,
        f"requests in one second: {load}": not load.kept,
        f"no calm: {observed.calm}": observed.calm,
        f"{len(observed.strangers)} sessions known wrongly: {observed.strangers[:3]}": observed.strangers,
        f"{observed.taken_without_disk} pushes taken without a disk": observed.taken_without_disk,
        f"{observed.taken_without_store} pushes taken without a store": observed.taken_without_store,
        f"{observed.untold} events were not told": observed.untold,
        f"{observed.last_words} chats ended with something untold, and {observed.answers_lost} answers were lost": (
            observed.last_words > observed.answers_lost
        ),
        f"{len(storms)} restorations without a loss: {storms[:2]}": storms,
        **{f"{count} {name}": count for name, count in rules(report).items()},
        **{f"restoration does not add up: {each}": True for each in observed.restorations if _off(each)},
        **dict.fromkeys((*observed.told_wrongly[:10], *observed.complaints), True),
    }
    return [text for text, broken in findings.items() if broken]


def _off(restoration: shapes.Restoration) -> bool:
    """Whether its counts are untrue now that all is calm."""
    one = restoration
    settled = one.restored + one.ended + one.refused + one.moved
    return one.waiting != 0 or settled != one.sessions or one.finished_at is None


def _covered(hindered: Sequence[Hindered], since: float, until: float) -> float:
    """Seconds of that time which the intervals cover; where they overlap they count once."""
    covered, reached = 0.0, since
    for each in sorted(hindered, key=lambda each: each.start):
        start, end = max(each.start, reached), min(each.end, until)
        if end > start:
            covered += end - start
            reached = end
    return covered
