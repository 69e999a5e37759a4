"""Transactions about Chat Servers and restorations.

A session that comes to another Chat Server and the beginning of that server's restoration must not miss each other,
whichever node does what: both take the lock of the alias (`stand`, `_fall`), and who comes second sees the first.

Restorations are rows that many write, so whoever changes their counts collects the changes, and writes them at the end
of the transaction, by id (`credit`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

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
from asyncchatd.stores.postgres.wire import BRIEF_SECONDS, Row, Tx
from asyncchatd.stores.rules import ANNOUNCED_LINGER_MS
from asyncchatd.stores.sql.rows import LIVE, RANK_MS, RESTORATION, Lost

_ALIAS, _MARKING = 0x6163_4901, 0x6163_4902
"""Kinds of advisory locks: of an alias, of the marking of a restoration."""


REGISTERING = 0x6163_4944_0006
"""Of the advisory lock of who registers sessions."""

ABSORBING = 0x6163_4944_0002
"""Of the advisory lock under which unusual pushes take effect: one process at a time, in the order in which they
came. Whoever else makes sessions known shares it, whoever closes what shutdown notices began has it."""

Credits: TypeAlias = "Counter[tuple[int | None, str]]"
"""What a transaction adds to the counts of restorations: `credit` writes it."""


async def stand(tx: Tx, aliases: Iterable[str | None]) -> None:
    """Until the transaction ends, nobody begins to restore the sessions of these aliases. Once in a transaction, behind
    the locks of sessions' rows."""
    await _lock_aliases(tx, "pg_advisory_xact_lock_shared", aliases)


async def _fall(tx: Tx, aliases: Iterable[str]) -> None:
    """Until the transaction ends, no session comes to these aliases; those that were about to have come."""
    await _lock_aliases(tx, "pg_advisory_xact_lock", aliases)


async def _lock_aliases(tx: Tx, how: str, aliases: Iterable[str | None]) -> None:
    named = sorted({alias for alias in aliases if alias is not None})
    if named:
        await tx.rows(
            f"SELECT {how}($1, key) FROM (SELECT DISTINCT hashtext(alias) AS key FROM unnest($2::text[]) AS alias"
            " ORDER BY key) AS one",
            *(_ALIAS, named),
        )


async def hold_open(tx: Tx) -> None:
    """Lock the restorations that sessions may come to or leave, for whoever writes events before it is done."""
    await tx.rows(f"SELECT 1 FROM restoration WHERE {OPEN} ORDER BY id FOR NO KEY UPDATE")


async def due_if_lost(
    tx: Tx, row: int, alias: str | None, since: Ms | None, now: Ms, credits: Credits
) -> bool:
    """A session that has just come to a Chat Server known to be gone must not wait for its
    keepalive: it missed the marking of that server's sessions. Its rows are locked, its alias stands."""
    lost = await lost_server(tx, alias, since)
    if lost is None:
        return False
    await tx.run(
        f"UPDATE work SET due_at=CASE WHEN reason>{Reason.RESTORE:d} THEN $2 ELSE least(due_at, $2) END,"
        f" reason=least(reason, {Reason.RESTORE:d}), marks=marks+1, attempts=0, refused_since=NULL WHERE session=$1",
        *(row, float(now)),
    )
    if lost.open is not None:
        await _join(tx, row, lost.open, credits)
    return True


async def lost_server(tx: Tx, alias: str | None, since: Ms | None) -> Lost | None:
    """Whether its Chat Server is known to be gone: since a request was sent to it, or (`None`) now. It stands."""
    if alias is None:
        return None
    found = await tx.row(
        "SELECT CASE WHEN finished_at IS NULL THEN id END FROM restoration WHERE alias=$1 AND cause<>ALL($2::text[])"
        " AND CASE WHEN $3::bigint IS NULL THEN finished_at IS NULL ELSE started_at>=$3 END ORDER BY id DESC LIMIT 1",
        *(alias, [Cause.ANNOUNCED, Cause.OPERATOR], since),
    )
    if found is not None:
        return Lost(found[0])
    down = await tx.value("SELECT 1 FROM server WHERE app_dbid=$1 AND state=$2", alias, ServerState.DOWN)
    return None if down is None else Lost(None)


