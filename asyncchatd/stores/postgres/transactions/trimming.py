"""Transactions that keep transcripts within their bounds, in portions.

What goes is the oldest. Where a consumer has not been told of it yet, a `gap` is written for it: an event behind all
others, which says how many are missing and up to which index. One node at a time does it (the row of `store`), and no
consumer goes on meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from asyncchatd.model import EventKind, Ms
from asyncchatd.stores.answers import Bounds, Trimmed, Why
from asyncchatd.stores.postgres.transactions import deliveries, events
from asyncchatd.stores.postgres.transactions.deliveries import Remembered
from asyncchatd.stores.postgres.transactions.events import EVER, WANTED
from asyncchatd.stores.postgres.wire import Tx
from asyncchatd.stores.sealing import SealError
from asyncchatd.stores.sql.rows import ENDED, TO_BE_TOLD, TOLD
from asyncchatd.stores.transcripts import OF_ALL
from asyncchatd.stores.trimming import (
    LOOKED_AT,
    NEW_LOOKED_AT,
    Dropped,
    Ended,
    Round,
    Size,
    Untold,
    beyond,
    count,
    said,
)


async def trim(tx: Tx, bounds: Bounds, now: Ms) -> tuple[int, Trimmed]:
    """One portion. How many events went, and what came of it."""
    dropped: Dropped = Counter()
    looked = await tx.value("SELECT trimmed FROM store FOR NO KEY UPDATE")
    await deliveries.lock_all(tx)
    if not await deliveries.dismiss(tx, now) and not tx.shown:  # nobody is left whom anything is kept for
        gone = await tx.run(
            "DELETE FROM event WHERE id IN (SELECT id FROM event ORDER BY id LIMIT $1)", LOOKED_AT
        )
        return gone, Trimmed(more=gone == LOOKED_AT)
    gone, more = await _trim_sessions(tx, looked, bounds, dropped)
    ended, more_ended = await _forget_ended(tx, now - bounds.keep_ms)
    late = [await _give_up_of(tx, each, now, dropped) for each in await deliveries.remembered(tx)]
    total = await _trim_total(tx, bounds.max_total, dropped)
    await _forget_gaps_of_all(tx)
    return gone + ended + total, Trimmed(
        more=bool(more or more_ended or any(late) or total), dropped=dict(dropped)
    )


async def _trim_sessions(tx: Tx, looked: int, bounds: Bounds, dropped: Dropped) -> tuple[int, bool]:
    """Trim sessions that got events since they were looked at last. How many events went, and whether there is more."""
    found = await tx.rows(
        "SELECT id, session FROM event WHERE id>$1 ORDER BY id LIMIT $2", looked, NEW_LOOKED_AT
    )
    if not found:
        return 0, False
    await tx.run("UPDATE store SET trimmed=$1", found[-1][0])
    sessions = sorted({row[1] for row in found} - {OF_ALL})
    sizes: dict[int, list[Size]] = {session: [] for session in sessions}
    for session, *size in await tx.rows(
        """SELECT chat.session, one.* FROM unnest($1::bigint[]) AS chat (session) CROSS JOIN LATERAL
        (SELECT id, octet_length(body), kind FROM event WHERE event.session=chat.session ORDER BY id DESC) AS one""",
        sessions,
    ):
        sizes[session].append(Size(*size))
    reached, undelivered = await events.reached(tx), await _undelivered(tx, sessions)
    gone = [
        number
        for session in sessions
        for number in beyond(sizes[session], bounds, 0 if session in undelivered else reached)
    ]
    return await _drop(tx, gone, dropped), len(found) == NEW_LOOKED_AT


async def _undelivered(tx: Tx, sessions: Sequence[int]) -> frozenset[int]:
    """Those of these sessions of which something is still to be delivered."""
    rows = await tx.rows(
        "SELECT session FROM unnest($1::bigint[]) AS chat (session)"
        " WHERE (SELECT 1 FROM delivery WHERE delivery.session=chat.session LIMIT 1) IS NOT NULL",
        list(sessions),
    )
    return frozenset(row[0] for row in rows)


async def _forget_ended(tx: Tx, ended_before: Ms) -> tuple[int, bool]:
    """Forget the events of chats that ended long enough ago, and of which each consumer has been told. How many went,
    and whether there is more in this round."""
    looked = Round(
        *(await tx.row("SELECT ended_looked, ended_at, ended_row, ended_kept FROM store") or (0, 0, 0, None))
    )
    rows = await tx.rows(
        "SELECT id, ended_at, (SELECT max(event.id) FROM event WHERE event.session=session.id) FROM session"
        f" WHERE state={ENDED} AND (ended_at, id)>($1, $2) AND ended_at<$3 ORDER BY ended_at, id LIMIT $4",
        *(*looked.behind, ended_before, LOOKED_AT),
    )
    ended = [Ended(*row) for row in rows]
    with_events = [each for each in ended if each.last is not None]
    reached = await events.reached(tx)
    undelivered = await _undelivered(tx, [each.row for each in with_events])
    kept = [each for each in with_events if (each.last or 0) > reached or each.row in undelivered]
    going = [each.row for each in with_events if each not in kept]
    gone = 0
    if going:
        gone = await tx.run("DELETE FROM event WHERE session=ANY($1::bigint[]) AND id<=$2", going, reached)
    after = looked.further(ended, kept)
    if after != looked:
        await tx.run("UPDATE store SET ended_looked=$1, ended_at=$2, ended_row=$3, ended_kept=$4", *after)
    return gone, len(ended) == LOOKED_AT


# -- what a consumer does not take ------------------------------------------------------------------


async def _give_up_of(tx: Tx, consumer: Remembered, now: Ms, dropped: Dropped) -> bool:
    """Give up what is too old for a consumer, else what is more than its backlog. Whether there may be more."""
    if await _give_up_late(tx, consumer, now, dropped):
        return True  # it is looked at once more, by what is left
    return await _give_up_beyond(tx, consumer, now, dropped)


async def _give_up_late(tx: Tx, consumer: Remembered, now: Ms, dropped: Dropped) -> bool:
    """Give up what a consumer has not taken for as long as it is kept for it. Whether there may be more."""
    # Up to the first that is young: one that was written while the clock stood wrong gives nothing away but itself.
    last = await tx.value(
        "WITH next AS (SELECT id, at FROM event WHERE id>=$1 ORDER BY id LIMIT $2)"
        f" SELECT max(id) FROM next WHERE id < coalesce((SELECT min(id) FROM next WHERE at>=$3), {EVER})",
        *(await deliveries.oldest(tx, consumer), LOOKED_AT, now - consumer.keep_ms),
    )
    if last is None:
        return False
    await _give_up(tx, consumer, last, now, dropped, Why.KEEP)
    return True


async def _give_up_beyond(tx: Tx, consumer: Remembered, now: Ms, dropped: Dropped) -> bool:
    """Give up what is more than a consumer's `max_backlog`, the oldest of it. Whether there may be more."""
    if consumer.max_backlog is None:
        return False
    more = await deliveries.behind(tx, consumer, gaps=False) - consumer.max_backlog
    if more <= 0:
        return False
    oldest = await deliveries.oldest(tx, consumer)
    looked = await tx.value(
        "SELECT max(id) FROM (SELECT id FROM event WHERE id>=$1 ORDER BY id LIMIT $2) AS one",
        *(oldest, LOOKED_AT),
    )
    if looked is None:
        return False
    untold = await tx.value(
        f"SELECT id FROM (SELECT DISTINCT event.id FROM {_UNTOLD} AND event.id BETWEEN $5 AND $6"
        f" AND kind<>'{EventKind.GAP}') AS one ORDER BY id LIMIT 1 OFFSET $7",
        *(*consumer.wanted, consumer.cursor, oldest, looked, more - 1),
    )
    await _give_up(tx, consumer, looked if untold is None else untold, now, dropped, Why.MAX_BACKLOG)
    return True


