"""What happens inside a transaction: plain functions of an SQLite connection.

Each runs on the writer's thread, inside a transaction that the writer opens and commits. Bulk work
is one statement where it can be, because SQLite lets the event loop run meanwhile.
"""

from __future__ import annotations

import json
import random
import secrets
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from asyncchatd import tokens
from asyncchatd.model import (
    Cause,
    ChatServer,
    Claim,
    EndCause,
    Ms,
    Reason,
    Registration,
    ServerState,
    Settled,
    Settlement,
    TokenNews,
    Tokens,
    Verdict,
)
from asyncchatd.stores.base import ANNOUNCED_LINGER_MS, NEWS_AGE_MS, Absorbed, Effect, Registered, Taken
from asyncchatd.tokens import TokenRecord
from asyncchatd.wire.push import Push

INCOMPLETE, LIVE, ENDED = 0, 1, 2

RANK_MS = 0.001
"""Sessions made due together lie this far apart, which keeps them in order in the due index."""

Db = sqlite3.Connection


# -- sessions ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Row:
    """What the token rules and the marks need of a session."""

    id: int
    chat_id: str | None
    state: int
    record: TokenRecord
    marks: int
    claim: int
    restoration: int | None


_ROW = """SELECT id, chat_id, state, user_id, secure_key, alias, old_keys, sent_at, seen_utc, next_position,
                 marks, claim, restoration FROM session """


def _rows(db: Db, where: str, *parameters: object) -> list[_Row]:
    return [
        _Row(
            id=row[0],
            chat_id=row[1],
            state=row[2],
            record=TokenRecord(
                user_id=row[3],
                secure_key=row[4],
                alias=row[5],
                old_keys=tuple(row[6].split()),
                sent_at=row[7],
                seen_utc=row[8],
                next_position=row[9],
            ),
            marks=row[10],
            claim=row[11],
            restoration=row[12],
        )
        for row in db.execute(_ROW + where, parameters)
    ]


def _write_record(db: Db, row: int, record: TokenRecord) -> None:
    db.execute(
        "UPDATE session SET user_id=?, secure_key=?, alias=?, old_keys=?, sent_at=?, seen_utc=?, next_position=?"
        " WHERE id=?",
        (
            record.user_id,
            record.secure_key,
            record.alias,
            " ".join(record.old_keys),
            record.sent_at,
            record.seen_utc,
            record.next_position,
            row,
        ),
    )


def register(db: Db, registrations: Sequence[Registration], now: Ms, spread_ms: float) -> list[Registered]:
    return [_register(db, registration, now, spread_ms) for registration in registrations]


def _register(db: Db, registration: Registration, now: Ms, spread_ms: float) -> Registered:
    said = registration.tokens
    found = _rows(db, "WHERE chat_id=?", said.chat_id)
    if not found and registration.device_id is not None:
        # A push that named nothing but the device came before its session was registered.
        found = _rows(
            db, "WHERE chat_id IS NULL AND state=? AND device_id=?", INCOMPLETE, registration.device_id
        )
    if not found:
        _create(db, registration, now, now + random.random() * spread_ms)
        return Registered.CREATED
    known = found[0]
    if known.state == ENDED:
        if not _removed_by_hand(db, known.id):
            return Registered.ENDED
        db.execute("DELETE FROM session WHERE id=?", (known.id,))
        _create(db, registration, now, now + random.random() * spread_ms)
        return Registered.CREATED
    news = TokenNews(said.chat_id, said.user_id, said.secure_key, said.alias)
    record, refused = tokens.from_registration(
        known.record, news, at=now, next_position=registration.next_position
    )
    db.execute(
        "UPDATE session SET chat_id=?, service=?, device_id=coalesce(?, device_id), active_at=? WHERE id=?",
        (said.chat_id, registration.service, registration.device_id, now, known.id),
    )
    if refused:
        return Registered.KEPT
    _write_record(db, known.id, record)
    if known.state == INCOMPLETE:
        # Whatever made it known (a push) still waits for its acknowledgement.
        db.execute(
            "UPDATE session SET state=?, reason=?, due_at=?, marks=marks+1 WHERE id=?",
            (LIVE, Reason.ACKNOWLEDGE, now, known.id),
        )
    if record.alias != known.record.alias:
        _due_if_lost(db, known.id, record.alias, now - NEWS_AGE_MS, now)
    return Registered.COMPLETED if known.state == INCOMPLETE else Registered.UPDATED


