"""What happens inside a transaction: plain functions of an SQLite connection.

Each runs on the writer's thread, inside a transaction that the writer opens and commits. What happens
thousands of times a second goes in portions, one statement for many rows (`rows.py`), and what it
selects comes back as one value, an array in JSON. What does not fit the common case takes the plain
way, session by session.

A secure key is sealed where it is written and opened where it is read, by `db.sealing`; statements only
compare sealed ones with each other.
"""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from asyncchatd.model import (
    Cause,
    ChatServer,
    Claim,
    EndCause,
    Loss,
    Ms,
    Process,
    Reason,
    Registration,
    ServerState,
    Settled,
    Settlement,
    TokenNews,
    TokenRecord,
    Tokens,
    Verdict,
    key_digest,
    replace,
    tokens,
)
from asyncchatd.stores.base import (
    ANNOUNCED_LINGER_MS,
    AT_ONCE,
    DEVICE_CHATS,
    LONGEST_SILENCE_MS,
    SPACING_MS,
    Absorbed,
    Effect,
    Registered,
    Taken,
    agrees,
)
from asyncchatd.stores.sealing import Sealing
from asyncchatd.stores.sqlite.database import Db, opened
from asyncchatd.stores.sqlite.rows import run
from asyncchatd.wire import Push

INCOMPLETE, LIVE, ENDED = 0, 1, 2

RANK_MS = 0.001
"""Sessions made due together lie this far apart, which keeps them in order in the due index."""

LONGEST_LEASE_MS = 600_000
"""A lease that runs longer was given before the clock was set back, by a daemon that did not live to see it."""

OLD_KEYS_TEXT = tokens.OLD_KEYS_KEPT * (len(key_digest("")) + 1) - 1
"""Characters of the remembered digests, which stand in one column with blanks between."""


AHEAD_MS = (AT_ONCE - 1) * SPACING_MS
"""So far ahead of the clock may the pings of a session be accounted for before the next has to wait."""

DEVICE_LOOKED_AT = 500
"""Chats of one device, those known last, among which a push without a chat id looks for the active ones."""


def _spaced(at: str) -> str:
    """When a session is due for a push that came at this time (an expression of SQL). Never more than
    `SPACING_MS` later: the clock may have been set back."""
    return f"max({at}, min(session.pinged_until - {AHEAD_MS}, {at} + {SPACING_MS}))"


def _accounted(at: str) -> str:
    """`pinged_until` after a ping that was settled at this time."""
    return f"min(max(session.pinged_until, {at}), {at} + {AHEAD_MS}) + {SPACING_MS}"


def _json(rows: object) -> str:
    return orjson.dumps(rows).decode()


def probe(db: Db) -> None:
    """Write something that changes nothing."""
    db.execute("UPDATE sealing SET remains=remains")


# -- sessions ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Row:
    """What the token rules and the marks need of a session."""

    id: int
    chat_id: str | None
    device_id: str | None
    state: int
    record: TokenRecord
    marks: int
    claim: int | None
    restoration: int | None


_ROW = """SELECT id, chat_id, state, user_id, secure_key, alias, old_keys, sent_at, seen_utc, next_position,
                 told_position, renewed_at, marks, (SELECT claim FROM lease WHERE lease.session=session.id),
                 restoration, device_id FROM session """


def _rows(db: Db, where: str, *parameters: object) -> list[_Row]:
    return [
        _Row(
            id=row[0],
            chat_id=row[1],
            device_id=row[15],
            state=row[2],
            record=TokenRecord(
                user_id=row[3],
                secure_key=opened(db, row[4], row[1], row[15]),
                alias=row[5],
                old_keys=tuple(row[6].split()),
                sent_at=row[7],
                seen_utc=row[8],
                next_position=row[9],
                told_position=row[10],
                renewed_at=row[11],
            ),
            marks=row[12],
            claim=row[13],
            restoration=row[14],
        )
        for row in db.execute(_ROW + where, parameters)
    ]


