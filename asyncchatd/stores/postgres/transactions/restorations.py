"""Transactions about Chat Servers and restorations.

A session that comes to another Chat Server and the beginning of that server's restoration must not miss each other,
whichever node does what: both take the lock of the alias (`_stands`, `_falls`), and who comes second sees the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

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
from asyncchatd.stores.postgres.transactions.events import happened
from asyncchatd.stores.postgres.transactions.session_rows import LIVE
from asyncchatd.stores.postgres.wire import Row, Tx
from asyncchatd.stores.rules import ANNOUNCED_LINGER_MS

RANK_MS = 0.001
"""Sessions made due together lie this far apart, which keeps them in order in the due index."""

_ALIAS, _MARKING = 0x6163_4901, 0x6163_4902
"""Kinds of advisory locks: of an alias, of the marking of a restoration."""


async def _stands(tx: Tx, alias: str) -> None:
    """Until the transaction ends, nobody begins to restore the sessions of this alias."""
    await tx.run("SELECT pg_advisory_xact_lock_shared($1, hashtext($2))", _ALIAS, alias)


async def _falls(tx: Tx, alias: str) -> None:
    """Until the transaction ends, no session comes to this alias; those that were about to have come."""
    await tx.run("SELECT pg_advisory_xact_lock($1, hashtext($2))", _ALIAS, alias)


async def due_if_lost(tx: Tx, row: int, alias: str | None, since: Ms | None, now: Ms) -> bool:
    """A session that has just come to a Chat Server known to be gone must not wait for its
    keepalive: it missed the marking of that server's sessions. Its rows are locked."""
    lost = await lost_server(tx, alias, since)
    if lost is None:
        return False
    await tx.run(
        f"UPDATE work SET due_at=CASE WHEN reason>{Reason.RESTORE:d} THEN $2 ELSE least(due_at, $2) END,"
        f" reason=least(reason, {Reason.RESTORE:d}), marks=marks+1, attempts=0, refused_since=NULL WHERE session=$1",
        *(row, float(now)),
    )
    if lost.open is not None:
        await join(tx, row, lost.open, now)
    return True


class Lost(NamedTuple):
    """A Chat Server that is gone, as a session has to know it."""

    open: int | None
    """The restoration of its sessions, while it runs."""


async def lost_server(tx: Tx, alias: str | None, since: Ms | None) -> Lost | None:
    """Whether its Chat Server is known to be gone: since a request was sent to it, or (`None`) now."""
    if alias is None:
        return None
    await _stands(tx, alias)
    found = await tx.row(
        "SELECT CASE WHEN finished_at IS NULL THEN id END FROM restoration WHERE alias=$1 AND cause<>ALL($2::text[])"
        " AND CASE WHEN $3::bigint IS NULL THEN finished_at IS NULL ELSE started_at>=$3 END ORDER BY id DESC LIMIT 1",
        *(alias, [Cause.ANNOUNCED, Cause.OPERATOR], since),
    )
    if found is not None:
        return Lost(found[0])
    down = await tx.value("SELECT 1 FROM server WHERE app_dbid=$1 AND state=$2", alias, ServerState.DOWN)
    return None if down is None else Lost(None)


async def join(tx: Tx, row: int, restoration: int, now: Ms) -> None:
    """Count a session in an open restoration; it leaves the one it was in. Its rows are locked."""
    before = await tx.value("SELECT restoration FROM work WHERE session=$1", row)
    if before == restoration:
        return
    await tx.run("UPDATE work SET restoration=$2 WHERE session=$1", row, restoration)
    for number in sorted(each for each in (before, restoration) if each is not None):
        if number == restoration:
            await tx.run(
                "UPDATE restoration SET sessions=sessions+1, finished_at=NULL WHERE id=$1", restoration
            )
        else:
            await tx.run("UPDATE restoration SET moved=moved+1 WHERE id=$1", before)
            await finish(tx, before, now)


