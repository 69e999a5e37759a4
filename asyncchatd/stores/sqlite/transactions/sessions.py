"""Transactions about single sessions, and about old ones: functions of a connection, run inside a transaction that the
writer opens and commits.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from asyncchatd.model import (
    EndCause,
    EventKind,
    Ms,
    Reason,
    Registration,
    Session,
    SessionState,
    TokenRecord,
    tokens,
)
from asyncchatd.stores.answers import Counts, Registered
from asyncchatd.stores.rules import LONGEST_SILENCE_MS
from asyncchatd.stores.sql.rows import (
    ENDED,
    INCOMPLETE,
    KEYS_REMEMBERED,
    LIVE,
    LONGEST_LEASE_MS,
    STATE_NUMBERS,
    STATES,
)
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.transactions import asks, deliveries, events, takes
from asyncchatd.stores.sqlite.transactions.restorations import (
    credit,
    due_if_lost,
)
from asyncchatd.stores.sqlite.transactions.session_rows import (
    SESSION,
    SessionRow,
    create,
    end,
    find,
    sessions_of,
    write_record,
)

_STATES_COUNTED = (
    f"SELECT {LIVE}, count(*) FROM session INDEXED BY session_due WHERE state={LIVE}"
    " UNION ALL"
    f" SELECT state, count(*) FROM session INDEXED BY session_over WHERE state<>{LIVE} GROUP BY state"
)
"""By the indices alone: somebody looks every second, and a scan of the rows takes several times as long."""


# -- reading ---------------------------------------------------------------------------------------


def get(db: Db, chat_id: str) -> Session | None:
    """`Store.get`."""
    rows = sessions_of(db, f"SELECT {SESSION} FROM session WHERE chat_id=?", chat_id)
    return rows[0] if rows else None


def listed(
    db: Db, alias: str | None, state: SessionState | None, limit: int, after: str | None
) -> list[Session]:
    """`Store.sessions`."""
    conditions = {
        "alias=?": alias,
        "state=?": None if state is None else STATE_NUMBERS[state],
        "chat_id>?": after or "",
    }
    wanted = {clause: value for clause, value in conditions.items() if value is not None}
    query = f"SELECT {SESSION} FROM session WHERE {' AND '.join(wanted)} ORDER BY chat_id LIMIT ?"
    rows = sessions_of(db, query, *wanted.values(), limit)
    if len(rows) < limit and state in (None, SessionState.INCOMPLETE) and alias is None:
        # Two statements, because an order that puts NULL last could not use the index.
        query = f"SELECT {SESSION} FROM session WHERE chat_id IS NULL ORDER BY id LIMIT ?"
        rows += sessions_of(db, query, limit - len(rows))
    return rows


def counts(db: Db, now: Ms, leased: int) -> Counts:
    """`Store.counts`."""
    states = dict(db.execute(_STATES_COUNTED).fetchall())
    due = {
        reason: db.execute(
            f"SELECT count(*) FROM session INDEXED BY session_due WHERE state={LIVE} AND reason=? AND due_at<=?",
            (reason, now),
        ).fetchone()[0]
        for reason in Reason
    }
    [of_gateway] = db.execute(
        f"SELECT count(*) FROM session INDEXED BY session_of_gateway WHERE state={LIVE} AND of_gateway=1"
    ).fetchone()
    return Counts({state: states.get(number, 0) for number, state in STATES.items()}, due, leased, of_gateway)


def counts_by_alias(db: Db) -> Mapping[str, int]:
    """`Store.counts_by_alias`."""
    return dict(
        db.execute(
            f"SELECT alias, count(*) FROM session INDEXED BY session_alias WHERE state={LIVE} GROUP BY alias"
        ).fetchall()
    )


# -- registrations ---------------------------------------------------------------------------------


def register(
    db: Db, registrations: Sequence[Registration], now: Ms, spread_ms: float, *, told: bool = False
) -> list[Registered]:
    """`Store.register`. `told`: somebody is told of transcripts, and no registration moves a known position."""
    return [_register(db, registration, now, spread_ms, told) for registration in registrations]


def _register(db: Db, registration: Registration, now: Ms, spread_ms: float, told: bool) -> Registered:
    said = registration.tokens
    found = find(db, "WHERE chat_id=?", said.chat_id)
    if not found and registration.device_id is not None:
        # A push that named nothing but the device came before its session was registered.
        found = find(
            db, "WHERE chat_id IS NULL AND state=? AND device_id=?", INCOMPLETE, registration.device_id
        )
    if found and found[0].state == ENDED and not _removed_by_hand(db, found[0].id):
        return Registered.OVER if registration.ended else Registered.ENDED
    handed = takes.handed(db, found, registration.take_id)
    if registration.take_id is not None and handed is None:
        return Registered.NOT_TAKEN
    if registration.acknowledged is not None:
        asked = asks.handed(db, found[0].id, registration.acknowledged) if found else None
        if asked is None:
            return Registered.NOT_ASKED
        handed = handed or asked
    if registration.ended:
        return _end(db, found, now)
    if not found:
        _create(db, registration, now, now + random.random() * spread_ms)
        return Registered.CREATED
    known = found[0]
    if known.state == ENDED:
        # In another row: what is still on its way for the session before must not be taken for this one's.
        [[unused]] = db.execute("SELECT max(id) + 1 FROM session").fetchall()
        events.forget(db, known.id)
        db.execute("DELETE FROM session WHERE id=?", (known.id,))
        _create(db, registration, now, now + random.random() * spread_ms, id=unused)
        return Registered.CREATED
    record, refused = tokens.from_app(known.record, registration, handed, at=now, keeps_position=told)
    db.execute(
        "UPDATE session SET chat_id=?, service=coalesce(?, service), device_id=coalesce(?, device_id), active_at=?,"
        " due_at=iif(refused_since IS NULL OR reason<>?, due_at, min(due_at, ?)), refused_since=NULL,"
        # The first key stays: the client of a chat that the gateway opened has none of GMS' but that one.
        " came_with=iif(of_gateway, came_with, coalesce(came_with, ?)), of_gateway=max(of_gateway, ?) WHERE id=?",
        (
            *(said.chat_id, registration.service, registration.device_id, now),
            *(Reason.KEEPALIVE, now + random.random() * spread_ms),
            *(registration.came_with, registration.of_gateway, known.id),
        ),
    )
    write_record(db, known, said.chat_id, record)
    acknowledged = registration.acknowledged is not None and asks.acknowledge(
        db,
        said.chat_id or "",
        registration.acknowledged,
        now,
        spread_ms,
        put_back=registration.take_id is not None,
    )
    if registration.take_id is not None:
        takes.release(db, said.chat_id or "", registration.take_id, now, pinged=not acknowledged)
    if refused:
        return Registered.KEPT
    if known.state == INCOMPLETE:
        # Whatever made it known (a push) still waits for its acknowledgement.
        db.execute(
            "UPDATE session SET state=?, reason=?, due_at=?, marks=marks+1 WHERE id=?",
            (LIVE, Reason.ACKNOWLEDGE, now, known.id),
        )
    if record.alias != known.record.alias:
        due_if_lost(db, known.id, record.alias, None, now)
    return Registered.COMPLETED if known.state == INCOMPLETE else Registered.UPDATED


def _end(db: Db, found: Sequence[SessionRow], now: Ms) -> Registered:
    """The chat is over, GMS has told the custom-chat-app."""
    if not found or found[0].chat_id is None:
        return Registered.ENDED  # nothing to look after
    if found[0].state != ENDED:
        end(db, found[0].id, EndCause.CHAT_ENDED, now)
        events.happened(db, EventKind.ENDED, [found[0].id], now)
        credit(db, Counter({(found[0].restoration, "ended"): 1}), now)
    return Registered.OVER


def _create(db: Db, registration: Registration, now: Ms, due_at: float, **columns: object) -> None:
    said = registration.tokens
    record = TokenRecord(
        user_id=said.user_id,
        secure_key=said.secure_key,
        alias=said.alias,
        sent_at=now,
        next_position=registration.next_position,
    )
    row = create(
        db,
        record,
        chat_id=said.chat_id,
        device_id=registration.device_id,
        at=now,
        service=registration.service,
        state=LIVE,
        reason=Reason.KEEPALIVE,
        due_at=due_at,
        of_gateway=registration.of_gateway,
        came_with=registration.came_with,
        **columns,
    )
    due_if_lost(db, row, said.alias, None, now)


def _removed_by_hand(db: Db, row: int) -> bool:
    cause = db.execute("SELECT end_cause FROM session WHERE id=?", (row,)).fetchone()[0]
    return bool(cause == EndCause.REMOVED)


def remove(db: Db, chat_id: str, now: Ms) -> bool:
    """`Store.remove`."""
    found = find(db, "WHERE chat_id=?", chat_id)
    if not found:
        return False
    events.forget(db, found[0].id)
    if found[0].state == ENDED:
        return False
    end(db, found[0].id, EndCause.REMOVED, now)
    credit(db, Counter({(found[0].restoration, "ended"): 1}), now)
    return True


def make_due(db: Db, chat_id: str, reason: Reason, now: Ms) -> bool:
    """`Store.make_due`."""
    cursor = db.execute(
        "UPDATE session SET due_at=min(due_at,?), reason=min(reason,?), marks=marks+1 WHERE chat_id=? AND state=?",
        (now, reason, chat_id, LIVE),
    )
    return cursor.rowcount > 0


def purge(db: Db, before: Ms, limit: int) -> int:
    """`Store.purge`: how many sessions went."""
    gone = 0
    for state in (INCOMPLETE, ENDED):
        # The index is for `state <> LIVE`; from `state = ?` alone SQLite does not see that it fits.
        # What a consumer has not been told keeps its session; how long, its `keep` says (`trimming`).
        old = (
            f"SELECT id FROM session WHERE state<>{LIVE} AND state=? AND active_at<?"
            " AND NOT EXISTS (SELECT 1 FROM delivery WHERE session=session.id)"
            " AND NOT EXISTS (SELECT 1 FROM event WHERE session=session.id AND event.id>?) LIMIT ?"
        )
        chosen = (state, before, events.reached(db), limit)
        events.forget_of(db, old, chosen)
        gone += db.execute(f"DELETE FROM session WHERE id IN ({old})", chosen).rowcount
    db.execute("DELETE FROM restoration WHERE finished_at<? AND marking=0", (before,))
    return gone


def pull_in(db: Db, now: Ms, spread_ms: float, limit: int) -> int:
    """`Store.pull_in`, a portion of it: how many sessions changed."""
    keepalives = db.execute(
        f"UPDATE session SET due_at = :now + abs(random() % 1000000) / 1e6 * {_SILENCE} WHERE id IN"
        f" (SELECT id FROM session WHERE state={LIVE} AND reason=:keepalive AND due_at > :now + :spread"
        f" AND due_at > :now + {_SILENCE} LIMIT :limit)",
        {
            **{"now": now, "spread": spread_ms, "longest": LONGEST_SILENCE_MS},
            **{"keepalive": Reason.KEEPALIVE, "limit": limit},
        },
    ).rowcount
    db.execute("UPDATE lease SET until=? WHERE until>?", (now, now + LONGEST_LEASE_MS))
    takes.cut(db, now)
    deliveries.cut(db, now)
    # Only keepalives can wait: what is urgent is pinged now, and the rate is bounded anyway.
    urgent = (reason for reason in Reason if reason is not Reason.KEEPALIVE)
    return keepalives + sum(_pull_in_urgent(db, reason, now, limit) for reason in urgent)


_SILENCE = """iif(refused_since IS NULL, :spread,
    max(:spread, min(:longest, :spread + max(0, :now - refused_since))))"""
"""`silence_ms`."""


def _pull_in_urgent(db: Db, reason: Reason, now: Ms, limit: int) -> int:
    """All at once, in the order they have: the last of them is due now."""
    last = db.execute(
        f"SELECT max(due_at) FROM session INDEXED BY session_due WHERE state={LIVE} AND reason=?",
        (reason,),
    ).fetchone()[0]
    if last is None or last <= now:
        return 0
    return db.execute(
        "UPDATE session SET due_at = due_at - ? WHERE id IN"
        f" (SELECT id FROM session WHERE state={LIVE} AND reason=? AND due_at>? ORDER BY due_at LIMIT ?)",
        (last - now, reason, now, limit),
    ).rowcount


def distrust(db: Db, before: Ms, dry_run: bool) -> int:
    """`Store.distrust`."""
    old = "state=? AND max(active_at, coalesce(answered_at, 0))<?"
    if dry_run:
        [[count]] = db.execute(f"SELECT count(*) FROM session WHERE {old}", (LIVE, before)).fetchall()
        return int(count)
    credits = Counter(
        (restoration, "refused")
        for (restoration,) in db.execute(
            f"SELECT restoration FROM session WHERE {old} AND restoration IS NOT NULL", (LIVE, before)
        )
    )
    for table in ("lease", "take", "ask"):
        db.execute(
            f"DELETE FROM {table} WHERE session IN (SELECT id FROM session WHERE {old})", (LIVE, before)
        )
    # One that lacks a token would be pinged with the old ones as soon as it is told.
    for state in (LIVE, INCOMPLETE):
        for known in find(db, f"WHERE {old}", state, before):
            write_record(db, known, known.chat_id, tokens.doubt(known.record))
    count = db.execute(
        f"UPDATE session SET state=?, restoration=NULL WHERE {old}", (INCOMPLETE, LIVE, before)
    ).rowcount
    credit(db, credits, before)
    return count


def gateway_keys(db: Db, ids: Sequence[str]) -> bool:
    """`Store.gateway_keys`."""
    [[text]] = db.execute("SELECT gateway_keys FROM file").fetchall()
    known = text.split()
    if known and not set(known).intersection(ids):
        held = f"SELECT EXISTS (SELECT 1 FROM session WHERE state={LIVE} AND of_gateway=1)"
        if db.execute(held).fetchone()[0]:
            return False
    now = " ".join(list(dict.fromkeys((*ids, *known)))[:KEYS_REMEMBERED])
    if now != text:
        db.execute("UPDATE file SET gateway_keys=?", (now,))
    return True
