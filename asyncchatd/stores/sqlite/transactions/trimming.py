"""Transactions that keep transcripts within their bounds, in portions.

What goes is the oldest. Where a consumer has not been told of it yet, a `gap` is written for it: an event behind all
others, which says how many are missing and up to which index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import orjson

from asyncchatd.model import EventKind, Ms
from asyncchatd.stores.answers import Bounds, Trimmed, Why
from asyncchatd.stores.sealing import SealError
from asyncchatd.stores.sql.rows import ENDED, LIVE, TO_BE_TOLD, TOLD
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.transactions import deliveries, events
from asyncchatd.stores.sqlite.transactions.deliveries import Remembered
from asyncchatd.stores.sqlite.transactions.events import WANTED
from asyncchatd.stores.sqlite.transactions.session_rows import as_json
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


def trim(db: Db, bounds: Bounds, now: Ms) -> tuple[int, Trimmed]:
    """One portion. How many events went, and what came of it."""
    dropped: Dropped = Counter()
    if not deliveries.dismiss(db, now) and not db.shown:  # nobody is left whom anything is kept for
        gone = db.execute(
            "DELETE FROM event WHERE id IN (SELECT id FROM event ORDER BY id LIMIT ?)", (LOOKED_AT,)
        ).rowcount
        return gone, Trimmed(more=gone == LOOKED_AT)
    gone, more = _trim_sessions(db, bounds, dropped)
    ended, more_ended = _forget_ended(db, now - bounds.keep_ms)
    late = [_give_up_of(db, each, now, dropped) for each in deliveries.remembered(db)]
    total = _trim_total(db, bounds.max_total, dropped)
    _forget_gaps_of_all(db)
    return gone + ended + total, Trimmed(
        more=bool(more or more_ended or any(late) or total), dropped=dict(dropped)
    )


def _trim_sessions(db: Db, bounds: Bounds, dropped: Dropped) -> tuple[int, bool]:
    """Trim sessions that got events since they were looked at last. How many events went, and whether there is more."""
    [[looked]] = db.execute("SELECT trimmed FROM file").fetchall()
    found = db.execute(
        "SELECT max(id), count(*), json_group_array(DISTINCT session)"
        " FROM (SELECT id, session FROM event WHERE id>? ORDER BY id LIMIT ?)",
        (looked, NEW_LOOKED_AT),
    ).fetchone()
    if not found[1]:
        return 0, False
    db.execute("UPDATE file SET trimmed=?", (found[0],))
    reached = events.reached(db)
    sessions = [session for session in orjson.loads(found[2]) if session != OF_ALL]
    gone = [number for session in sessions for number in _beyond(db, session, bounds, reached)]
    return _drop(db, gone, dropped), found[1] == NEW_LOOKED_AT


def _beyond(db: Db, session: int, bounds: Bounds, reached: int) -> list[int]:
    rows = db.execute(
        "SELECT id, length(body), kind FROM event WHERE session=? ORDER BY id DESC", (session,)
    ).fetchall()
    return beyond([Size(*row) for row in rows], bounds, 0 if _is_undelivered(db, session) else reached)


def _forget_ended(db: Db, ended_before: Ms) -> tuple[int, bool]:
    """Forget the events of chats that ended long enough ago, and of which each consumer has been told. How many went,
    and whether there is more in this round."""
    looked = Round(*db.execute("SELECT ended_looked, ended_at, ended_row, ended_kept FROM file").fetchone())
    rows = db.execute(
        f"SELECT id, active_at, (SELECT max(id) FROM event WHERE session=session.id) FROM session"
        f" WHERE state<>{LIVE} AND state={ENDED} AND (active_at, id)>(?, ?) AND active_at<?"
        " ORDER BY active_at, id LIMIT ?",
        (*looked.behind, ended_before, LOOKED_AT),
    ).fetchall()
    ended = [Ended(*row) for row in rows]
    gone = 0
    reached = events.reached(db)
    kept: list[Ended] = []
    for each in ended:
        if each.last is None:
            continue
        if each.last > reached or _is_undelivered(db, each.row):
            kept.append(each)
            continue
        gone += db.execute("DELETE FROM event WHERE session=?", (each.row,)).rowcount
    db.execute(
        "UPDATE file SET ended_looked=?, ended_at=?, ended_row=?, ended_kept=?", looked.further(ended, kept)
    )
    return gone, len(ended) == LOOKED_AT


def _is_undelivered(db: Db, session: int) -> bool:
    found = db.execute("SELECT EXISTS (SELECT 1 FROM delivery WHERE session=?)", (session,)).fetchone()
    return bool(found[0])


# -- what a consumer does not take ------------------------------------------------------------------


def _give_up_of(db: Db, consumer: Remembered, now: Ms, dropped: Dropped) -> bool:
    """Give up what is too old for a consumer, else what is more than its backlog. Whether there may be more."""
    if _give_up_late(db, consumer, now, dropped):
        return True  # it is looked at once more, by what is left
    return _give_up_beyond(db, consumer, now, dropped)


def _give_up_late(db: Db, consumer: Remembered, now: Ms, dropped: Dropped) -> bool:
    """Give up what a consumer has not taken for as long as it is kept for it. Whether there may be more."""
    # Up to the first that is young: one that was written while the clock stood wrong gives nothing away but itself.
    last = db.execute(
        "WITH next AS (SELECT id, at FROM event WHERE id>=? ORDER BY id LIMIT ?)"
        " SELECT max(id) FROM next WHERE id < coalesce((SELECT min(id) FROM next WHERE at>=?), 1 << 62)",
        (deliveries.oldest(db, consumer), LOOKED_AT, now - consumer.keep_ms),
    ).fetchone()[0]
    if last is None:
        return False
    _give_up(db, consumer, last, now, dropped, Why.KEEP)
    return True


def _give_up_beyond(db: Db, consumer: Remembered, now: Ms, dropped: Dropped) -> bool:
    """Give up what is more than a consumer's `max_backlog`, the oldest of it. Whether there may be more."""
    if consumer.max_backlog is None:
        return False
    more = deliveries.behind(db, consumer, gaps=False) - consumer.max_backlog
    if more <= 0:
        return False
    oldest = deliveries.oldest(db, consumer)
    looked = db.execute(
        "SELECT count(*), max(id) FROM (SELECT id FROM event WHERE id>=? ORDER BY id LIMIT ?)",
        (oldest, LOOKED_AT),
    ).fetchone()
    if not looked[0]:
        return False
    untold = db.execute(
        f"SELECT id FROM (SELECT DISTINCT event.id AS id FROM {_UNTOLD} AND event.id BETWEEN :oldest AND :looked"
        f" AND kind<>'{EventKind.GAP}') ORDER BY id LIMIT 1 OFFSET :beyond",
        consumer.wanted.values(cursor=consumer.cursor, oldest=oldest, looked=looked[1], beyond=more - 1),
    ).fetchone()
    _give_up(db, consumer, looked[1] if untold is None else untold[0], now, dropped, Why.MAX_BACKLOG)
    return True