async def join_announced(tx: Tx, row: int, alias: str | None, now: Ms) -> None:
    """A shutdown notice belongs to the restoration its Chat Server's other notices began; one that
    waits in another restoration already stays there."""
    if await tx.value("SELECT restoration FROM work WHERE session=$1", row) is not None:
        return
    restoration = await tx.value(
        "UPDATE restoration SET marked_at=$3 WHERE marking AND id=(SELECT id FROM restoration WHERE alias=$1"
        " AND cause=$2 AND marking ORDER BY id DESC LIMIT 1) RETURNING id",
        *(alias, Cause.ANNOUNCED, now),
    )
    if restoration is None:
        known = await tx.value("SELECT name FROM server WHERE app_dbid=$1 ORDER BY name LIMIT 1", alias)
        restoration = await begin_restoration(tx, alias or "", known, Cause.ANNOUNCED, now)
    await join(tx, row, restoration, now)


COUNTED = ("restored", "ended", "refused", "moved")


async def credit(tx: Tx, credits: Counter[tuple[int | None, str]], now: Ms) -> set[int]:
    """Add to the counts of restorations; those that are finished by it."""
    touched = sorted({restoration for restoration, _ in credits if restoration is not None})
    for restoration in touched:
        await tx.run(
            f"UPDATE restoration SET {', '.join(f'{name}={name}+${at}' for at, name in enumerate(COUNTED, 2))}"
            " WHERE id=$1",
            *(restoration, *(credits[restoration, name] for name in COUNTED)),
        )
    return {restoration for restoration in touched if await finish(tx, restoration, now)}


async def finish(tx: Tx, restoration: int, now: Ms) -> bool:
    """Note that no session of a restoration waits any more. One that a further shutdown notice brings waits again:
    `join`."""
    done = await tx.run(
        "UPDATE restoration SET finished_at=greatest(started_at, $2) WHERE id=$1 AND finished_at IS NULL"
        " AND (NOT marking OR cause=$3 AND sessions>0) AND sessions<=restored+ended+refused+moved",
        *(restoration, now, Cause.ANNOUNCED),
    )
    return done > 0


# -- Chat Servers ----------------------------------------------------------------------------------


async def note(tx: Tx, server: ChatServer, epoch: int, losses: Sequence[Loss], now: Ms) -> list[int] | None:
    """The restorations begun; `None` when the server was noted by somebody else since `epoch`."""
    known = await tx.value("SELECT epoch FROM server WHERE name=$1 FOR NO KEY UPDATE", server.name)
    if (0 if known is None else known) != epoch:
        return None
    values = [getattr(replace(server, epoch=epoch + 1), column) for column in _COLUMNS]
    others = orjson.dumps([{name: getattr(other, name) for name in _PROCESS} for other in server.others])
    if not await tx.run(_SAVE_SERVER, *values, others.decode(), epoch):
        return None  # somebody else has just made it known
    # In one order at all nodes.
    for loss in sorted(losses, key=lambda each: each.alias):
        await _falls(tx, loss.alias)
    return [await begin_restoration(tx, loss.alias, server.name, loss.cause, now) for loss in losses]


async def servers(tx: Tx) -> list[ChatServer]:
    """`Store.servers`."""
    return [_server(row) for row in await tx.rows(f"SELECT {_SERVER} FROM server ORDER BY name")]


def _server(row: Row) -> ChatServer:
    values: dict[str, Any] = dict(zip(_COLUMNS, row, strict=False))
    others = tuple(
        # A newer asyncchatd may have noted more.
        Process(**{name: value for name, value in other.items() if name in _PROCESS})
        for other in orjson.loads(row[len(_COLUMNS)])
    )
    return ChatServer(**values | {"state": ServerState(values["state"])}, others=others)


_COLUMNS = tuple(name for name in ChatServer.__struct_fields__ if name != "others")

_SERVER = ", ".join((*_COLUMNS, "others"))

_SAVE_SERVER = f"""INSERT INTO server ({_SERVER})
    VALUES ({", ".join(f"${at}" for at in range(1, len(_COLUMNS) + 2))})
    ON CONFLICT (name) DO UPDATE SET {", ".join(f"{name}=excluded.{name}" for name in (*_COLUMNS, "others"))}
    WHERE server.epoch=${len(_COLUMNS) + 2}"""

_PROCESS = Process.__struct_fields__


# -- restorations ----------------------------------------------------------------------------------


