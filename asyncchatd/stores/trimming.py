"""The bounds of transcripts as every store keeps them: what goes, and what a gap says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import orjson

from asyncchatd.model import EventKind, Ms
from asyncchatd.stores.answers import Bounds, Why

NEW_LOOKED_AT = 200
"""New events in one portion. Each may be of another chat, of which all events are looked at; pushes wait meanwhile."""

LOOKED_AT = 2_000
"""Events, or ended chats, that are looked at in one portion."""

OF_A_MOMENT = (EventKind.GAP, EventKind.NOTIFIED)
"""Kinds of which nobody has any use once they are told."""

Dropped = Counter[tuple[str, Why]]
"""How many events each consumer is not told any more, and why."""

Untold = Sequence[tuple[int, int, int | None]]
"""By session: how many events, and up to which index."""


def count(dropped: Dropped, consumer: str, why: Why, untold: Untold) -> None:
    """Add what a consumer is not told any more."""
    if untold:
        dropped[consumer, why] += sum(number for _, number, _ in untold)


class Size(NamedTuple):
    """One event of a chat, by how much room it takes."""

    id: int
    bytes: int | None
    kind: str


def beyond(events: Sequence[Size], bounds: Bounds, told_until: int) -> list[int]:
    """The events of a session, given the newest first, that are too many, or too much. Gaps are not counted: each would
    cost an event, which were told as another gap. They go once they are told, and so does what says only that a push
    came: of what was said in a chat as much is kept whether pushes are told or not."""
    told = [each.id for each in events if each.id <= told_until and each.kind in OF_A_MOMENT]
    gone = frozenset(told)
    counted = [each for each in events if each.kind != EventKind.GAP and each.id not in gone]
    kept = size = 0
    for each in counted:
        size += each.bytes or 0
        if kept >= bounds.max_events or (kept and size > bounds.max_bytes):
            break
        kept += 1
    return [each.id for each in counted[kept:]] + told


def said(number: int, up_to_index: int | None, before: Iterable[bytes]) -> dict[str, object]:
    """What a gap says of so many events that are missing, and of those of the gaps before that go into it, the oldest
    first."""
    events, up_to = number, up_to_index
    for body in before:
        earlier = orjson.loads(body)
        events += earlier["events"]
        up_to = up_to_index if up_to_index is not None else earlier["up_to_index"]
    return {"events": events, "up_to_index": up_to}


class Ended(NamedTuple):
    """A chat that ended: when, the row of its session, its last event."""

    row: int
    at: Ms
    last: int | None


class Round(NamedTuple):
    """How far the chats that ended were looked at, in rounds: each goes past those of which a consumer has still to be
    told, and the next one begins with the first of them."""

    began: Ms
    at: Ms
    row: int
    first_kept: Ms | None

    @property
    def behind(self) -> tuple[Ms, int]:
        """Behind which end, and which row, the next ones are."""
        return max((self.began, 0), (self.at, self.row))

    def further(self, ended: Sequence[Ended], kept: Sequence[Ended]) -> Round:
        """The round after these chats were looked at, of which some were kept."""
        began, at, row, first_kept = self
        if first_kept is None and kept:
            first_kept = kept[0].at
        if ended:
            row, at, _ = ended[-1]
        if len(ended) == LOOKED_AT:
            return Round(began, at, row, first_kept)
        next_begins = at if first_kept is None else first_kept
        # Others may have ended in the same moment as that one.
        return Round(max(began, next_begins - 1), 0, 0, None)