async def _give_up(tx: Tx, consumer: Remembered, last: int, now: Ms, dropped: Dropped, why: Why) -> None:
    """Pass a consumer over everything up to this event, and tell it a gap of each chat instead."""
    since = await deliveries.oldest(tx, consumer)
    untold = await _untold(tx, consumer, "event.id BETWEEN $5 AND $6", since, last)
    gaps = await _untold_gaps(tx, consumer, "event.id BETWEEN $5 AND $6", since, last)
    await tx.run(
        "UPDATE consumer SET cursor=$2, given=greatest(given, $2) WHERE name=$1 AND cursor<$2",
        *(consumer.name, last),
    )
    await tx.run("DELETE FROM delivery WHERE consumer=$1 AND NOT own AND until<=$2", consumer.name, last)
    await tx.run(
        f"UPDATE delivery SET first=$2+1, {_ANOTHER_BATCH} WHERE consumer=$1 AND first<=$2",
        *(consumer.name, last),
    )
    if why is Why.KEEP:
        await _tell_gap_of_all(tx, consumer, gaps, now)
    else:
        await _put_behind(tx, consumer, gaps)
    await _tell_gaps(tx, consumer, untold, now)
    count(dropped, consumer.name, why, untold)


async def _trim_total(tx: Tx, max_total: int, dropped: Dropped) -> int:
    """Drop the oldest of all while all together are larger than `max_total`, in bytes. How many went."""
    if await tx.value("SELECT pg_total_relation_size('event')") <= max_total:
        return 0
    if (await events.kept(tx)).size <= max_total:
        return 0
    oldest = await tx.rows("SELECT id FROM event WHERE session<>$1 ORDER BY id LIMIT $2", OF_ALL, LOOKED_AT)
    return await _drop(tx, [row[0] for row in oldest], dropped)