async def begin_restoration(tx: Tx, alias: str, server: str | None, cause: Cause, now: Ms) -> int:
    """Put a restoration on record, for an operator, a loss or a shutdown notice: its id."""
    earlier: Sequence[int] = ()
    if cause is not Cause.ANNOUNCED:
        await _falls(tx, alias)
        earlier = await _stop_marking(tx, alias)
    restoration = await tx.value(
        "INSERT INTO restoration (alias, server, cause, started_at, marking, marked_at)"
        " VALUES ($1, $2, $3, $4, true, $4) RETURNING id",
        *(alias, server, cause, now),
    )
    for each in earlier:
        await finish(tx, each, now)
    return int(restoration)


async def _stop_marking(tx: Tx, alias: str) -> Sequence[int]:
    """A server that is lost again: the new restoration marks all of its sessions, and two that mark
    would take them from each other."""
    rows = await tx.rows(
        "UPDATE restoration SET marking=false WHERE id IN (SELECT id FROM restoration WHERE finished_at IS NULL"
        " AND alias=$1 AND cause<>$2 AND marking ORDER BY id FOR NO KEY UPDATE) RETURNING id",
        *(alias, Cause.ANNOUNCED),
    )
    stopped = sorted(row[0] for row in rows)
    await tx.run("DELETE FROM marking WHERE restoration=ANY($1::bigint[])", stopped)
    return stopped


async def mark(tx: Tx, restoration: int, limit: int, now: Ms) -> bool:
    """`Store.mark`: whether there are more."""
    await tx.run("SELECT pg_advisory_xact_lock($1, $2)", _MARKING, restoration % (1 << 31))
    found = await tx.row(
        "SELECT alias, started_at, reached, ranked, sessions FROM restoration WHERE id=$1 AND marking",
        restoration,
    )
    if found is None:
        return False
    alias, started_at, reached, ranked, sessions = found
    if not ranked:
        await tx.run(_RANK, restoration, alias)
    first = started_at + sessions * RANK_MS
    made, told = await _mark(
        tx, restoration, now, _RANKED, (restoration, reached, reached + limit, alias), first
    )
    reached += limit
    more = await tx.value(
        "SELECT EXISTS (SELECT 1 FROM marking WHERE restoration=$1 AND rank>$2)", restoration, reached
    )
    if not more:
        missed, of_missed = await _mark(
            tx, restoration, now, _MISSED, (restoration, alias, started_at), first + made * RANK_MS
        )
        made, told = made + missed, told + of_missed
        await tx.run("DELETE FROM marking WHERE restoration=$1", restoration)
    # One that was lost again meanwhile is marked by its other restoration.
    await tx.run(
        "UPDATE restoration SET sessions=sessions+$2, marking=marking AND $3, marked_at=$4, reached=$5, ranked=true"
        " WHERE id=$1",
        *(restoration, made, more, now, reached),
    )
    if not more:
        await finish(tx, restoration, now)
    await happened(tx, EventKind.LOST, told, now)
    return bool(more)


_RANK = f"""INSERT INTO marking (restoration, rank, session)
    SELECT $1, row_number() OVER (ORDER BY active_at DESC, id DESC), id FROM session WHERE state={LIVE} AND alias=$2"""

_RANKED = f"""SELECT marking.session, marking.rank AS place FROM marking JOIN session ON session.id=marking.session
    WHERE marking.restoration=$1 AND rank>$2 AND rank<=$3 AND session.state={LIVE} AND session.alias=$4"""

_MISSED = f"""SELECT id AS session, row_number() OVER (ORDER BY active_at DESC, id DESC) AS place FROM session
    WHERE state={LIVE} AND alias=$2 AND active_at>=$3 AND (coalesce(answered_at, 0)<=$3 OR sent_at<=$3)"""
"""Sessions that a push or a registration brought while portions were marked."""


