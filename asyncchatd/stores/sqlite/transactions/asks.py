"""Transactions about asks: a consumer is to send the Refresh that acknowledges a push, and else the daemon pings.

The session is due when the consumer's time is over, from the transaction on in which the push takes effect: nobody has
to notice that moment, and a process that dies before it loses nothing. Until the consumer is told, this is all:
whatever makes the session due sooner, a restoration first of all, is pinged at once, and the consumer is then told that
it need not. From when it is told on the session has a lease as with a take (`lent.py`), because its request may be on
its way and bring another key.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from asyncchatd.model import Consumer, Handed, Ms, Reason, StoredEvent, Tokens, Unacknowledged
from asyncchatd.model import key_digest as digest_of
from asyncchatd.stores.asking import (
    ACKNOWLEDGED,
    OPEN,
    RAN_OUT,
    WITHDRAWN,
    Ask,
    Asking,
    Handing,
    by_session,
    mine,
    offer,
    until,
    who_is_asked,
)
from asyncchatd.stores.rules import LONGEST_TAKE_MS, keepalive_ms
from asyncchatd.stores.sql.rows import LENT, LIVE
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.transactions.lent import WILL_BE_MARKED, give_back, has_pushes, is_taken, lease
from asyncchatd.stores.sqlite.transactions.rows import run
from asyncchatd.stores.sqlite.transactions.session_rows import SessionRow, as_json, find

_ASK = f"SELECT {', '.join(Ask._fields)} FROM ask"


def _asks(db: Db, where: str, *parameters: object) -> list[Ask]:
    return [Ask(*row) for row in db.execute(f"{_ASK} WHERE {where} ORDER BY event", parameters)]


def _opened(db: Db, session: int) -> list[Ask]:
    return _asks(db, f"session=? AND outcome={OPEN}", session)


# -- when a push takes effect ----------------------------------------------------------------------


def may_be_asked_for(db: Db, sessions: Sequence[int], asking: Asking | None) -> dict[int, Consumer]:
    """Of these sessions, before a push takes effect, those for which somebody is asked, and who."""
    if asking is None or not sessions or not (consumers := _not_paused(db, asking.consumers)):
        return {}
    found = run(
        db,
        _FREE,
        "id",
        [(session,) for session in sessions],
        asking.now,
        asking.now,
        as_json([consumer.name for consumer in consumers]),
    )
    chosen: dict[int, Consumer] = {}
    for session, chat_id, service in found:
        who = who_is_asked(consumers, service)
        if who is not None and not asking.is_held(chat_id):
            chosen[session] = who
    return chosen


def _not_paused(db: Db, consumers: Sequence[Consumer]) -> list[Consumer]:
    told = {name for (name,) in db.execute("SELECT name FROM consumer WHERE paused=0 AND gone_at IS NULL")}
    return [consumer for consumer in consumers if consumer.name in told]


_FREE = f"""SELECT session.id, session.chat_id, session.service FROM row CROSS JOIN session ON session.id=row.id
    WHERE session.state={LIVE} AND session.of_gateway=0 AND session.restoration IS NULL AND NOT {WILL_BE_MARKED}
    AND CASE WHEN EXISTS (SELECT 1 FROM ask WHERE ask.session=session.id AND outcome={OPEN})
        THEN (SELECT max(ask.marks)=session.marks AND min(ask.until)>? FROM ask
              WHERE ask.session=session.id AND outcome={OPEN})
        ELSE session.reason={Reason.KEEPALIVE:d}
             AND NOT EXISTS (SELECT 1 FROM lease WHERE lease.session=session.id AND lease.until>?) END
    AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.session=session.id AND parked=0 AND tries>0
                    AND delivery.consumer IN (SELECT value FROM json_each(?)))"""
"""Nothing is due or under way but what was asked for, and its consumer takes what it is told of the chat."""


def ask(db: Db, chosen: Mapping[int, Consumer], now: Ms) -> None:
    """Ask for these sessions, to which a push has just happened and was written as an event."""
    if not chosen:
        return
    rows = [(row, who.name, until(who, now)) for row, who in chosen.items()]
    ids = [(row,) for row in chosen]
    run(
        db,
        f"DELETE FROM ask WHERE outcome<>{OPEN} AND NOT (outcome={RAN_OUT} AND told=0)"
        " AND session IN (SELECT id FROM row)",
        "id",
        ids,
    )
    run(
        db,
        "INSERT INTO ask (session, event, consumer, at, until, marks) SELECT session.id,"
        " (SELECT max(event.id) FROM event WHERE event.session=session.id), consumer, ?, until, session.marks"
        " FROM row CROSS JOIN session ON session.id=row.id",
        "id, consumer, until",
        rows,
        now,
    )
    run(
        db,
        f"UPDATE session SET due_at=(SELECT min(until) FROM ask WHERE ask.session=session.id AND outcome={OPEN})"
        " WHERE id IN (SELECT id FROM row)",
        "id",
        ids,
    )


# -- when a consumer is told -----------------------------------------------------------------------


def hand_out(
    db: Db,
    consumer: str,
    events: Sequence[StoredEvent],
    now: Ms,
    is_held: Callable[[str], bool],
    *,
    keyed: bool = False,
) -> tuple[list[Handing], bool]:
    """`Store.hand_out`; whether a session is due now instead. `keyed`: the consumer is told the tokens with the event,
    and need not take the session."""
    handed: list[Handing] = []
    due = False
    for session, told in by_session(events).items():
        opened = _opened(db, session)
        asked = mine(opened, consumer, told)
        if not asked:
            continue
        [known] = find(db, "WHERE id=?", session)
        tokens = _tokens_to_give(db, known, opened, now, is_held)
        offered = offer(asked, opened, now, free=tokens is not None, keyed=keyed)
        if offered.given and tokens:
            _give(db, opened, offered.given, tokens, now)
            handed += offered.handings(tokens, known.record.next_position, known.device_id)
        if offered.late:
            due = True
            _withdraw(db, session, offered.late, now)
    return handed, due


def _tokens_to_give(
    db: Db, known: SessionRow, opened: Sequence[Ask], now: Ms, is_held: Callable[[str], bool]
) -> Tokens | None:
    """What the request is to be sent with, when none of ours is due or on its way."""
    if known.state != LIVE or known.restoration is not None or known.marks != opened[-1].marks:
        return None
    tokens = known.record.tokens(known.chat_id)
    if tokens is None or is_held(tokens.chat_id) or has_pushes(db, known.id, known.chat_id, known.device_id):
        return None
    marked, leased = db.execute(_OTHERS, (now, known.id)).fetchone()
    is_known = any(each.given_at is not None for each in opened)
    if marked or is_taken(db, known.id, now) or (leased is not None and not (leased == LENT and is_known)):
        return None
    return tokens


_OTHERS = f"""SELECT {WILL_BE_MARKED},
    (SELECT claim FROM lease WHERE lease.session=session.id AND lease.until>?) FROM session WHERE id=?"""


def _give(db: Db, opened: Sequence[Ask], given: Sequence[Ask], tokens: Tokens, now: Ms) -> None:
    new = [each for each in given if each.given_at is None]
    db.executemany(
        "UPDATE ask SET given_at=coalesce(given_at, ?), key_digest=?, user_id=?, alias=? WHERE session=? AND event=?",
        [
            (now, digest_of(tokens.secure_key), tokens.user_id, tokens.alias, each.session, each.event)
            for each in given
        ],
    )
    session = given[0].session
    lease(db, session, min(each.until for each in opened))
    _count(db, "asked", new)


def withdraw(db: Db, consumer: str, events: Sequence[StoredEvent], now: Ms) -> bool:
    """`Store.withdraw`."""
    due = False
    for session, told in by_session(events).items():
        asked = mine(_opened(db, session), consumer, told)
        if asked:
            due = True
            _withdraw(db, session, asked, now)
    return due


def _withdraw(db: Db, session: int, asks: Sequence[Ask], now: Ms) -> None:
    _close(db, asks, WITHDRAWN)
    lease_what_is_left(db, session, now)
    db.execute("UPDATE session SET due_at=min(due_at, ?), marks=marks+1 WHERE id=?", (now, session))


def lease_what_is_left(db: Db, session: int, now: Ms) -> list[Ask]:
    """The lease of the asks that are still open, which are returned; a take's own stays."""
    left = _opened(db, session)
    if is_taken(db, session, now):
        return left
    if any(each.given_at is not None for each in left):
        until = min(each.until for each in left)
        db.execute("UPDATE lease SET until=? WHERE session=? AND claim=?", (until, session, LENT))
    else:
        give_back(db, session)
    return left