def _write_record(db: Db, known: _Row, chat_id: str | None, record: TokenRecord) -> None:
    """`chat_id`: known now, if it was not before."""
    db.execute(
        "UPDATE session SET user_id=?, secure_key=?, alias=?, old_keys=?, sent_at=?, seen_utc=?,"
        " next_position=?, told_position=?, renewed_at=? WHERE id=?",
        (
            record.user_id,
            db.sealing.seal(record.secure_key, chat_id, known.device_id),
            record.alias,
            " ".join(record.old_keys),
            record.sent_at,
            record.seen_utc,
            record.next_position,
            record.told_position,
            record.renewed_at,
            known.id,
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
        "UPDATE session SET chat_id=?, service=?, device_id=coalesce(?, device_id), active_at=?,"
        " due_at=iif(refused_since IS NULL OR reason<>?, due_at, min(due_at, ?)), refused_since=NULL WHERE id=?",
        (
            *(said.chat_id, registration.service, registration.device_id, now),
            *(Reason.KEEPALIVE, now + random.random() * spread_ms, known.id),
        ),
    )
    _write_record(db, known, said.chat_id, record)
    if refused:
        return Registered.KEPT
    if known.state == INCOMPLETE:
        # Whatever made it known (a push) still waits for its acknowledgement.
        db.execute(
            "UPDATE session SET state=?, reason=?, due_at=?, marks=marks+1 WHERE id=?",
            (LIVE, Reason.ACKNOWLEDGE, now, known.id),
        )
    if record.alias != known.record.alias:
        _due_if_lost(db, known.id, record.alias, None, now)
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
            db.sealing.seal(said.secure_key, said.chat_id),
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
    _due_if_lost(db, cursor.lastrowid, said.alias, None, now)


def _removed_by_hand(db: Db, row: int) -> bool:
    cause = db.execute("SELECT end_cause FROM session WHERE id=?", (row,)).fetchone()[0]
    return bool(cause == EndCause.REMOVED)


def _due_if_lost(db: Db, row: int, alias: str | None, since: Ms | None, now: Ms) -> bool:
    """A session that has just come to a Chat Server known to be gone must not wait for its
    keepalive: it missed the marking of that server's sessions."""
    lost = _lost(db, alias, since)
    if lost is None:
        return False
    db.execute(
        "UPDATE session SET due_at=CASE WHEN reason>? THEN ? ELSE min(due_at,?) END, reason=min(reason,?),"
        " marks=marks+1, attempts=0, refused_since=NULL WHERE id=?",
        (Reason.RESTORE, now, now, Reason.RESTORE, row),
    )
    if lost.open is not None:
        _join(db, row, lost.open, now)
    return True


class _Lost(NamedTuple):
    """A Chat Server is gone."""

    open: int | None
    """The restoration of its sessions, while it runs."""


def _lost(db: Db, alias: str | None, since: Ms | None) -> _Lost | None:
    """Whether its Chat Server is known to be gone: since a request was sent to it, or (`None`) now."""
    found = db.execute(
        "SELECT iif(finished_at IS NULL, id, NULL) FROM restoration WHERE alias=? AND cause NOT IN (?, ?)"
        " AND iif(? IS NULL, finished_at IS NULL, started_at>=?) ORDER BY id DESC LIMIT 1",
        (alias, Cause.ANNOUNCED, Cause.OPERATOR, since, since),
    ).fetchone()
    if found is not None:
        return _Lost(found[0])
    down = db.execute(
        "SELECT 1 FROM server WHERE app_dbid=? AND state=?", (alias, ServerState.DOWN)
    ).fetchone()
    return None if down is None else _Lost(None)


def _join(db: Db, row: int, restoration: int, now: Ms) -> None:
    """Count a session in an open restoration; it leaves the one it was in."""
    before = db.execute("SELECT restoration FROM session WHERE id=?", (row,)).fetchone()[0]
    if before == restoration:
        return
    if before is not None:
        db.execute("UPDATE restoration SET moved=moved+1 WHERE id=?", (before,))
        _finish(db, before, now)
    db.execute("UPDATE restoration SET sessions=sessions+1, finished_at=NULL WHERE id=?", (restoration,))
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
        " restoration=NULL WHERE id=?",
        (ENDED, now, now, cause, row),
    )
    db.execute("DELETE FROM lease WHERE session=?", (row,))


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
            # The index is for `state <> 1`; from `state = 2` alone SQLite does not see that it fits.
            "DELETE FROM session WHERE id IN"
            " (SELECT id FROM session WHERE state<>1 AND state=? AND active_at<? LIMIT ?)",
            (state, before, limit),
        ).rowcount
    db.execute("DELETE FROM restoration WHERE finished_at<? AND marking=0", (before,))
    return gone


def pull_in(db: Db, now: Ms, spread_ms: float, limit: int) -> int:
    keepalives = db.execute(
        f"UPDATE session SET due_at = :now + abs(random() % 1000000) / 1e6 * {_SILENCE} WHERE id IN"
        " (SELECT id FROM session WHERE state=1 AND reason=:keepalive AND due_at > :now + :spread"
        f" AND due_at > :now + {_SILENCE} LIMIT :limit)",
        {
            **{"now": now, "spread": spread_ms, "longest": LONGEST_SILENCE_MS},
            **{"keepalive": Reason.KEEPALIVE, "limit": limit},
        },
    ).rowcount
    db.execute("UPDATE lease SET until=? WHERE until>?", (now, now + LONGEST_LEASE_MS))
    # Only keepalives can wait: what is urgent is pinged now, and the rate is bounded anyway.
    urgent = (reason for reason in Reason if reason is not Reason.KEEPALIVE)
    return keepalives + sum(_pull_in_urgent(db, reason, now, limit) for reason in urgent)


_SILENCE = """iif(refused_since IS NULL, :spread,
    max(:spread, min(:longest, :spread + max(0, :now - refused_since))))"""
"""`silence_ms`."""


def _pull_in_urgent(db: Db, reason: Reason, now: Ms, limit: int) -> int:
    """All at once, in the order they have: the last of them is due now."""
    last = db.execute(
        "SELECT max(due_at) FROM session INDEXED BY session_due WHERE state=1 AND reason=?", (reason,)
    ).fetchone()[0]
    if last is None or last <= now:
        return 0
    return db.execute(
        "UPDATE session SET due_at = due_at - ? WHERE id IN"
        " (SELECT id FROM session WHERE state=1 AND reason=? AND due_at>? ORDER BY due_at LIMIT ?)",
        (last - now, reason, now, limit),
    ).rowcount


