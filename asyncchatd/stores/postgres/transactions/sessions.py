"""Transactions about single sessions, and about old ones."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from asyncchatd.model import (
    EndCause,
    EventKind,
    Ms,
    Reason,
    Registration,
    Session,
    SessionState,
    tokens,
)
from asyncchatd.stores.answers import Counts, Registered
from asyncchatd.stores.asking import Ask
from asyncchatd.stores.postgres.transactions import asks, deliveries, events, restorations, takes
from asyncchatd.stores.postgres.transactions.restorations import (
    ABSORBING,
    REGISTERING,
    Credits,
    credit,
    due_if_lost,
    lost_server,
    stand,
)
from asyncchatd.stores.postgres.transactions.session_rows import (
    NOBODY,
    SessionRow,
    end,
    find,
    forget_holders,
    lock,
    sessions_of,
    write_record,
)
from asyncchatd.stores.postgres.wire import Tx
from asyncchatd.stores.rules import LONGEST_SILENCE_MS, LONGEST_TAKE_MS
from asyncchatd.stores.sql.rows import (
    ENDED,
    INCOMPLETE,
    KEYS_REMEMBERED,
    LIVE,
    LONGEST_LEASE_MS,
    STATE_NUMBERS,
    STATES,
)

PORTION = 1_000
"""Sessions that are read at once where all are gone through."""


# -- reading ---------------------------------------------------------------------------------------


async def get(tx: Tx, chat_id: str) -> Session | None:
    """`Store.get`."""
    rows = await sessions_of(tx, "WHERE chat_id=$1", chat_id)
    return rows[0] if rows else None


async def listed(
    tx: Tx, alias: str | None, state: SessionState | None, limit: int, after: str | None
) -> list[Session]:
    """`Store.sessions`."""
    conditions = {
        "alias=": alias,
        "state=": None if state is None else STATE_NUMBERS[state],
        "chat_id>": after or "",
    }
    wanted = {clause: value for clause, value in conditions.items() if value is not None}
    where = " AND ".join(f"{clause}${place}" for place, clause in enumerate(wanted, 2))
    rows = await sessions_of(tx, f"WHERE {where} ORDER BY chat_id LIMIT $1", limit, *wanted.values())
    if len(rows) < limit and state in (None, SessionState.INCOMPLETE) and alias is None:
        # Two statements, because an order that puts NULL last could not use the index.
        rows += await sessions_of(tx, "WHERE chat_id IS NULL ORDER BY session.id LIMIT $1", limit - len(rows))
    return rows


async def counts(tx: Tx, now: Ms, leased: int) -> Counts:
    """`Store.counts`."""
    states = await _pairs(tx, "SELECT state, count(*) FROM session GROUP BY state")
    due = await _pairs(
        tx,
        "SELECT turn.reason, (SELECT count(*) FROM work WHERE live AND work.reason=turn.reason AND due_at<=$2)"
        " FROM unnest($1::smallint[]) AS turn(reason)",
        *(list(Reason), float(now)),
    )
    return Counts(
        {state: states.get(number, 0) for number, state in STATES.items()},
        {reason: due[reason] for reason in Reason},
        leased,
        await tx.value(f"SELECT count(*) FROM session WHERE state={LIVE} AND of_gateway"),
    )


async def counts_by_alias(tx: Tx) -> Mapping[str, int]:
    """`Store.counts_by_alias`."""
    return await _pairs(tx, f"SELECT alias, count(*) FROM session WHERE state={LIVE} GROUP BY alias")


async def _pairs(tx: Tx, sql: str, *values: object) -> dict[Any, int]:
    return {row[0]: row[1] for row in await tx.rows(sql, *values)}


# -- registrations ---------------------------------------------------------------------------------


async def register(
    tx: Tx, registrations: Sequence[Registration], now: Ms, spread_ms: float, *, told: bool = False
) -> list[Registered]:
    """`Store.register`. `told`: somebody is told of transcripts, and no registration moves a known position."""
    # Who makes sessions known has no row of theirs to lock before, and another would have it then, out of its order.
    # Pushes make some known, too.
    await tx.run("SELECT pg_advisory_xact_lock_shared($1)", ABSORBING)
    await tx.run("SELECT pg_advisory_xact_lock($1)", REGISTERING)
    new = await _new(tx, registrations)
    await stand(tx, (each.tokens.alias for each in registrations))
    done = _Done()
    if new:
        await _create_all(tx, [registrations[place] for place in new], now, spread_ms, done)
    registered = [
        Registered.CREATED if place in new else await _register(tx, registration, now, spread_ms, told, done)
        for place, registration in enumerate(registrations)
    ]
    await asks.count_acknowledged(tx, done.acknowledged)
    await credit(tx, done.credits, now)
    await events.happened(tx, EventKind.ENDED, done.ended, now)
    return registered


class _Done:
    """What registrations did to rows that many write: written when all of them have been taken."""

    def __init__(self) -> None:
        self.credits: Credits = Counter()
        self.acknowledged: list[Ask] = []
        self.ended: list[int] = []


async def _new(tx: Tx, registrations: Sequence[Registration]) -> set[int]:
    """The places of those that only make a session known, of which nothing is known. The others' rows are locked."""
    chats = Counter(registration.tokens.chat_id for registration in registrations)
    devices = [each.device_id for each in registrations if each.device_id is not None]
    await lock(
        tx,
        "SELECT id FROM session WHERE chat_id=ANY($1::text[])"
        " UNION ALL SELECT id FROM session WHERE chat_id IS NULL AND device_id=ANY($2::text[])",
        *(list(chats), devices),
    )
    known = await tx.rows(
        "SELECT chat_id, device_id FROM session WHERE chat_id=ANY($1::text[])"
        " UNION ALL SELECT chat_id, device_id FROM session WHERE chat_id IS NULL AND device_id=ANY($2::text[])",
        *(list(chats), devices),
    )
    named = {chat_id for chat_id, _ in known if chat_id is not None}
    unnamed = {device_id for chat_id, device_id in known if chat_id is None}
    return {
        place
        for place, each in enumerate(registrations)
        if chats[each.tokens.chat_id] == 1
        and each.tokens.chat_id not in named
        and each.device_id not in unnamed
        and each.take_id is None
        and each.acknowledged is None
        and not each.ended
    }


