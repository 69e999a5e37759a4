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
from asyncchatd.stores.postgres.transactions import asks
from asyncchatd.stores.postgres.transactions.lent import HAS_PUSHES, WILL_BE_MARKED, give_back, lease
from asyncchatd.stores.postgres.transactions.session_rows import NOBODY, SessionRow, find
from asyncchatd.stores.postgres.wire import Tx
from asyncchatd.stores.rules import LONGEST_TAKE_MS
from asyncchatd.stores.sql.rows import ENDED, LENT, LIVE

OPEN = "NOT over AND NOT told"
"""It lasts, or ran out and was not told. In the words of the index `take_open`."""

TOO_LONG = "SELECT take.session FROM take WHERE NOT over AND take.until>{}"
"""The sessions of takes that last longer than until then."""


class _Row(NamedTuple):
    """What a take needs of its session, and its last take."""

    id: int
    service: str | None
    device_id: str | None
    state: int
    reason: int
    restoration: int | None
    pinged_until: int
    held_until: Ms
    claim: int
    will_be_marked: bool
    has_pushes: bool
    take_until: Ms | None
    over: bool | None
    pinged_before: int | None

    def is_held(self, now: Ms) -> bool:
        """Whether a worker has it, or the application."""
        return self.claim != NOBODY and self.held_until > now

    def is_taken(self, now: Ms) -> bool:
        """Whether its take lasts."""
        return self.take_until is not None and not self.over and self.take_until > now


_FIND = f"""SELECT id, service, device_id, state, reason, work.restoration, work.pinged_until, held_until, claim,
    {WILL_BE_MARKED}, {HAS_PUSHES}, take.until, over, take.pinged_until
    FROM session JOIN work ON work.session=session.id LEFT JOIN take ON take.session=session.id WHERE chat_id=$1"""


async def take(
    tx: Tx, chat_id: str, until: Ms, now: Ms, notified: int | None = None
) -> tuple[Take, str | None] | NotTaken:
    """`Store.take`, with the session's device id."""
    locked = await find(tx, "WHERE chat_id=$1", chat_id)
    why = await obstacle(tx, chat_id, now, notified)
    if why is not None:
        return why
    row = await _find(tx, chat_id)
    tokens = locked[0].record.tokens(chat_id) if locked else None
    if row is None or tokens is None:
        return NotTaken.INCOMPLETE  # its key does not open
    known = locked[0]
    take_id = secrets.token_hex(12)
    await tx.run(
        "INSERT INTO take (session, take_id, at, until, key_digest, user_id, alias, pinged_until)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (session) DO UPDATE SET take_id=excluded.take_id,"
        " at=excluded.at, until=excluded.until, key_digest=excluded.key_digest, user_id=excluded.user_id,"
        " alias=excluded.alias, pinged_until=excluded.pinged_until, over=false, told=false",
        *(row.id, take_id, now, until, key_digest(tokens.secure_key)),
        *(tokens.user_id, tokens.alias, row.pinged_until),
    )
    await lease(tx, row.id, until)
    await _make_due(tx, row.id, until)
    if notified is not None:
        await asks.stay_due_for(tx, row.id, known.marks)
    return Take(take_id, until, tokens, row.service, known.record.next_position), row.device_id


async def _find(tx: Tx, chat_id: str) -> _Row | None:
    found = await tx.row(_FIND, chat_id)
    return None if found is None else _Row(*found)


async def obstacle(tx: Tx, chat_id: str, now: Ms, notified: int | None = None) -> NotTaken | None:
    """Why the session cannot be taken now, if it cannot; for good where its rows are locked. `notified`: the event that
    asked for a Refresh, and so keeps it from everybody else."""
    row = await _find(tx, chat_id)
    if row is None:
        return NotTaken.UNKNOWN
    if row.state != LIVE:
        return NotTaken.ENDED if row.state == ENDED else NotTaken.INCOMPLETE
    if notified is not None and not await asks.is_given(tx, row.id, notified):
        return NotTaken.NOT_ASKED
    if row.is_held(now) and row.claim != LENT:
        return NotTaken.IN_FLIGHT
    if row.is_held(now) and (notified is None or row.is_taken(now)):
        return NotTaken.TAKEN
    if row.has_pushes:
        return NotTaken.PUSHES
    if row.restoration is not None or row.reason == Reason.RESTORE or row.will_be_marked:
        return NotTaken.RESTORING
    if row.take_until is not None and not row.over and row.pinged_until == row.pinged_before:
        return NotTaken.RAN_OUT
    return None