def distrust(db: Db, before: Ms, dry_run: bool) -> int:
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
    db.execute(f"DELETE FROM lease WHERE session IN (SELECT id FROM session WHERE {old})", (LIVE, before))
    # Not remembered as replaced: it may still be the right one, and a push then says so.
    count = db.execute(
        f"UPDATE session SET state=?, user_id=NULL, secure_key=NULL, alias=NULL, restoration=NULL WHERE {old}",
        (INCOMPLETE, LIVE, before),
    ).rowcount
    # One that lacks a token would be pinged with the old ones as soon as it is told.
    db.execute(
        f"UPDATE session SET user_id=NULL, secure_key=NULL, alias=NULL WHERE {old}", (INCOMPLETE, before)
    )
    _credit(db, credits, before)
    return count


# -- pushes --------------------------------------------------------------------------------------


def take_pushes(db: Db, pushes: Sequence[tuple[Push, Ms]]) -> list[Taken]:
    """Write a portion of pushes into the journal, and say what each one is."""
    sessions = _recognise(db, pushes)
    taken = [_taken(push, sessions.get(number)) for number, (push, _) in enumerate(pushes)]
    rows = [
        (
            now,
            sessions[number].id if number in sessions else None,
            push.news.chat_id,
            push.device_id,
            push.news.user_id,
            db.sealing.seal(push.news.secure_key, push.news.chat_id, push.device_id),
            push.news.alias,
            push.utc_time,
            push.position,
            push.next_position,
            push.leaving,
            taken[number] is Taken.RESENT,
            push.digest,
        )
        for number, (push, now) in enumerate(pushes)
    ]
    run(db, _KEEP, _JOURNAL, rows)
    return taken


_JOURNAL = (
    "at, session, chat_id, device_id, user_id, secure_key, alias,"
    " utc_time, position, next_position, leaving, resent, digest"
)

_KEEP = f"INSERT INTO journal ({_JOURNAL}) SELECT * FROM row WHERE row.at IS NOT NULL"


class _Recognised(NamedTuple):
    """The session a push is for."""

    id: int
    state: int
    push_digest: str | None


def _recognise(db: Db, pushes: Sequence[tuple[Push, Ms]]) -> dict[int, _Recognised]:
    """By the push's place in the portion. Without a chat id the device's live session is meant."""
    found: dict[int, _Recognised] = {}
    by_chat = [(n, push.news.chat_id) for n, (push, _) in enumerate(pushes) if push.news.chat_id is not None]
    by_device = [(n, push.device_id) for n, (push, _) in enumerate(pushes) if push.news.chat_id is None]
    for which, wanted in (("chat_id=row.name", by_chat), (f"id={_OF_DEVICE}", by_device)):
        if wanted:
            portions = run(
                db,
                "SELECT json_group_array(json_array(place, id, state, push_digest)) FROM"
                " (SELECT row.place, session.id, session.state, session.push_digest"
                f" FROM row CROSS JOIN session ON session.{which})",
                "place, name",
                wanted,
            )
            for (portion,) in portions:
                found.update((row[0], _Recognised(*row[1:])) for row in orjson.loads(portion))
    return found


_OF_DEVICE = """coalesce(
    (SELECT id FROM session AS one WHERE one.device_id=row.name AND one.state=1 LIMIT 1),
    (SELECT id FROM session AS one WHERE one.device_id=row.name LIMIT 1))"""
"""One of its live sessions, else any: many may share a device, and nobody needs to know them all."""


def _taken(push: Push, session: _Recognised | None) -> Taken:
    if session is None:
        return Taken.UNKNOWN
    if session.state == ENDED:
        return Taken.ENDED
    # Without payload every notification of a session looks the same; only one that names an event
    # can be told from the next.
    named = push.utc_time is not None or push.position is not None
    resent = push.resend or (named and session.push_digest == push.digest)
    return Taken.RESENT if resent else Taken.KNOWN


@dataclass(slots=True)
class _Kept:
    """A journal row."""

    at: Ms
    news: TokenNews
    device_id: str | None
    utc_time: Ms | None
    position: int | None
    next_position: int | None
    leaving: bool
    resent: bool
    digest: str


def absorb(db: Db, limit: int) -> tuple[list[Absorbed], bool]:
    """The effects worth telling, and whether the journal is empty now."""
    last, count = db.execute(
        "SELECT max(id), count(*) FROM (SELECT id FROM journal ORDER BY id LIMIT ?)", (limit,)
    ).fetchone()
    if not count:
        return [], True
    unusual = _unusual(db, last)
    # The usual ones first: those that repeat a key confirm it against what others tell of earlier events.
    _absorb_usual(db, last, [number for number, _ in unusual])
    effects: list[Absorbed] = []
    for _, push in unusual:
        effects.extend(_absorb(db, push))
    db.execute("DELETE FROM journal WHERE id<=?", (last,))
    return effects, count < limit


_USUAL = """session.state=1 AND NOT journal.leaving
    AND (journal.chat_id=session.chat_id OR journal.chat_id IS NULL
         AND (SELECT count(*) FROM (SELECT 1 FROM session AS other
             WHERE other.device_id=journal.device_id LIMIT 2))=1)
    AND session.device_id IS coalesce(journal.device_id, session.device_id)
    AND coalesce(journal.user_id, session.user_id)=session.user_id
    AND coalesce(journal.secure_key, session.secure_key)=session.secure_key
    AND coalesce(journal.alias, session.alias)=session.alias
    AND (journal.next_position IS NULL OR session.next_position IS NOT NULL)"""