def _create(db: Db, registration: Registration, now: Ms, due_at: float) -> None:
    said = registration.tokens
    cursor = db.execute(
        "INSERT INTO session (chat_id, service, user_id, secure_key, alias, device_id, next_position, state,"
        " reason, due_at, registered_at, active_at, sent_at) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            said.chat_id,
            registration.service,
            said.user_id,
            said.secure_key,
            said.alias,
            registration.device_id,
            registration.next_position,
            LIVE,
            Reason.KEEPALIVE,
            due_at,
            now,
            now,
            now,
        ),
    )
    assert cursor.lastrowid is not None
    _due_if_lost(db, cursor.lastrowid, said.alias, now - NEWS_AGE_MS, now)


def _removed_by_hand(db: Db, row: int) -> bool:
    cause = db.execute("SELECT end_cause FROM session WHERE id=?", (row,)).fetchone()[0]
    return bool(cause == EndCause.REMOVED)


def _due_if_lost(db: Db, row: int, alias: str | None, since: Ms, now: Ms) -> None:
    """A session that has just come to a Chat Server known to be gone must not wait for its
    keepalive: it missed the marking of that server's sessions."""
    lost = db.execute(
        "SELECT id, finished_at FROM restoration WHERE alias=? AND started_at>=? AND cause<>?"
        " ORDER BY id DESC LIMIT 1",
        (alias, since, Cause.ANNOUNCED),
    ).fetchone()
    if lost is None:
        down = db.execute("SELECT 1 FROM server WHERE app_dbid=? AND state=?", (alias, ServerState.DOWN))
        if down.fetchone() is None:
            return
    db.execute(
        "UPDATE session SET due_at=CASE WHEN reason>? THEN ? ELSE min(due_at,?) END, reason=min(reason,?),"
        " marks=marks+1, attempts=0 WHERE id=?",
        (Reason.RESTORE, now, now, Reason.RESTORE, row),
    )
    if lost is not None and lost[1] is None:
        _join(db, row, lost[0])


def _join(db: Db, row: int, restoration: int) -> None:
    """Count a session in an open restoration; it leaves the one it was in."""
    before = db.execute("SELECT restoration FROM session WHERE id=?", (row,)).fetchone()[0]
    if before == restoration:
        return
    if before is not None:
        db.execute("UPDATE restoration SET moved=moved+1 WHERE id=?", (before,))
    db.execute("UPDATE restoration SET sessions=sessions+1 WHERE id=?", (restoration,))
    db.execute("UPDATE session SET restoration=? WHERE id=?", (restoration, row))


def remove(db: Db, chat_id: str, now: Ms) -> bool:
    found = _rows(db, "WHERE chat_id=? AND state<>?", chat_id, ENDED)
    if not found:
        return False
    _end(db, found[0].id, EndCause.REMOVED, now)
    _credit(db, Counter({(found[0].restoration, "ended"): 1}), now)
    return True


def _end(db: Db, row: int, cause: EndCause, now: Ms) -> None:
    """Keep the story, forget the secrets."""
    db.execute(
        "UPDATE session SET state=?, ended_at=?, active_at=?, end_cause=?, secure_key=NULL, old_keys='',"
        " lease_until=0, claim=0, restoration=NULL WHERE id=?",
        (ENDED, now, now, cause, row),
    )


def make_due(db: Db, chat_id: str, reason: Reason, now: Ms) -> bool:
    cursor = db.execute(
        "UPDATE session SET due_at=min(due_at,?), reason=min(reason,?), marks=marks+1 WHERE chat_id=? AND state=?",
        (now, reason, chat_id, LIVE),
    )
    return cursor.rowcount > 0


def purge(db: Db, before: Ms, limit: int) -> int:
    gone = 0
    for state in (INCOMPLETE, ENDED):
        gone += db.execute(
            "DELETE FROM session WHERE id IN (SELECT id FROM session WHERE state=? AND active_at<? LIMIT ?)",
            (state, before, limit),
        ).rowcount
    db.execute("DELETE FROM restoration WHERE finished_at<?", (before,))
    return gone


