"""Sessions as rows of the table: what the token rules need of one, read and written.

A secure key is sealed where it is written and opened where it is read, by `db.sealing`; statements only
compare sealed ones with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from asyncchatd.model import (
    EndCause,
    Ms,
    Reason,
    Session,
    TokenRecord,
)
from asyncchatd.stores.keys import opened
from asyncchatd.stores.rules import SPACING_MS
from asyncchatd.stores.sql.rows import AHEAD_MS, ENDED, RECORD, STATES, record_columns
from asyncchatd.stores.sqlite.database import Db

UPDATE_WHOLE = "UPDATE OR ROLLBACK session"
"""Begins an update of many sessions. A statement that may have to be undone by itself copies each page before it
changes it, into a temporary file from the sixteenth on. This one need not: what fails in a transaction ends it, and
the writer tries its members one by one. Only without functions is it so, which SQLite takes to be able to fail; hence
`least` and `greatest`.
"""


def least(one: str, other: str) -> str:
    """The lesser of two numbers (expressions of SQL that are never NULL)."""
    return f"iif({other} < {one}, {other}, {one})"


def greatest(one: str, other: str) -> str:
    """The greater of two numbers (expressions of SQL that are never NULL)."""
    return f"iif({other} > {one}, {other}, {one})"


def spaced(at: str) -> str:
    """When a session is due for a push that came at this time (an expression of SQL). Never more than
    `SPACING_MS` later: the clock may have been set back."""
    return greatest(at, least(f"session.pinged_until - {AHEAD_MS}", f"{at} + {SPACING_MS}"))


def accounted(at: str) -> str:
    """`pinged_until` after a ping that was settled at this time."""
    return f"{least(greatest('session.pinged_until', at), f'{at} + {AHEAD_MS}')} + {SPACING_MS}"


@dataclass(slots=True)
class SessionRow:
    """What the token rules and the marks need of a session."""

    id: int
    chat_id: str | None
    device_id: str | None
    state: int
    record: TokenRecord
    marks: int
    claim: int | None
    restoration: int | None
    numbered_at: Ms
    """When its events were last counted anew."""


_OF_ROW = ("id", "chat_id", "device_id", "state", "marks", "restoration", "numbered_at")
_ROW = f"""SELECT {", ".join((*_OF_ROW, *RECORD))},
    (SELECT claim FROM lease WHERE lease.session=session.id) FROM session """
_SET_RECORD = f"UPDATE session SET {', '.join(f'{column}=?' for column in RECORD)} WHERE id=?"


def find(db: Db, where: str, *parameters: object) -> list[SessionRow]:
    """The sessions that a condition of SQL, from its `WHERE` on, selects."""
    return [_row(db, row) for row in db.execute(_ROW + where, parameters)]


def _row(db: Db, row: Sequence[Any]) -> SessionRow:
    """From the columns of `_ROW`."""
    of_row = dict(zip(_OF_ROW, row, strict=False))
    record = dict(zip(RECORD, row[len(_OF_ROW) : -1], strict=True))
    record["secure_key"] = opened(db.sealing, record["secure_key"], of_row["chat_id"], of_row["device_id"])
    record["old_keys"] = tuple(record["old_keys"].split())
    return SessionRow(**of_row, record=TokenRecord(**record), claim=row[-1])


def create(
    db: Db, record: TokenRecord, *, chat_id: str | None, device_id: str | None, at: Ms, **columns: object
) -> int:
    """Write a new session that became known `at` this time; `columns` are the further ones, by their names. Returns the
    number of its row."""
    values = {
        "chat_id": chat_id,
        "device_id": device_id,
        "registered_at": at,
        "active_at": at,
        **record_columns(db.sealing, record, chat_id, device_id),
        **columns,
    }
    cursor = db.execute(
        f"INSERT INTO session ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",
        tuple(values.values()),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def write_record(db: Db, known: SessionRow, chat_id: str | None, record: TokenRecord) -> None:
    """Write what the token rules know of a session. `chat_id`: known now, if it was not before."""
    values = record_columns(db.sealing, record, chat_id, known.device_id)
    db.execute(_SET_RECORD, (*values.values(), known.id))


def end(db: Db, row: int, cause: EndCause, now: Ms) -> None:
    """End a session: its story is kept, its secrets are forgotten."""
    db.execute(
        "UPDATE session SET state=?, ended_at=?, active_at=?, end_cause=?, secure_key=NULL, old_keys='',"
        " restoration=NULL WHERE id=?",
        (ENDED, now, now, cause, row),
    )
    forget_holders(db, row)


def forget_holders(db: Db, row: int) -> None:
    """Nobody has this session any more, neither a worker nor who took it."""
    for table in ("lease", "take", "ask"):
        db.execute(f"DELETE FROM {table} WHERE session=?", (row,))


def as_json(rows: object) -> str:
    """A table of rows as JSON text, for statements that take it as one parameter."""
    return orjson.dumps(rows).decode()


def selected(db: Db, query: str, *parameters: object) -> list[list[Any]]:
    """The rows that `query` gives as one value: with pushes coming in, fetching them one by one would take
    longer than marking them (see `rows.py`)."""
    rows: list[list[Any]] = orjson.loads(db.execute(query, parameters).fetchone()[0])
    return rows


def probe(db: Db) -> None:
    """Write something that changes nothing, to see whether writing works."""
    db.execute("UPDATE sealing SET remains=remains")


# -- whole sessions, as the contract gives them ----------------------------------------------------

SESSION_COLUMNS = {name: name for name in Session.__struct_fields__} | {
    "leased_until": "coalesce((SELECT until FROM lease WHERE lease.session=session.id), 0)"
}

SESSION = ", ".join(SESSION_COLUMNS.values())


def sessions_of(db: Db, query: str, *parameters: object) -> list[Session]:
    """The sessions that a query of the columns of `SESSION` finds."""
    return [session_of(db, row) for row in db.execute(query, parameters).fetchall()]


def session_of(db: Db, row: Sequence[Any]) -> Session:
    """A session from the columns of `SESSION`."""
    values = dict(zip(SESSION_COLUMNS, row, strict=True))
    values["secure_key"] = opened(db.sealing, values["secure_key"], values["chat_id"], values["device_id"])
    values["state"] = STATES[values["state"]]
    values["reason"] = Reason(values["reason"])
    values["of_gateway"] = bool(values["of_gateway"])
    values["end_cause"] = None if values["end_cause"] is None else EndCause(values["end_cause"])
    return Session(**values)