"""A push that says nothing of its live session but that something happened there."""


def _unusual(db: Db, last: int) -> list[tuple[int, _Kept]]:
    rows = db.execute(
        f"SELECT journal.id, {', '.join(f'journal.{column}' for column in _JOURNAL.split(', '))} FROM journal"
        " LEFT JOIN session ON session.id=journal.session"
        f" WHERE journal.id<=? AND NOT coalesce({_USUAL}, 0) ORDER BY journal.id",
        (last,),
    )
    return [
        (
            row[0],
            _Kept(
                at=row[1],
                news=TokenNews(
                    chat_id=row[3],
                    user_id=row[5],
                    secure_key=opened(db, row[6], row[3], row[4]),
                    alias=row[7],
                ),
                device_id=row[4],
                utc_time=row[8],
                position=row[9],
                next_position=row[10],
                leaving=bool(row[11]),
                resent=bool(row[12]),
                digest=row[13],
            ),
        )
        for row in rows.fetchall()
    ]


def _absorb_usual(db: Db, last: int, unusual: list[int]) -> None:
    """All the others at once, several pushes of one session as one."""
    db.execute(
        f"UPDATE session SET {_HEARD_OF}, marks=marks+1, due_at=min(due_at, {_spaced('new.first')}),"
        " reason=min(reason, ?),"
        " active_at=max(active_at, new.last), seen_utc=max(seen_utc, new.confirmed), push_digest=new.digest FROM ("
        "  SELECT session, min(at) AS first, max(iif(resent, 0, at)) AS last,"
        "  max(iif(secure_key IS NULL, 0, coalesce(utc_time, 0))) AS confirmed,"
        "  substr(max(printf('%016x', id) || digest), 17) AS digest FROM journal"
        "  WHERE id<=? AND id NOT IN (SELECT value FROM json_each(?)) GROUP BY session"
        " ) AS new WHERE session.id=new.session",
        (Reason.ACKNOWLEDGE, last, _json(unusual)),
    )


_HEARD_OF = "refused_since=iif(restoration IS NULL, NULL, refused_since)"
"""Something happens in the conversation: what GMS refused before counts no more. Only the tries to restore a
session, which are bounded, go on as they began."""


def _absorb(db: Db, push: _Kept) -> list[Absorbed]:
    if push.news.chat_id is not None:
        found = _rows(db, "WHERE chat_id=?", push.news.chat_id)
        if not found and push.device_id is not None:
            found = _rows(db, "WHERE chat_id IS NULL AND device_id=?", push.device_id)
    else:
        found = _rows(db, _ACTIVE_OF_DEVICE, push.device_id, push.news.user_id)
    if not found:
        return [_absorb_unknown(db, push)]
    teaches = push.news.chat_id is not None or _is_told_of(found, push.news.user_id)
    open_ones = [session for session in found if session.state != ENDED] or found[:1]
    effects = [_absorb_known(db, session, push, teaches) for session in open_ones[:DEVICE_CHATS]]
    if len(open_ones) > DEVICE_CHATS:
        effects.append(Absorbed(None, push.device_id, Effect.CROWDED, None, push.leaving))
    return effects


_ACTIVE_OF_DEVICE = f"""WHERE id IN
    (SELECT id FROM session WHERE device_id=? ORDER BY id DESC LIMIT {DEVICE_LOOKED_AT})
    ORDER BY state={ENDED}, coalesce(user_id=?, 0) DESC, active_at DESC LIMIT {DEVICE_CHATS + 1}"""
"""Of a user that the push names, and then the most recently active first."""


def _is_told_of(found: Sequence[_Row], user_id: str | None) -> bool:
    """Whether a push without a chat id tells the tokens of this device's session. It names all chats of the
    device, and when there are several the tokens are of nobody knows which. A user id that is not the
    session's own shows that they are of a chat which we do not know."""
    return len(found) == 1 and (user_id is None or found[0].record.user_id in (None, user_id))


def _absorb_unknown(db: Db, push: _Kept) -> Absorbed:
    news = push.news
    state = LIVE if news.complete() else INCOMPLETE
    record, _ = tokens.from_push(TokenRecord(), news, utc_time=push.utc_time, position=push.position)
    cursor = db.execute(
        "INSERT INTO session (chat_id, user_id, secure_key, alias, seen_utc, device_id, next_position, state,"
        " reason, due_at, registered_at, active_at, push_digest) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            news.chat_id,
            record.user_id,
            db.sealing.seal(record.secure_key, news.chat_id, push.device_id),
            record.alias,
            record.seen_utc,
            push.device_id,
            push.next_position,
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
            session.record, push.news, utc_time=push.utc_time, position=push.position, at=push.at
        )
    learned = _changed(session.record, record)
    if record != session.record or chat_id != session.chat_id:
        _write_record(db, session, chat_id, record)
    completed = session.state == INCOMPLETE and chat_id is not None and record.complete()
    reason = Reason.RESTORE if push.leaving else Reason.ACKNOWLEDGE
    db.execute(
        f"UPDATE session SET {_HEARD_OF}, chat_id=?, device_id=coalesce(device_id, ?), state=?,"
        f" due_at=min(due_at, {_spaced('?4')}),"
        " reason=min(reason,?), marks=marks+1, active_at=max(active_at,?), push_digest=?,"
        " next_position=coalesce(next_position, ?) WHERE id=?",
        (
            chat_id,
            push.device_id,
            LIVE if completed else session.state,
            push.at,
            reason,
            0 if push.resent or push.leaving else push.at,
            push.digest,
            push.next_position,
            session.id,
        ),
    )
    if session.state == INCOMPLETE and not completed:
        return effect(Effect.INCOMPLETE if session.chat_id != chat_id else Effect.STILL_INCOMPLETE)
    if push.leaving:
        _join_announced(db, session.id, record.alias, push.at)
    if record.alias != session.record.alias:
        _due_if_lost(db, session.id, record.alias, None, push.at)
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
    _join(db, row, restoration, now)


