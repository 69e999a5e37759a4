"""Transactions about the transcript: what settled answers showed of it is written, and read for consumers.

Which events are new is judged in `stores/transcripts.py`. Their ids come from the one row of `event_counter`, as late
in the transaction as can be: whoever has written events has that row until the commit, so whoever reads up to the
highest id that can be seen misses none below it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import orjson

from asyncchatd.model import (
    Consumer,
    EndCause,
    EventKind,
    Ms,
    Reason,
    Settled,
    Settlement,
    StoredEvent,
)
from asyncchatd.stores.answers import Kept
from asyncchatd.stores.postgres.wire import Tx
from asyncchatd.stores.sql.rows import EVENT, LIVE, STORED, TOLD
from asyncchatd.stores.transcripts import (
    ALL_EVENTS,
    NOTHING_KNOWN,
    OF_A_SAMPLE,
    OF_ALL,
    EventRow,
    Known,
    about_session,
    behind_the_known,
    counts_anew,
    places,
    shows,
    shows_all,
    stored,
    told_of,
    unknown,
    within,
)


async def happened(tx: Tx, kind: EventKind, sessions: Iterable[int], at: Ms) -> None:
    """Write that this happened to these sessions, where somebody is told of that kind."""
    if kind in tx.kinds:
        await _insert(tx, [told_of(kind, session, at) for session in sessions])


async def write(tx: Tx, settlements: Sequence[Settlement], settled: Sequence[Settled]) -> int:
    """Write what these settlements have to tell. How many events. The sessions' rows are locked."""
    kinds = tx.kinds
    showing = [each for each in settlements if shows(each)] if EventKind.CHAT in kinds else []
    known = await _known(tx, showing) if showing else NOTHING_KNOWN
    rows: list[EventRow] = []
    for each, one in zip(settlements, settled, strict=True):
        numbering = known.numberings.get(each.claim.row, 0)
        if each.cut and EventKind.GAP in kinds and each.claim.row in known.numberings:
            # What is missing came before what is there.
            rows.append(told_of(EventKind.GAP, each.claim.row, each.settled_at, numbering))
        if EventKind.CHAT in kinds:
            rows += [row async for row in _of_chat(tx, each, known)]
        rows += about_session(each, one, numbering, kinds)
    await _insert(tx, rows)
    return len(rows)


async def _known(tx: Tx, showing: Sequence[Settlement]) -> Known:
    counts = await tx.rows(
        "SELECT session.id, numbering, numbered_at FROM unnest($1::bigint[], $2::text[]) AS row (id, chat)"
        " JOIN session ON session.id=row.id AND session.chat_id=row.chat WHERE session.end_cause IS DISTINCT FROM $3",
        [each.claim.row for each in showing],
        [each.claim.chat_id for each in showing],
        EndCause.REMOVED,
    )
    numberings = {row: numbering for row, numbering, _ in counts}
    asked = [
        (each.claim.row, numberings[each.claim.row], event.index)
        for each in showing
        if each.claim.row in numberings
        for event in each.events
    ]
    written = await tx.rows(
        "SELECT event.session, event.idx, event.likeness"
        " FROM unnest($1::bigint[], $2::integer[], $3::bigint[]) AS row (session, numbering, idx)"
        " JOIN event ON event.session=row.session AND event.numbering=row.numbering AND event.idx=row.idx",
        *as_columns(asked, 3),
    )
    # One that was written under a key of before is the same as under the one in force.
    alike: dict[bytes, bytes] = {}
    for each in showing:
        for event in each.events:
            first, *before = tx.sealing.marks(event.likeness)
            alike.update(dict.fromkeys(before, first))
    marks: dict[tuple[int, int], bytes] = {(session, index): likeness for session, index, likeness in written}
    marks = {place: alike.get(likeness, likeness) for place, likeness in marks.items()}
    return Known(numberings, {row: at for row, _, at in counts}, marks)


async def _of_chat(tx: Tx, each: Settlement, known: Known) -> AsyncIterator[EventRow]:
    """The chat events of one reply that are new. Where the reply counts anew, none: the session is asked for all."""
    session = each.claim.row
    numbering = known.numberings.get(session)
    if numbering is None:
        return  # it is gone
    marked = [(event, tx.sealing.mark(event.likeness)) for event in each.events]
    if counts_anew(each, marked, known):
        await _count_anew(tx, session, each.settled_at)
        return
    new = unknown(each, marked, known)
    if shows_all(each, known):
        recognised = [
            await _takes_over(tx, session, numbering, event.index, tx.sealing.marks(event.likeness))
            for event, _ in new
        ]
        if any(recognised):
            new = behind_the_known(new, recognised)
        elif new and EventKind.GAP in tx.kinds:
            yield told_of(EventKind.GAP, session, each.settled_at, numbering)
    for event, mark in new:
        index = event.index
        if known.mark_at(session, event) is not None:
            # Of an end, or once more within the minute: it cannot be asked for again.
            if await _is_known(tx, session, tx.sealing.marks(event.likeness)):
                continue
            index = None
        body = tx.sealing.seal_event(event.body, each.claim.chat_id)
        yield EventRow(session, numbering, index, EventKind.CHAT, each.settled_at, mark, body)


