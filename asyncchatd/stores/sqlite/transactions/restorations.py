"""Transactions about Chat Servers and restorations: functions of a connection, run inside a transaction that the writer
opens and commits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson

from asyncchatd.model import (
    Cause,
    ChatServer,
    EventKind,
    Loss,
    Ms,
    Process,
    Reason,
    Restoration,
    ServerState,
    replace,
)
from asyncchatd.stores.rules import ANNOUNCED_LINGER_MS
from asyncchatd.stores.sql.rows import LIVE, RANK_MS, RESTORATION, Lost
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.transactions.events import happened
from asyncchatd.stores.sqlite.transactions.session_rows import UPDATE_WHOLE, as_json, least, selected


def due_if_lost(db: Db, row: int, alias: str | None, since: Ms | None, now: Ms) -> bool:
    """A session that has just come to a Chat Server known to be gone must not wait for its
    keepalive: it missed the marking of that server's sessions."""
    lost = lost_server(db, alias, since)
    if lost is None:
        return False
    db.execute(
        "UPDATE session SET due_at=CASE WHEN reason>? THEN ? ELSE min(due_at,?) END, reason=min(reason,?),"
        " marks=marks+1, attempts=0, refused_since=NULL WHERE id=?",
        (Reason.RESTORE, now, now, Reason.RESTORE, row),
    )
    if lost.open is not None:
        join(db, row, lost.open, now)
    return True


def lost_server(db: Db, alias: str | None, since: Ms | None) -> Lost | None:
    """Whether its Chat Server is known to be gone: since a request was sent to it, or (`None`) now."""
    found = db.execute(
        "SELECT iif(finished_at IS NULL, id, NULL) FROM restoration WHERE alias=? AND cause NOT IN (?, ?)"
        " AND iif(? IS NULL, finished_at IS NULL, started_at>=?) ORDER BY id DESC LIMIT 1",
        (alias, Cause.ANNOUNCED, Cause.OPERATOR, since, since),
    ).fetchone()
    if found is not None:
        return Lost(found[0])
    down = db.execute(
        "SELECT 1 FROM server WHERE app_dbid=? AND state=?", (alias, ServerState.DOWN)
    ).fetchone()
    return None if down is None else Lost(None)


def join(db: Db, row: int, restoration: int, now: Ms) -> None:
    """Count a session in an open restoration; it leaves the one it was in."""
    before = db.execute("SELECT restoration FROM session WHERE id=?", (row,)).fetchone()[0]
    if before == restoration:
        return
    if before is not None:
        db.execute("UPDATE restoration SET moved=moved+1 WHERE id=?", (before,))
        finish(db, before, now)
    db.execute("UPDATE restoration SET sessions=sessions+1, finished_at=NULL WHERE id=?", (restoration,))
    db.execute("UPDATE session SET restoration=? WHERE id=?", (restoration, row))


def join_announced(db: Db, row: int, alias: str | None, now: Ms) -> None:
    """A shutdown notice belongs to the restoration its Chat Server's other notices began; one that
    waits in another restoration already stays there."""
    if db.execute("SELECT restoration FROM session WHERE id=?", (row,)).fetchone()[0] is not None:
        return
    found = db.execute(
        "SELECT id FROM restoration WHERE alias=? AND cause=? AND marking=1 ORDER BY id DESC LIMIT 1",
        (alias, Cause.ANNOUNCED),
    ).fetchone()
    if found is None:
        known = db.execute("SELECT name FROM server WHERE app_dbid=?", (alias,)).fetchone()
        restoration = begin_restoration(db, alias or "", known and known[0], Cause.ANNOUNCED, now)
    else:
        restoration = found[0]
        db.execute("UPDATE restoration SET marked_at=? WHERE id=?", (now, restoration))
    join(db, row, restoration, now)


def credit(db: Db, credits: Counter[tuple[int | None, str]], now: Ms) -> set[int]:
    """Add to the counts of restorations; those that are finished by it."""
    touched: set[int] = set()
    for (restoration, column), count in credits.items():
        if restoration is not None:
            db.execute(f"UPDATE restoration SET {column}={column}+? WHERE id=?", (count, restoration))
            touched.add(restoration)
    return {restoration for restoration in touched if finish(db, restoration, now)}