def _close(db: Db, asks: Iterable[Ask], outcome: int) -> None:
    db.executemany(
        "UPDATE ask SET outcome=? WHERE session=? AND event=?",
        [(outcome, each.session, each.event) for each in asks],
    )


def _count(db: Db, column: str, asks: Sequence[Ask]) -> None:
    db.executemany(
        f"UPDATE consumer SET {column}={column}+1 WHERE name=?", [(each.consumer,) for each in asks]
    )


# -- how it ends -----------------------------------------------------------------------------------


def acknowledge(
    db: Db, chat_id: str, event: int, now: Ms, spread_ms: float, *, put_back: bool = False
) -> bool:
    """`Store.acknowledge`. `put_back`: by a registration that ends the session's take, too."""
    found = db.execute("SELECT id, marks, restoration FROM session WHERE chat_id=?", (chat_id,)).fetchone()
    if found is None:
        return False
    session, marks, restoration = found
    named = next(iter(_asks(db, "session=? AND event=?", session, event)), None)
    if named is None or named.given_at is None or named.outcome not in (OPEN, ACKNOWLEDGED):
        return False
    if named.outcome == ACKNOWLEDGED:
        return True
    opened = _opened(db, session)
    covered = [each for each in opened if each.event <= event]
    _close(db, covered, ACKNOWLEDGED)
    _count(db, "acknowledged", [each for each in covered if each.given_at is not None])
    left = lease_what_is_left(db, session, now)
    if marks != opened[-1].marks or restoration is not None:
        return True  # it is due for something else as well
    if left:
        db.execute("UPDATE session SET due_at=? WHERE id=?", (min(each.until for each in left), session))
    elif put_back or not is_taken(db, session, now):
        due_at = now + keepalive_ms(spread_ms, None, now)
        db.execute(
            "UPDATE session SET due_at=?, reason=?, attempts=0 WHERE id=?",
            (due_at, Reason.KEEPALIVE, session),
        )
    return True


