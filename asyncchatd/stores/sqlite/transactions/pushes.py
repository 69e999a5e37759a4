"""Transactions about pushes: kept in the journal first, absorbed into their sessions later.

Both happen thousands of times a second, so they go in portions, one statement for many rows (`rows.py`). A push
that does not fit the common case takes the plain way, by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson
from msgspec.structs import astuple

from asyncchatd.model import (
    EventKind,
    Ms,
    Reason,
    TokenRecord,
    replace,
    tokens,
)
from asyncchatd.stores.answers import Absorbed, Effect, Taken
from asyncchatd.stores.asking import Asking
from asyncchatd.stores.keys import opened
from asyncchatd.stores.rules import DEVICE_CHATS
from asyncchatd.stores.sql.rows import (
    DEVICE_LOOKED_AT,
    ENDED,
    INCOMPLETE,
    LENT,
    LIVE,
    JournalRow,
    begins_at,
    differ,
    is_told_of,
)
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.transactions.asks import ask, may_be_asked_for
from asyncchatd.stores.sqlite.transactions.events import happened
from asyncchatd.stores.sqlite.transactions.restorations import (
    due_if_lost,
    join_announced,
)
from asyncchatd.stores.sqlite.transactions.rows import run
from asyncchatd.stores.sqlite.transactions.session_rows import (
    UPDATE_WHOLE,
    SessionRow,
    as_json,
    create,
    find,
    greatest,
    least,
    spaced,
    write_record,
)
from asyncchatd.wire import Push


def take_pushes(db: Db, pushes: Sequence[tuple[Push, Ms]]) -> list[Taken]:
    """Write a portion of pushes into the journal, and say what each one is."""
    sessions = _recognise(db, pushes)
    taken = [_taken(push, sessions.get(number)) for number, (push, _) in enumerate(pushes)]
    rows = [
        JournalRow(
            at=now,
            session=sessions[number].id if number in sessions else None,
            chat_id=push.news.chat_id,
            device_id=push.device_id,
            user_id=push.news.user_id,
            secure_key=db.sealing.seal(push.news.secure_key, push.news.chat_id, push.device_id),
            alias=push.news.alias,
            utc_time=push.utc_time,
            position=push.position,
            next_position=push.next_position,
            leaving=push.leaving,
            resent=taken[number] is Taken.RESENT,
            digest=push.digest,
        )
        for number, (push, now) in enumerate(pushes)
    ]
    run(db, _KEEP, _JOURNAL, [astuple(row) for row in rows])
    return taken


_JOURNAL = ", ".join(JournalRow.__struct_fields__)

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


_OF_DEVICE = f"""coalesce(
    (SELECT id FROM session AS one WHERE one.device_id=row.name AND one.state={LIVE} LIMIT 1),
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


def absorb(db: Db, limit: int, asking: Asking | None = None) -> tuple[list[Absorbed], bool]:
    """Let the oldest pushes of the journal take effect: the effects worth telling, and whether the journal is empty
    now. `asking`: who may be asked to acknowledge them."""
    last, count = db.execute(
        "SELECT max(id), count(*) FROM (SELECT id FROM journal ORDER BY id LIMIT ?)", (limit,)
    ).fetchone()
    if not count:
        return [], True
    unusual = _unusual(db, last)
    # The usual ones first: those that repeat a key confirm it against what others tell of earlier events.
    _absorb_usual(db, last, [number for number, _ in unusual], asking)
    held = _of_held(db, last)
    effects: list[Absorbed] = []
    for _, push in unusual:
        effects.extend(_absorb(db, push, asking))
    told = {each.chat_id for each in effects}
    effects.extend(
        Absorbed(chat_id, None, Effect.DUE, None, leaving=False) for chat_id in held if chat_id not in told
    )
    db.execute("DELETE FROM journal WHERE id<=?", (last,))
    return effects, count < limit


_USUAL = f"""session.state={LIVE} AND NOT journal.leaving
    AND (journal.chat_id=session.chat_id OR journal.chat_id IS NULL
         AND (SELECT count(*) FROM (SELECT 1 FROM session AS other
             WHERE other.device_id=journal.device_id LIMIT 2))=1)
    AND session.device_id IS coalesce(journal.device_id, session.device_id)
    AND coalesce(journal.user_id, session.user_id)=session.user_id
    AND coalesce(journal.secure_key, session.secure_key)=session.secure_key
    AND (journal.secure_key IS NULL OR session.told_position IS NULL)
    AND coalesce(journal.alias, session.alias)=session.alias
    AND (coalesce(journal.position, journal.next_position) IS NULL OR session.next_position IS NOT NULL)"""
"""A push that says nothing of its live session but that something happened there. One that repeats a key which no
reply has confirmed says up to which event that key was the newest."""


def _of_held(db: Db, last: int) -> list[str]:
    """Chats with pushes whose sessions a claim holds: whoever has one that is not sent can give it back."""
    rows = db.execute(
        "SELECT chat_id FROM session WHERE chat_id IS NOT NULL AND id IN (SELECT lease.session FROM journal"
        " CROSS JOIN lease ON lease.session=journal.session WHERE journal.id<=? AND lease.claim<>?)",
        (last, LENT),
    )
    return [chat_id for (chat_id,) in rows.fetchall()]


def _unusual(db: Db, last: int) -> list[tuple[int, JournalRow]]:
    rows = db.execute(
        f"SELECT journal.id, {', '.join(f'journal.{column}' for column in JournalRow.__struct_fields__)} FROM journal"
        " LEFT JOIN session ON session.id=journal.session"
        f" WHERE journal.id<=? AND NOT coalesce({_USUAL}, 0) ORDER BY journal.id",
        (last,),
    )
    return [(number, _kept(db, row)) for number, *row in rows.fetchall()]


def _kept(db: Db, row: Sequence[Any]) -> JournalRow:
    """From the columns of the journal."""
    values = dict(zip(JournalRow.__struct_fields__, row, strict=True))
    values["secure_key"] = opened(db.sealing, values["secure_key"], values["chat_id"], values["device_id"])
    values["leaving"], values["resent"] = bool(values["leaving"]), bool(values["resent"])
    return JournalRow(**values)


def _absorb_usual(db: Db, last: int, unusual: list[int], asking: Asking | None) -> None:
    """All the others at once, several pushes of one session as one."""
    sessions: list[int] = []
    if EventKind.NOTIFIED in db.kinds:
        notified_at, portion = db.execute(
            "SELECT max(at), json_group_array(DISTINCT session) FROM journal JOIN session ON session.id=journal.session"
            " WHERE journal.id<=? AND journal.id NOT IN (SELECT value FROM json_each(?))",
            (last, as_json(unusual)),
        ).fetchone()
        sessions = orjson.loads(portion)
    chosen = may_be_asked_for(db, sessions, asking)
    db.execute(
        f"{UPDATE_WHOLE} SET {_touched(first='new.first', last='new.last', digest=_NEWEST)},"
        f" seen_utc={greatest('seen_utc', 'new.confirmed')} FROM ("
        "  SELECT session, min(at) AS first, max(iif(resent, 0, at)) AS last,"
        "  max(iif(secure_key IS NULL, 0, coalesce(utc_time, 0))) AS confirmed,"
        "  max(id) AS newest FROM journal"
        "  WHERE id<=:until AND id NOT IN (SELECT value FROM json_each(:unusual)) GROUP BY session"
        " ) AS new WHERE session.id=new.session",
        {"reason": Reason.ACKNOWLEDGE, "until": last, "unusual": as_json(unusual)},
    )
    if sessions:
        happened(db, EventKind.NOTIFIED, sessions, notified_at)
    if chosen and asking is not None:
        ask(db, chosen, asking.now)


_NEWEST = "(SELECT digest FROM journal WHERE id=new.newest)"


def _touched(*, first: str, last: str, digest: str) -> str:
    """What a push changes in a session that is known, whatever it tells: assignments of SQL. `first` says when the push
    came, or the first of several; `last` since when the session is active by it, 0 where it says nothing of that;
    `:reason` is why the session is due.

    Something happens in the conversation, and what GMS refused before counts no more. Only the tries to restore a
    session, which are bounded, go on as they began.
    """
    return (
        "refused_since=iif(restoration IS NULL, NULL, refused_since), marks=marks+1,"
        f" due_at={least('due_at', spaced(first))}, reason={least('reason', ':reason')},"
        f" active_at={greatest('active_at', last)}, push_digest={digest}"
    )


def _absorb(db: Db, push: JournalRow, asking: Asking | None) -> list[Absorbed]:
    if push.news.chat_id is not None:
        found = find(db, "WHERE chat_id=?", push.news.chat_id)
        if not found and push.device_id is not None:
            found = find(db, "WHERE chat_id IS NULL AND device_id=?", push.device_id)
    else:
        found = find(db, _ACTIVE_OF_DEVICE, push.device_id, push.news.user_id)
    if not found:
        return [_absorb_unknown(db, push)]
    teaches = push.news.chat_id is not None or is_told_of(found, push.news.user_id)
    open_ones = [session for session in found if session.state != ENDED] or found[:1]
    effects = [_absorb_known(db, session, push, teaches, asking) for session in open_ones[:DEVICE_CHATS]]
    if len(open_ones) > DEVICE_CHATS:
        effects.append(Absorbed(None, push.device_id, Effect.CROWDED, None, push.leaving))
    return effects


_ACTIVE_OF_DEVICE = f"""WHERE id IN
    (SELECT id FROM session WHERE device_id=? ORDER BY id DESC LIMIT {DEVICE_LOOKED_AT})
    ORDER BY state={ENDED}, coalesce(user_id=?, 0) DESC, active_at DESC LIMIT {DEVICE_CHATS + 1}"""
"""Of a user that the push names, and then the most recently active first."""


def _absorb_unknown(db: Db, push: JournalRow) -> Absorbed:
    news = push.news
    state = LIVE if news.complete() else INCOMPLETE
    record, _ = tokens.from_push(TokenRecord(), news, utc_time=push.utc_time, position=push.position)
    row = create(
        db,
        replace(record, next_position=begins_at(push)),
        chat_id=news.chat_id,
        device_id=push.device_id,
        at=push.at,
        state=state,
        reason=Reason.RESTORE if push.leaving else Reason.ACKNOWLEDGE,
        due_at=push.at,
        push_digest=push.digest,
    )
    if state == LIVE and push.leaving:
        join_announced(db, row, news.alias, push.at)
    happened(db, EventKind.NOTIFIED, [row], push.at)
    effect = Effect.ADOPTED if state == LIVE else Effect.INCOMPLETE
    return Absorbed(news.chat_id, push.device_id, effect, news.alias, push.leaving)


def _absorb_known(
    db: Db, session: SessionRow, push: JournalRow, teaches: bool, asking: Asking | None
) -> Absorbed:
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
    learned = differ(session.record, record)
    if record != session.record or chat_id != session.chat_id:
        write_record(db, session, chat_id, record)
    completed = session.state == INCOMPLETE and chat_id is not None and record.complete()
    reason = Reason.RESTORE if push.leaving else Reason.ACKNOWLEDGE
    chosen = {} if push.leaving else may_be_asked_for(db, [session.id], asking)
    db.execute(
        f"UPDATE session SET {_touched(first=':at', last=':active', digest=':digest')}, chat_id=:chat_id,"
        " device_id=coalesce(device_id, :device_id), state=:state,"
        " next_position=coalesce(next_position, :next_position) WHERE id=:id",
        {
            "at": push.at,
            "active": 0 if push.resent or push.leaving else push.at,
            "digest": push.digest,
            "reason": reason,
            "chat_id": chat_id,
            "device_id": push.device_id,
            "state": LIVE if completed else session.state,
            "next_position": begins_at(push),
            "id": session.id,
        },
    )
    happened(db, EventKind.NOTIFIED, [session.id], push.at)
    if session.state == INCOMPLETE and not completed:
        return effect(Effect.INCOMPLETE if session.chat_id != chat_id else Effect.STILL_INCOMPLETE)
    if push.leaving:
        join_announced(db, session.id, record.alias, push.at)
    if record.alias != session.record.alias and due_if_lost(db, session.id, record.alias, None, push.at):
        chosen = {}
    if asking is not None:
        ask(db, chosen, asking.now)
    if completed or learned:
        happened(db, EventKind.TOKENS, [session.id], push.at)
    if completed:
        return effect(Effect.COMPLETED, record.alias)
    if learned:
        return effect(Effect.LEARNED, record.alias)
    return effect(Effect.STALE if ignored else Effect.DUE)
