"""Transactions that keep transcripts within their bounds, in portions.

What goes is the oldest. Where a consumer has not been told of it yet, a `gap` is written in its place: an event behind
all others, which says how many are missing and up to which index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import orjson

from asyncchatd.model import EventKind, Ms
from asyncchatd.stores.base import Bounds
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.transactions import deliveries, events
from asyncchatd.stores.sqlite.transactions.session_rows import ENDED, LIVE, as_json

LOOKED_AT = 2_000
"""Events, or ended chats, that are looked at in one portion."""


def trim(db: Db, bounds: Bounds, now: Ms) -> tuple[int, bool]:
    """One portion. How many events went or were given up, and whether there is more to look at."""
    if not deliveries.dismiss(db, now) and not db.shown:  # nobody is left whom anything is kept for
        gone = db.execute(
            "DELETE FROM event WHERE id IN (SELECT id FROM event ORDER BY id LIMIT ?)", (LOOKED_AT,)
        ).rowcount
        return gone, gone == LOOKED_AT
    gone, more = _trim_sessions(db, bounds)
    ended, more_ended = _forget_ended(db, now - bounds.keep_ms)
    late = _give_up(db, now - bounds.keep_undelivered_ms, now)
    total = _trim_total(db, bounds.max_total, now)
    return gone + ended + late + total, bool(more or more_ended or late or total)


def _trim_sessions(db: Db, bounds: Bounds) -> tuple[int, bool]:
    """Sessions that got events since they were looked at last."""
    [[looked]] = db.execute("SELECT trimmed FROM file").fetchall()
    found = db.execute(
        "SELECT max(id), count(*), json_group_array(DISTINCT session)"
        " FROM (SELECT id, session FROM event WHERE id>? ORDER BY id LIMIT ?)",
        (looked, LOOKED_AT),
    ).fetchone()
    if not found[1]:
        return 0, False
    db.execute("UPDATE file SET trimmed=?", (found[0],))
    beyond = [number for session in orjson.loads(found[2]) for number in _beyond(db, session, bounds)]
    return _drop(db, beyond), found[1] == LOOKED_AT


def _beyond(db: Db, session: int, bounds: Bounds) -> list[int]:
    """The events of a session that are too many, or too much."""
    sizes = db.execute(
        "SELECT id, length(body) FROM event WHERE session=? ORDER BY id DESC", (session,)
    ).fetchall()
    kept = size = 0
    for _, length in sizes:
        size += length or 0
        if kept >= bounds.max_events or (kept and size > bounds.max_bytes):
            break
        kept += 1
    return [number for number, _ in sizes[kept:]]


def _forget_ended(db: Db, ended_before: Ms) -> tuple[int, bool]:
    """Chats that ended long enough ago, and that everybody has been told of."""
    [[looked]] = db.execute("SELECT ended_looked FROM file").fetchall()
    ended = db.execute(
        f"SELECT id, active_at FROM session WHERE state<>{LIVE} AND state={ENDED} AND active_at>? AND active_at<?"
        " AND EXISTS (SELECT 1 FROM event WHERE session=session.id) ORDER BY active_at LIMIT ?",
        (looked, ended_before, LOOKED_AT),
    ).fetchall()
    gone = kept = 0
    reached = events.reached(db)
    for session, at in ended:
        last = db.execute("SELECT max(id) FROM event WHERE session=?", (session,)).fetchone()[0]
        if last > reached or _is_undelivered(db, session):
            kept += 1
            continue
        gone += db.execute("DELETE FROM event WHERE session=?", (session,)).rowcount
        if not kept:  # else from that one on next time
            db.execute(
                "UPDATE file SET ended_looked=?", (at - 1,)
            )  # others may have ended in the same moment
    return gone, gone > 0 and len(ended) == LOOKED_AT


def _is_undelivered(db: Db, session: int) -> bool:
    found = db.execute("SELECT EXISTS (SELECT 1 FROM delivery WHERE session=?)", (session,)).fetchone()
    return bool(found[0])


def _give_up(db: Db, before: Ms, now: Ms) -> int:
    """What was not taken for so long is not told any more, but for the gap."""
    # Up to the first that is young: one that was written while the clock stood wrong gives nothing away but itself.
    last = db.execute(
        "WITH next AS (SELECT id, at FROM event WHERE id>=? ORDER BY id LIMIT ?)"
        " SELECT max(id) FROM next WHERE id < coalesce((SELECT min(id) FROM next WHERE at>=?), 1 << 62)",
        (_oldest(db), LOOKED_AT, before),
    ).fetchone()[0]
    if last is None:
        return 0
    late = db.execute(
        "SELECT event.session, count(DISTINCT event.id), max(idx) FROM event JOIN delivery"
        f" ON {_TO_BE_TOLD} WHERE event.id<=? GROUP BY event.session",
        (last,),
    ).fetchall()
    behind = db.execute("SELECT min(cursor) FROM consumer WHERE gone_at IS NULL").fetchone()[0]
    if behind is not None and behind < last:
        late += db.execute(
            "SELECT session, count(*), max(idx) FROM event WHERE id>? AND id<=? GROUP BY session",
            (behind, last),
        ).fetchall()
    db.execute("UPDATE consumer SET cursor=?, given=max(given, ?) WHERE cursor<?", (last, last, last))
    db.execute("DELETE FROM delivery WHERE own=0 AND until<=?", (last,))
    db.execute(f"UPDATE delivery SET first=?, {_ANOTHER_BATCH} WHERE first<=?", (last + 1, last))
    _tell_gaps(db, late, now)
    return len(late)


def _oldest(db: Db) -> int:
    """The oldest event of which a consumer has not been told."""
    shared = db.execute("SELECT min(first) FROM delivery").fetchone()[0]
    fetched = db.execute("SELECT min(cursor)+1 FROM consumer WHERE gone_at IS NULL").fetchone()[0]
    return min((each for each in (shared, fetched) if each is not None), default=1 << 62)


def _trim_total(db: Db, max_total: int, now: Ms) -> int:
    """The oldest of all go while all together are too large."""
    pages, size = (db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "page_size"))
    [[free]] = db.execute("PRAGMA freelist_count").fetchall()
    if (pages - free) * size <= max_total:
        return 0
    if events.kept(db).size <= max_total:
        return 0
    oldest = db.execute("SELECT id FROM event ORDER BY id LIMIT ?", (LOOKED_AT,)).fetchall()
    return _drop(db, [number for (number,) in oldest])


_TO_BE_TOLD = (
    "delivery.session=event.session AND delivery.first<=event.id"
    " AND (delivery.own OR event.id<=delivery.until)"
)
"""Whether an event is one of those that a row of `delivery` has to tell."""

_ANOTHER_BATCH = (
    "until=CASE WHEN own THEN NULL ELSE until END,"
    " batch=CASE WHEN own THEN NULL ELSE lower(hex(randomblob(12))) END"
)
"""What lost an event is another batch: none has other events at its next try."""


def _drop(db: Db, numbers: Iterable[int]) -> int:
    """Delete these events, and tell of those that somebody should have been told."""
    chosen = as_json(list(numbers))
    if chosen == "[]":
        return 0
    untold = db.execute(
        f"SELECT event.session, count(DISTINCT event.id), max(idx) FROM event LEFT JOIN delivery ON {_TO_BE_TOLD}"
        " WHERE event.id IN (SELECT value FROM json_each(?)) AND kind<>?"
        " AND (delivery.session IS NOT NULL OR event.id>?) GROUP BY event.session",
        (chosen, EventKind.GAP, events.reached(db)),
    ).fetchall()
    at = db.execute("SELECT at FROM event ORDER BY id DESC LIMIT 1").fetchone()[0]
    db.execute(
        f"UPDATE delivery SET {_ANOTHER_BATCH} WHERE batch IS NOT NULL"
        " AND session IN (SELECT session FROM event WHERE id IN (SELECT value FROM json_each(:chosen)))"
        " AND EXISTS (SELECT 1 FROM event WHERE event.session=delivery.session"
        " AND event.id BETWEEN delivery.first AND delivery.until"
        " AND event.id IN (SELECT value FROM json_each(:chosen)))",
        {"chosen": chosen},
    )
    gone = db.execute("DELETE FROM event WHERE id IN (SELECT value FROM json_each(?))", (chosen,)).rowcount
    _tell_gaps(db, untold, at)
    return gone


def _tell_gaps(db: Db, untold: Iterable[tuple[int, int, int | None]], at: Ms) -> None:
    missing: Counter[int] = Counter()
    indexes: dict[int, int | None] = {}
    for session, count, index in untold:
        missing[session] = max(missing[session], count)
        indexes[session] = index
    for session, count in missing.items():
        chat_id = db.execute("SELECT chat_id FROM session WHERE id=?", (session,)).fetchone()
        if chat_id is None or chat_id[0] is None:
            continue  # nothing was said in a chat that is known by its device alone
        body = orjson.dumps({"events": count, "up_to_index": indexes[session]})
        db.execute(
            "INSERT INTO event (session, numbering, kind, at, body) VALUES (?,0,?,?,?)",
            (session, EventKind.GAP, at, db.sealing.seal_event(body, chat_id[0])),
        )