def pull_in(db: Db, now: Ms, spread_ms: float, limit: int) -> int:
    return db.execute(
        "UPDATE session SET due_at = ? + abs(random() % 1000000) / 1e6 * ? WHERE id IN"
        " (SELECT id FROM session WHERE state=1 AND reason=? AND due_at>? LIMIT ?)",
        (now, spread_ms, Reason.KEEPALIVE, now + spread_ms, limit),
    ).rowcount


# -- pushes --------------------------------------------------------------------------------------


def take_push(db: Db, push: Push, now: Ms) -> Taken:
    session, taken = _recognise(db, push)
    news = push.news
    db.execute(
        "INSERT INTO journal (at, session, chat_id, device_id, user_id, secure_key, alias, utc_time, position,"
        " leaving, resent, digest) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            now,
            session,
            news.chat_id,
            push.device_id,
            news.user_id,
            news.secure_key,
            news.alias,
            push.utc_time,
            push.position,
            push.leaving,
            taken is Taken.RESENT,
            push.digest,
        ),
    )
    return taken


def _recognise(db: Db, push: Push) -> tuple[int | None, Taken]:
    if push.news.chat_id is not None:
        found = db.execute(
            "SELECT id, state, push_digest FROM session WHERE chat_id=?", (push.news.chat_id,)
        ).fetchone()
    else:
        found = db.execute(
            "SELECT id, state, push_digest FROM session WHERE device_id=? ORDER BY state=1 DESC LIMIT 1",
            (push.device_id,),
        ).fetchone()
    if found is None:
        return None, Taken.UNKNOWN
    if found[1] == ENDED:
        return found[0], Taken.ENDED
    # Without payload every notification of a session looks the same; only one that names an event
    # can be told from the next.
    named = push.utc_time is not None or push.position is not None
    resent = push.resend or (named and found[2] == push.digest)
    return found[0], Taken.RESENT if resent else Taken.KNOWN


@dataclass(slots=True)
class _Kept:
    """A journal row."""

    at: Ms
    news: TokenNews
    device_id: str | None
    utc_time: Ms | None
    position: int | None
    leaving: bool
    resent: bool
    digest: str


def absorb(db: Db, limit: int) -> tuple[list[Absorbed], bool]:
    """The effects, and whether the journal is empty now."""
    rows = db.execute(
        "SELECT id, at, chat_id, device_id, user_id, secure_key, alias, utc_time, position, leaving, resent, digest"
        " FROM journal ORDER BY id LIMIT ?",
        (limit,),
    ).fetchall()
    effects: list[Absorbed] = []
    for row in rows:
        kept = _Kept(
            at=row[1],
            news=TokenNews(chat_id=row[2], user_id=row[4], secure_key=row[5], alias=row[6]),
            device_id=row[3],
            utc_time=row[7],
            position=row[8],
            leaving=bool(row[9]),
            resent=bool(row[10]),
            digest=row[11],
        )
        effects.extend(_absorb(db, kept))
    if rows:
        db.execute("DELETE FROM journal WHERE id<=?", (rows[-1][0],))
    return effects, len(rows) < limit


def _absorb(db: Db, push: _Kept) -> list[Absorbed]:
    if push.news.chat_id is not None:
        found = _rows(db, "WHERE chat_id=?", push.news.chat_id)
        if not found and push.device_id is not None:
            found = _rows(db, "WHERE chat_id IS NULL AND device_id=?", push.device_id)
    else:
        found = _rows(db, "WHERE device_id=?", push.device_id)
    if not found:
        return [_absorb_unknown(db, push)]
    # A device id without a chat id names all chats of that device; tokens then belong to nobody.
    teaches = push.news.chat_id is not None or len(found) == 1
    open_ones = [session for session in found if session.state != ENDED] or found[:1]
    return [_absorb_known(db, session, push, teaches) for session in open_ones]


def _absorb_unknown(db: Db, push: _Kept) -> Absorbed:
    news = push.news
    state = LIVE if news.complete() else INCOMPLETE
    cursor = db.execute(
        "INSERT INTO session (chat_id, user_id, secure_key, alias, device_id, state, reason, due_at,"
        " registered_at, active_at, push_digest) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
        (
            news.chat_id,
            news.user_id,
            news.secure_key,
            news.alias,
            push.device_id,
            state,
            Reason.RESTORE if push.leaving else Reason.ACKNOWLEDGE,
            push.at,
            push.at,
            push.at,
            push.digest,
        ),
    )
    assert cursor.lastrowid is not None
    if state == LIVE and push.leaving:
        _join_announced(db, cursor.lastrowid, news.alias, push.at)
    effect = Effect.ADOPTED if state == LIVE else Effect.INCOMPLETE
    return Absorbed(news.chat_id, push.device_id, effect, news.alias, push.leaving)


