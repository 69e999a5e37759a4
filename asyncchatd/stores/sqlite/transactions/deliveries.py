"""Transactions about consumers: who is told, how far each one is, and the batches of those with a webhook.

Events are shared out over the chats they belong to, once: `cursor` says how far that went. From then on a chat has a
row in `delivery` as long as there is something it has to tell, so a restart delivers a batch again and not hours. A
batch that is parked has a row of its own, and the chat's goes on behind it.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence, Set

from asyncchatd.model import Batch, Consumer, ConsumerState, EventKind, Ms, Portion
from asyncchatd.stores.base import ConsumerUnknown, CursorAhead
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.transactions import events
from asyncchatd.stores.sqlite.transactions.session_rows import as_json

SHARED_OUT = 5_000
"""Events that are shared out at once."""

FETCHED_BYTES = 1 << 20
"""Of a portion for one who fetches. The largest number of events that can be asked for may be hundreds of megabytes."""


def enrol(db: Db, consumers: Sequence[Consumer], shown: Set[EventKind], now: Ms) -> None:
    """These are told from now on, each from where it was, and a new one from now or from the oldest event on. One that
    is not among them any more is remembered as gone."""
    db.kinds = frozenset(shown).union(*(consumer.kinds for consumer in consumers))
    db.shown = bool(shown)
    newest = events.newest(db)
    oldest = db.execute("SELECT coalesce(min(id), 1) FROM event").fetchone()[0] - 1
    for consumer in consumers:
        begins = oldest if consumer.from_oldest else newest
        db.execute(
            "INSERT INTO consumer (name, cursor, given, moved_at, keep_ms) VALUES (?,?,?,?,?)"
            " ON CONFLICT (name) DO UPDATE SET gone_at=NULL, keep_ms=excluded.keep_ms",
            (consumer.name, begins, begins, now, consumer.keep_ms),
        )
        if not consumer.pushes:
            _fetches_from_now_on(db, consumer.name)
    names = as_json([consumer.name for consumer in consumers])
    db.execute(
        "UPDATE consumer SET gone_at=? WHERE gone_at IS NULL AND name NOT IN (SELECT value FROM json_each(?))",
        (now, names),
    )


def _fetches_from_now_on(db: Db, name: str) -> None:
    """What was shared out for a webhook that a consumer has no more, it fetches."""
    [first] = db.execute("SELECT min(first) FROM delivery WHERE consumer=?", (name,)).fetchone()
    if first is not None:
        db.execute("UPDATE consumer SET cursor=min(cursor, ?) WHERE name=?", (first - 1, name))
        db.execute("DELETE FROM delivery WHERE consumer=?", (name,))


def dismiss(db: Db, now: Ms) -> bool:
    """Forget the consumers that are gone for as long as they were to be remembered. Whether there are others."""
    gone = "gone_at+keep_ms<=?"
    db.execute(f"DELETE FROM delivery WHERE consumer IN (SELECT name FROM consumer WHERE {gone})", (now,))
    db.execute(f"DELETE FROM consumer WHERE {gone}", (now,))
    [[left]] = db.execute("SELECT EXISTS (SELECT 1 FROM consumer)").fetchall()
    return bool(left)


# -- those who fetch -------------------------------------------------------------------------------


def fetch(
    db: Db, consumer: Consumer, acknowledged: int | None, limit: int, now: Ms, beyond: int | None
) -> Portion:
    """The events behind what was acknowledged, which is remembered, and behind `beyond`. Raises `CursorAhead`."""
    found = db.execute("SELECT cursor, given, paused FROM consumer WHERE name=?", (consumer.name,)).fetchone()
    if found is None:
        raise ConsumerUnknown(consumer.name)
    cursor, given, paused = found
    if max(acknowledged or 0, beyond or 0) > given:
        raise CursorAhead(given)
    if acknowledged is not None and acknowledged > cursor:
        cursor = acknowledged
        db.execute("UPDATE consumer SET cursor=?, moved_at=? WHERE name=?", (cursor, now, consumer.name))
    begins = max(cursor, beyond or 0)
    if paused:
        return Portion((), begins)
    told, looked = events.after(db, begins, limit, FETCHED_BYTES, consumer.kinds, consumer.services)
    if begins == cursor and not told:
        cursor = looked  # what he is not told he need not acknowledge
    if looked > given:
        db.execute("UPDATE consumer SET cursor=?, given=? WHERE name=?", (cursor, looked, consumer.name))
    return Portion(tuple(told), looked)


# -- those with a webhook --------------------------------------------------------------------------


def share_out(db: Db, consumer: Consumer) -> bool:
    """Give new events to the chats they belong to. Whether there are more."""
    [cursor] = db.execute("SELECT cursor FROM consumer WHERE name=?", (consumer.name,)).fetchone()
    told, looked = events.ids_after(db, cursor, SHARED_OUT, consumer.kinds, consumer.services)
    db.executemany(
        "INSERT INTO delivery (consumer, session, first) VALUES (?,?,?)"
        " ON CONFLICT (consumer, session) WHERE own=1 DO NOTHING",
        ((consumer.name, session, first) for first, session in told),
    )
    if looked > cursor:
        db.execute("UPDATE consumer SET cursor=?, given=? WHERE name=?", (looked, looked, consumer.name))
    return len(told) == SHARED_OUT


def batches(
    db: Db, consumer: Consumer, now: Ms, limit: int, busy: Collection[int], most_events: int, most_bytes: int
) -> list[Batch]:
    """The next batch of each of so many chats, the longest waiting first; not of those that are `busy`."""
    found = db.execute(
        "SELECT session, first, until, batch, tries, failing FROM delivery INDEXED BY delivery_oldest"
        " WHERE consumer=? AND parked=0 AND due_at<=?"
        " AND session NOT IN (SELECT value FROM json_each(?))"
        " AND NOT (SELECT paused FROM consumer WHERE name=delivery.consumer) ORDER BY first LIMIT ?",
        (consumer.name, now, as_json(sorted(busy)), limit),
    ).fetchall()
    made: list[Batch] = []
    [cursor] = db.execute("SELECT cursor FROM consumer WHERE name=?", (consumer.name,)).fetchone()
    for session, first, until, number, tries, failing in found:
        if any(batch.row == session for batch in made):
            continue  # one that is replayed, and the chat's own
        told = events.of_session(db, session, first, until or cursor, most_events, consumer.kinds)
        if until is None:
            told = events.within(told, most_bytes)
        if not told:  # its events are gone: trimmed, or erased with the session
            db.execute(
                "DELETE FROM delivery WHERE consumer=? AND session=? AND first=?",
                (consumer.name, session, first),
            )
            continue
        if until is None:
            number = secrets.token_hex(12)
            db.execute(
                "UPDATE delivery SET until=?, batch=? WHERE consumer=? AND session=? AND first=?",
                (told[-1].id, number, consumer.name, session, first),
            )
        made.append(Batch(consumer.name, session, number, tuple(told), tries, failing))
    return made


def delivered(db: Db, consumer: Consumer, done: Sequence[Batch], now: Ms) -> None:
    """These batches were taken: each chat goes on behind its own."""
    for batch in done:
        _goes_on(db, consumer, batch)
        db.execute(
            "DELETE FROM delivery WHERE consumer=? AND session=? AND batch=?",
            (consumer.name, batch.row, batch.number),
        )
    db.execute("UPDATE consumer SET moved_at=? WHERE name=?", (now, consumer.name))


def undelivered(
    db: Db, consumer: Consumer, batch: Batch, due_at: Ms, failing_since: Ms | None, parked: bool
) -> None:
    """This batch was not taken, and is due again then; or nobody tries it any more until it is replayed, and its chat
    goes on behind it."""
    if parked:
        _goes_on(db, consumer, batch)
    db.execute(
        "UPDATE delivery SET tries=tries+1, due_at=?, failing=?, parked=? WHERE consumer=? AND session=? AND batch=?",
        (due_at, failing_since, parked, consumer.name, batch.row, batch.number),
    )


def _goes_on(db: Db, consumer: Consumer, batch: Batch) -> None:
    """The chat whose own place this batch has gets the place behind it, if there is something to tell there."""
    had = (consumer.name, batch.row, batch.number)
    place = "consumer=? AND session=? AND batch=? AND own=1"
    until = db.execute(f"SELECT until FROM delivery WHERE {place}", had).fetchone()
    if until is None:
        return
    db.execute(f"UPDATE delivery SET own=0 WHERE {place}", had)
    [cursor] = db.execute("SELECT cursor FROM consumer WHERE name=?", (consumer.name,)).fetchone()
    for further in events.of_session(db, batch.row, until[0] + 1, cursor, 1, consumer.kinds):
        db.execute(
            "INSERT INTO delivery (consumer, session, first) VALUES (?,?,?)",
            (consumer.name, batch.row, further.id),
        )


def pause(db: Db, name: str, paused: bool) -> bool:
    """Stop or go on telling a consumer. Whether there is one of that name."""
    return db.execute("UPDATE consumer SET paused=? WHERE name=?", (paused, name)).rowcount > 0


def replay(db: Db, name: str) -> int:
    """Try parked batches once more, each when nothing of its chat is on its way. How many."""
    return db.execute(
        "UPDATE delivery SET parked=0, due_at=0, failing=NULL WHERE consumer=? AND parked=1", (name,)
    ).rowcount


def hurry(db: Db, name: str) -> int:
    """Try at once what waits for another try. How many."""
    return db.execute(
        "UPDATE delivery SET due_at=0 WHERE consumer=? AND parked=0 AND due_at>0", (name,)
    ).rowcount


def next_due(db: Db, name: str, busy: Collection[int]) -> Ms | None:
    """When the next batch of a consumer may be tried that is not of those sessions."""
    found = db.execute(
        "SELECT due_at FROM delivery JOIN consumer ON name=delivery.consumer WHERE consumer=? AND parked=0"
        " AND paused=0 AND session NOT IN (SELECT value FROM json_each(?)) ORDER BY due_at LIMIT 1",
        (name, as_json(sorted(busy))),
    ).fetchone()
    return None if found is None else int(found[0])


def states(db: Db) -> list[ConsumerState]:
    """How far each consumer is."""
    newest = events.newest(db)
    found = db.execute(
        "SELECT name, cursor, paused, moved_at, (SELECT count(DISTINCT session) FROM delivery WHERE consumer=name),"
        " (SELECT count(*) FROM delivery WHERE consumer=name AND parked=1),"
        " (SELECT min(first) FROM delivery WHERE consumer=name AND parked=0), asked, acknowledged, ran_out"
        " FROM consumer WHERE gone_at IS NULL ORDER BY name"
    ).fetchall()
    return [_state(db, newest, *row) for row in found]


def _state(
    db: Db,
    newest: int,
    name: str,
    cursor: int,
    paused: int,
    moved_at: Ms,
    chats: int,
    parked: int,
    first: int | None,
    asked: int,
    acknowledged: int,
    ran_out: int,
) -> ConsumerState:
    reached = cursor if first is None else min(cursor, first - 1)
    oldest = db.execute("SELECT at FROM event WHERE id>? ORDER BY id LIMIT 1", (reached,)).fetchone()
    return ConsumerState(
        name=name,
        cursor=cursor,
        newest=newest,
        behind=newest - reached,
        oldest_at=None if oldest is None else oldest[0],
        chats=chats,
        parked=parked,
        paused=bool(paused),
        moved_at=moved_at,
        asked=asked,
        acknowledged=acknowledged,
        ran_out=ran_out,
    )