async def _forget_gaps_of_all(tx: Tx) -> None:
    """Delete the gaps of all chats that each consumer has been told."""
    await tx.run(
        "DELETE FROM event WHERE session=$1 AND id<=$2 AND NOT EXISTS (SELECT 1 FROM delivery WHERE session=$1)",
        *(OF_ALL, await events.reached(tx)),
    )


_UNTOLD = (
    f"{TOLD} LEFT JOIN delivery ON delivery.consumer=$1 AND {TO_BE_TOLD}"
    f" WHERE {WANTED} AND (delivery.session IS NOT NULL OR event.id>$4)"
)
"""The events that a consumer has still to be told: by a `Wanted` and its cursor as the first four parameters."""

_ANOTHER_BATCH = (
    "until=CASE WHEN own THEN NULL ELSE until END,"
    " batch=CASE WHEN own THEN NULL ELSE left(replace(gen_random_uuid()::text, '-', ''), 24) END"
)
"""What lost an event is another batch: none has other events at its next try."""

_AMONG = "event.id=ANY($5::bigint[])"


async def _untold(tx: Tx, consumer: Remembered, which: str, *values: object) -> Untold:
    """What a consumer has still to be told of the events that a condition, with parameters from `$5` on, selects."""
    rows = await tx.rows(
        f"SELECT event.session, count(DISTINCT event.id), max(idx) FROM {_UNTOLD} AND {which}"
        f" AND kind<>'{EventKind.GAP}' GROUP BY event.session ORDER BY event.session",
        *(*consumer.wanted, consumer.cursor, *values),
    )
    return [(row[0], row[1], row[2]) for row in rows]


async def _drop(tx: Tx, numbers: Sequence[int], dropped: Dropped) -> int:
    """Delete these events, and tell of those that somebody should have been told. How many went."""
    if not numbers:
        return 0
    untold = [
        (each, await _untold(tx, each, _AMONG, numbers), await _untold_gaps(tx, each, _AMONG, numbers))
        for each in await deliveries.remembered(tx)
    ]
    at = await tx.value("SELECT at FROM event ORDER BY id DESC LIMIT 1")
    gone = await _delete(tx, numbers)
    for consumer, of_it, gaps in untold:
        await _tell_gaps(tx, consumer, of_it, at)
        count(dropped, consumer.name, Why.BOUNDS, of_it)
        await _tell_gap_of_all(tx, consumer, gaps, at)
    return gone


async def _delete(tx: Tx, chosen: Sequence[int]) -> int:
    if not chosen:
        return 0
    await tx.run(
        f"UPDATE delivery SET {_ANOTHER_BATCH} WHERE batch IS NOT NULL"
        " AND session IN (SELECT event.session FROM event WHERE id=ANY($1::bigint[]))"
        " AND EXISTS (SELECT 1 FROM event WHERE event.session=delivery.session"
        " AND event.id BETWEEN delivery.first AND delivery.until AND event.id=ANY($1::bigint[]))",
        chosen,
    )
    return await tx.run("DELETE FROM event WHERE id=ANY($1::bigint[])", chosen)


# -- gaps --------------------------------------------------------------------------------------------