# -- work ----------------------------------------------------------------------------------------


def claim(
    db: Db, now: Ms, limit: int, lease_ms: int, reasons: Sequence[Reason], journal: bool
) -> list[tuple[Claim, str | None]]:
    """Each with its device id. `journal` says whether pushes may wait that have not taken effect."""
    claim_id = secrets.randbits(53) + 1
    claims: list[tuple[Claim, str | None]] = []
    for reason in reasons:
        if len(claims) >= limit:
            break
        rows = _opened(db, _selected(db, _CLAIMABLE, reason, now, now, limit - len(claims)), now)
        held_back = _with_journal(db, rows) if journal and rows else frozenset()
        claims.extend((_claim(row, reason, claim_id), row[11]) for row in rows if row[0] not in held_back)
    run(db, _LEASE, "id", [(taken.row,) for taken, _ in claims], claim_id, now + lease_ms)
    return claims


def _opened(db: Db, rows: list[list[Any]], now: Ms) -> list[list[Any]]:
    """Those with a secure key, as a request carries it."""
    if db.sealing.key_id is None:
        return rows
    for row in rows:
        row[4] = opened(db, row[4], row[1])
        if row[4] is None:
            _lack_key(db, row[0], row[9], now)
    return [row for row in rows if row[4] is not None]


def _lack_key(db: Db, row: int, restoration: int | None, now: Ms) -> None:
    """A session whose secure key does not open is like one whose key was never told."""
    db.execute("UPDATE session SET state=?, secure_key=NULL, restoration=NULL WHERE id=?", (INCOMPLETE, row))
    db.execute("DELETE FROM lease WHERE session=?", (row,))
    _credit(db, Counter({(restoration, "refused"): 1}), now)


def _claim(row: list[Any], reason: Reason, claim_id: int) -> Claim:
    return Claim(
        chat_id=row[1],
        service=row[2],
        tokens=Tokens(row[1], row[3], row[4], row[5]),
        next_position=row[6],
        reason=reason,
        due_at=row[7],
        attempts=row[8],
        restoration=row[9],
        claim_id=claim_id,
        marks=row[10],
        row=row[0],
        refusals=0 if row[13] is None else row[12],
        refused_since=row[13],
    )


_CLAIMABLE = """SELECT json_group_array(json_array(id, chat_id, service, user_id, secure_key, alias,
    next_position, due_at, attempts, restoration, marks, device_id, refusals, refused_since)) FROM (
        SELECT * FROM session INDEXED BY session_due WHERE state=1 AND reason=? AND due_at<=?
        AND NOT EXISTS (SELECT 1 FROM lease WHERE lease.session=session.id AND until>?)
        ORDER BY due_at LIMIT ?)"""

_LEASE = "INSERT OR REPLACE INTO lease SELECT id, ?, ? FROM row WHERE id IS NOT NULL"


def _with_journal(db: Db, rows: list[list[Any]]) -> frozenset[int]:
    """Those for which a push waits: it may tell other tokens than the row has. By their names too,
    because a session may have been registered after its push was taken."""
    waiting = run(
        db,
        "SELECT DISTINCT session, chat_id, iif(chat_id IS NULL, device_id, NULL) FROM journal"
        " WHERE session IN (SELECT id FROM row) OR chat_id IN (SELECT chat FROM row)"
        " OR chat_id IS NULL AND device_id IN (SELECT device FROM row)",
        "id, chat, device",
        [(row[0], row[1], row[11]) for row in rows],
    )
    if not waiting:
        return frozenset()
    ids, chats, devices = (frozenset(column) - {None} for column in zip(*waiting, strict=True))
    return frozenset(row[0] for row in rows if row[0] in ids or row[1] in chats or row[11] in devices)


def renew(db: Db, claims: Sequence[Claim], until: Ms) -> None:
    run(
        db,
        "UPDATE lease SET until=? FROM row WHERE lease.session=row.id AND lease.claim=row.claim",
        "id, claim",
        [(claim.row, claim.claim_id) for claim in claims],
        until,
    )


def settle(db: Db, settlements: Sequence[Settlement]) -> list[Settled]:
    credits: Counter[tuple[int | None, str]] = Counter()
    usual = _settle_usual(db, [each for each in settlements if each.verdict is Verdict.ANSWERED], credits)
    settled = [usual.get(id(each)) or _settle(db, each, credits) for each in settlements]
    if credits:
        finished = _credit(db, credits, max(each.settled_at for each in settlements))
        settled = [
            replace(one, finished=each.claim.restoration) if each.claim.restoration in finished else one
            for one, each in zip(settled, settlements, strict=True)
        ]
    return settled


