"""Asks as every store judges them: which Refreshes a consumer is told to send, and which not any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from asyncchatd.model import Asked, Consumer, Ms, StoredEvent, Tokens
from asyncchatd.stores.rules import LONGEST_TAKE_MS

OPEN, ACKNOWLEDGED, RAN_OUT, WITHDRAWN = range(4)
"""Outcomes; also in the words of the indices `ask_open` and `ask_untold`."""

ENOUGH = 0.5
"""The share of its time that a consumer has left, at least, when it is told."""


class Ask(NamedTuple):
    """A Refresh that a consumer is to send, as the table has it."""

    session: int
    event: int
    consumer: str
    at: Ms
    until: Ms
    marks: int
    given_at: Ms | None
    outcome: int


class Asking(NamedTuple):
    """Who may be asked now, and what else it takes to know of which sessions."""

    consumers: Sequence[Consumer]
    now: Ms
    is_held: Callable[[str], bool]
    """Whether a request of this chat may be on its way, whatever its lease says."""


class Handing(NamedTuple):
    """An ask that a consumer is told of."""

    event: int
    asked: Asked
    device_id: str | None


class Offer(NamedTuple):
    """What becomes of a session's asks of which a consumer is told now."""

    given: Sequence[Ask]
    """It is told of these,"""
    late: Sequence[Ask]
    """and never of these: the session is due instead."""
    left: Ms
    """Until the first one's time is over."""

    def handings(self, tokens: Tokens, next_position: int | None, device_id: str | None) -> Iterable[Handing]:
        """What it is told of those that are given."""
        for each in self.given:
            asked = Asked(self.left, tokens, next_position, again=each.given_at is not None)
            yield Handing(each.event, asked, device_id)


def who_is_asked(consumers: Iterable[Consumer], service: str | None) -> Consumer | None:
    """The first of these consumers that is told of chats of this service."""
    return next((each for each in consumers if not each.services or service in each.services), None)


def until(consumer: Consumer, now: Ms) -> Ms:
    """When the time of a consumer is over that is asked now."""
    return now + min(consumer.acknowledges_ms or 0, LONGEST_TAKE_MS)


def by_session(events: Iterable[StoredEvent]) -> Mapping[int, Set[int]]:
    """The ids of events by their session, in the order of the sessions."""
    found: dict[int, set[int]] = {}
    for event in sorted(events, key=lambda each: each.row):
        found.setdefault(event.row, set()).add(event.id)
    return found


def mine(opened: Sequence[Ask], consumer: str, events: Set[int]) -> list[Ask]:
    """Those of a session's open asks that these events told this consumer of."""
    return [each for each in opened if each.consumer == consumer and each.event in events]


def offer(mine: Sequence[Ask], opened: Sequence[Ask], now: Ms, *, free: bool, keyed: bool) -> Offer:
    """Which of a consumer's asks it is told of now, among all that are open for the session. `free`: nothing of ours is
    due or on its way for it. `keyed`: the consumer is told the tokens with the event."""
    left = min(each.until for each in opened) - now
    given = [each for each in mine if free and left >= ENOUGH * (each.until - each.at)]
    if keyed:
        given = _with_a_key(given, opened)
    # One of which it may have heard it has until the time for that is over.
    covered = given[-1].event if keyed and given else 0
    late = [each for each in mine if each not in given and each.given_at is None and each.event > covered]
    return Offer(given, late, left)


def _with_a_key(given: Sequence[Ask], opened: Sequence[Ask]) -> list[Ask]:
    """Of these, the one that a consumer is told of with a key. The reply to the first Refresh may bring another key,
    and a second one with the same would throw the customer out. So one key is out at a time: while that of another
    event is, none, and among several the last, whose Refresh acknowledges those before it."""
    out = [each for each in opened if each.given_at is not None]
    return [each for each in given if not out or each in out][-1:]