def _absorb_known(db: Db, session: _Row, push: _Kept, teaches: bool) -> Absorbed:
    chat_id = session.chat_id or push.news.chat_id

    def effect(what: Effect, alias: str | None = session.record.alias) -> Absorbed:
        return Absorbed(chat_id, push.device_id, what, alias, push.leaving)

    if session.state == ENDED:
        return effect(Effect.NOTHING)
    record, ignored = session.record, False
    if teaches:
        record, ignored = tokens.from_push(
            session.record, push.news, utc_time=push.utc_time, position=push.position
        )
    learned = record != session.record
    if learned:
        _write_record(db, session.id, record)
    completed = session.state == INCOMPLETE and chat_id is not None and record.complete()
    reason = Reason.RESTORE if push.leaving else Reason.ACKNOWLEDGE
    db.execute(
        "UPDATE session SET chat_id=?, device_id=coalesce(device_id, ?), state=?, due_at=min(due_at,?),"
        " reason=min(reason,?), marks=marks+1, active_at=max(active_at,?), push_digest=? WHERE id=?",
        (
            chat_id,
            push.device_id,
            LIVE if completed else session.state,
            push.at,
            reason,
            0 if push.resent or push.leaving else push.at,
            push.digest,
            session.id,
        ),
    )
    if session.state == INCOMPLETE and not completed:
        return effect(Effect.INCOMPLETE)
    if push.leaving:
        _join_announced(db, session.id, session.record.alias, push.at)
    if record.alias != session.record.alias:
        _due_if_lost(db, session.id, record.alias, push.at - NEWS_AGE_MS, push.at)
    if completed:
        return effect(Effect.COMPLETED, record.alias)
    if learned:
        return effect(Effect.LEARNED, record.alias)
    return effect(Effect.STALE if ignored else Effect.DUE)


def _join_announced(db: Db, row: int, alias: str | None, now: Ms) -> None:
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
    _join(db, row, restoration)


# -- work ----------------------------------------------------------------------------------------


def claim(
    db: Db, now: Ms, limit: int, lease_ms: int, reasons: Sequence[Reason], journal: bool
) -> list[Claim]:
    """`journal` says whether pushes may wait that have not taken effect."""
    claim_id = secrets.randbits(62) + 1
    claims: list[Claim] = []
    for reason in reasons:
        if len(claims) >= limit:
            break
        rows = db.execute(
            "SELECT id, chat_id, service, user_id, secure_key, alias, next_position, reason, due_at, attempts,"
            " restoration, marks FROM session INDEXED BY session_due"
            " WHERE state=1 AND reason=? AND due_at<=? AND lease_until<=? ORDER BY due_at LIMIT ?",
            (reason, now, now, limit - len(claims)),
        ).fetchall()
        held_back = _with_journal(db, [row[0] for row in rows]) if journal and rows else frozenset()
        claims.extend(
            Claim(
                chat_id=row[1],
                service=row[2],
                tokens=Tokens(row[1], row[3], row[4], row[5]),
                next_position=row[6],
                reason=Reason(row[7]),
                due_at=row[8],
                attempts=row[9],
                restoration=row[10],
                claim_id=claim_id,
                marks=row[11],
                row=row[0],
            )
            for row in rows
            if row[0] not in held_back
        )
    if claims:
        db.execute(
            "UPDATE session SET lease_until=?, claim=? WHERE id IN (SELECT value FROM json_each(?))",
            (now + lease_ms, claim_id, json.dumps([taken.row for taken in claims])),
        )
    return claims


def _with_journal(db: Db, rows: list[int]) -> frozenset[int]:
    """Those for which a push waits: it may tell other tokens than the row has."""
    return frozenset(
        row[0]
        for row in db.execute(
            "SELECT session FROM journal WHERE session IN (SELECT value FROM json_each(?))",
            (json.dumps(rows),),
        )
    )


def renew(db: Db, claims: Sequence[Claim], until: Ms) -> None:
    db.executemany(
        "UPDATE session SET lease_until=? WHERE id=? AND claim=?",
        [(until, claim.row, claim.claim_id) for claim in claims],
    )