async def _join(tx: Tx, row: int, restoration: int, credits: Credits) -> None:
    """Count a session in an open restoration; it leaves the one it was in. Its rows are locked."""
    before = await tx.value("SELECT restoration FROM work WHERE session=$1", row)
    if before == restoration:
        return
    await tx.run("UPDATE work SET restoration=$2 WHERE session=$1", row, restoration)
    credits[restoration, "sessions"] += 1
    credits[before, "moved"] += 1


async def join_announced(tx: Tx, row: int, alias: str | None, now: Ms, credits: Credits) -> None:
    """A shutdown notice belongs to the restoration its Chat Server's other notices began; one that
    waits in another restoration already stays there. One process at a time (`ABSORBING`)."""
    if await tx.value("SELECT restoration FROM work WHERE session=$1", row) is not None:
        return
    restoration = await tx.value(
        "SELECT id FROM restoration WHERE alias=$1 AND cause=$2 AND marking ORDER BY id DESC LIMIT 1",
        *(alias, Cause.ANNOUNCED),
    )
    if restoration is None:
        known = await tx.value("SELECT name FROM server WHERE app_dbid=$1 ORDER BY name LIMIT 1", alias)
        restoration = await _record(tx, alias or "", known, Cause.ANNOUNCED, now)
    await _join(tx, row, restoration, credits)


COUNTED = ("restored", "ended", "refused", "moved", "sessions")


async def credit(tx: Tx, credits: Credits, now: Ms) -> set[int]:
    """Add to the counts of restorations; those that are finished by it. Last of what a transaction does, but for its
    events."""
    touched = sorted({restoration for restoration, _ in credits if restoration is not None})
    return {
        restoration
        for restoration in touched
        if await tx.run(_CREDIT, restoration, now, *(credits[restoration, name] for name in COUNTED))
        and await finish(tx, restoration, now)
    }


_BRIEFLY = f"set_config('idle_in_transaction_session_timeout', '{BRIEF_SECONDS * 1000:.0f}ms', true)"
"""In the list of what a statement gives: if this process stands still before its transaction ends, the server ends it
after so long. All nodes that settle wait for the row of a restoration, and send nothing meanwhile."""

_PLACES = dict(zip(COUNTED, range(3, 3 + len(COUNTED)), strict=True))

_CREDIT = f"""UPDATE restoration SET {", ".join(f"{name}={name}+${at}" for name, at in _PLACES.items())},
    finished_at=CASE WHEN ${_PLACES["sessions"]}>0 THEN NULL ELSE finished_at END,
    marked_at=CASE WHEN cause='{Cause.ANNOUNCED}' AND ${_PLACES["sessions"]}>0 THEN greatest(marked_at, $2::bigint)
        ELSE marked_at END WHERE id=$1 RETURNING {_BRIEFLY}"""


async def finish(tx: Tx, restoration: int, now: Ms) -> bool:
    """Note that no session of a restoration waits any more. One that a further shutdown notice brings waits again:
    `credit`."""
    done = await tx.run(
        "UPDATE restoration SET finished_at=greatest(started_at, $2) WHERE id=$1 AND finished_at IS NULL"
        " AND (NOT marking OR cause=$3 AND sessions>0) AND sessions<=restored+ended+refused+moved",
        *(restoration, now, Cause.ANNOUNCED),
    )
    return done > 0


# -- Chat Servers ----------------------------------------------------------------------------------


async def note(
    tx: Tx, server: ChatServer, epoch: int, losses: Sequence[Loss], now: Ms
) -> list[tuple[int, Loss]] | None:
    """The restorations begun, each for its loss; `None` when the server was noted by somebody else since `epoch`."""
    known = await tx.value("SELECT epoch FROM server WHERE name=$1 FOR NO KEY UPDATE", server.name)
    if (0 if known is None else known) != epoch:
        return None
    values = [getattr(replace(server, epoch=epoch + 1), column) for column in _COLUMNS]
    others = orjson.dumps([{name: getattr(other, name) for name in _PROCESS} for other in server.others])
    if not await tx.run(_SAVE_SERVER, *values, others.decode(), epoch):
        return None  # somebody else has just made it known
    await _fall(tx, (loss.alias for loss in losses))
    losses = [loss for loss in losses if not loss.again or await _has_sessions(tx, loss.alias)]
    return list(zip(await _begin_all(tx, server.name, losses, now), losses, strict=True))


