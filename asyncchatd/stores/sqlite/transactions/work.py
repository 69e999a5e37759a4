"""Transactions about the work list: sessions are claimed, held and settled.

It happens thousands of times a second, so it goes in portions, one statement for many rows (`rows.py`), and what a
statement selects comes back as one value, an array in JSON. A settlement that does not fit the common case takes
the plain way, by itself.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import orjson

from asyncchatd.model import (
    Claim,
    EndCause,
    Ms,
    Reason,
    Settled,
    Settlement,
    Tokens,
    Verdict,
    key_digest,
    replace,
    tokens,
)
from asyncchatd.stores.answers import NotTaken
from asyncchatd.stores.keys import opened
from asyncchatd.stores.rules import agrees
from asyncchatd.stores.sealing import Sealing
from asyncchatd.stores.sql.rows import (
    AHEAD_MS,
    ENDED,
    INCOMPLETE,
    LIVE,
    OLD_KEYS_TEXT,
    differ,
    news_of,
)
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.transactions import asks, events, takes
from asyncchatd.stores.sqlite.transactions.restorations import (
    credit,
    due_if_lost,
    lost_server,
)
from asyncchatd.stores.sqlite.transactions.rows import run
from asyncchatd.stores.sqlite.transactions.session_rows import (
    UPDATE_WHOLE,
    SessionRow,
    accounted,
    end,
    find,
    forget_holders,
    greatest,
    selected,
    write_record,
)


def claim(
    db: Db, now: Ms, limit: int, lease_ms: int, reasons: Sequence[Reason], journal: bool
) -> list[tuple[Claim, str | None]]:
    """Claim due sessions, each with its device id. `journal` says whether pushes may wait that have not taken
    effect."""
    claim_id = secrets.randbits(53) + 1
    claims: list[tuple[Claim, str | None]] = []
    for reason in reasons:
        if len(claims) >= limit:
            break
        due = selected(db, _CLAIMABLE, reason, now, now, limit - len(claims))
        rows = _opened(db, [_Due(*row) for row in due], now)
        held_back = _with_journal(db, rows) if journal and rows else frozenset()
        claims.extend(
            (_claim(row, reason, claim_id), row.device_id) for row in rows if row.id not in held_back
        )
    run(db, _LEASE, "id", [(taken.row,) for taken, _ in claims], claim_id, now + lease_ms)
    asks.close(db, [taken.row for taken, _ in claims], now)
    return claims


def seize(db: Db, chat_id: str, now: Ms, lease_ms: int) -> tuple[Claim, str | None] | NotTaken:
    """Claim one session, due or not, with its device id."""
    why = takes.obstacle(db, chat_id, now)
    if why is not None:
        return why
    found = selected(db, _SEIZABLE, chat_id)
    rows = _opened(db, [_Due(*row[:-1]) for row in found], now)
    if not rows:
        return NotTaken.INCOMPLETE  # its key does not open
    claimed = _claim(rows[0], Reason(found[0][-1]), secrets.randbits(53) + 1)
    run(db, _LEASE, "id", [(claimed.row,)], claimed.claim_id, now + lease_ms)
    return claimed, rows[0].device_id


class _Due(NamedTuple):
    """The columns of a session that a claim needs."""

    id: int
    chat_id: str
    service: str
    user_id: str
    secure_key: str
    alias: str
    next_position: int | None
    due_at: float
    attempts: int
    restoration: int | None
    marks: int
    device_id: str | None
    refusals: int
    refused_since: Ms | None


def _opened(db: Db, rows: Sequence[_Due], now: Ms) -> list[_Due]:
    """Those with a secure key, as a request carries it."""
    if db.sealing.key_id is None:
        return list(rows)
    found = []
    for row in rows:
        secure_key = opened(db.sealing, row.secure_key, row.chat_id)
        if secure_key is None:
            _lack_key(db, row.id, row.restoration, now)
        else:
            found.append(row._replace(secure_key=secure_key))
    return found


def _lack_key(db: Db, row: int, restoration: int | None, now: Ms) -> None:
    """A session whose secure key does not open is like one whose key was never told."""
    db.execute("UPDATE session SET state=?, secure_key=NULL, restoration=NULL WHERE id=?", (INCOMPLETE, row))
    forget_holders(db, row)
    credit(db, Counter({(restoration, "refused"): 1}), now)


def _claim(row: _Due, reason: Reason, claim_id: int) -> Claim:
    return Claim(
        chat_id=row.chat_id,
        service=row.service,
        tokens=Tokens(row.chat_id, row.user_id, row.secure_key, row.alias),
        next_position=row.next_position,
        reason=reason,
        due_at=row.due_at,
        attempts=row.attempts,
        restoration=row.restoration,
        claim_id=claim_id,
        marks=row.marks,
        row=row.id,
        refusals=0 if row.refused_since is None else row.refusals,
        refused_since=row.refused_since,
    )


_CLAIMABLE = f"""SELECT json_group_array(json_array({", ".join(_Due._fields)})) FROM (
        SELECT * FROM session INDEXED BY session_due WHERE state={LIVE} AND reason=? AND due_at<=?
        AND NOT EXISTS (SELECT 1 FROM lease WHERE lease.session=session.id AND until>?)
        ORDER BY due_at LIMIT ?)"""

_SEIZABLE = f"""SELECT json_group_array(json_array({", ".join(_Due._fields)}, reason)) FROM session
    WHERE chat_id=? AND state={LIVE}"""

_LEASE = "INSERT OR REPLACE INTO lease (session, claim, until) SELECT id, ?, ? FROM row WHERE id IS NOT NULL"


def _with_journal(db: Db, rows: Sequence[_Due]) -> frozenset[int]:
    """Those for which a push waits: it may tell other tokens than the row has. By their names too,
    because a session may have been registered after its push was taken."""
    waiting = run(
        db,
        "SELECT DISTINCT session, chat_id, iif(chat_id IS NULL, device_id, NULL) FROM journal"
        " WHERE session IN (SELECT id FROM row) OR chat_id IN (SELECT chat FROM row)"
        " OR chat_id IS NULL AND device_id IN (SELECT device FROM row)",
        "id, chat, device",
        [(row.id, row.chat_id, row.device_id) for row in rows],
    )
    if not waiting:
        return frozenset()
    ids, chats, devices = (frozenset(column) - {None} for column in zip(*waiting, strict=True))
    return frozenset(
        row.id for row in rows if row.id in ids or row.chat_id in chats or row.device_id in devices
    )


def renew(db: Db, claims: Sequence[Claim], until: Ms) -> None:
    """`Store.renew`."""
    run(
        db,
        "UPDATE lease SET until=? FROM row WHERE lease.session=row.id AND lease.claim=row.claim",
        "id, claim",
        [(claim.row, claim.claim_id) for claim in claims],
        until,
    )


def next_due(db: Db, now: Ms, reasons: Sequence[Reason]) -> float | None:
    """`Store.next_due`."""
    first = [
        db.execute(
            f"SELECT min(due_at) FROM session INDEXED BY session_due WHERE state={LIVE} AND reason=? AND due_at>?",
            (reason, now),
        ).fetchone()[0]
        for reason in reasons
    ]
    ends = (*first, takes.next_end(db, now), asks.next_end(db, now))
    return min((due for due in ends if due is not None), default=None)


# -- settlements -----------------------------------------------------------------------------------


def settle(db: Db, settlements: Sequence[Settlement]) -> tuple[list[Settled], int]:
    """`Store.settle`; also how many events were written."""
    credits: Counter[tuple[int | None, str]] = Counter()
    is_answered = Verdict.ANSWERED
    answered = {place: each for place, each in enumerate(settlements) if each.verdict is is_answered}
    usual = _settle_usual(db, answered, credits)
    settled = [usual.get(place) or _settle(db, each, credits) for place, each in enumerate(settlements)]
    if credits:
        finished = credit(db, credits, max(each.settled_at for each in settlements))
        settled = [
            replace(one, finished=each.claim.restoration) if each.claim.restoration in finished else one
            for one, each in zip(settled, settlements, strict=True)
        ]
    return settled, events.write(db, settlements, settled) if db.kinds else 0


def _settle_usual(
    db: Db, answered: Mapping[int, Settlement], credits: Counter[tuple[int | None, str]]
) -> dict[int, Settled]:
    """Those that were answered and to which nothing happened meanwhile: the row is as it was claimed. They
    come and go by their place among all that are settled together.
    Then the reply's tokens are simply the newest (`tokens.from_reply`), and nothing keeps it due."""
    lost = _lost_since(db, list(answered.values()))
    compared = [
        _compared(db.sealing, place, each)
        for place, each in answered.items()
        if news_of(each.news.alias, each.claim.tokens.alias) not in lost
    ]
    untouched = [
        place for (portion,) in run(db, _UNTOUCHED, _COMPARED, compared) for place in orjson.loads(portion)
    ]
    done: dict[int, Settled] = {}
    plain: list[tuple[object, ...]] = []
    moved: list[tuple[object, ...]] = []
    for place in untouched:
        each = answered[place]
        claim, news = each.claim, each.news
        changed = not agrees(news, claim.tokens)
        if changed:
            moved.append((*_answer(each), *_told(db.sealing, each)))
        else:
            plain.append(_answer(each))
        credits[claim.restoration, "restored"] += 1
        done[place] = Settled(
            claim.chat_id, lease_held=True, tokens_changed=changed, alias=news.alias or claim.tokens.alias
        )
    run(db, _ANSWERED, _ANSWER, plain, Reason.KEEPALIVE)
    run(db, _ANSWERED_WITH_TOKENS, f"{_ANSWER}, {_TOLD}", moved, Reason.KEEPALIVE)
    run(db, _GIVE_BACK, "id", [(answered[place].claim.row,) for place in untouched])
    return done