async def _register(
    tx: Tx, registration: Registration, now: Ms, spread_ms: float, told: bool, done: _Done
) -> Registered:
    said = registration.tokens
    found = await find(tx, "WHERE chat_id=$1", said.chat_id)
    if not found and registration.device_id is not None:
        # A push that named nothing but the device came before its session was registered.
        found = await find(
            tx,
            "WHERE chat_id IS NULL AND state=$1 AND device_id=$2 ORDER BY session.id",
            *(INCOMPLETE, registration.device_id),
        )
    if found and found[0].state == ENDED and not await _removed_by_hand(tx, found[0].id):
        return Registered.OVER if registration.ended else Registered.ENDED
    handed = await takes.handed(tx, found, registration.take_id)
    if registration.take_id is not None and handed is None:
        return Registered.NOT_TAKEN
    if registration.acknowledged is not None:
        asked = await asks.handed(tx, found[0].id, registration.acknowledged) if found else None
        if asked is None:
            return Registered.NOT_ASKED
        handed = handed or asked
    if registration.ended:
        return await _end(tx, found, now, done)
    if not found:
        await _create_all(tx, [registration], now, spread_ms, done)
        return Registered.CREATED
    known = found[0]
    if known.state == ENDED:
        # In another row: what is still on its way for the session before must not be taken for this one's.
        await _delete(tx, [known.id])
        await _create_all(tx, [registration], now, spread_ms, done)
        return Registered.CREATED
    record, refused = tokens.from_app(known.record, registration, handed, at=now, keeps_position=told)
    await tx.run(
        "UPDATE session SET chat_id=$2, service=coalesce($3, service), device_id=coalesce($4, device_id), active_at=$5,"
        # The first key stays: the client of a chat that the gateway opened has none of GMS' but that one.
        " came_with=CASE WHEN of_gateway THEN came_with ELSE coalesce(came_with, $6) END, of_gateway=of_gateway OR $7"
        " WHERE id=$1",
        *(known.id, said.chat_id, registration.service, registration.device_id, now),
        *(registration.came_with, registration.of_gateway),
    )
    await tx.run(
        f"UPDATE work SET due_at=CASE WHEN refused_since IS NULL OR reason<>{Reason.KEEPALIVE:d} THEN due_at"
        " ELSE least(due_at, $2) END, refused_since=NULL WHERE session=$1",
        *(known.id, now + random.random() * spread_ms),
    )
    await write_record(tx, known, said.chat_id, record)
    acknowledged = registration.acknowledged is not None and await asks.acknowledge_uncounted(
        tx,
        said.chat_id or "",
        registration.acknowledged,
        now,
        spread_ms,
        done.acknowledged,
        put_back=registration.take_id is not None,
    )
    if registration.take_id is not None:
        await takes.release(tx, said.chat_id or "", registration.take_id, now, pinged=not acknowledged)
    if refused:
        return Registered.KEPT
    if known.state == INCOMPLETE:
        # Whatever made it known (a push) still waits for its acknowledgement.
        await tx.run("UPDATE session SET state=$2 WHERE id=$1", known.id, LIVE)
        await tx.run(
            "UPDATE work SET live=true, reason=$2, due_at=$3, marks=marks+1 WHERE session=$1",
            *(known.id, Reason.ACKNOWLEDGE, float(now)),
        )
    if record.alias != known.record.alias:
        await due_if_lost(tx, known.id, record.alias, None, now, done.credits)
    return Registered.COMPLETED if known.state == INCOMPLETE else Registered.UPDATED