async def _is_known(tx: Tx, session: int, marks: Sequence[bytes]) -> bool:
    return bool(
        await tx.value(
            "SELECT EXISTS (SELECT 1 FROM event WHERE session=$1 AND likeness=ANY($2::bytea[]))",
            *(session, marks),
        )
    )


async def _count_anew(tx: Tx, session: int, now: Ms) -> None:
    """The session's events have other indexes now: it is asked for all of them."""
    counted = await tx.run(
        f"UPDATE session SET numbering=numbering+1, numbered_at=$2, next_position={ALL_EVENTS}, version=version+1"
        f" WHERE id=$1 AND state={LIVE}",
        *(session, now),
    )
    if counted:
        await tx.run(
            "UPDATE work SET marks=marks+1, due_at=least(due_at, $2), reason=least(reason, $3) WHERE session=$1",
            *(session, float(now), Reason.REQUEST),
        )


async def _takes_over(
    tx: Tx, session: int, numbering: int, index: int | None, marks: Sequence[bytes]
) -> bool:
    """Whether an event is known from an earlier count. It has this index from now on."""
    taken = await tx.run(
        "UPDATE event SET numbering=$2, idx=$3 WHERE id="
        "(SELECT id FROM event WHERE session=$1 AND numbering<$2 AND likeness=ANY($4::bytea[]) ORDER BY id LIMIT 1)",
        *(session, numbering, index, marks),
    )
    return taken > 0


async def _insert(tx: Tx, rows: Sequence[EventRow], consumer: str | None = None) -> None:
    if rows:
        await tx.run(_INSERT, consumer, len(rows), *as_columns(rows, len(EventRow._fields)))


_TYPES = ("bigint", "integer", "bigint", "text", "bigint", "bytea", "bytea")
"""Of the columns of an `EventRow`."""

_INSERT = f"""WITH counter AS (UPDATE event_counter SET last=last+$2::bigint RETURNING last-$2::bigint AS before)
    INSERT INTO event (id, {", ".join(EventRow._fields)}, consumer)
    SELECT before+place, {", ".join(f"row.{name}" for name in EventRow._fields)}, $1 FROM counter,
    unnest({", ".join(f"${place}::{name}[]" for place, name in enumerate(_TYPES, 3))})
        WITH ORDINALITY AS row ({", ".join(EventRow._fields)}, place)
    ORDER BY place ON CONFLICT (session, numbering, idx) DO NOTHING"""


def as_columns(rows: Sequence[tuple[object, ...]], count: int) -> list[list[object]]:
    """Rows as the arrays of their columns."""
    return [[row[place] for row in rows] for place in range(count)]


# -- reading ---------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """What one consumer is told of all events: the first parameters of a statement with `WANTED`."""

    name: str
    kinds: Sequence[str]
    services: Sequence[str]
    """Empty: of all."""

    @classmethod
    def by(cls, consumer: Consumer) -> Wanted:
        """What this consumer wants, as the configuration has it."""
        return cls(consumer.name, sorted(consumer.kinds), sorted(consumer.services))


WANTED = f"""(session.id IS NOT NULL OR event.session={OF_ALL})
    AND kind=ANY($2::text[]) AND (event.consumer IS NULL OR event.consumer=$1)
    AND (session.service IS NULL OR cardinality($3::text[])=0 OR session.service=ANY($3::text[]))"""
"""An event of `TOLD` that is told, by a `Wanted` as the first three parameters. A chat of which only a push told
has no service yet: it may be anybody's, and what is passed over is never told."""


async def after(
    tx: Tx, last: int, limit: int, most_bytes: int, wanted: Wanted
) -> tuple[list[StoredEvent], int]:
    """Events behind an id, in the order of all chats, and the id up to which was looked. One in any case, else not more
    than so many bytes."""
    until = await newest(tx)
    rows = await tx.rows(_AFTER, *wanted, last, until, limit, most_bytes)
    told = within((stored(tx.sealing, row) for row in rows), most_bytes)
    cut = len(told) == limit or len(rows) > len(told)
    return told, told[-1].id if cut else max(last, until)


SEALED_BYTES = 64
"""A sealed body is not longer by more."""

