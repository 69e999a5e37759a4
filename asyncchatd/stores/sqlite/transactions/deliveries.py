"""Transactions about consumers: who is told, how far each one is, and the batches of those with a webhook.

Events are shared out over the chats they belong to, once: `cursor` says how far that went. From then on a chat has a
row in `delivery` as long as there is something it has to tell, so a restart delivers a batch again and not hours. A
batch that is parked has a row of its own, and the chat's goes on behind it.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence, Set
from typing import NamedTuple

from asyncchatd.model import Batch, Consumer, ConsumerState, EventKind, Ms, Portion, StoredEvent
from asyncchatd.stores.errors import ConsumerUnknown, CursorAhead
from asyncchatd.stores.rules import LONGEST_BACKOFF_MS
from asyncchatd.stores.sql.rows import CHATS_COUNTED, COUNTED, FETCHED_BYTES, JOINED, TOLD
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.transactions import events
from asyncchatd.stores.sqlite.transactions.events import WANTED, Wanted
from asyncchatd.stores.sqlite.transactions.session_rows import as_json
from asyncchatd.stores.transcripts import OF_A_SAMPLE, places, within, written

SHARED_OUT = 1_500
"""Events that are shared out at once. Pushes wait meanwhile."""


def enrol(db: Db, consumers: Sequence[Consumer], shown: Set[EventKind], now: Ms) -> None:
    """Tell these consumers from now on, each from where it was, and a new one from now or from the oldest event on. One
    that is not among them any more is remembered as gone."""
    db.kinds = written(consumers, shown)
    db.shown = bool(shown)
    newest, gap = events.newest(db), db.execute("SELECT gap FROM file").fetchone()[0]
    newest = newest if gap is None else gap - 1  # whoever is new since is told of it
    oldest = db.execute("SELECT coalesce(min(id), 1) FROM event").fetchone()[0] - 1
    for consumer in consumers:
        begins = oldest if consumer.from_oldest else newest
        _tell_missed(db, consumer, now)
        db.execute(
            "INSERT INTO consumer (name, kinds, services, cursor, given, moved_at, keep_ms, max_backlog)"
            " VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (name) DO UPDATE SET gone_at=NULL, missed_at=NULL,"
            " kinds=excluded.kinds, services=excluded.services, keep_ms=excluded.keep_ms,"
            " max_backlog=excluded.max_backlog",
            (*Wanted.by(consumer), begins, begins, now, consumer.keep_ms, consumer.max_backlog),
        )
        if not consumer.pushes:
            _fetches_from_now_on(db, consumer.name)
    if consumers:
        db.execute("UPDATE file SET gap=NULL WHERE gap IS NOT NULL")
    names = as_json([consumer.name for consumer in consumers])
    db.execute(
        "UPDATE consumer SET gone_at=? WHERE gone_at IS NULL AND name NOT IN (SELECT value FROM json_each(?))",
        (now, names),
    )
    db.execute(
        "UPDATE consumer SET missed_at=? WHERE gone_at IS NOT NULL AND missed_at IS NULL AND EXISTS"
        " (SELECT 1 FROM json_each(kinds) WHERE value NOT IN (SELECT value FROM json_each(?)))",
        (now, as_json(sorted(db.kinds))),
    )


def _tell_missed(db: Db, consumer: Consumer, now: Ms) -> None:
    """One that was gone while nobody else was told the same is told that events of that time may be missing. They are
    not written for one that may come back: what is said in a chat is kept for those who are there."""
    found = db.execute("SELECT missed_at FROM consumer WHERE name=?", (consumer.name,)).fetchone()
    if found is not None and found[0] is not None:
        events.gap_of_all(db, now, consumer.name, since=found[0], until=now)


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


# -- consumers that fetch -------------------------------------------------------------------------------


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
    told, looked = events.after(db, begins, limit, FETCHED_BYTES, Wanted.by(consumer))
    passes = begins == cursor and not told and looked > cursor
    if passes or looked > given:
        cursor = looked if passes else cursor  # what it is not told it need not acknowledge
        reached = (cursor, max(given, looked), consumer.name)
        db.execute("UPDATE consumer SET cursor=?, given=? WHERE name=?", reached)
    return Portion(tuple(told), looked)


# -- consumers with a webhook --------------------------------------------------------------------------


def share_out(db: Db, consumer: Consumer) -> bool:
    """Give new events to the chats they belong to. Whether there are more."""
    [cursor] = db.execute("SELECT cursor FROM consumer WHERE name=?", (consumer.name,)).fetchone()
    told, looked = events.ids_after(db, cursor, SHARED_OUT, Wanted.by(consumer))
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
        "SELECT session, first, until, own, batch, tries, failing FROM delivery INDEXED BY delivery_oldest"
        " WHERE consumer=? AND parked=0 AND due_at<=?"
        " AND session NOT IN (SELECT value FROM json_each(?))"
        " AND NOT (SELECT paused FROM consumer WHERE name=delivery.consumer) ORDER BY first LIMIT ?",
        (consumer.name, now, as_json(sorted(busy)), limit),
    ).fetchall()
    made: list[Batch] = []
    [cursor] = db.execute("SELECT cursor FROM consumer WHERE name=?", (consumer.name,)).fetchone()
    for session, first, until, own, number, tries, failing in found:
        if any(batch.row == session for batch in made):
            continue  # one that is replayed, and the chat's own
        told = _of_chat(db, consumer, session, first, until or cursor, most_events)
        if until is not None and own and not told:  # tokens alone that were replaced since
            until = None
            told = _of_chat(db, consumer, session, first, cursor, most_events)
        if until is None:
            told = within(told, most_bytes)
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


def _of_chat(
    db: Db, consumer: Consumer, session: int, first: int, until: int, most: int
) -> list[StoredEvent]:
    """What a batch of a chat has to tell. Who is told the tokens themselves is told the newest at each try: older
    events of tokens say nothing more."""
    return events.of_session(
        db, session, first, until, most, Wanted.by(consumer), newest_tokens=consumer.send_keys
    )


def delivered(db: Db, consumer: Consumer, done: Sequence[Batch], now: Ms) -> None:
    """Note that batches were taken: each chat goes on behind its own."""
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
    """Note that a batch was not taken, and is due again then; or `parked`, until it is replayed, and its chat goes on
    behind it."""
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
    for further in events.of_session(db, batch.row, until[0] + 1, cursor, 1, Wanted.by(consumer)):
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


def cut(db: Db, now: Ms) -> None:
    """Make batches due that wait longer than any can: they were refused before the clock was set back."""
    db.execute("UPDATE delivery SET due_at=? WHERE due_at>?", (now, now + LONGEST_BACKOFF_MS))
    db.execute("UPDATE delivery SET failing=? WHERE failing>?", (now, now))


def next_due(db: Db, name: str, busy: Collection[int]) -> Ms | None:
    """When the next batch of a consumer may be tried that is not of those sessions."""
    found = db.execute(
        "SELECT due_at FROM delivery JOIN consumer ON name=delivery.consumer WHERE consumer=? AND parked=0"
        " AND paused=0 AND session NOT IN (SELECT value FROM json_each(?)) ORDER BY due_at LIMIT 1",
        (name, as_json(sorted(busy))),
    ).fetchone()
    return None if found is None else int(found[0])


class Remembered(NamedTuple):
    """A consumer that is told, or was and may come back."""

    name: str
    kinds: str
    services: str
    cursor: int
    keep_ms: Ms
    max_backlog: int | None

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.name, self.kinds, self.services)


def remembered(db: Db) -> list[Remembered]:
    """All consumers that are remembered, by name."""
    rows = db.execute(f"SELECT {', '.join(Remembered._fields)} FROM consumer ORDER BY name").fetchall()
    return [Remembered(*row) for row in rows]


def oldest(db: Db, consumer: Remembered) -> int:
    """The oldest event that a consumer may have to be told yet."""
    shared = [
        db.execute(
            "SELECT min(first) FROM delivery WHERE consumer=? AND parked=?", (consumer.name, parked)
        ).fetchone()[0]
        for parked in (False, True)
    ]
    return min((each for each in shared if each is not None), default=consumer.cursor + 1)


def behind(db: Db, consumer: Remembered, *, gaps: bool = True) -> int:
    """How many events a consumer has not been told, of those that it is told; about how many where there are more than
    can be counted in passing. What is parked is not among them."""
    wanted = WANTED if gaps else f"{WANTED} AND kind<>'{EventKind.GAP}'"
    return round(_shared_out(db, consumer, wanted) + _not_shared_out(db, consumer, wanted))


def _not_shared_out(db: Db, consumer: Remembered, wanted: str) -> float:
    looked, reached, count = _looked_at(db, consumer, wanted, consumer.cursor, 1 << 62, COUNTED)
    last = events.newest(db)
    if looked < COUNTED or reached >= last:
        return count
    told = ids = 0
    for begins, ends in places(reached, last):
        number, furthest, found = _looked_at(db, consumer, wanted, begins, ends, OF_A_SAMPLE)
        told += found
        ids += furthest - begins if number == OF_A_SAMPLE else ends - begins
    return count + (last - reached) * told / max(1, ids)


def _looked_at(
    db: Db, consumer: Remembered, wanted: str, begins: int, ends: int, limit: int
) -> tuple[int, int, int]:
    """The next so many events behind one: how many there are, the last of them, and how many the consumer is told."""
    number, furthest = db.execute(
        "SELECT count(*), coalesce(max(id), :begins) FROM"
        " (SELECT id FROM event WHERE id>:begins AND id<=:ends ORDER BY id LIMIT :limit)",
        {"begins": begins, "ends": ends, "limit": limit},
    ).fetchone()
    [[count]] = db.execute(
        f"SELECT count(*) FROM {TOLD} WHERE event.id>:begins AND event.id<=:furthest AND {wanted}",
        consumer.wanted.values(begins=begins, furthest=furthest),
    ).fetchall()
    return number, furthest, count


def _shared_out(db: Db, consumer: Remembered, wanted: str) -> float:
    rows = db.execute(
        "SELECT session, first, iif(own, ?, until) FROM delivery WHERE consumer=? AND parked=0 ORDER BY first LIMIT ?",
        (consumer.cursor, consumer.name, CHATS_COUNTED),
    ).fetchall()
    counts = [
        db.execute(
            f"SELECT count(*) FROM {TOLD} WHERE event.session=:session AND event.id BETWEEN :first AND :until"
            f" AND {wanted}",
            consumer.wanted.values(session=session, first=first, until=until),
        ).fetchone()[0]
        for session, first, until in rows
    ]
    count = float(sum(counts))
    if len(rows) < CHATS_COUNTED:
        return count
    [[all_of_them]] = db.execute(
        "SELECT count(*) FROM delivery WHERE consumer=? AND parked=0", (consumer.name,)
    ).fetchall()
    return count * float(all_of_them) / len(rows)


def states(db: Db) -> list[ConsumerState]:
    """How far each consumer is that is there."""
    there = db.execute("SELECT name FROM consumer WHERE gone_at IS NULL").fetchall()
    newest = events.newest(db)
    return [_state(db, newest, each) for each in remembered(db) if (each.name,) in there]


def _state(db: Db, newest: int, consumer: Remembered) -> ConsumerState:
    paused, moved_at, asked, acknowledged, ran_out = db.execute(
        "SELECT paused, moved_at, asked, acknowledged, ran_out FROM consumer WHERE name=?", (consumer.name,)
    ).fetchone()
    chats, parked = db.execute(
        "SELECT count(DISTINCT session), count(*) FILTER (WHERE parked) FROM delivery WHERE consumer=?",
        (consumer.name,),
    ).fetchone()
    return ConsumerState(
        name=consumer.name,
        cursor=consumer.cursor,
        newest=newest,
        behind=behind(db, consumer),
        oldest_at=_oldest_at(db, consumer),
        chats=chats,
        parked=parked,
        paused=bool(paused),
        moved_at=moved_at,
        asked=asked,
        acknowledged=acknowledged,
        ran_out=ran_out,
    )


def _oldest_at(db: Db, consumer: Remembered) -> Ms | None:
    """When the oldest event came that a consumer has not been told; where none of the next `COUNTED` is for it, when
    the one behind them did."""
    first = db.execute(
        "SELECT first FROM delivery WHERE consumer=? AND parked=0 ORDER BY first LIMIT 1", (consumer.name,)
    ).fetchone()
    begins = consumer.cursor if first is None else first[0] - 1
    found = db.execute(
        f"SELECT at FROM (SELECT * FROM event WHERE id>:begins ORDER BY id LIMIT :counted) AS event {JOINED}"
        f" WHERE {WANTED}"
        " UNION ALL SELECT at FROM (SELECT at FROM event WHERE id>:begins ORDER BY id LIMIT 1 OFFSET :counted) LIMIT 1",
        consumer.wanted.values(begins=begins, counted=COUNTED),
    ).fetchone()
    return None if found is None else found[0]