async def _end(tx: Tx, found: Sequence[SessionRow], now: Ms, done: _Done) -> Registered:
    """The chat is over, GMS has told the custom-chat-app."""
    if not found or found[0].chat_id is None:
        return Registered.ENDED  # nothing to look after
    if found[0].state != ENDED:
        await end(tx, found[0].id, EndCause.CHAT_ENDED, now)
        done.credits[found[0].restoration, "ended"] += 1
        done.ended.append(found[0].id)
    return Registered.OVER


async def _create_all(
    tx: Tx, registrations: Sequence[Registration], now: Ms, spread_ms: float, done: _Done
) -> None:
    """Make sessions known, all at once. By their names: of two that make the same known one waits for the other."""
    rows = [_row(tx, each, now + random.random() * spread_ms) for each in registrations]
    made = await tx.rows(_CREATE, now, *zip(*rows, strict=True))
    lost = {
        alias
        for alias in sorted({alias for _, alias in made})
        if await lost_server(tx, alias, None) is not None
    }
    for session, alias in made:
        if alias in lost:
            await due_if_lost(tx, session, alias, None, now, done.credits)


def _row(tx: Tx, registration: Registration, due_at: float) -> tuple[object, ...]:
    """The columns of `said` in `_CREATE`."""
    said, device_id = registration.tokens, registration.device_id
    return (
        *(said.chat_id, registration.service, said.user_id),
        tx.sealing.seal(said.secure_key, said.chat_id, device_id),
        *(said.alias, device_id, registration.next_position),
        *(registration.of_gateway, registration.came_with, due_at),
    )


