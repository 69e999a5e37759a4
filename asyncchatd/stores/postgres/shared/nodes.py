"""Statements by which those who share the store agree: on the time, on who is there, who sends when, who does what.

Each is one statement outside of any transaction: whoever is stopped in the middle of one holds nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import orjson

from asyncchatd.model import Claim, Node, NodeState, Reason
from asyncchatd.stores.postgres.wire import SETTINGS, Tx

NOW = "extract(epoch FROM clock_timestamp())::double precision"
"""The database's clock, in seconds. Never in a condition on an indexed column: no index would serve it."""

PRESENCE = 0x6163_4903
"""Kind of the advisory lock that a node holds as long as its connection lives."""

AHEAD_SECONDS = 0.25
"""So far ahead of now is the rate given out."""

FIRST_SECONDS = 0.002
"""Until the first moment that is given out, for it to be heard of."""

LATE_SECONDS = 0.007
"""A moment may be heard of so late: half of what makes it void (`Pacer`)."""

VIEW_SECONDS = 3
"""What a node saw counts so long after it said so; then the node is silent."""

KEPT_SECONDS = 3_600
"""So long is a node known that is gone without having taken leave, or that nobody hears of."""

STUCK_SECONDS = 2.5
"""So long may a connection wait for the rest of a statement of which the server has the beginning. Who waits for its
rows gives up after `lock_timeout`, and it is looked once a second."""

SILENT_SECONDS = 3.0
"""A node of which nobody has heard for so long is silent; where its presence has ended as well, it is dead."""


INCARNATION = "pg_postmaster_start_time()::text || coalesce(' ' || inet_server_addr()::text, '')"
"""Names this run of the database server: what was seen of connections before means nothing in another."""


class Seen(NamedTuple):
    """A node as all of them see it."""

    id: int
    name: str
    version: str
    started_at: float
    seen_at: float
    lease_ms: int
    rate: float | None
    """So many requests a second it would send alone."""
    departed: bool
    """It had a presence in this run of the server, and has it no more."""


class Beat(NamedTuple):
    """What a node sees when it says that it is there."""

    now: float
    """The database's clock, in seconds."""
    incarnation: str
    nodes: Sequence[Seen]


async def run(tx: Tx) -> str:
    """Which run of the database server this is."""
    return str(await tx.value("SELECT pg_postmaster_start_time()::text"))


async def clock(tx: Tx) -> float:
    """The database's clock, in seconds."""
    return float(await tx.value(f"SELECT {NOW}"))


class Snapshot(NamedTuple):
    """A transaction that keeps what changed since it began from being cleared away."""

    pid: int
    application: str
    """Its `application_name`; may be empty."""
    seconds: float
    """For so long it has been open."""


async def oldest_snapshot(tx: Tx) -> Snapshot | None:
    """The oldest one of others in this database, as far as this user may see them. One that has written something and
    waits for its client has no snapshot and keeps as much; one that vacuums a table has one and keeps nothing."""
    row = await tx.row(
        "SELECT pid, application_name, extract(epoch FROM clock_timestamp() - xact_start)::double precision"
        " FROM pg_stat_activity WHERE datname=current_database() AND pid<>pg_backend_pid()"
        " AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND xact_start IS NOT NULL"
        " AND NOT EXISTS (SELECT 1 FROM pg_stat_progress_vacuum AS vacuum WHERE vacuum.pid=pg_stat_activity.pid)"
        " ORDER BY xact_start LIMIT 1"
    )
    return None if row is None else Snapshot(*row)


async def arrive(
    tx: Tx, name: str, version: str, lease_ms: int, key_ids: Sequence[str], knows: int, *, present: bool
) -> int:
    """Make a node known; its number. `key_ids`: of its store keys, the one that it would write with first. `knows`: how
    many migrations. `present`: on this connection it holds its presence, from before anybody can see it."""
    number = int(await tx.value("SELECT nextval(pg_get_serial_sequence('node', 'id'))"))
    if present:
        await tx.run(f"SELECT pg_advisory_lock($1, {_KEY.format('$2::bigint')})", PRESENCE, number)
    await tx.run(
        "INSERT INTO node (id, name, version, started_at, seen_at, lease_ms, presence, key_ids, knows)"
        f" OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, {NOW}, {NOW}, $4, CASE WHEN $5 THEN {INCARNATION} END, $6, $7)",
        *(number, name, version, lease_ms, present, list(key_ids), knows),
    )
    await tx.run(f"DELETE FROM node WHERE coalesce(gone_at, seen_at)<{NOW} - {KEPT_SECONDS}")
    return number