def finish(db: Db, restoration: int, now: Ms) -> bool:
    """Note that no session of a restoration waits any more. One that a further shutdown notice brings waits again:
    `join`."""
    return (
        db.execute(
            "UPDATE restoration SET finished_at=max(started_at, ?) WHERE id=? AND finished_at IS NULL"
            " AND (marking=0 OR cause=? AND sessions>0) AND sessions<=restored+ended+refused+moved",
            (now, restoration, Cause.ANNOUNCED),
        ).rowcount
        > 0
    )


def note(
    db: Db, server: ChatServer, epoch: int, losses: Sequence[Loss], now: Ms
) -> list[tuple[int, Loss]] | None:
    """The restorations begun, each for its loss; `None` when the server was noted by somebody else since `epoch`."""
    found = db.execute("SELECT epoch FROM server WHERE name=?", (server.name,)).fetchone()
    if (0 if found is None else found[0]) != epoch:
        return None
    _save_server(db, replace(server, epoch=epoch + 1))
    return [
        (begin_restoration(db, loss.alias, server.name, loss.cause, now), loss)
        for loss in losses
        if not loss.again or _has_sessions(db, loss.alias)
    ]


def _has_sessions(db: Db, alias: str) -> bool:
    found = db.execute(
        f"SELECT 1 FROM session INDEXED BY session_alias WHERE state={LIVE} AND alias=? LIMIT 1", (alias,)
    ).fetchone()
    return found is not None


def _save_server(db: Db, server: ChatServer) -> None:
    columns = [getattr(server, column) for column in SERVER_COLUMNS]
    others = as_json([{name: getattr(other, name) for name in PROCESS} for other in server.others])
    db.execute(
        f"INSERT OR REPLACE INTO server ({SERVER}) VALUES ({', '.join('?' * (len(columns) + 1))})",
        (*columns, others),
    )


def servers(db: Db) -> list[ChatServer]:
    """`Store.servers`."""
    rows = db.execute(f"SELECT {SERVER} FROM server ORDER BY name").fetchall()
    return [_server(row[:-1], orjson.loads(row[-1])) for row in rows]


def _server(columns: Sequence[Any], others: Sequence[dict[str, Any]]) -> ChatServer:
    values = dict(zip(SERVER_COLUMNS, columns, strict=True))
    values |= {"state": ServerState(values["state"]), "assumed": bool(values["assumed"])}
    return ChatServer(**values, others=tuple(Process(**other) for other in others))


SERVER_COLUMNS = tuple(name for name in ChatServer.__struct_fields__ if name != "others")

SERVER = ", ".join((*SERVER_COLUMNS, "others"))

PROCESS = Process.__struct_fields__


def begin_restoration(db: Db, alias: str, server: str | None, cause: Cause, now: Ms) -> int:
    """Put a restoration on record, for an operator, a loss or a shutdown notice: its id."""
    earlier = () if cause is Cause.ANNOUNCED else _stop_marking(db, alias)
    cursor = db.execute(
        "INSERT INTO restoration (alias, server, cause, started_at, marking, marked_at)"
        " VALUES (:alias, :server, :cause, :now, 1, :now)",
        {"alias": alias, "server": server, "cause": cause, "now": now},
    )
    assert cursor.lastrowid is not None
    for restoration in earlier:
        finish(db, restoration, now)
    return cursor.lastrowid


def _stop_marking(db: Db, alias: str) -> Sequence[int]:
    """A server that is lost again: the new restoration marks all of its sessions, and two that mark
    would take them from each other."""
    marking = db.execute(
        "SELECT id FROM restoration WHERE finished_at IS NULL AND alias=? AND cause<>? AND marking=1",
        (alias, Cause.ANNOUNCED),
    ).fetchall()
    db.executemany("UPDATE restoration SET marking=0 WHERE id=?", marking)
    return [row[0] for row in marking]


def mark(db: Db, restoration: int, limit: int, now: Ms) -> bool:
    """`Store.mark`: whether there are more."""
    found = db.execute(
        "SELECT alias, started_at, cursor_active, cursor_id FROM restoration WHERE id=? AND marking=1",
        (restoration,),
    ).fetchone()
    if found is None:
        return False
    alias, started_at, cursor_active, cursor_id = found
    behind = (1 << 62, 0) if cursor_active is None else (cursor_active, cursor_id)
    chunk = selected(db, _MARKABLE, alias, *behind, limit)
    _mark(db, restoration, [row for row in chunk if row[1] != restoration], now)
    more = len(chunk) == limit
    if chunk:
        cursor_id, _, cursor_active = chunk[-1]
    if not more:
        missed = selected(db, _MISSED, alias, started_at, restoration, started_at, started_at)
        _mark(db, restoration, missed, now)
    db.execute(
        "UPDATE restoration SET marking=?, marked_at=?, cursor_active=?, cursor_id=? WHERE id=?",
        (more, now, cursor_active, cursor_id, restoration),
    )
    if not more:
        finish(db, restoration, now)
    return more