_CREATE = f"""WITH said AS MATERIALIZED (
        SELECT * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bigint[],
            $9::boolean[], $10::text[], $11::double precision[])
        AS said(chat_id, service, user_id, secure_key, alias, device_id, next_position, of_gateway, came_with,
            due_at)),
    made AS (
        INSERT INTO session (chat_id, service, user_id, secure_key, alias, device_id, next_position, of_gateway,
            came_with, state, registered_at, active_at, sent_at)
        SELECT chat_id, service, user_id, secure_key, alias, device_id, next_position, of_gateway, came_with, {LIVE},
            $1::bigint, $1::bigint, $1::bigint FROM said ORDER BY chat_id COLLATE "C"
        RETURNING id, chat_id, alias),
    due AS (
        INSERT INTO work (session, live, reason, due_at)
        SELECT made.id, true, {Reason.KEEPALIVE:d}, said.due_at FROM made JOIN said ON said.chat_id=made.chat_id)
    SELECT id, alias FROM made ORDER BY id"""


async def _removed_by_hand(tx: Tx, row: int) -> bool:
    return bool(await tx.value("SELECT end_cause FROM session WHERE id=$1", row) == EndCause.REMOVED)


async def remove(tx: Tx, chat_id: str, now: Ms) -> bool:
    """`Store.remove`."""
    await events.alone(tx)
    found = await find(tx, "WHERE chat_id=$1", chat_id)
    if not found:
        return False
    await events.forget(tx, found[0].id)
    if found[0].state == ENDED:
        return False
    await end(tx, found[0].id, EndCause.REMOVED, now)
    await credit(tx, Counter({(found[0].restoration, "ended"): 1}), now)
    return True


async def make_due(tx: Tx, chat_id: str, reason: Reason, now: Ms) -> bool:
    """`Store.make_due`."""
    done = await tx.run(
        "UPDATE work SET due_at=least(work.due_at, $3), reason=least(work.reason, $2), marks=marks+1 FROM session"
        " WHERE session.chat_id=$1 AND work.session=session.id AND work.live",
        *(chat_id, reason, float(now)),
    )
    return done > 0


# -- old ones --------------------------------------------------------------------------------------


async def purge(tx: Tx, before: Ms, limit: int) -> int:
    """`Store.purge`: how many sessions went."""
    gone = 0
    await events.alone(tx)
    reached = await events.reached(tx)
    for old in (f"state={INCOMPLETE} AND active_at<$1", f"state={ENDED} AND ended_at<$1"):
        # What a consumer has not been told keeps its session; how long, its `keep` says (`trimming`).
        rows = await tx.rows(
            f"SELECT id FROM session WHERE {old} AND NOT EXISTS (SELECT 1 FROM delivery WHERE session=session.id)"
            " AND NOT EXISTS (SELECT 1 FROM event WHERE event.session=session.id AND event.id>$2) LIMIT $3"
            " FOR UPDATE SKIP LOCKED",
            *(before, reached, limit),
        )
        gone += len(rows)
        await _delete(tx, [row for (row,) in rows])
    await restorations.forget(tx, before)
    return gone


async def _delete(tx: Tx, rows: Sequence[int]) -> None:
    """Forget sessions, with all that is kept of them."""
    if not rows:
        return
    await events.forget_of(tx, rows)
    await tx.run("DELETE FROM session WHERE id=ANY($1::bigint[])", rows)
    await tx.run("DELETE FROM work WHERE session=ANY($1::bigint[])", rows)


async def cut(tx: Tx, now: Ms) -> None:
    """End what lasts longer than anything can: it was given before the clock was set back."""
    await lock(
        tx,
        f"SELECT session FROM work WHERE claim<>{NOBODY} AND held_until>$1"
        f" UNION ALL {takes.TOO_LONG.format('$2::bigint')} UNION ALL {asks.TOO_LONG.format('$2::bigint')}",
        *(now + LONGEST_LEASE_MS, now + LONGEST_TAKE_MS),
    )
    await tx.run(
        f"UPDATE work SET held_until=$1 WHERE claim<>{NOBODY} AND held_until>$2", now, now + LONGEST_LEASE_MS
    )
    await takes.cut(tx, now)
    await deliveries.cut(tx, now)