_KEY = "hashtext(current_schema() || ' ' || {}::text)"
"""The second key of a node's presence."""


async def beat(
    tx: Tx, node: int, lease_ms: int, *, rate: float | None = None, settings: str | None = None
) -> Beat | None:
    """Say that a node is there, and see who else is. `None` when it counts as gone."""
    rows = await tx.rows(_BEAT, node, lease_ms, rate, settings)
    if not any(row[2] == node for row in rows):
        return None
    return Beat(rows[0][0], rows[0][1], [Seen(*row[2:]) for row in rows])


_BEAT = f"""WITH me AS (UPDATE node SET seen_at={NOW}, lease_ms=$2, rate=$3, settings=$4
        WHERE id=$1 AND gone_at IS NULL RETURNING id)
    SELECT {NOW}, {INCARNATION}, id, name, version, started_at, seen_at, lease_ms, rate,
        coalesce(presence={INCARNATION}, false) AND NOT EXISTS (SELECT 1 FROM pg_locks
            WHERE locktype='advisory' AND granted AND objsubid=2 AND classid::bigint={PRESENCE}
            AND database=(SELECT oid FROM pg_database WHERE datname=current_database())
            AND objid::bigint=({_KEY.format("node.id")}::bigint & 4294967295))
    FROM node WHERE gone_at IS NULL AND (id<>$1 OR EXISTS (SELECT 1 FROM me)) ORDER BY id"""


async def there(tx: Tx, own: int = 0) -> Sequence[Node]:
    """The nodes that are there, and those that are gone without having taken leave. `own`: the number of who asks."""
    now = await clock(tx)
    rows = await tx.rows(_THERE, now, own, KEPT_SECONDS, SILENT_SECONDS, [reason.value for reason in Reason])
    return [
        Node(
            *(number, name, version, NodeState(state), round(started * 1000), round(seen * 1000), claims),
            own=number == own,
            settings={} if settings is None else orjson.loads(settings),
        )
        for number, name, version, state, started, seen, claims, settings in rows
    ]


# A claim was due when it was made: the index of what is due finds it.
_THERE = """WITH held AS (SELECT work.node, count(*) AS claims FROM work
        WHERE live AND reason = ANY($5::smallint[]) AND due_at<=$1::double precision*1000
            AND claim>0 AND held_until>$1::double precision*1000 GROUP BY work.node),
    seen AS (SELECT *, seen_at>=$1::double precision-$4::double precision OR id=$2 AS lately FROM node)
    SELECT id, name, version,
        CASE WHEN gone_at IS NOT NULL THEN 'gone' WHEN lately THEN 'present' ELSE 'silent' END,
        started_at, seen_at, coalesce(claims, 0), settings
    FROM seen LEFT JOIN held ON held.node=seen.id
    WHERE gone_at IS NULL AND lately
        OR seen_at>=$1::double precision-$3::double precision
            AND NOT EXISTS (SELECT 1 FROM node AS later WHERE later.name=seen.name AND later.id>seen.id)
    ORDER BY name, id"""


async def alive(tx: Tx, hold: float, *, knowing: int | None = None) -> Sequence[str]:
    """The names of nodes that live, or may: of one that holds no presence nobody knows it sooner than after `hold`
    seconds. `knowing`: those alone that know fewer migrations."""
    rows = await tx.rows(_ALIVE, hold, SILENT_SECONDS)
    return [name for name, knows in rows if knowing is None or knows < knowing]


_ALIVE = f"""SELECT name, coalesce((to_jsonb(node)->>'knows')::integer, 1) FROM node WHERE gone_at IS NULL AND CASE
        WHEN presence IS NULL THEN seen_at>{NOW} - greatest($1::double precision, $2::double precision)
        ELSE presence={INCARNATION} AND EXISTS (SELECT 1 FROM pg_locks
            WHERE locktype='advisory' AND granted AND objsubid=2 AND classid::bigint={PRESENCE}
            AND database=(SELECT oid FROM pg_database WHERE datname=current_database())
            AND objid::bigint=({_KEY.format("node.id")}::bigint & 4294967295))
        END ORDER BY name"""


