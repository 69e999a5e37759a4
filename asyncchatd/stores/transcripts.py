"""Transcripts as every store keeps them: which events of an answer are new, and how one is read back.

An event that is known already is not written again: a repeated Refresh shows the same events under the same
indexes. Whether the indexes of a session stay the same over a restoration is unknown (protocol section 2). So an
index under which something else came is a new count, as is a `nextPosition` below the one that was asked with: the
session is asked for all events once more, and those that are known by their likeness keep their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import pairwise
from typing import Any, NamedTuple

from asyncchatd.log import Event, get_logger
from asyncchatd.model import Consumer, EventKind, Ms, RawEvent, Settled, Settlement, StoredEvent, Verdict
from asyncchatd.stores.sealing import SealError, Sealing

COUNTED_ANEW_MS = 60_000
"""So long after its events were counted anew a session's are not again: what differs then is known by its likeness."""

ALL_EVENTS = 1
"""The `transcriptPosition` that asks for the whole transcript (protocol section 2)."""

OF_ALL = 0
"""The session of a gap that is of all chats."""

log = get_logger()


def written(consumers: Iterable[Consumer], shown: Set[EventKind]) -> frozenset[EventKind]:
    """The kinds of events that are written: those that a consumer is told, or that are shown."""
    return frozenset(shown).union(*(each.kinds for each in consumers))


class EventRow(NamedTuple):
    """One event to be written."""

    session: int
    numbering: int
    idx: int | None
    kind: EventKind
    at: Ms
    likeness: bytes | None
    body: bytes | None


def told_of(kind: EventKind, session: int, at: Ms, numbering: int = 0) -> EventRow:
    """An event that says only that something happened to a session."""
    return EventRow(session, numbering, None, kind, at, None, None)


# -- what an answer shows ------------------------------------------------------------------------------


Marked = tuple[RawEvent, bytes]
"""An event, and the mark of its likeness (`Sealing.mark`)."""


class Known(NamedTuple):
    """What is written already of the sessions whose events came."""

    numberings: Mapping[int, int]
    """By session: which count its indexes belong to."""
    numbered_at: Mapping[int, Ms]
    marks: Mapping[tuple[int, int], bytes]
    """By session and index, in that count."""

    def mark_at(self, session: int, event: RawEvent) -> bytes | None:
        """The mark of what is written under an event's index."""
        return self.marks.get((session, event.index or 0))


NOTHING_KNOWN = Known({}, {}, {})


def shows(each: Settlement) -> bool:
    """Whether a settlement says anything of the session's events."""
    return bool(each.events) or each.cut or falls_back(each)


def falls_back(each: Settlement) -> bool:
    """Whether the `nextPosition` of a reply lies before the position that was asked with."""
    asked, told = each.claim.next_position, each.next_position
    return each.verdict is Verdict.ANSWERED and None not in (asked, told) and (told or 0) < (asked or 0)


def counts_anew(each: Settlement, marked: Sequence[Marked], known: Known) -> bool:
    """Whether the reply shows that the session's events have other indexes now: it is to be asked for all of them."""
    session = each.claim.row
    differs = any(known.mark_at(session, event) not in (None, mark) for event, mark in marked) or falls_back(
        each
    )
    recently = 0 <= each.settled_at - known.numbered_at[session] < COUNTED_ANEW_MS
    return differs and not recently and each.verdict is not Verdict.ENDED


def unknown(each: Settlement, marked: Sequence[Marked], known: Known) -> list[Marked]:
    """Those that are not written under their index."""
    return [(event, mark) for event, mark in marked if known.mark_at(each.claim.row, event) != mark]


def shows_all(each: Settlement, known: Known) -> bool:
    """Whether the reply is to the question for all events, of a session whose events were counted anew."""
    return bool(known.numberings[each.claim.row]) and each.claim.next_position == ALL_EVENTS


def behind_the_known(new: Sequence[Marked], recognised: Sequence[bool]) -> list[Marked]:
    """What is left of a new count when some of it were recognised as events of an earlier one. What stands before the
    first of them was told long ago, or came before the chat was registered."""
    first = recognised.index(True)
    return [pair for pair, taken in zip(new[first:], recognised[first:], strict=True) if not taken]


def about_session(
    each: Settlement, one: Settled, numbering: int, kinds: Set[EventKind]
) -> Iterator[EventRow]:
    """What happened to the session itself."""
    claim = each.claim
    happened = {
        EventKind.RESTORED: one.lease_held
        and claim.restoration is not None
        and each.verdict is Verdict.ANSWERED,
        EventKind.TOKENS: one.tokens_changed,
        EventKind.ENDED: one.lease_held and each.verdict is Verdict.ENDED,
    }
    for kind, did in happened.items():
        if did and kind in kinds:
            yield told_of(kind, claim.row, each.settled_at, numbering)


# -- reading back --------------------------------------------------------------------------------------


def stored(sealing: Sealing, row: Sequence[Any]) -> StoredEvent:
    """An event from its columns: id, kind, chat id, service, device id, time, body, session and index. One that does
    not open is told as a gap, and to the operator."""
    number, kind, chat_id, service, device_id, at, sealed, session, index = row
    body: bytes | None = None
    if sealed is not None:
        try:
            body = sealing.open_event(sealed, chat_id or "")
        except SealError:
            log.error(Event.EVENT_DAMAGED, chat_id=chat_id)
            kind = EventKind.GAP
    return StoredEvent(number, EventKind(kind), chat_id, service, device_id, at, body, session, index)


def within(told: Iterable[StoredEvent], most_bytes: int) -> list[StoredEvent]:
    """As many as fit, and one in any case."""
    kept: list[StoredEvent] = []
    size = 0
    for event in told:
        size += len(event.body or b"")
        if kept and size > most_bytes:
            break
        kept.append(event)
    return kept


# -- guessing how many there are -----------------------------------------------------------------------

SAMPLES, OF_A_SAMPLE = 16, 64
"""A guess of how much there is looks at so many events at so many places. To count a million takes a tenth of a second,
and to add their sizes up half of one."""


def places(first: int, last: int) -> list[tuple[int, int]]:
    """From where to where each sample may look, between two ids."""
    bounds = [first + (last - first) * sample // SAMPLES for sample in range(SAMPLES + 1)]
    return list(pairwise(bounds))