async def release(tx: Tx, chat_id: str, take_id: str, now: Ms, *, pinged: bool = True) -> bool:
    """`Store.release`; also the end of a take by a registration, which is `pinged` unless it acknowledged what there
    was to ping for."""
    locked = await find(tx, "WHERE chat_id=$1", chat_id)
    if not locked:
        return False
    row = locked[0].id
    found = await tx.row("SELECT until, over FROM take WHERE session=$1 AND take_id=$2", row, take_id)
    if found is None:
        return False
    until, over = found
    if over:
        return True
    if until <= now:
        return False
    await tx.run("UPDATE take SET over=true WHERE session=$1", row)
    if pinged:
        await give_back(tx, row)
        await _make_due(tx, row, now)
    else:
        await asks.lease_what_is_left(tx, row, now)
    return True


async def _make_due(tx: Tx, row: int, at: Ms) -> None:
    """What the custom-chat-app did meanwhile, a ping shows."""
    await tx.run(
        "UPDATE work SET due_at=least(due_at, $2), reason=least(reason, $3), marks=marks+1 WHERE session=$1",
        *(row, float(at), Reason.REQUEST),
    )


async def forget(tx: Tx, take_id: str) -> None:
    """Undo a take that the application was not told of."""
    for known in await find(tx, "WHERE session.id=(SELECT take.session FROM take WHERE take_id=$1)", take_id):
        if await tx.run("DELETE FROM take WHERE session=$1 AND take_id=$2", known.id, take_id):
            await give_back(tx, known.id)


async def handed(tx: Tx, found: Sequence[SessionRow], take_id: str | None) -> Handed | None:
    """What was handed out with a session's last take, if it is named so."""
    if not found or take_id is None:
        return None
    row = await tx.row(
        "SELECT at, key_digest, user_id, alias FROM take WHERE session=$1 AND take_id=$2",
        *(found[0].id, take_id),
    )
    return None if row is None else Handed(*row)


async def any_ran_out(tx: Tx, now: Ms) -> bool:
    """Whether `ran_out` would give any."""
    return bool(await tx.value(f"SELECT EXISTS (SELECT 1 FROM take WHERE {OPEN} AND until<=$1)", now))


async def ran_out(tx: Tx, now: Ms) -> list[RanOut]:
    """`Store.ran_out`. What somebody has in hand comes the next time."""
    rows = await tx.rows(
        f"""WITH ended AS MATERIALIZED (SELECT session FROM take WHERE {OPEN} AND until<=$1
            ORDER BY session FOR NO KEY UPDATE SKIP LOCKED),
        told AS (UPDATE take SET told=true FROM ended WHERE take.session=ended.session
            RETURNING take.session, take.until)
        SELECT chat_id, session.alias FROM told JOIN session ON session.id=told.session ORDER BY told.until""",
        now,
    )
    return [RanOut(*row) for row in rows]


async def next_end(tx: Tx, now: Ms) -> Ms | None:
    """When the next take runs out: what became due meanwhile can be claimed then."""
    found: Ms | None = await tx.value(f"SELECT min(until) FROM take WHERE {OPEN} AND until>$1", now)
    return found


async def cut(tx: Tx, now: Ms) -> None:
    """End takes that last longer than any can: they were given before the clock was set back. Their sessions' rows are
    locked."""
    latest = now + LONGEST_TAKE_MS
    await tx.run(
        f"UPDATE work SET held_until=$1 WHERE claim={LENT} AND held_until>$2"
        f" AND session IN ({TOO_LONG.format('$2')} UNION {asks.TOO_LONG.format('$2')})",
        *(now, latest),
    )
    await tx.run("UPDATE take SET until=$1 WHERE NOT over AND until>$2", now, latest)
    await asks.cut(tx, now)