_AFTER = f"""WITH next AS (SELECT {EVENT} FROM {TOLD}
        WHERE event.id>$4 AND event.id<=$5 AND {WANTED} ORDER BY event.id LIMIT $6),
    sized AS (SELECT *, sum(coalesce(octet_length(body), 0)) OVER earlier AS size, count(*) OVER earlier AS number
        FROM next WINDOW earlier AS (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING))
    SELECT id, kind, chat_id, service, device_id, at, body, session, idx FROM sized
    WHERE coalesce(size, 0)<=$7 + {SEALED_BYTES}*number ORDER BY id"""
"""Those that fit and the first that does not, if not several: the largest number of events that can be asked for may be
hundreds of megabytes."""


async def ids_after(tx: Tx, last: int, limit: int, wanted: Wanted) -> tuple[list[tuple[int, int]], int]:
    """The ids of events behind an id, each with its session, and the id up to which was looked."""
    until = await newest(tx)
    rows = await tx.rows(
        f"SELECT event.id, event.session FROM {TOLD} WHERE event.id>$4 AND event.id<=$5 AND {WANTED}"
        " ORDER BY event.id LIMIT $6",
        *(*wanted, last, until, limit),
    )
    found = [(row[0], row[1]) for row in rows]
    return found, found[-1][0] if len(found) == limit else max(last, until)


EVER = 1 << 62
"""Above every id, and every size."""


class Part(NamedTuple):
    """Events of one session between two ids, both included."""

    session: int
    first: int
    until: int
    bytes: int = EVER
    """About how much is to be read; one event in any case."""


async def of_sessions(
    tx: Tx, parts: Sequence[Part], limit: int, wanted: Wanted, *, newest_tokens: bool = False
) -> list[list[StoredEvent]]:
    """Of each of these parts so many events, in its place. `newest_tokens`: those of tokens that were replaced since
    are passed over."""
    found: list[list[StoredEvent]] = [[] for _ in parts]
    if parts:
        since = _TOKENS_SINCE if newest_tokens else "0"
        rows = await tx.rows(
            _OF_SESSIONS.format(since=since), *wanted, *as_columns(parts, len(Part._fields)), limit
        )
        for place, *row in rows:
            found[place - 1].append(stored(tx.sealing, row))
    return found


_TOKENS_SINCE = f"""coalesce((SELECT max(tokens.id) FROM event AS tokens
    WHERE tokens.session=part.session AND tokens.kind='{EventKind.TOKENS}'), 0)"""
"""The event since which a session has its tokens."""

_OF_SESSIONS = f"""SELECT part.place, found.id, kind, chat_id, service, device_id, at, body, found.session, idx
    FROM unnest($4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
        WITH ORDINALITY AS part (session, first, until, bytes, place)
    CROSS JOIN LATERAL (SELECT {{since}} AS since) AS tokens
    CROSS JOIN LATERAL (SELECT *, sum(coalesce(octet_length(body), 0)) OVER earlier AS size,
            count(*) OVER earlier AS number FROM
        (SELECT {EVENT} FROM {TOLD}
            WHERE event.session=part.session AND event.id BETWEEN part.first AND part.until AND {WANTED}
            AND (kind<>'{EventKind.TOKENS}' OR event.id>=tokens.since) ORDER BY event.id LIMIT $8) AS next
        WINDOW earlier AS (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)) AS found
    WHERE coalesce(found.size, 0)<=part.bytes + {SEALED_BYTES}*found.number
    ORDER BY part.place, found.id"""


async def next_of(tx: Tx, parts: Sequence[Part], wanted: Wanted) -> dict[int, int]:
    """The id of the first event of each of these parts that is told, by its session."""
    if not parts:
        return {}
    rows = await tx.rows(_NEXT_OF, *wanted, *as_columns(parts, 3))
    return {row[0]: row[1] for row in rows}


_NEXT_OF = f"""SELECT part.session, found.id
    FROM unnest($4::bigint[], $5::bigint[], $6::bigint[]) AS part (session, first, until)
    CROSS JOIN LATERAL (SELECT event.id FROM {TOLD}
        WHERE event.session=part.session AND event.id BETWEEN part.first AND part.until AND {WANTED}
        ORDER BY event.id LIMIT 1) AS found"""


async def news(tx: Tx, last: int, limit: int) -> tuple[list[StoredEvent], int]:
    """Events behind an id, of all chats, and the id up to which was looked."""
    until = await newest(tx)
    rows = await tx.rows(
        f"{STORED} WHERE event.id>$1 AND event.id<=$2 AND event.consumer IS NULL ORDER BY event.id LIMIT $3",
        *(last, until, limit),
    )
    told = [stored(tx.sealing, row) for row in rows]
    return told, told[-1].id if len(told) == limit else max(last, until)