def handed(db: Db, session: int, event: int) -> Handed | None:
    """What the consumer had to send the Refresh with that this event asked for; nothing when it asked for none."""
    found = db.execute(
        "SELECT given_at, key_digest, user_id, alias FROM ask WHERE session=? AND event=? AND given_at IS NOT NULL",
        (session, event),
    ).fetchone()
    return None if found is None else Handed(*found)


def is_given(db: Db, session: int, event: int) -> bool:
    """Whether this event asks for a Refresh of the session, and its consumer knows."""
    found = db.execute(
        f"SELECT 1 FROM ask WHERE session=? AND event=? AND outcome={OPEN} AND given_at IS NOT NULL",
        (session, event),
    ).fetchone()
    return found is not None


def stay_due_for(db: Db, session: int, marks: int) -> None:
    """Let a take go on from an ask: what the take marks is no other reason to be due. `marks`: those before it."""
    db.execute(
        "UPDATE ask SET marks=(SELECT marks FROM session WHERE session.id=ask.session)"
        f" WHERE session=? AND outcome={OPEN} AND marks=?",
        (session, marks),
    )


def close(db: Db, sessions: Collection[int], now: Ms) -> None:
    """End what was asked for these sessions: they are pinged."""
    if not sessions or not any_open(db):
        return
    opened = _asks(
        db, f"outcome={OPEN} AND session IN (SELECT value FROM json_each(?))", as_json(sorted(sessions))
    )
    given = [each for each in opened if each.given_at is not None]
    _close(db, given, RAN_OUT)
    _close(db, [each for each in opened if each.given_at is None], WITHDRAWN)
    _count(db, "ran_out", given)


def any_open(db: Db) -> bool:
    """Whether anybody is asked for anything."""
    return bool(db.execute(f"SELECT EXISTS (SELECT 1 FROM ask WHERE outcome={OPEN})").fetchone()[0])


_UNTOLD = f"outcome={RAN_OUT} AND told=0"


def any_unacknowledged(db: Db) -> bool:
    """Whether `unacknowledged` would give any."""
    return bool(db.execute(f"SELECT EXISTS (SELECT 1 FROM ask WHERE {_UNTOLD})").fetchone()[0])


def unacknowledged(db: Db) -> list[Unacknowledged]:
    """`Store.unacknowledged`."""
    rows = db.execute(
        "SELECT chat_id, session.alias, consumer FROM ask JOIN session ON session.id=ask.session"
        f" WHERE {_UNTOLD} ORDER BY event"
    ).fetchall()
    db.execute(f"UPDATE ask SET told=1 WHERE {_UNTOLD}")
    return [Unacknowledged(*row) for row in rows]


def next_end(db: Db, now: Ms) -> Ms | None:
    """When the next consumer's time is over: what became due meanwhile can be claimed then."""
    found: Ms | None = db.execute(
        f"SELECT min(until) FROM ask WHERE outcome={OPEN} AND until>?", (now,)
    ).fetchone()[0]
    return found


def cut(db: Db, now: Ms) -> None:
    """End asks that last longer than any can: they were made before the clock was set back."""
    db.execute(f"UPDATE ask SET until=? WHERE outcome={OPEN} AND until>?", (now, now + LONGEST_TAKE_MS))