def settle(db: Db, settlements: Sequence[Settlement]) -> list[Settled]:
    credits: Counter[tuple[int | None, str]] = Counter()
    settled = [_settle_plain(db, each) or _settle(db, each, credits) for each in settlements]
    if credits:
        finished = _credit(db, credits, max(each.settled_at for each in settlements))
        settled = [
            replace(one, finished=each.claim.restoration) if each.claim.restoration in finished else one
            for one, each in zip(settled, settlements, strict=True)
        ]
    return settled


def _settle_plain(db: Db, each: Settlement) -> Settled | None:
    """The common case in one statement: answered, nothing new about the tokens, no restoration."""
    claim = each.claim
    if (
        each.verdict is not Verdict.ANSWERED
        or claim.restoration is not None
        or _says_new(each.news, claim.tokens)
    ):
        return None
    cursor = db.execute(
        "UPDATE session SET lease_until=0, claim=0, attempts=0, last_trouble=NULL, sent_at=?, answered_at=?,"
        " seen_utc=max(seen_utc,?), next_position=coalesce(?, next_position),"
        " due_at=?, reason=? WHERE id=? AND claim=? AND state=1 AND secure_key=? AND marks=?",
        (
            each.sent_at,
            each.settled_at,
            each.seen_utc or 0,
            each.next_position,
            each.due_at,
            Reason.KEEPALIVE,
            claim.row,
            claim.claim_id,
            claim.tokens.secure_key,
            claim.marks,
        ),
    )
    if cursor.rowcount == 0:
        return None
    return Settled(claim.chat_id, lease_held=True, tokens_changed=False, alias=claim.tokens.alias)


def _says_new(news: TokenNews, sent: Tokens) -> bool:
    return (
        news.secure_key not in (None, sent.secure_key)
        or news.alias not in (None, sent.alias)
        or news.user_id not in (None, sent.user_id)
    )


def _settle(db: Db, each: Settlement, credits: Counter[tuple[int | None, str]]) -> Settled:
    claim = each.claim
    found = _rows(db, "WHERE id=? AND chat_id=?", claim.row, claim.chat_id)
    if not found or found[0].state == ENDED:
        return Settled(claim.chat_id, lease_held=False, tokens_changed=False, alias=None)
    known = found[0]
    if each.verdict is Verdict.ENDED:
        _end(db, known.id, EndCause.CHAT_ENDED, each.settled_at)
        credits[known.restoration, "ended"] += 1
        return Settled(claim.chat_id, lease_held=True, tokens_changed=False, alias=known.record.alias)
    record = known.record
    if each.verdict is Verdict.ANSWERED:
        record = tokens.from_reply(
            record,
            claim.tokens.secure_key,
            each.news,
            sent_at=each.sent_at,
            seen_utc=each.seen_utc,
            next_position=each.next_position,
        )
        _write_record(db, known.id, record)
    held = known.claim == claim.claim_id
    if held:
        _give_back(db, known, each, credits)
    if record.alias != known.record.alias:
        _due_if_lost(db, known.id, record.alias, each.sent_at, each.settled_at)
    changed = (record.secure_key, record.user_id, record.alias) != (
        known.record.secure_key,
        known.record.user_id,
        known.record.alias,
    )
    return Settled(claim.chat_id, lease_held=held, tokens_changed=changed, alias=record.alias)


def _give_back(db: Db, known: _Row, each: Settlement, credits: Counter[tuple[int | None, str]]) -> None:
    """End the lease. What made the session due while the ping was on its way keeps it due."""
    done = each.verdict in (Verdict.ANSWERED, Verdict.REFUSED)
    same = known.marks == each.claim.marks
    answered = each.verdict is Verdict.ANSWERED
    released = each.verdict is Verdict.RELEASED
    db.execute(
        "UPDATE session SET lease_until=0, claim=0,"
        " attempts=CASE WHEN ? THEN 0 WHEN ? THEN attempts ELSE attempts+1 END,"
        " answered_at=CASE WHEN ? THEN ? ELSE answered_at END, last_trouble=?,"
        " due_at=CASE WHEN ? THEN ? ELSE due_at END, reason=CASE WHEN ? THEN ? ELSE reason END WHERE id=?",
        (
            answered,
            released,
            answered,
            each.settled_at,
            each.trouble,
            same and not released,
            each.due_at,
            same and done,
            Reason.KEEPALIVE,
            known.id,
        ),
    )
    if done and same and known.restoration is not None:
        db.execute("UPDATE session SET restoration=NULL WHERE id=?", (known.id,))
        credits[known.restoration, "restored" if answered else "refused"] += 1