def _settle_usual(
    db: Db, answered: Sequence[Settlement], credits: Counter[tuple[int | None, str]]
) -> dict[int, Settled]:
    """Those that were answered and to which nothing happened meanwhile: the row is as it was claimed.
    Then the reply's tokens are simply the newest (`tokens.from_reply`), and nothing keeps it due."""
    lost = _lost_since(db, answered)
    compared = [
        _compared(db.sealing, number, each)
        for number, each in enumerate(answered)
        if _new(each.news.alias, each.claim.tokens.alias) not in lost
    ]
    untouched = [
        number for (portion,) in run(db, _UNTOUCHED, _COMPARED, compared) for number in orjson.loads(portion)
    ]
    done: dict[int, Settled] = {}
    plain: list[tuple[object, ...]] = []
    moved: list[tuple[object, ...]] = []
    for number in untouched:
        each = answered[number]
        claim, news = each.claim, each.news
        changed = not agrees(news, claim.tokens)
        if changed:
            moved.append((*_answer(each), *_told(db.sealing, each)))
        else:
            plain.append(_answer(each))
        credits[claim.restoration, "restored"] += 1
        done[id(each)] = Settled(
            claim.chat_id, lease_held=True, tokens_changed=changed, alias=news.alias or claim.tokens.alias
        )
    run(db, _ANSWERED, _ANSWER, plain, Reason.KEEPALIVE)
    run(db, _ANSWERED_WITH_TOKENS, f"{_ANSWER}, {_TOLD}", moved, Reason.KEEPALIVE)
    run(db, _GIVE_BACK, "id", [(answered[number].claim.row,) for number in untouched])
    return done


_COMPARED = "number, id, claim, marks, secure_key, alias, new_digest"

_UNTOUCHED = """SELECT json_group_array(row.number) FROM row CROSS JOIN lease ON lease.session=row.id
    CROSS JOIN session ON session.id=row.id
    WHERE lease.claim=row.claim AND session.marks=row.marks AND session.state=1
    AND session.secure_key=row.secure_key AND session.alias=row.alias
    AND (row.new_digest IS NULL OR instr(session.old_keys, row.new_digest)=0)"""


def _compared(sealing: Sealing, number: int, each: Settlement) -> tuple[object, ...]:
    claim = each.claim
    key = _new(each.news.secure_key, claim.tokens.secure_key)
    claimed = sealing.seal(claim.tokens.secure_key, claim.chat_id)
    return (
        *(number, claim.row, claim.claim_id, claim.marks, claimed, claim.tokens.alias),
        None if key is None else key_digest(key),
    )


_ANSWER = "id, due_at, sent_at, settled_at, seen_utc, position"

_SET_ANSWER = f"""attempts=0, last_trouble=NULL, trouble_detail=NULL, refused_since=NULL, restoration=NULL,
    reason=?, due_at=row.due_at, sent_at=row.sent_at, pinged_until={_accounted("row.settled_at")},
    answered_at=row.settled_at, seen_utc=max(session.seen_utc, coalesce(row.seen_utc, 0)),
    next_position=coalesce(row.position, next_position)"""

_ANSWERED = f"UPDATE session SET {_SET_ANSWER} FROM row WHERE session.id=row.id"


def _answer(each: Settlement) -> tuple[object, ...]:
    return (each.claim.row, each.due_at, each.sent_at, each.settled_at, each.seen_utc, each.next_position)


_TOLD = "told_user, told_alias, told_key, old_digest"

_ANSWERED_WITH_TOKENS = f"""UPDATE session SET {_SET_ANSWER}, user_id=coalesce(told_user, user_id),
    alias=coalesce(told_alias, alias), secure_key=coalesce(told_key, secure_key),
    renewed_at=iif(told_key IS NULL, renewed_at, settled_at),
    old_keys=iif(told_key IS NULL, old_keys, substr(trim(old_keys || ' ' || old_digest), -{OLD_KEYS_TEXT}))
    FROM row WHERE session.id=row.id"""


def _told(sealing: Sealing, each: Settlement) -> tuple[str | None, ...]:
    known, news = each.claim.tokens, each.news
    key = _new(news.secure_key, known.secure_key)
    old = None if key is None else key_digest(known.secure_key)
    sealed = sealing.seal(key, each.claim.chat_id)
    return _new(news.user_id, known.user_id), _new(news.alias, known.alias), sealed, old


_GIVE_BACK = "DELETE FROM lease WHERE session IN (SELECT id FROM row)"


def _new(said: str | None, known: str) -> str | None:
    return None if said == known else said


def _lost_since(db: Db, answered: Sequence[Settlement]) -> frozenset[str]:
    """Aliases that sessions just came to and whose Chat Server was lost after they were asked for:
    those sessions missed the marking."""
    came: dict[str, Ms] = {}
    for each in answered:
        alias = _new(each.news.alias, each.claim.tokens.alias)
        if alias is not None:
            came[alias] = min(each.sent_at, came.get(alias, each.sent_at))
    return frozenset(alias for alias, since in came.items() if _lost(db, alias, since) is not None)


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
    if each.verdict in (Verdict.ANSWERED, Verdict.LEARNED):
        record = tokens.from_reply(
            record,
            claim.tokens.secure_key,
            each.news,
            sent_at=each.sent_at,
            answered_at=each.settled_at,
            seen_utc=each.seen_utc,
            next_position=each.next_position,
            sent_user=claim.tokens.user_id,
            sent_alias=claim.tokens.alias,
        )
        _write_record(db, known, known.chat_id, record)
    held = known.claim == claim.claim_id
    if held:
        if each.verdict is not Verdict.RELEASED:
            _account(db, known.id, each.settled_at, again=known.marks != claim.marks)
        _give_back(db, known, each, credits)
    again = held and (known.marks != claim.marks or each.due_at <= each.settled_at)
    if record.alias != known.record.alias:
        again |= _due_if_lost(db, known.id, record.alias, each.sent_at, each.settled_at)
    changed = _changed(known.record, record)
    return Settled(
        claim.chat_id, lease_held=held, tokens_changed=changed, alias=record.alias, due_again=again
    )


