"""Sessions as rows of the tables: what the token rules need of one, read and written.

A secure key is sealed where it is written and opened where it is read, by `tx.sealing`; statements only compare sealed
ones with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncchatd.model import (
    EndCause,
    Ms,
    Reason,
    Session,
    TokenRecord,
)
from asyncchatd.stores.keys import opened
from asyncchatd.stores.postgres.wire import Row, Tx
from asyncchatd.stores.rules import SPACING_MS
from asyncchatd.stores.sql.rows import AHEAD_MS, ENDED, LIVE, RECORD, STATES, record_columns

NOBODY = -1
"""The claim of a session that nobody has."""


LAX = "set_config('synchronous_commit', 'off', true)"
"""In the list of what a statement selects: its commit does not wait for the disk."""


def spaced(at: str) -> str:
    """When a session is due for a push that came at this time (an expression of SQL). Never more than
    `SPACING_MS` later: the clock may have been set back."""
    return f"greatest({at}, least(work.pinged_until - {AHEAD_MS}, {at} + {SPACING_MS}))"


def accounted(at: str) -> str:
    """`pinged_until` after a ping that was settled at this time."""
    return f"least(greatest(work.pinged_until, {at}), {at} + {AHEAD_MS}) + {SPACING_MS}"


@dataclass(slots=True)
class SessionRow:
    """What the token rules and the marks need of a session."""

    id: int
    chat_id: str | None
    device_id: str | None
    state: int
    marks: int
    restoration: int | None
    numbered_at: Ms
    """When its events were last counted anew."""
    claim: int | None
    """Who holds it, or held it last and did not give it back."""
    record: TokenRecord


_OF_ROW = ("id", "chat_id", "device_id", "state", "marks", "restoration", "numbered_at", "claim")
_ROW = f"""SELECT {", ".join((*_OF_ROW, *(f"session.{column}" for column in RECORD)))}
    FROM session JOIN work ON work.session=session.id"""
_LOCKED = "FOR NO KEY UPDATE OF session, work"


async def find(tx: Tx, where: str, *values: object) -> list[SessionRow]:
    """The sessions that a condition of SQL, from its `WHERE` on, selects; both rows of each are locked until the
    transaction ends. Several are to be selected `ORDER BY session.id`."""
    return [_row(tx, row) for row in await tx.rows(f"{_ROW} {where} {_LOCKED}", *values)]


async def lock(tx: Tx, sessions: str, *values: object) -> None:
    """Lock both rows of all sessions that a query gives, in the one order that all keep."""
    await tx.run(
        "SELECT 1 FROM session JOIN work ON work.session=session.id"
        f" WHERE session.id IN ({sessions}) ORDER BY session.id {_LOCKED}",
        *values,
    )


def _row(tx: Tx, row: Row) -> SessionRow:
    """From the columns of `_ROW`."""
    values = dict(zip((*_OF_ROW, *RECORD), row, strict=True))
    of_row = {name: values[name] for name in _OF_ROW}
    of_row["claim"] = None if of_row["claim"] == NOBODY else of_row["claim"]
    record = {name: values[name] for name in RECORD}
    record["secure_key"] = opened(tx.sealing, record["secure_key"], values["chat_id"], values["device_id"])
    record["old_keys"] = tuple(record["old_keys"].split())
    return SessionRow(**of_row, record=TokenRecord(**record))


async def create(
    tx: Tx,
    record: TokenRecord,
    *,
    chat_id: str | None,
    device_id: str | None,
    at: Ms,
    state: int,
    reason: Reason,
    due_at: float,
    **columns: object,
) -> int:
    """Write a new session that became known `at` this time; `columns` are the further ones of `session`, by their
    names. Returns the number of its row."""
    values = {
        "chat_id": chat_id,
        "device_id": device_id,
        "state": state,
        "registered_at": at,
        "active_at": at,
        **record_columns(tx.sealing, record, chat_id, device_id),
        **columns,
    }
    places = ", ".join(f"${number}" for number in range(1, len(values) + 1))
    row = int(
        await tx.value(
            f"INSERT INTO session ({', '.join(values)}) VALUES ({places}) RETURNING id", *values.values()
        )
    )
    await tx.run(
        "INSERT INTO work (session, live, reason, due_at) VALUES ($1, $2, $3, $4)",
        *(row, state == LIVE, reason, float(due_at)),
    )
    return row


_SET_RECORD = f"""UPDATE session SET {", ".join(f"{column}=${place}" for place, column in enumerate(RECORD, 2))},
    version=version+1 WHERE id=$1"""


async def write_record(tx: Tx, known: SessionRow, chat_id: str | None, record: TokenRecord) -> None:
    """Write what the token rules know of a session. `chat_id`: known now, if it was not before."""
    values = record_columns(tx.sealing, record, chat_id, known.device_id)
    await tx.run(_SET_RECORD, known.id, *values.values())


async def end(tx: Tx, row: int, cause: EndCause, now: Ms) -> None:
    """End a session: its story is kept, its secrets are forgotten."""
    await tx.run(
        "UPDATE session SET state=$2, ended_at=$3, active_at=$3, end_cause=$4, secure_key=NULL, old_keys='',"
        " version=version+1 WHERE id=$1",
        *(row, ENDED, now, cause),
    )
    await tx.run("UPDATE work SET live=false, restoration=NULL WHERE session=$1", row)
    await forget_holders(tx, [row])


async def forget_holders(tx: Tx, rows: Sequence[int]) -> None:
    """Nobody has these sessions any more, neither a worker nor who took one."""
    await tx.run(f"UPDATE work SET claim={NOBODY}, held_until=0 WHERE session=ANY($1::bigint[])", rows)
    for table in ("take", "ask"):
        await tx.run(f"DELETE FROM {table} WHERE session=ANY($1::bigint[])", rows)


# -- whole sessions, as the contract gives them ----------------------------------------------------

SESSION_COLUMNS: Mapping[str, str] = {name: name for name in Session.__struct_fields__} | {
    "leased_until": f"CASE WHEN claim={NOBODY} THEN 0 ELSE held_until END"
}

SESSION = f"SELECT {', '.join(SESSION_COLUMNS.values())} FROM session JOIN work ON work.session=session.id"


async def sessions_of(tx: Tx, where: str, *values: object) -> list[Session]:
    """The sessions that a condition of SQL, from its `WHERE` on, selects."""
    return [_session(tx, row) for row in await tx.rows(f"{SESSION} {where}", *values)]


def _session(tx: Tx, row: Row) -> Session:
    """From the columns of `SESSION`."""
    values: dict[str, Any] = dict(zip(SESSION_COLUMNS, row, strict=True))
    values["secure_key"] = opened(tx.sealing, values["secure_key"], values["chat_id"], values["device_id"])
    values["state"] = STATES[values["state"]]
    values["reason"] = Reason(values["reason"])
    values["end_cause"] = None if values["end_cause"] is None else EndCause(values["end_cause"])
    return Session(**values)