async def views(tx: Tx, node: int, own: str) -> Sequence[tuple[str, str, bool]]:
    """Say what a node sees of the Chat Servers. What the others said last, each with its name, and whether it is silent
    since. Of a name only the newest that said anything can be silent: those before it count as started anew."""
    rows = await tx.rows(
        f"WITH me AS (UPDATE node SET views=$2, viewed_at={NOW} WHERE id=$1)"
        f" SELECT name, views, viewed_at<={NOW} - {VIEW_SECONDS} FROM node WHERE id<>$1 AND gone_at IS NULL"
        f" AND views IS NOT NULL AND viewed_at>{NOW} - {KEPT_SECONDS} AND (viewed_at>{NOW} - {VIEW_SECONDS}"
        " OR NOT EXISTS (SELECT 1 FROM node AS later WHERE later.name=node.name AND later.id>node.id"
        " AND later.views IS NOT NULL)) ORDER BY id",
        *(node, own),
    )
    return [(row[0], row[1], row[2]) for row in rows]


async def end_stuck(tx: Tx) -> int:
    """End the transactions of those who stand still in the middle of preparing a statement. How many they were.

    The server has begun it, and waits for the rest without an end: none of its time-outs counts before it has all of it
    (only PostgreSQL 17 has one for transactions), and meanwhile it keeps the locks. None that only reads, which keeps
    nobody waiting, and no COPY, which may take as long as its client does.
    """
    ended = await tx.value(
        "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname=current_database() AND usename=current_user AND application_name=$1"
        " AND pid<>pg_backend_pid() AND state='active' AND wait_event='ClientRead'"
        " AND backend_xid IS NOT NULL AND query !~* '^\\s*copy'"
        " AND state_change<clock_timestamp() - make_interval(secs => $2)",
        *(SETTINGS["application_name"], STUCK_SECONDS),
    )
    return int(ended)


async def leave(tx: Tx, node: int) -> None:
    """A node has nothing any more. Those of its name that were before are not missed any more."""
    await tx.run(
        "DELETE FROM node WHERE id=$1 OR gone_at IS NOT NULL AND name=(SELECT name FROM node WHERE id=$1)",
        node,
    )


async def held_by(tx: Tx, *numbers: int) -> list[tuple[int, int]]:
    """The sessions that were claimed under these numbers of a node, due or not, each with its claim. All there are are
    looked through: no index knows."""
    rows = await tx.rows(
        "SELECT session, claim FROM work WHERE node=ANY($1::bigint[]) AND claim>0", list(numbers)
    )
    return [(session, claim) for session, claim in rows]


async def reap(tx: Tx, node: int, lease_ms: int, sessions: Sequence[int]) -> int | None:
    """Leave to a node that is dead what it claimed of these no longer than its lease, since it was claimed or renewed.
    How many sessions; `None` when somebody else has done it."""
    gone = await tx.run(f"UPDATE node SET gone_at={NOW} WHERE id=$1 AND gone_at IS NULL", node)
    if not gone:
        return None
    return await tx.run(
        "WITH held AS MATERIALIZED (SELECT session FROM work"
        " WHERE session=ANY($3::bigint[]) AND live AND node=$1 AND claim>0 AND held_until>claimed_at+$2"
        " ORDER BY session FOR NO KEY UPDATE)"
        " UPDATE work SET held_until=least(held_until, claimed_at+$2) FROM held WHERE work.session=held.session",
        *(node, lease_ms, list(sessions)),
    )


async def hold_again(tx: Tx, node: int, claims: Sequence[Claim], until: int) -> int:
    """A node that was away has these claims still, under another number. How many of them."""
    return await tx.run(
        "WITH held AS MATERIALIZED (SELECT work.session FROM work JOIN unnest($3::bigint[], $4::bigint[])"
        " AS mine (session, claim) ON work.session=mine.session AND work.claim=mine.claim"
        " ORDER BY work.session FOR NO KEY UPDATE OF work)"
        " UPDATE work SET node=$1, held_until=greatest(held_until, $2) FROM held WHERE work.session=held.session",
        *(node, until, [claim.row for claim in claims], [claim.claim_id for claim in claims]),
    )


