"""Transactions about takes: a session is left to the custom-chat-app, which sends a request of its own.

While a take lasts its session has a lease (`lent.py`). It is made due for the moment at which the take runs out, at
once: nobody has to notice that moment, and a process that dies before it loses nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import NamedTuple

from asyncchatd.model import Handed, Ms, Reason, key_digest
from asyncchatd.stores.answers import NotTaken, RanOut, Take
from asyncchatd.stores.rules import LONGEST_TAKE_MS
from asyncchatd.stores.sql.rows import ENDED, LENT, LIVE
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.transactions import asks
from asyncchatd.stores.sqlite.transactions.lent import WILL_BE_MARKED, give_back, has_pushes, lease
from asyncchatd.stores.sqlite.transactions.session_rows import SessionRow, find

OPEN = "over=0 AND told=0"
"""It lasts, or ran out and was not told. In the words of the index `take_open`."""


class _Row(NamedTuple):
    """What a take needs of its session, and its last take."""

    id: int
    chat_id: str
    service: str | None
    device_id: str | None
    state: int
    reason: int
    restoration: int | None
    pinged_until: int
    held_until: Ms
    holder: int | None
    take_until: Ms | None
    over: int | None
    pinged_before: int | None


_FIND = """SELECT id, chat_id, service, device_id, state, reason, restoration, session.pinged_until,
    coalesce(lease.until, 0), lease.claim, take.until, over, take.pinged_until FROM session
    LEFT JOIN lease ON lease.session=session.id LEFT JOIN take ON take.session=session.id WHERE chat_id=?"""


def take(
    db: Db, chat_id: str, until: Ms, now: Ms, notified: int | None = None
) -> tuple[Take, str | None] | NotTaken:
    """`Store.take`, with the session's device id."""
    why = obstacle(db, chat_id, now, notified)
    if why is not None:
        return why
    row = _find(db, chat_id)
    [known] = find(db, "WHERE chat_id=?", chat_id)
    tokens = known.record.tokens(chat_id)
    if row is None or tokens is None:
        return NotTaken.INCOMPLETE  # its key does not open
    take_id = secrets.token_hex(12)
    db.execute(
        "INSERT OR REPLACE INTO take (session, take_id, at, until, key_digest, user_id, alias, pinged_until)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(row.id, take_id, now, until, key_digest(tokens.secure_key)),
            *(tokens.user_id, tokens.alias, row.pinged_until),
        ),
    )
    lease(db, row.id, until)
    _make_due(db, row.id, until)
    if notified is not None:
        asks.stay_due_for(db, row.id, known.marks)
    return Take(take_id, until, tokens, row.service, known.record.next_position), row.device_id


def _find(db: Db, chat_id: str) -> _Row | None:
    found = db.execute(_FIND, (chat_id,)).fetchone()
    return None if found is None else _Row(*found)


def obstacle(db: Db, chat_id: str, now: Ms, notified: int | None = None) -> NotTaken | None:
    """Why the session cannot be taken now, if it cannot. `notified`: the event that asked for a Refresh, and so keeps
    it from everybody else."""
    row = _find(db, chat_id)
    if row is None:
        return NotTaken.UNKNOWN
    if row.state != LIVE:
        return NotTaken.ENDED if row.state == ENDED else NotTaken.INCOMPLETE
    if notified is not None and not asks.is_given(db, row.id, notified):
        return NotTaken.NOT_ASKED
    if row.held_until > now and row.holder != LENT:
        return NotTaken.IN_FLIGHT
    if row.held_until > now and (notified is None or _lasts(row, now)):
        return NotTaken.TAKEN
    if has_pushes(db, row.id, row.chat_id, row.device_id):
        return NotTaken.PUSHES
    if row.restoration is not None or row.reason == Reason.RESTORE or _will_be_marked(db, row.id):
        return NotTaken.RESTORING
    if row.take_until is not None and not row.over and row.pinged_until == row.pinged_before:
        return NotTaken.RAN_OUT
    return None


def _will_be_marked(db: Db, row: int) -> bool:
    """Whether its Chat Server is lost, and the marking has not come to it yet."""
    [[marked]] = db.execute(f"SELECT {WILL_BE_MARKED} FROM session WHERE id=?", (row,)).fetchall()
    return bool(marked)


def _lasts(row: _Row, now: Ms) -> bool:
    return row.take_until is not None and not row.over and row.take_until > now


def release(db: Db, chat_id: str, take_id: str, now: Ms, *, pinged: bool = True) -> bool:
    """`Store.release`; also the end of a take by a registration, which is `pinged` unless it acknowledged what there
    was to ping for."""
    found = db.execute(
        "SELECT take.session, take.until, over FROM take JOIN session ON session.id=take.session"
        " WHERE chat_id=? AND take_id=?",
        (chat_id, take_id),
    ).fetchone()
    if found is None:
        return False
    row, until, over = found
    if over:
        return True
    if until <= now:
        return False
    db.execute("UPDATE take SET over=1 WHERE session=?", (row,))
    if pinged:
        give_back(db, row)
        _make_due(db, row, now)
    else:
        asks.lease_what_is_left(db, row, now)
    return True


def _make_due(db: Db, row: int, at: Ms) -> None:
    """What the custom-chat-app did meanwhile, a ping shows."""
    db.execute(
        "UPDATE session SET due_at=min(due_at,?), reason=min(reason,?), marks=marks+1 WHERE id=?",
        (at, Reason.REQUEST, row),
    )


def forget(db: Db, take_id: str) -> None:
    """Undo a take that the application was not told of."""
    mine = "session IN (SELECT session FROM take WHERE take_id=?)"
    db.execute(f"DELETE FROM lease WHERE claim=? AND {mine}", (LENT, take_id))
    db.execute("DELETE FROM take WHERE take_id=?", (take_id,))


def handed(db: Db, found: Sequence[SessionRow], take_id: str | None) -> Handed | None:
    """What was handed out with a session's last take, if it is named so."""
    if not found or take_id is None:
        return None
    row = db.execute(
        "SELECT at, key_digest, user_id, alias FROM take WHERE session=? AND take_id=?",
        (found[0].id, take_id),
    ).fetchone()
    return None if row is None else Handed(*row)


def any_ran_out(db: Db, now: Ms) -> bool:
    """Whether `ran_out` would give any."""
    return bool(
        db.execute(f"SELECT EXISTS (SELECT 1 FROM take WHERE {OPEN} AND until<=?)", (now,)).fetchone()[0]
    )


def ran_out(db: Db, now: Ms) -> list[RanOut]:
    """`Store.ran_out`."""
    rows = db.execute(
        "SELECT chat_id, session.alias FROM take JOIN session ON session.id=take.session"
        f" WHERE {OPEN} AND until<=? ORDER BY until",
        (now,),
    ).fetchall()
    db.execute(f"UPDATE take SET told=1 WHERE {OPEN} AND until<=?", (now,))
    return [RanOut(*row) for row in rows]


def next_end(db: Db, now: Ms) -> Ms | None:
    """When the next take runs out: what became due meanwhile can be claimed then."""
    found: Ms | None = db.execute(f"SELECT min(until) FROM take WHERE {OPEN} AND until>?", (now,)).fetchone()[
        0
    ]
    return found


def cut(db: Db, now: Ms) -> None:
    """End takes that last longer than any can: they were given before the clock was set back."""
    latest = now + LONGEST_TAKE_MS
    db.execute("UPDATE lease SET until=? WHERE claim=? AND until>?", (now, LENT, latest))
    db.execute("UPDATE take SET until=? WHERE until>?", (now, latest))
    asks.cut(db, now)