async def pull_in(tx: Tx, reason: Reason, now: Ms, spread_ms: float, limit: int) -> int:
    """`Store.pull_in`, a portion of it: how many sessions that are due for this reason changed. Only keepalives can
    wait: what is urgent is pinged now, and the rate is bounded anyway."""
    if reason is Reason.KEEPALIVE:
        return await tx.run(_PULL_IN, now, float(spread_ms), limit)
    return await _pull_in_urgent(tx, reason, now, limit)


_SILENCE = f"""CASE WHEN refused_since IS NULL THEN $2::double precision ELSE greatest($2::double precision,
    least({LONGEST_SILENCE_MS}, $2::double precision + greatest(0, $1::bigint - refused_since))) END"""
"""`silence_ms`."""

_FAR = f"""live AND reason={Reason.KEEPALIVE:d} AND due_at > $1::bigint + $2::double precision
    AND due_at > $1::bigint + {_SILENCE}"""

_PULL_IN = f"""WITH held AS MATERIALIZED (
        SELECT session FROM work WHERE session IN (SELECT session FROM work WHERE {_FAR} LIMIT $3) AND {_FAR}
        ORDER BY session FOR NO KEY UPDATE)
    UPDATE work SET due_at = $1::bigint + random() * {_SILENCE} FROM held WHERE work.session=held.session"""


async def _pull_in_urgent(tx: Tx, reason: Reason, now: Ms, limit: int) -> int:
    """All at once, in the order they have: the last of them is due now."""
    last = await tx.value("SELECT max(due_at) FROM work WHERE live AND reason=$1", reason)
    if last is None or last <= now:
        return 0
    return await tx.run(
        "WITH far AS MATERIALIZED (SELECT session FROM work WHERE live AND reason=$1 AND due_at>$2 ORDER BY due_at"
        " LIMIT $4), held AS MATERIALIZED (SELECT work.session FROM work WHERE session IN (SELECT session FROM far)"
        " ORDER BY session FOR NO KEY UPDATE)"
        " UPDATE work SET due_at = due_at - ($3 - $2::double precision) FROM held WHERE work.session=held.session",
        *(reason, float(now), float(last), limit),
    )


async def distrust(tx: Tx, before: Ms, dry_run: bool) -> int:
    """`Store.distrust`."""
    old = "greatest(active_at, coalesce(answered_at, 0))<$1"
    if dry_run:
        return int(await tx.value(f"SELECT count(*) FROM session WHERE state={LIVE} AND {old}", before))
    count = 0
    last = 0
    credits: Credits = Counter()
    # One that lacks a token would be pinged with the old ones as soon as it is told.
    where = f"WHERE {old} AND state<>{ENDED} AND session.id>$2 ORDER BY session.id LIMIT {PORTION}"
    while found := await find(tx, where, before, last):
        last = found[-1].id
        for known in found:
            await write_record(tx, known, known.chat_id, tokens.doubt(known.record))
        live = [known for known in found if known.state == LIVE]
        count += len(live)
        credits.update((known.restoration, "refused") for known in live)
        rows = [known.id for known in live]
        await tx.run("UPDATE session SET state=$2 WHERE id=ANY($1::bigint[])", rows, INCOMPLETE)
        await tx.run("UPDATE work SET live=false, restoration=NULL WHERE session=ANY($1::bigint[])", rows)
        await forget_holders(tx, rows)
    await credit(tx, credits, before)
    return count


# -- the gateway -----------------------------------------------------------------------------------


async def gateway_keys(tx: Tx, ids: Sequence[str]) -> bool:
    """`Store.gateway_keys`."""
    known = await tx.value("SELECT gateway_keys FROM store FOR NO KEY UPDATE")
    if known and not set(known).intersection(ids):
        held = f"SELECT EXISTS (SELECT 1 FROM session WHERE state={LIVE} AND of_gateway)"
        if await tx.value(held):
            return False
    now = list(dict.fromkeys((*ids, *known)))[:KEYS_REMEMBERED]
    if now != known:
        await tx.run("UPDATE store SET gateway_keys=$1", now)
    return True