async def transcript(tx: Tx, chat_id: str, limit: int) -> list[StoredEvent]:
    """The last chat events of one session, the oldest of them first."""
    rows = await tx.rows(
        f"{STORED} WHERE session.chat_id=$1 AND kind=$2 ORDER BY event.id DESC LIMIT $3",
        *(chat_id, EventKind.CHAT, limit),
    )
    return [stored(tx.sealing, row) for row in reversed(rows)]


async def reached(tx: Tx) -> int:
    """The id up to which every consumer that is remembered has been told, or has it shared out."""
    return int(await tx.value(f"SELECT coalesce(min(cursor), {EVER}) FROM consumer"))


async def newest(tx: Tx) -> int:
    """The highest id that there ever was: no lower one becomes visible any more."""
    return int(await tx.value("SELECT last FROM event_counter"))


async def kept(tx: Tx) -> Kept:
    """About how many events there are, and how large all are together; few are counted."""
    highest = await newest(tx)
    oldest = int(await tx.value("SELECT coalesce(min(id), 0) FROM event"))
    last = int(await tx.value("SELECT coalesce(max(id), 0) FROM event"))
    looked = places(oldest, last + 1)
    rows = await tx.rows(_SAMPLED, *as_columns(looked, 2))
    count = size = 0.0
    for begins, ends, number, total, furthest in rows:
        # Where there are more than were looked at, the rest of the place is as full as this part of it.
        share = 1.0 if number < OF_A_SAMPLE else (ends - begins) / (furthest + 1 - begins)
        count, size = count + number * share, size + float(total) * share
    return Kept(round(count), round(size), oldest, highest)


_SAMPLED = f"""SELECT begins, ends, found.* FROM unnest($1::bigint[], $2::bigint[]) AS place (begins, ends)
    CROSS JOIN LATERAL (SELECT count(*), coalesce(sum(octet_length(body)), 0), max(id) FROM
        (SELECT id, body FROM event WHERE id>=begins AND id<ends ORDER BY id LIMIT {OF_A_SAMPLE}) AS one) AS found"""


# -- forgetting ------------------------------------------------------------------------------------


async def alone(tx: Tx) -> None:
    """Until the transaction ends, nobody else forgets events. Before any session's rows are locked."""
    await tx.run("SELECT 1 FROM store FOR NO KEY UPDATE")


async def forget(tx: Tx, session: int) -> None:
    """Erase what is kept of a session's transcript, and what consumers were still to be told of it."""
    await forget_of(tx, [session])


async def forget_of(tx: Tx, sessions: Collection[int]) -> None:
    """Erase the same of these sessions, whose rows are locked."""
    await tx.run("DELETE FROM delivery WHERE session=ANY($1::bigint[])", list(sessions))
    await delete_of(tx, sessions)


async def delete_of(tx: Tx, sessions: Collection[int], until: int = EVER) -> int:
    """Delete the events of these sessions up to an id. How many went."""
    return await tx.run(
        # Session by session: all of them at once would be looked for in the whole table.
        """DELETE FROM event WHERE id IN (SELECT one.id FROM unnest($1::bigint[]) AS gone (session)
        CROSS JOIN LATERAL (SELECT id FROM event WHERE event.session=gone.session AND id<=$2 OFFSET 0) AS one)""",
        *(list(sessions), until),
    )


async def gap_of_all(tx: Tx, at: Ms, consumer: str | None = None, **what: object) -> int:
    """Tell that events of any chat may be missing, one consumer or all. Its id."""
    return await gap(tx, OF_ALL, "", at, what, consumer)


async def gap(
    tx: Tx, session: int, chat_id: str, at: Ms, what: Mapping[str, object], consumer: str | None
) -> int:
    """Tell that events of a session may be missing, one consumer or all. Its id."""
    await gaps(tx, [(session, chat_id, what)], at, consumer)
    return await newest(tx)


async def gaps(
    tx: Tx, sessions: Sequence[tuple[int, str, Mapping[str, object]]], at: Ms, consumer: str | None
) -> None:
    """Tell the same of several sessions, each given with its chat id and what there is to say."""
    await _insert(
        tx,
        [
            told_of(EventKind.GAP, session, at)._replace(
                body=tx.sealing.seal_event(orjson.dumps(what), chat_id)
            )
            for session, chat_id, what in sessions
        ],
        consumer,
    )


async def epoch(tx: Tx, *, anew: bool) -> str:
    """The name of this history of ids; `anew`: it has another one from now on, and begins with a gap. That of the one
    before will do where nothing was written since."""
    if anew:
        gap = await tx.value("UPDATE store SET epoch=$1 RETURNING gap", secrets.token_hex(4))
        if gap != await newest(tx):
            await tx.run("UPDATE store SET gap=$1", await gap_of_all(tx, round(time.time() * 1000)))
    return str(await tx.value("SELECT epoch FROM store"))