def _give_up(db: Db, consumer: Remembered, last: int, now: Ms, dropped: Dropped, why: Why) -> None:
    """Pass a consumer over everything up to this event, and tell it a gap of each chat instead."""
    since = deliveries.oldest(db, consumer)
    untold = _untold(db, consumer, "event.id<=:chosen", last, since=since)
    gaps = _untold_gaps(db, consumer, "event.id BETWEEN :since AND :last", since=since, last=last)
    db.execute(
        "UPDATE consumer SET cursor=:last, given=max(given, :last) WHERE name=:name AND cursor<:last",
        {"last": last, "name": consumer.name},
    )
    db.execute("DELETE FROM delivery WHERE consumer=? AND own=0 AND until<=?", (consumer.name, last))
    db.execute(
        f"UPDATE delivery SET first=?, {_ANOTHER_BATCH} WHERE consumer=? AND first<=?",
        (last + 1, consumer.name, last),
    )
    if why is Why.KEEP:
        _tell_gap_of_all(db, consumer, gaps, now)
    else:
        _put_behind(db, consumer, gaps)
    _tell_gaps(db, consumer, untold, now)
    count(dropped, consumer.name, why, untold)


def _trim_total(db: Db, max_total: int, dropped: Dropped) -> int:
    """Drop the oldest of all while all together are larger than `max_total`, in bytes. How many went."""
    pages, size = (db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "page_size"))
    [[free]] = db.execute("PRAGMA freelist_count").fetchall()
    if (pages - free) * size <= max_total:
        return 0
    if events.kept(db).size <= max_total:
        return 0
    oldest = db.execute(
        "SELECT id FROM event WHERE session<>? ORDER BY id LIMIT ?", (OF_ALL, LOOKED_AT)
    ).fetchall()
    return _drop(db, [number for (number,) in oldest], dropped)