_COMPARED = "place, id, claim, marks, secure_key, alias, new_digest"

_UNTOUCHED = f"""SELECT json_group_array(row.place) FROM row CROSS JOIN lease ON lease.session=row.id
    CROSS JOIN session ON session.id=row.id
    WHERE lease.claim=row.claim AND session.marks=row.marks AND session.state={LIVE}
    AND session.secure_key=row.secure_key AND session.alias=row.alias
    AND (row.new_digest IS NULL OR instr(session.old_keys, row.new_digest)=0)"""


def _compared(sealing: Sealing, place: int, each: Settlement) -> tuple[object, ...]:
    claim = each.claim
    key = news_of(each.news.secure_key, claim.tokens.secure_key)
    claimed = sealing.seal(claim.tokens.secure_key, claim.chat_id)
    return (
        *(place, claim.row, claim.claim_id, claim.marks, claimed, claim.tokens.alias),
        None if key is None else key_digest(key),
    )


_ANSWER = "id, due_at, sent_at, settled_at, seen_utc, position"

_SET_ANSWER = f"""attempts=0, last_trouble=NULL, trouble_detail=NULL, refused_since=NULL, restoration=NULL,
    reason=?, due_at=row.due_at, sent_at=row.sent_at, pinged_until={accounted("row.settled_at")},
    answered_at=row.settled_at, seen_utc={greatest("session.seen_utc", "coalesce(row.seen_utc, 0)")},
    next_position=coalesce(row.position, next_position)"""