def _account(db: Db, row: int, settled_at: Ms, *, again: bool) -> None:
    """A ping was sent. What made the session due `again` meanwhile waits when pings have come thick."""
    until = _accounted("?1")
    db.execute(
        f"UPDATE session SET pinged_until={until},"
        f" due_at=iif(?2 AND {until} - {AHEAD_MS} > ?1, max(due_at, {until} - {AHEAD_MS}), due_at) WHERE id=?3",
        (settled_at, again, row),
    )


def _changed(before: TokenRecord, after: TokenRecord) -> bool:
    """Whether a request would carry other tokens now."""
    return (before.secure_key, before.user_id, before.alias) != (after.secure_key, after.user_id, after.alias)


def _give_back(db: Db, known: _Row, each: Settlement, credits: Counter[tuple[int | None, str]]) -> None:
    """End the lease. What made the session due while the ping was on its way keeps it due."""
    done = each.verdict in (Verdict.ANSWERED, Verdict.REFUSED)
    same = known.marks == each.claim.marks
    answered = each.verdict is Verdict.ANSWERED
    if answered:
        db.execute(
            "UPDATE session SET attempts=0, answered_at=?, last_trouble=NULL, trouble_detail=NULL,"
            " refused_since=NULL WHERE id=?",
            (each.settled_at, known.id),
        )
    elif each.verdict not in (Verdict.RELEASED, Verdict.LEARNED):
        _note_trouble(db, known.id, each)
    db.execute(
        "UPDATE session SET due_at=iif(?, ?, due_at), reason=iif(?, ?, reason) WHERE id=?",
        (same, each.due_at, same and done, Reason.KEEPALIVE, known.id),
    )
    db.execute("DELETE FROM lease WHERE session=?", (known.id,))
    if done and same and known.restoration is not None:
        db.execute("UPDATE session SET restoration=NULL WHERE id=?", (known.id,))
        credits[known.restoration, "restored" if answered else "refused"] += 1


def _note_trouble(db: Db, row: int, each: Settlement) -> None:
    db.execute(
        "UPDATE session SET attempts=attempts+1, last_trouble=?, trouble_detail=? WHERE id=?",
        (each.trouble, each.detail, row),
    )
    if each.refused:
        db.execute(
            "UPDATE session SET refusals=iif(refused_since IS NULL, 1, refusals+1),"
            " refused_since=coalesce(refused_since, ?) WHERE id=?",
            (each.settled_at, row),
        )


def _credit(db: Db, credits: Counter[tuple[int | None, str]], now: Ms) -> set[int]:
    """Add to the counts of restorations; those that are finished by it."""
    touched: set[int] = set()
    for (restoration, column), count in credits.items():
        if restoration is not None:
            db.execute(f"UPDATE restoration SET {column}={column}+? WHERE id=?", (count, restoration))
            touched.add(restoration)
    return {restoration for restoration in touched if _finish(db, restoration, now)}


def _finish(db: Db, restoration: int, now: Ms) -> bool:
    """Note that none of its sessions waits any more. One that a further shutdown notice brings waits again: `_join`."""
    return (
        db.execute(
            "UPDATE restoration SET finished_at=max(started_at, ?) WHERE id=? AND finished_at IS NULL"
            " AND (marking=0 OR cause=? AND sessions>0) AND sessions<=restored+ended+refused+moved",
            (now, restoration, Cause.ANNOUNCED),
        ).rowcount
        > 0
    )


# -- Chat Servers and restorations -----------------------------------------------------------------


def note(db: Db, server: ChatServer, epoch: int, losses: Sequence[Loss], now: Ms) -> list[int] | None:
    """The restorations begun; `None` when the server was noted by somebody else since `epoch`."""
    found = db.execute("SELECT epoch FROM server WHERE name=?", (server.name,)).fetchone()
    if (0 if found is None else found[0]) != epoch:
        return None
    _save_server(db, replace(server, epoch=epoch + 1))
    return [begin_restoration(db, loss.alias, server.name, loss.cause, now) for loss in losses]


def _save_server(db: Db, server: ChatServer) -> None:
    columns = [getattr(server, column) for column in SERVER_COLUMNS]
    others = _json([{name: getattr(other, name) for name in PROCESS} for other in server.others])
    db.execute(
        f"INSERT OR REPLACE INTO server ({SERVER}) VALUES ({', '.join('?' * (len(columns) + 1))})",
        (*columns, others),
    )


def servers(db: Db) -> list[ChatServer]:
    rows = db.execute(f"SELECT {SERVER} FROM server ORDER BY name").fetchall()
    return [_server(row[:-1], orjson.loads(row[-1])) for row in rows]