def _forget_gaps_of_all(db: Db) -> None:
    """Delete the gaps of all chats that each consumer has been told."""
    if not _is_undelivered(db, OF_ALL):
        db.execute("DELETE FROM event WHERE session=? AND id<=?", (OF_ALL, events.reached(db)))


_UNTOLD = (
    f"{TOLD} LEFT JOIN delivery ON delivery.consumer=:name AND {TO_BE_TOLD}"
    f" WHERE {WANTED} AND (delivery.session IS NOT NULL OR event.id>:cursor)"
)
"""The events that a consumer has still to be told: by `Wanted.values` and its cursor."""

_ANOTHER_BATCH = (
    "until=CASE WHEN own THEN NULL ELSE until END,"
    " batch=CASE WHEN own THEN NULL ELSE lower(hex(randomblob(12))) END"
)
"""What lost an event is another batch: none has other events at its next try."""


def _untold(db: Db, consumer: Remembered, which: str, chosen: object, since: int = 0) -> Untold:
    """What a consumer has still to be told of the events that a condition on `:chosen` selects."""
    return db.execute(
        f"SELECT event.session, count(DISTINCT event.id), max(idx) FROM {_UNTOLD} AND {which}"
        f" AND event.id>=:since AND kind<>'{EventKind.GAP}' GROUP BY event.session",
        consumer.wanted.values(cursor=consumer.cursor, chosen=chosen, since=since),
    ).fetchall()


def _drop(db: Db, numbers: Iterable[int], dropped: Dropped) -> int:
    """Delete these events, and tell of those that somebody should have been told. How many went."""
    chosen = as_json(list(numbers))
    if chosen == "[]":
        return 0
    among_them = "event.id IN (SELECT value FROM json_each(:chosen))"
    untold = [
        (each, _untold(db, each, among_them, chosen), _untold_gaps(db, each, among_them, chosen=chosen))
        for each in deliveries.remembered(db)
    ]
    at = db.execute("SELECT at FROM event ORDER BY id DESC LIMIT 1").fetchone()[0]
    gone = _delete(db, chosen)
    for consumer, of_it, gaps in untold:
        _tell_gaps(db, consumer, of_it, at)
        count(dropped, consumer.name, Why.BOUNDS, of_it)
        _tell_gap_of_all(db, consumer, gaps, at)
    return gone


def _delete(db: Db, chosen: str) -> int:
    db.execute(
        f"UPDATE delivery SET {_ANOTHER_BATCH} WHERE batch IS NOT NULL"
        " AND session IN (SELECT session FROM event WHERE id IN (SELECT value FROM json_each(:chosen)))"
        " AND EXISTS (SELECT 1 FROM event WHERE event.session=delivery.session"
        " AND event.id BETWEEN delivery.first AND delivery.until"
        " AND event.id IN (SELECT value FROM json_each(:chosen)))",
        {"chosen": chosen},
    )
    return db.execute("DELETE FROM event WHERE id IN (SELECT value FROM json_each(?))", (chosen,)).rowcount