_MARKABLE = f"""SELECT json_group_array(json_array(id, restoration, active_at)) FROM (
    SELECT id, restoration, active_at FROM session INDEXED BY session_alias WHERE state={LIVE} AND alias=?
    AND (active_at, id) < (?, ?) ORDER BY active_at DESC, id DESC LIMIT ?)"""

_MISSED = f"""SELECT json_group_array(json_array(id, restoration)) FROM (
    SELECT id, restoration FROM session INDEXED BY session_alias WHERE state={LIVE} AND alias=?
    AND active_at>=? AND restoration IS NOT ? AND (coalesce(answered_at, 0)<=? OR sent_at<=?)
    ORDER BY active_at DESC, id DESC)"""
"""Sessions that a push or a registration moved ahead of the cursor while portions were marked."""


def _mark(db: Db, restoration: int, fresh: Sequence[Sequence[Any]], now: Ms) -> None:
    """Make sessions due, in this order behind those that the restoration has already. Of each: its row and the
    restoration that it is in."""
    happened(db, EventKind.LOST, [row[0] for row in fresh], now)
    for before, count in Counter(row[1] for row in fresh if row[1] is not None).items():
        db.execute("UPDATE restoration SET moved=moved+? WHERE id=?", (count, before))
        finish(db, before, now)
    first = db.execute(
        "UPDATE restoration SET sessions=sessions+? WHERE id=? RETURNING started_at+(sessions-?)*?",
        (len(fresh), restoration, len(fresh), RANK_MS),
    ).fetchone()[0]
    db.execute(_MAKE_DUE, (first, RANK_MS, restoration, as_json([row[0] for row in fresh])))


_MAKE_DUE = f"""{UPDATE_WHOLE}
    SET due_at=iif(reason>{Reason.RESTORE:d} OR due_at > ?1 + made.key * ?2, ?1 + made.key * ?2, due_at),
    reason={least("reason", f"{Reason.RESTORE:d}")}, marks=marks+1, attempts=0, refused_since=NULL, restoration=?3
    FROM json_each(?4) AS made WHERE session.id=made.value"""


OPEN = "finished_at IS NULL OR marking=1"
"""Sessions wait in it, or may still be added to it. In the words of the index `restoration_open`, which is else
not used."""

_UNTOLD = "finished_at IS NOT NULL AND told=0 AND marking=0"
"""Finished for good: a further shutdown notice would begin another one."""


def restorations(db: Db, limit: int, unfinished: bool) -> list[Restoration]:
    """`Store.restorations`."""
    where = f"WHERE {OPEN}" if unfinished else ""
    rows = db.execute(f"SELECT {RESTORATION} FROM restoration {where} ORDER BY id DESC LIMIT ?", (limit,))
    return [_restoration(row) for row in rows]


def any_untold(db: Db) -> bool:
    """Whether `newly_finished` would give any."""
    return bool(db.execute(f"SELECT EXISTS (SELECT 1 FROM restoration WHERE {_UNTOLD})").fetchone()[0])


def newly_finished(db: Db) -> list[Restoration]:
    """`Store.newly_finished`."""
    rows = db.execute(f"UPDATE restoration SET told=1 WHERE {_UNTOLD} RETURNING {RESTORATION}").fetchall()
    return [_restoration(row) for row in rows]


def finish_announced(db: Db, now: Ms) -> list[int]:
    """`Store.finish_announced`."""
    quiet = db.execute(
        f"SELECT id, finished_at FROM restoration WHERE ({OPEN}) AND cause=? AND marking=1 AND marked_at<=?",
        (Cause.ANNOUNCED, now - ANNOUNCED_LINGER_MS),
    ).fetchall()
    db.executemany("UPDATE restoration SET marking=0 WHERE id=?", [row[:1] for row in quiet])
    return [number for number, finished_at in quiet if finished_at is not None or finish(db, number, now)]


def _restoration(row: Sequence[Any]) -> Restoration:
    """A restoration from the columns of `RESTORATION`."""
    number, alias, server, cause, started_at, marking, *rest = row
    return Restoration(number, alias, server, Cause(cause), started_at, bool(marking), *rest)