async def _tell_gaps(tx: Tx, consumer: Remembered, untold: Untold, at: Ms) -> None:
    """One gap for each chat. One that the consumer was not told yet goes into it: else one that is away for days would
    have as many as there were looks."""
    if EventKind.GAP not in consumer.kinds or not untold:
        return
    sessions = [session for session, _, _ in untold]
    # Not of those that are being forgotten; nothing was said in a chat that is known by its device alone.
    chats: Mapping[int, str] = {
        row[0]: row[1]
        for row in await tx.rows(
            "SELECT id, chat_id FROM session WHERE id=ANY($1::bigint[]) AND chat_id IS NOT NULL"
            " ORDER BY id FOR KEY SHARE SKIP LOCKED",
            sessions,
        )
    }
    before: dict[int, list[bytes]] = {session: [] for session in chats}
    replaced: list[int] = []
    for number, session, sealed in await _own_gaps(tx, consumer, list(chats)):
        if sealed is not None:
            replaced.append(number)
            before[session].append(sealed)
    await _delete(tx, replaced)
    await events.gaps(
        tx,
        [
            (session, chats[session], said(number, index, _opened(tx, before[session], chats[session])))
            for session, number, index in untold
            if session in chats
        ],
        at,
        consumer.name,
    )


def _opened(tx: Tx, sealed: Iterable[bytes], chat_id: str) -> Iterator[bytes]:
    """The bodies of gaps; those that do not open are passed over."""
    for each in sealed:
        with suppress(SealError):
            yield tx.sealing.open_event(each, chat_id)


async def _tell_gap_of_all(tx: Tx, consumer: Remembered, gaps: Sequence[int], at: Ms) -> None:
    """Put one gap of all chats in the place of these, which the consumer was not told. A gap keeps its session, so
    those of a consumer that never comes back would keep all there ever were."""
    if not gaps:
        return
    await _delete_own(tx, consumer, gaps)
    await _delete(tx, [number for number, _, _ in await _own_gaps(tx, consumer, [OF_ALL])])
    await events.gap_of_all(tx, at, consumer.name)


async def _put_behind(tx: Tx, consumer: Remembered, gaps: Sequence[int]) -> None:
    """Move these gaps behind all events, for this consumer alone. They are as old as they were."""
    if not gaps:
        return
    await tx.run(
        """WITH gap AS (SELECT session, kind, min(at) AS at, body, row_number() OVER (ORDER BY max(id)) AS place
            FROM event WHERE id=ANY($2::bigint[]) GROUP BY session, kind, body),
        counter AS (UPDATE event_counter SET last=last+(SELECT count(*) FROM gap)
            RETURNING last-(SELECT count(*) FROM gap) AS before)
        INSERT INTO event (id, session, numbering, kind, at, body, consumer)
        SELECT before+place, session, 0, kind, at, body, $1 FROM gap, counter ORDER BY place""",
        *(consumer.name, gaps),
    )
    await _delete_own(tx, consumer, gaps)


async def _delete_own(tx: Tx, consumer: Remembered, gaps: Sequence[int]) -> None:
    """Delete those of these gaps that are for this consumer alone."""
    own = await tx.rows(
        "SELECT id FROM event WHERE consumer=$1 AND id=ANY($2::bigint[])", consumer.name, gaps
    )
    await _delete(tx, [row[0] for row in own])


async def _untold_gaps(tx: Tx, consumer: Remembered, which: str, *values: object) -> list[int]:
    """The gaps that a consumer has still to be told, of those that a condition, with parameters from `$5` on,
    selects."""
    rows = await tx.rows(
        f"SELECT DISTINCT event.id FROM {_UNTOLD} AND kind='{EventKind.GAP}' AND {which}",
        *(*consumer.wanted, consumer.cursor, *values),
    )
    return [row[0] for row in rows]


async def _own_gaps(
    tx: Tx, consumer: Remembered, sessions: Sequence[int]
) -> list[tuple[int, int, bytes | None]]:
    """The gaps of these chats, each with its session and its body, that are for this consumer alone and that it was not
    told yet; the oldest first."""
    rows = await tx.rows(
        f"SELECT event.id, event.session, event.body FROM event"
        f" LEFT JOIN delivery ON delivery.consumer=$1 AND {TO_BE_TOLD}"
        " WHERE event.consumer=$1 AND event.session=ANY($2::bigint[]) AND kind=$3"
        " AND (delivery.session IS NOT NULL OR event.id>(SELECT cursor FROM consumer WHERE name=$1))"
        " ORDER BY event.id",
        *(consumer.name, sessions, EventKind.GAP),
    )
    return list(dict.fromkeys((row[0], row[1], row[2]) for row in rows))