# -- gaps --------------------------------------------------------------------------------------------


def _tell_gaps(db: Db, consumer: Remembered, untold: Untold, at: Ms) -> None:
    """One gap for each chat. One that the consumer was not told yet goes into it: else one that is away for days would
    have as many as there were looks."""
    if EventKind.GAP not in orjson.loads(consumer.kinds):
        return
    for session, number, index in untold:
        chat_id = db.execute("SELECT chat_id FROM session WHERE id=?", (session,)).fetchone()
        if chat_id is None or chat_id[0] is None:
            continue  # nothing was said in a chat that is known by its device alone
        before = [(gap, sealed) for gap, sealed in _own_gaps(db, consumer, session) if sealed is not None]
        if before:
            _delete(db, as_json([gap for gap, _ in before]))
        earlier = _opened(db, [sealed for _, sealed in before], chat_id[0])
        events.gap(db, session, chat_id[0], at, said(number, index, earlier), consumer.name)


def _opened(db: Db, sealed: Iterable[bytes], chat_id: str) -> Iterator[bytes]:
    """The bodies of gaps; those that do not open are passed over."""
    for each in sealed:
        with suppress(SealError):
            yield db.sealing.open_event(each, chat_id)


def _tell_gap_of_all(db: Db, consumer: Remembered, gaps: Sequence[int], at: Ms) -> None:
    """Put one gap of all chats in the place of these, which the consumer was not told. A gap keeps its session, so
    those of a consumer that never comes back would keep all there ever were."""
    if not gaps:
        return
    _delete_own(db, consumer, gaps)
    _delete(db, as_json([number for number, _ in _own_gaps(db, consumer, OF_ALL)]))
    events.gap_of_all(db, at, consumer.name)


def _put_behind(db: Db, consumer: Remembered, gaps: Sequence[int]) -> None:
    """Move these gaps behind all events, for this consumer alone. They are as old as they were."""
    db.execute(
        "INSERT INTO event (session, numbering, kind, at, body, consumer) SELECT session, 0, kind, min(at), body, ?"
        " FROM event WHERE id IN (SELECT value FROM json_each(?)) GROUP BY session, body ORDER BY max(id)",
        (consumer.name, as_json(list(gaps))),
    )
    _delete_own(db, consumer, gaps)


def _delete_own(db: Db, consumer: Remembered, gaps: Sequence[int]) -> None:
    """Delete those of these gaps that are for this consumer alone."""
    [[own]] = db.execute(
        "SELECT json_group_array(id) FROM event WHERE consumer=? AND id IN (SELECT value FROM json_each(?))",
        (consumer.name, as_json(list(gaps))),
    ).fetchall()
    _delete(db, own)


def _untold_gaps(db: Db, consumer: Remembered, which: str, **values: object) -> list[int]:
    """The gaps that a consumer has still to be told, of those that a condition on `values` selects."""
    rows = db.execute(
        f"SELECT DISTINCT event.id FROM {_UNTOLD} AND kind='{EventKind.GAP}' AND {which}",
        consumer.wanted.values(cursor=consumer.cursor, **values),
    )
    return [number for (number,) in rows]


def _own_gaps(db: Db, consumer: Remembered, session: int) -> list[tuple[int, bytes | None]]:
    """The gaps of one chat, each with its body, that are for this consumer alone and that it was not told yet."""
    return db.execute(
        f"SELECT event.id, event.body FROM event LEFT JOIN delivery ON delivery.consumer=:name AND {TO_BE_TOLD}"
        " WHERE event.consumer=:name AND event.session=:session AND kind=:gap"
        " AND (delivery.session IS NOT NULL OR event.id>(SELECT cursor FROM consumer WHERE name=:name))",
        {"name": consumer.name, "session": session, "gap": EventKind.GAP},
    ).fetchall()