async def _mark(
    tx: Tx, restoration: int, now: Ms, chosen: str, values: Sequence[object], first: float
) -> tuple[int, list[int]]:
    """Make the sessions that a query chooses due, in the order of their `place`, the first of them at `first`. The
    query's `$1` is the restoration; those that are in it already stay as they are. How many it made due, and which of
    them somebody is to be told of, in their order."""
    told = EventKind.LOST in tx.kinds
    rows = await tx.rows(
        f"""WITH chosen AS MATERIALIZED ({chosen}),
        held AS MATERIALIZED (SELECT work.session, work.restoration AS before, chosen.place
            FROM chosen JOIN work ON work.session=chosen.session
            WHERE work.live AND work.restoration IS DISTINCT FROM $1 ORDER BY work.session FOR NO KEY UPDATE OF work),
        ranked AS (SELECT session, before, ${len(values) + 1}::double precision
            + (row_number() OVER (ORDER BY place) - 1) * {RANK_MS}::double precision AS due, place FROM held),
        made AS (UPDATE work SET due_at=CASE WHEN reason>{Reason.RESTORE:d} THEN due ELSE least(due_at, due) END,
            reason=least(reason, {Reason.RESTORE:d}), marks=marks+1, attempts=0, refused_since=NULL, restoration=$1
            FROM ranked WHERE work.session=ranked.session RETURNING work.session, before, place)
        SELECT before, count(*)::bigint, {"array_agg(session)" if told else "NULL"},
            {"array_agg(place)" if told else "NULL"} FROM made GROUP BY before""",
        *values,
        first,
    )
    for before, count, *_ in sorted((row for row in rows if row[0] is not None), key=lambda row: int(row[0])):
        await tx.run("UPDATE restoration SET moved=moved+$2 WHERE id=$1", before, count)
        await finish(tx, before, now)
    placed = [pair for row in rows if told for pair in zip(row[3], row[2], strict=True)]
    return sum(row[1] for row in rows), [session for _, session in sorted(placed)]


_RESTORATION = (
    "id, alias, server, cause, started_at, marking, sessions, restored, ended, refused, moved, finished_at"
)

OPEN = "(finished_at IS NULL OR marking)"
"""Sessions wait in it, or may still be added to it. In the words of the index `restoration_open`."""

_UNTOLD = "finished_at IS NOT NULL AND NOT told AND NOT marking"
"""Finished for good: a further shutdown notice would begin another one."""


async def restorations(tx: Tx, limit: int, unfinished: bool) -> list[Restoration]:
    """`Store.restorations`."""
    where = f"WHERE {OPEN}" if unfinished else ""
    rows = await tx.rows(f"SELECT {_RESTORATION} FROM restoration {where} ORDER BY id DESC LIMIT $1", limit)
    return [_restoration(row) for row in rows]


async def any_untold(tx: Tx) -> bool:
    """Whether `newly_finished` would give any."""
    return bool(await tx.value(f"SELECT EXISTS (SELECT 1 FROM restoration WHERE {_UNTOLD})"))


async def newly_finished(tx: Tx) -> list[Restoration]:
    """`Store.newly_finished`."""
    rows = await tx.rows(f"UPDATE restoration SET told=true WHERE {_UNTOLD} RETURNING {_RESTORATION}")
    return sorted((_restoration(row) for row in rows), key=lambda each: each.id)


async def finish_announced(tx: Tx, now: Ms) -> list[int]:
    """`Store.finish_announced`."""
    quiet = await tx.rows(
        "UPDATE restoration SET marking=false WHERE id IN"
        f" (SELECT id FROM restoration WHERE {OPEN} AND cause=$1 AND marking AND marked_at<=$2 ORDER BY id"
        " FOR NO KEY UPDATE) RETURNING id, finished_at",
        *(Cause.ANNOUNCED, now - ANNOUNCED_LINGER_MS),
    )
    return [
        number
        for number, finished_at in sorted(quiet, key=lambda row: int(row[0]))
        if finished_at is not None or await finish(tx, number, now)
    ]


def begun_of(number: int, alias: str, server: str | None, cause: Cause, now: Ms) -> Restoration:
    """A restoration that has just begun, with no session in it yet."""
    return Restoration(number, alias, server, cause, now, True, 0, 0, 0, 0, 0, None)


def _restoration(row: Row) -> Restoration:
    """A restoration from the columns of `_RESTORATION`."""
    number, alias, server, cause, *rest = row
    return Restoration(number, alias, server, Cause(cause), *rest)