def _server(columns: Sequence[Any], others: Sequence[dict[str, Any]]) -> ChatServer:
    values = dict(zip(SERVER_COLUMNS, columns, strict=True))
    values["state"] = ServerState(values["state"])
    return ChatServer(**values, others=tuple(Process(**other) for other in others))


SERVER_COLUMNS = tuple(name for name in ChatServer.__struct_fields__ if name != "others")
SERVER = ", ".join((*SERVER_COLUMNS, "others"))
PROCESS = Process.__struct_fields__


def begin_restoration(db: Db, alias: str, server: str | None, cause: Cause, now: Ms) -> int:
    earlier = () if cause is Cause.ANNOUNCED else _stop_marking(db, alias)
    cursor = db.execute(
        "INSERT INTO restoration (alias, server, cause, started_at, marking, marked_at) VALUES (?,?,?,?,1,?)",
        (alias, server, cause, now, now),
    )
    assert cursor.lastrowid is not None
    for restoration in earlier:
        _finish(db, restoration, now)
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
    found = db.execute(
        "SELECT alias, started_at, cursor_active, cursor_id FROM restoration WHERE id=? AND marking=1",
        (restoration,),
    ).fetchone()
    if found is None:
        return False
    alias, started_at, cursor_active, cursor_id = found
    behind = (1 << 62, 0) if cursor_active is None else (cursor_active, cursor_id)
    chunk = _selected(db, _MARKABLE, alias, *behind, limit)
    _mark(db, restoration, [row for row in chunk if row[1] != restoration], now)
    more = len(chunk) == limit
    if chunk:
        cursor_id, _, cursor_active = chunk[-1]
    if not more:
        missed = _selected(db, _MISSED, alias, started_at, restoration, started_at, started_at)
        _mark(db, restoration, missed, now)
    db.execute(
        "UPDATE restoration SET marking=?, marked_at=?, cursor_active=?, cursor_id=? WHERE id=?",
        (more, now, cursor_active, cursor_id, restoration),
    )
    if not more:
        _finish(db, restoration, now)
    return more


_MARKABLE = """SELECT json_group_array(json_array(id, restoration, active_at)) FROM (
    SELECT id, restoration, active_at FROM session INDEXED BY session_alias WHERE state=1 AND alias=?
    AND (active_at, id) < (?, ?) ORDER BY active_at DESC, id DESC LIMIT ?)"""

_MISSED = """SELECT json_group_array(json_array(id, restoration)) FROM (
    SELECT id, restoration FROM session INDEXED BY session_alias WHERE state=1 AND alias=?
    AND active_at>=? AND restoration IS NOT ? AND (coalesce(answered_at, 0)<=? OR sent_at<=?)
    ORDER BY active_at DESC, id DESC)"""
"""Sessions that a push or a registration moved ahead of the cursor while portions were marked."""


def _selected(db: Db, query: str, *parameters: object) -> list[list[Any]]:
    """The rows that `query` gives as one value: with pushes coming in, fetching them one by one would take
    longer than marking them (see `rows.py`)."""
    rows: list[list[Any]] = orjson.loads(db.execute(query, parameters).fetchone()[0])
    return rows


def _mark(db: Db, restoration: int, fresh: Sequence[Sequence[Any]], now: Ms) -> None:
    """Make sessions due, in this order behind those that the restoration has already. Of each: its row and the
    restoration that it is in."""
    for before, count in Counter(row[1] for row in fresh if row[1] is not None).items():
        db.execute("UPDATE restoration SET moved=moved+? WHERE id=?", (count, before))
        _finish(db, before, now)
    first = db.execute(
        "UPDATE restoration SET sessions=sessions+? WHERE id=? RETURNING started_at+(sessions-?)*?",
        (len(fresh), restoration, len(fresh), RANK_MS),
    ).fetchone()[0]
    db.execute(
        "UPDATE session SET due_at=CASE WHEN reason>1 THEN ? + made.key * ? ELSE min(due_at, ? + made.key * ?) END,"
        " reason=min(reason, 1), marks=marks+1, attempts=0, refused_since=NULL, restoration=?"
        " FROM json_each(?) AS made WHERE session.id=made.value",
        (*((first, RANK_MS) * 2), restoration, _json([row[0] for row in fresh])),
    )


RESTORATION = (
    "id, alias, server, cause, started_at, marking, sessions, restored, ended, refused, moved, finished_at"
)

OPEN = "finished_at IS NULL OR marking=1"
"""Sessions wait in it, or may still be added to it. In the words of the index `restoration_open`, which is else
not used."""

UNTOLD = "finished_at IS NOT NULL AND told=0 AND marking=0"
"""Finished for good: a further shutdown notice would begin another one."""


def newly_finished(db: Db) -> list[tuple[Any, ...]]:
    """Rows of `RESTORATION`."""
    return db.execute(f"UPDATE restoration SET told=1 WHERE {UNTOLD} RETURNING {RESTORATION}").fetchall()


def finish_announced(db: Db, now: Ms) -> list[int]:
    quiet = db.execute(
        f"SELECT id, finished_at FROM restoration WHERE ({OPEN}) AND cause=? AND marking=1 AND marked_at<=?",
        (Cause.ANNOUNCED, now - ANNOUNCED_LINGER_MS),
    ).fetchall()
    db.executemany("UPDATE restoration SET marking=0 WHERE id=?", [row[:1] for row in quiet])
    return [number for number, finished_at in quiet if finished_at is not None or _finish(db, number, now)]
