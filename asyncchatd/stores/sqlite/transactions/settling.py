"""Transactions about what came of claims: sessions are settled.

It happens thousands of times a second, so it goes in portions, one statement for many rows (`rows.py`), and what a
statement selects comes back as one value, an array in JSON. A settlement that does not fit the common case takes
the plain way, by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import orjson

from asyncchatd.model import (
    EndCause,
    Ms,
    Reason,
    Settled,
    Settlement,
    Verdict,
    key_digest,
    replace,
    tokens,
)
from asyncchatd.stores.rules import agrees
from asyncchatd.stores.sealing import Sealing
from asyncchatd.stores.sql.rows import (
    AHEAD_MS,
    ENDED,
    LIVE,
    OLD_KEYS_TEXT,
    differ,
    news_of,
)
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.transactions import events
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
    greatest,
    write_record,
)


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