_ANSWERED = f"{UPDATE_WHOLE} SET {_SET_ANSWER} FROM row WHERE session.id=row.id"


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
    key = news_of(news.secure_key, known.secure_key)
    old = None if key is None else key_digest(known.secure_key)
    sealed = sealing.seal(key, each.claim.chat_id)
    return news_of(news.user_id, known.user_id), news_of(news.alias, known.alias), sealed, old


_GIVE_BACK = "DELETE FROM lease WHERE session IN (SELECT id FROM row)"


def _lost_since(db: Db, answered: Sequence[Settlement]) -> frozenset[str]:
    """Aliases that sessions just came to and whose Chat Server was lost after they were asked for:
    those sessions missed the marking."""
    came: dict[str, Ms] = {}
    for each in answered:
        alias = news_of(each.news.alias, each.claim.tokens.alias)
        if alias is not None:
            came[alias] = min(each.sent_at, came.get(alias, each.sent_at))
    return frozenset(alias for alias, since in came.items() if lost_server(db, alias, since) is not None)


def _settle(db: Db, each: Settlement, credits: Counter[tuple[int | None, str]]) -> Settled:
    claim = each.claim
    found = find(db, "WHERE id=? AND chat_id=?", claim.row, claim.chat_id)
    if not found or found[0].state == ENDED:
        return Settled(claim.chat_id, lease_held=False, tokens_changed=False, alias=None)
    known = found[0]
    if each.verdict is Verdict.ENDED:
        end(db, known.id, EndCause.CHAT_ENDED, each.settled_at)
        credits[known.restoration, "ended"] += 1
        return Settled(claim.chat_id, lease_held=True, tokens_changed=False, alias=known.record.alias)
    record = tokens.from_settlement(known.record, each, numbered_at=known.numbered_at)
    if record != known.record:
        write_record(db, known, known.chat_id, record)
    held = known.claim == claim.claim_id
    if held:
        if each.verdict not in (Verdict.RELEASED, Verdict.CALLED):
            _account(db, known.id, each.settled_at, again=known.marks != claim.marks)
        _give_back(db, known, each, credits)
    again = held and (known.marks != claim.marks or each.due_at <= each.settled_at)
    if record.alias != known.record.alias:
        again |= due_if_lost(db, known.id, record.alias, each.sent_at, each.settled_at)
    changed = differ(known.record, record)
    return Settled(
        claim.chat_id, lease_held=held, tokens_changed=changed, alias=record.alias, due_again=again
    )


def _account(db: Db, row: int, settled_at: Ms, *, again: bool) -> None:
    """A ping was sent. What made the session due `again` meanwhile waits when pings have come thick."""
    until = accounted(":now")
    db.execute(
        f"UPDATE session SET pinged_until={until},"
        f" due_at=iif(:again AND {until} - {AHEAD_MS} > :now, max(due_at, {until} - {AHEAD_MS}), due_at) WHERE id=:row",
        {"now": settled_at, "again": again, "row": row},
    )


def _give_back(db: Db, known: SessionRow, each: Settlement, credits: Counter[tuple[int | None, str]]) -> None:
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
    elif each.verdict not in (Verdict.RELEASED, Verdict.LEARNED, Verdict.CALLED):
        _note_trouble(db, known.id, each)
    db.execute(
        "UPDATE session SET due_at=iif(?, ?, due_at), reason=iif(?, ?, reason) WHERE id=?",
        (same, each.due_at, same and done, Reason.KEEPALIVE, known.id),
    )
    if each.verdict is Verdict.CALLED and each.due_at <= each.settled_at:
        db.execute("UPDATE session SET reason=min(reason, ?) WHERE id=?", (Reason.REQUEST, known.id))
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