async def _has_sessions(tx: Tx, alias: str) -> bool:
    return bool(
        await tx.value(f"SELECT EXISTS (SELECT 1 FROM session WHERE state={LIVE} AND alias=$1)", alias)
    )


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
    """Put a restoration on record, for an operator: its id."""
    [begun] = await _begin_all(tx, server, [Loss(alias, cause)], now)
    return begun


async def _begin_all(tx: Tx, server: str | None, losses: Sequence[Loss], now: Ms) -> list[int]:
    """Put what was lost at once on record: the ids."""
    aliases = [loss.alias for loss in losses]
    await _fall(tx, aliases)
    stopped = await _stop_marking(tx, aliases)
    begun = [await _record(tx, loss.alias, server, loss.cause, now) for loss in losses]
    for each in stopped:
        await finish(tx, each, now)
    return begun


async def _record(tx: Tx, alias: str, server: str | None, cause: Cause, now: Ms) -> int:
    return int(
        await tx.value(
            "INSERT INTO restoration (alias, server, cause, started_at, marking, marked_at)"
            " VALUES ($1, $2, $3, $4, true, $4) RETURNING id",
            *(alias, server, cause, now),
        )
    )


async def _stop_marking(tx: Tx, aliases: Sequence[str]) -> Sequence[int]:
    """Servers that are lost again: the new restorations mark all of their sessions, and two that mark
    would take them from each other."""
    rows = await tx.rows(
        "SELECT id FROM restoration WHERE finished_at IS NULL AND alias=ANY($1::text[]) AND cause<>$2 AND marking"
        " ORDER BY id FOR NO KEY UPDATE",
        *(aliases, Cause.ANNOUNCED),
    )
    stopped = [row[0] for row in rows]
    await tx.run("UPDATE restoration SET marking=false WHERE id=ANY($1::bigint[])", stopped)
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
    until = reached + limit
    more = await tx.value(
        "SELECT EXISTS (SELECT 1 FROM marking WHERE restoration=$1 AND rank>$2)", restoration, until
    )
    marked = await _mark(
        tx, (restoration, reached, until, alias, started_at), started_at + sessions * RANK_MS, last=not more
    )
    for number in sorted({restoration, *marked.moved}):
        if number == restoration:
            # One that was lost again meanwhile is marked by its other restoration.
            await tx.run(
                "UPDATE restoration SET sessions=sessions+$2, marking=marking AND $3, marked_at=$4, reached=$5,"
                " ranked=true WHERE id=$1",
                *(restoration, marked.sessions, more, now, until),
            )
        else:
            await tx.run("UPDATE restoration SET moved=moved+$2 WHERE id=$1", number, marked.moved[number])
        if number != restoration or not more:
            await finish(tx, number, now)
    if not more:
        await tx.run("DELETE FROM marking WHERE restoration=$1", restoration)
    await happened(tx, EventKind.LOST, marked.told, now)
    return bool(more)


_RANK = f"""INSERT INTO marking (restoration, rank, session)
    SELECT $1, row_number() OVER (ORDER BY active_at DESC, id DESC), id FROM session WHERE state={LIVE} AND alias=$2"""

_RANKED = f"""SELECT marking.session, marking.rank AS place FROM marking JOIN session ON session.id=marking.session
    WHERE marking.restoration=$1 AND rank>$2 AND rank<=$3 AND session.state={LIVE} AND session.alias=$4"""

_MISSED = f"""SELECT id AS session, $3 + row_number() OVER (ORDER BY active_at DESC, id DESC) AS place FROM session
    WHERE state={LIVE} AND alias=$4 AND active_at>=$5::bigint
    AND (coalesce(answered_at, 0)<=$5::bigint OR sent_at<=$5::bigint)"""
"""Sessions that a push or a registration brought while portions were marked: behind the last of these."""


class _Marked(NamedTuple):
    """What a portion came to."""

    sessions: int
    """How many it made due,"""
    moved: Counter[int]
    """how many of them which restorations lost,"""
    told: list[int]
    """and which of them somebody is to be told of, in their order."""