async def forget_numbers(tx: Tx, node: int, numbers: Collection[int]) -> None:
    """These were numbers of a node that has come back under another one: nobody waits for them. What died in this run
    of the database server is left to `reap`. What it said last of the Chat Servers it goes on saying: else it would for
    a moment be one that is not there, instead of one that is silent."""
    await tx.run(
        f"WITH former AS (UPDATE node SET gone_at={NOW} WHERE id=ANY($1::bigint[]) AND gone_at IS NULL"
        f" AND presence IS DISTINCT FROM {INCARNATION})"
        " UPDATE node SET views=said.views, viewed_at=said.viewed_at FROM (SELECT views, viewed_at FROM node"
        " WHERE id=ANY($1::bigint[]) AND views IS NOT NULL ORDER BY viewed_at DESC LIMIT 1) AS said"
        " WHERE node.id=$2 AND node.views IS NULL",
        *(list(numbers), node),
    )


async def turns(tx: Tx, count: int, spacing: float, *, away: float = 0.0) -> float | None:
    """Take the next `count` moments, `spacing` seconds apart: the first of them, by the database's clock. `None` when
    too many are taken already. Moments far beyond what can be given out were taken before the database's clock was set
    back: they are nobody's. `away`: the seconds of a round trip. Half of it later they are heard of, and none of before
    is of use."""
    until = FIRST_SECONDS + min(max(0.0, away / 2 - LATE_SECONDS), AHEAD_SECONDS)
    found = await tx.value(
        f"UPDATE pacer SET next=greatest(CASE WHEN next<={NOW} + $2 THEN next ELSE 0 END, {NOW} + $3)"
        f" + $1 WHERE next<={NOW} + {AHEAD_SECONDS} OR next>{NOW} + $2 RETURNING next",
        *(count * spacing, 4 * AHEAD_SECONDS + 2 * spacing, until),
    )
    return None if found is None else float(found) - count * spacing


def most_turns(spacing: float) -> int:
    """So many moments are given out at once, at the most."""
    return max(1, int(AHEAD_SECONDS / spacing))


async def outdated(
    tx: Tx, claims: Sequence[Claim], versions: Mapping[tuple[int, str], int]
) -> frozenset[tuple[int, str]]:
    """Those of these claims that somebody else has by now, or for whose session tokens were told or may have been.
    `versions`: of their sessions, when they were claimed."""
    rows = await tx.rows(
        "SELECT mine.claim, mine.chat FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[])"
        " AS mine (session, claim, chat, version)"
        " LEFT JOIN work ON work.session=mine.session LEFT JOIN session ON session.id=mine.session"
        " WHERE work.claim IS DISTINCT FROM mine.claim OR session.version IS DISTINCT FROM mine.version"
        " OR EXISTS (SELECT 1 FROM journal WHERE journal.session=mine.session)"
        " OR EXISTS (SELECT 1 FROM journal WHERE journal.session IS NULL AND journal.chat_id=mine.chat)"
        " OR EXISTS (SELECT 1 FROM journal WHERE journal.chat_id IS NULL AND journal.device_id=session.device_id)",
        [claim.row for claim in claims],
        [claim.claim_id for claim in claims],
        [claim.chat_id for claim in claims],
        [versions.get((claim.claim_id, claim.chat_id), -1) for claim in claims],
    )
    return frozenset((claim, chat) for claim, chat in rows)


async def duty(tx: Tx, what: str, node: int, seconds: float) -> bool:
    """Whether this node does something for all in the next `seconds`."""
    mine = await tx.run(
        f"INSERT INTO duty (what, node, until) VALUES ($1, $2, {NOW} + $3) ON CONFLICT (what) DO UPDATE"
        " SET node=excluded.node, until=excluded.until"
        f" WHERE duty.node=excluded.node OR duty.until<={NOW} OR duty.until>{NOW} + 2*$3",
        *(what, node, seconds),
    )
    return mine > 0