def _credit(db: Db, credits: Counter[tuple[int | None, str]], now: Ms) -> set[int]:
    """Add to the counts of restorations; those that are finished by it."""
    touched: set[int] = set()
    for (restoration, column), count in credits.items():
        if restoration is not None:
            db.execute(f"UPDATE restoration SET {column}={column}+? WHERE id=?", (count, restoration))
            touched.add(restoration)
    return {restoration for restoration in touched if _finish(db, restoration, now)}


def _finish(db: Db, restoration: int, now: Ms) -> bool:
    return (
        db.execute(
            "UPDATE restoration SET finished_at=? WHERE id=? AND finished_at IS NULL AND marking=0"
            " AND sessions<=restored+ended+refused+moved",
            (now, restoration),
        ).rowcount
        > 0
    )


# -- Chat Servers and restorations -----------------------------------------------------------------


def save_server(db: Db, server: ChatServer) -> None:
    db.execute(
        "INSERT OR REPLACE INTO server (name, app_dbid, process_os_pid, started, state, since, checked_at, detail)"
        " VALUES (?,?,?,?,?,?,?,?)",
        (
            server.name,
            server.app_dbid,
            server.process_os_pid,
            server.started,
            server.state,
            server.since,
            server.checked_at,
            server.detail,
        ),
    )


def begin_restoration(db: Db, alias: str, server: str | None, cause: Cause, now: Ms) -> int:
    cursor = db.execute(
        "INSERT INTO restoration (alias, server, cause, started_at, marking, marked_at) VALUES (?,?,?,?,1,?)",
        (alias, server, cause, now, now),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def mark(db: Db, restoration: int, limit: int, now: Ms) -> bool:
    found = db.execute(
        "SELECT alias, started_at, sessions, cursor_active, cursor_id FROM restoration WHERE id=? AND marking=1",
        (restoration,),
    ).fetchone()
    if found is None:
        return False
    alias, started_at, counted, cursor_active, cursor_id = found
    chunk = db.execute(
        "SELECT id, active_at, restoration FROM session INDEXED BY session_alias WHERE state=1 AND alias=?"
        " AND (active_at, id) < (?, ?) ORDER BY active_at DESC, id DESC LIMIT ?",
        (alias, *((1 << 62, 0) if cursor_active is None else (cursor_active, cursor_id)), limit),
    ).fetchall()
    fresh = [row for row in chunk if row[2] != restoration]
    for before, count in Counter(row[2] for row in fresh if row[2] is not None).items():
        db.execute("UPDATE restoration SET moved=moved+? WHERE id=?", (count, before))
        _finish(db, before, now)
    db.execute(
        "UPDATE session SET due_at=CASE WHEN reason>1 THEN ? + made.key * ? ELSE min(due_at, ? + made.key * ?) END,"
        " reason=min(reason, 1), marks=marks+1, attempts=0, restoration=?"
        " FROM json_each(?) AS made WHERE session.id=made.value",
        (
            *((started_at + counted * RANK_MS, RANK_MS) * 2),
            restoration,
            json.dumps([row[0] for row in fresh]),
        ),
    )
    more = len(chunk) == limit
    last = chunk[-1] if chunk else (cursor_id, cursor_active)
    db.execute(
        "UPDATE restoration SET sessions=sessions+?, marking=?, marked_at=?, cursor_active=?, cursor_id=? WHERE id=?",
        (len(fresh), more, now, last[1], last[0], restoration),
    )
    if not more:
        _finish(db, restoration, now)
    return more


def finish_announced(db: Db, now: Ms) -> list[int]:
    quiet = db.execute(
        "SELECT id FROM restoration WHERE finished_at IS NULL AND cause=? AND marking=1 AND marked_at<=?",
        (Cause.ANNOUNCED, now - ANNOUNCED_LINGER_MS),
    ).fetchall()
    db.executemany("UPDATE restoration SET marking=0 WHERE id=?", quiet)
    return [row[0] for row in quiet if _finish(db, row[0], now)]