async def _mark(tx: Tx, portion: tuple[object, ...], first: float, *, last: bool) -> _Marked:
    """Make the sessions of a portion due, in the order of their `place`, the first of them at `first`; with the `last`
    one those that were missed. Those that are in the restoration already stay as they are. All are locked at once, in
    the order that everybody keeps."""
    told = EventKind.LOST in tx.kinds
    chosen = f"{_RANKED} UNION ALL {_MISSED}" if last else f"{_RANKED} AND $5::bigint IS NOT NULL"
    rows = await tx.rows(
        f"""WITH chosen AS MATERIALIZED (SELECT session, min(place) AS place FROM ({chosen}) AS one GROUP BY session),
        held AS MATERIALIZED (SELECT work.session, work.restoration AS before, chosen.place
            FROM chosen JOIN work ON work.session=chosen.session
            WHERE work.live AND work.restoration IS DISTINCT FROM $1 ORDER BY work.session FOR NO KEY UPDATE OF work),
        ranked AS (SELECT session, before, $6::double precision
            + (row_number() OVER (ORDER BY place) - 1) * {RANK_MS}::double precision AS due, place FROM held),
        made AS (UPDATE work SET due_at=CASE WHEN reason>{Reason.RESTORE:d} THEN due ELSE least(due_at, due) END,
            reason=least(reason, {Reason.RESTORE:d}), marks=marks+1, attempts=0, refused_since=NULL, restoration=$1
            FROM ranked WHERE work.session=ranked.session RETURNING work.session, before, place)
        SELECT before, count(*)::bigint, {"array_agg(session)" if told else "NULL"},
            {"array_agg(place)" if told else "NULL"} FROM made GROUP BY before""",
        *portion,
        first,
    )
    placed = [pair for row in rows if told for pair in zip(row[3], row[2], strict=True)]
    return _Marked(
        sum(row[1] for row in rows),
        Counter({row[0]: row[1] for row in rows if row[0] is not None}),
        [session for _, session in sorted(placed)],
    )


OPEN = "(finished_at IS NULL OR marking)"
"""Sessions wait in it, or may still be added to it. In the words of the index `restoration_open`."""

_UNTOLD = "finished_at IS NOT NULL AND NOT told AND NOT marking"
"""Finished for good: a further shutdown notice would begin another one."""


async def restorations(tx: Tx, limit: int, unfinished: bool) -> list[Restoration]:
    """`Store.restorations`."""
    where = f"WHERE {OPEN}" if unfinished else ""
    rows = await tx.rows(f"SELECT {RESTORATION} FROM restoration {where} ORDER BY id DESC LIMIT $1", limit)
    return [_restoration(row) for row in rows]


async def any_untold(tx: Tx) -> bool:
    """Whether `newly_finished` would give any."""
    return bool(await tx.value(f"SELECT EXISTS (SELECT 1 FROM restoration WHERE {_UNTOLD})"))


async def newly_finished(tx: Tx) -> list[Restoration]:
    """`Store.newly_finished`."""
    rows = await tx.rows(
        f"""WITH untold AS MATERIALIZED (SELECT id AS number FROM restoration WHERE {_UNTOLD}
            ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
        UPDATE restoration SET told=true FROM untold WHERE id=number RETURNING {RESTORATION}"""
    )
    return sorted((_restoration(row) for row in rows), key=lambda each: each.id)


async def finish_announced(tx: Tx, now: Ms) -> list[int]:
    """`Store.finish_announced`. No notice takes effect meanwhile."""
    quiet = f"{OPEN} AND cause=$1 AND marking AND marked_at<=$2"
    values = (Cause.ANNOUNCED, now - ANNOUNCED_LINGER_MS)
    if not await tx.value(f"SELECT EXISTS (SELECT 1 FROM restoration WHERE {quiet})", *values):
        return []  # as nearly always
    await tx.run("SELECT pg_advisory_xact_lock($1)", ABSORBING)
    found = await tx.rows(
        f"SELECT id, finished_at FROM restoration WHERE {quiet} ORDER BY id FOR NO KEY UPDATE", *values
    )
    await tx.run(
        "UPDATE restoration SET marking=false WHERE id=ANY($1::bigint[])", [number for number, _ in found]
    )
    return [
        number for number, finished_at in found if finished_at is not None or await finish(tx, number, now)
    ]


async def forget(tx: Tx, finished_before: Ms) -> None:
    """Forget restorations that finished before that time, and that nobody has in hand."""
    await tx.run(
        "DELETE FROM restoration WHERE id IN (SELECT id FROM restoration WHERE finished_at<$1 AND NOT marking"
        " ORDER BY id FOR UPDATE SKIP LOCKED)",
        finished_before,
    )


def _restoration(row: Row) -> Restoration:
    """A restoration from the columns of `RESTORATION`."""
    number, alias, server, cause, *rest = row
    return Restoration(number, alias, server, Cause(cause), *rest)
