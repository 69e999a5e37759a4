"""Transactions about pushes: kept in the journal first, absorbed into their sessions later.

Both happen thousands of times a second, so they go in portions, one statement for many rows. A push that does not fit
the common case takes the plain way, by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from asyncchatd.model import (
    EventKind,
    Ms,
    Reason,
    TokenNews,
    TokenRecord,
    replace,
    tokens,
)
from asyncchatd.stores.answers import Absorbed, Effect, Taken
from asyncchatd.stores.asking import Asking
from asyncchatd.stores.keys import opened
from asyncchatd.stores.postgres.failing import StillHeld
from asyncchatd.stores.postgres.transactions.asks import ask, may_be_asked_for
from asyncchatd.stores.postgres.transactions.columns import Columns
from asyncchatd.stores.postgres.transactions.events import happened
from asyncchatd.stores.postgres.transactions.restorations import (
    ABSORBING,
    Credits,
    credit,
    due_if_lost,
    hold_open,
    join_announced,
    stand,
)
from asyncchatd.stores.postgres.transactions.session_rows import (
    LAX,
    SessionRow,
    create,
    find,
    lock,
    spaced,
    write_record,
)
from asyncchatd.stores.postgres.wire import Row, Tx
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
from asyncchatd.wire import Push

# -- into the journal ------------------------------------------------------------------------------


async def take_pushes(tx: Tx, pushes: Sequence[tuple[Push, Ms]]) -> list[Taken]:
    """Write a portion of pushes into the journal, and say what each one is. One statement, durable."""
    rows = [
        (
            now,
            push.news.chat_id,
            push.device_id,
            push.news.user_id,
            tx.sealing.seal(push.news.secure_key, push.news.chat_id, push.device_id),
            push.news.alias,
            push.utc_time,
            push.position,
            push.next_position,
            push.leaving,
            push.resend,
            push.digest,
        )
        for push, now in pushes
    ]
    told = await tx.rows(_KEEP, *_SAID.values(rows))
    return [_taken(state, resent) for state, resent in told]


async def probe(tx: Tx) -> None:
    """Write a push that is nobody's into the journal, to see whether one could be kept; for a transaction that is
    undone. It takes the room of a long one: a disk that is full may have some bytes left in a page."""
    await take_pushes(tx, [(_NOBODYS, 0)])


_NOBODYS = Push(
    device_id=None,
    news=TokenNews(),
    events=(),
    next_position=None,
    leaving=False,
    resend=False,
    utc_time=None,
    position=None,
    text=False,
    conflicts=(),
    digest=" " * 1_500,
)


_OF_DEVICE = f"""coalesce(
    (SELECT id FROM session AS one WHERE one.device_id=said.device_id AND one.state={LIVE} LIMIT 1),
    (SELECT id FROM session AS one WHERE one.device_id=said.device_id LIMIT 1))"""
"""One of its live sessions, else any: many may share a device, and nobody needs to know them all."""

_SAID = Columns(
    {
        "at": "bigint",
        "chat_id": "text",
        "device_id": "text",
        "user_id": "text",
        "secure_key": "text",
        "alias": "text",
        "utc_time": "bigint",
        "position": "bigint",
        "next_position": "bigint",
        "leaving": "boolean",
        "resend": "boolean",
        "digest": "text",
    }
)

_KEEP = f"""WITH said AS MATERIALIZED (
        SELECT * FROM {_SAID.unnest} WITH ORDINALITY AS said({_SAID.names}, place)),
    found AS MATERIALIZED (
        -- Without payload every notification of a session looks the same; only one that names an event can be told
        -- from the next.
        SELECT said.*, known.id AS session, known.state, known.id IS NOT NULL AND (said.resend OR push_digest=digest
            AND (utc_time IS NOT NULL OR position IS NOT NULL)) IS TRUE AS resent
        FROM said LEFT JOIN LATERAL (
            SELECT id, state, push_digest FROM session WHERE session.chat_id=said.chat_id
            UNION ALL
            SELECT id, state, push_digest FROM session WHERE said.chat_id IS NULL AND session.id={_OF_DEVICE}
        ) AS known ON true),
    kept AS (
        INSERT INTO journal (at, session, chat_id, device_id, user_id, secure_key, alias, utc_time, position,
            next_position, leaving, resent, digest)
        SELECT at, session, chat_id, device_id, user_id, secure_key, alias, utc_time, position, next_position, leaving,
            resent AND state<>{ENDED}, digest FROM found ORDER BY place)
    SELECT state, resent FROM found ORDER BY place"""


def _taken(state: int | None, resent: bool) -> Taken:
    if state is None:
        return Taken.UNKNOWN
    if state == ENDED:
        return Taken.ENDED
    return Taken.RESENT if resent else Taken.KNOWN


_JOURNAL = ", ".join(f"journal.{column}" for column in JournalRow.__struct_fields__)


# -- out of it, the usual ones ---------------------------------------------------------------------


_USUAL = f"""coalesce(session.state={LIVE} AND NOT journal.leaving
    AND session.device_id IS NOT DISTINCT FROM coalesce(journal.device_id, session.device_id)
    AND coalesce(journal.user_id, session.user_id)=session.user_id
    AND coalesce(journal.secure_key, session.secure_key)=session.secure_key
    AND (journal.secure_key IS NULL OR session.told_position IS NULL)
    AND coalesce(journal.alias, session.alias)=session.alias
    AND (coalesce(journal.position, journal.next_position) IS NULL OR session.next_position IS NOT NULL)
    AND (journal.chat_id=session.chat_id OR journal.chat_id IS NULL
         AND (SELECT count(*) FROM (SELECT 1 FROM session AS other
             WHERE other.device_id=journal.device_id LIMIT 2) AS two)=1), false)"""
"""A push that says nothing of its live session but that something happened there. One that repeats a key which no
reply has confirmed says up to which event that key was the newest."""


def _touched(*, first: str) -> str:
    """What a push changes in a session that is known, whatever it tells: assignments of SQL in `work`. `first` says
    when the push came, or the first of several.

    Something happens in the conversation, and what GMS refused before counts no more. Only the tries to restore a
    session, which are bounded, go on as they began.
    """
    return (
        "refused_since=CASE WHEN work.restoration IS NOT NULL THEN work.refused_since END, marks=work.marks+1,"
        f" due_at=least(work.due_at, {spaced(first)})"
    )


def _absorb_usual(chosen: str) -> str:
    """A statement that lets the usual ones of the `chosen` pushes take effect, several of one session as one. It takes
    those alone whose session is still as they were judged by: another process may change it meanwhile, or have let
    them take effect. It says how many were looked at, how many took effect, in which sessions, when the last came, of
    which chats a claim holds the session, and the earliest time at which one of the sessions is due."""
    return f"""WITH judged AS MATERIALIZED (
        SELECT journal.id, journal.session, session.version AS version, {_USUAL} AS usual
        FROM (SELECT * FROM journal {chosen}) AS journal LEFT JOIN session ON session.id=journal.session),
    held AS MATERIALIZED (
        SELECT judged.id FROM judged JOIN session ON session.id=judged.session AND session.version=judged.version
        JOIN work ON work.session=session.id WHERE judged.usual ORDER BY session.id
        FOR NO KEY UPDATE OF session, work),
    gone AS (
        DELETE FROM journal USING held WHERE journal.id=held.id
        RETURNING journal.id, journal.session, journal.at, journal.resent, journal.secure_key, journal.utc_time,
            journal.digest),
    new AS MATERIALIZED (
        SELECT gone.session, count(*) AS pushes, min(at) AS first, max(at) AS last,
            max(CASE WHEN resent THEN 0 ELSE at END) AS active,
            max(CASE WHEN secure_key IS NULL THEN 0 ELSE coalesce(utc_time, 0) END) AS confirmed,
            (array_agg(digest ORDER BY id DESC))[1] AS digest
        FROM gone GROUP BY gone.session),
    seen AS (
        UPDATE session SET active_at=greatest(session.active_at, new.active), push_digest=new.digest,
            seen_utc=greatest(session.seen_utc, new.confirmed)
        FROM new WHERE session.id=new.session),
    made AS (
        UPDATE work SET {_touched(first="new.first")}, reason=least(work.reason, {Reason.ACKNOWLEDGE:d})
        FROM new WHERE work.session=new.session RETURNING work.session, work.claim, work.due_at)
    SELECT (SELECT count(*) FROM judged), coalesce(sum(pushes), 0)::bigint, array_agg(new.session), max(new.last),
        (SELECT array_agg(session.chat_id) FROM made JOIN session ON session.id=made.session
         WHERE made.claim>{LENT} AND session.chat_id IS NOT NULL),
        (SELECT min(due_at) FROM made), {LAX} FROM new"""


_ABSORB_OLDEST = _absorb_usual("ORDER BY id LIMIT $1")
_ABSORB_THESE = _absorb_usual("WHERE id=ANY($1::bigint[])")


async def absorb_usual(tx: Tx, limit: int) -> tuple[int, int, list[Absorbed], float | None]:
    """Let the usual ones of the oldest pushes of the journal take effect: how many of them there are, how many took
    effect, what is to be told, and when the first of the sessions is due. One statement; of no use where somebody is
    told of pushes."""
    looked_at, done, _, _, held, due_at, _ = await _only(tx, _ABSORB_OLDEST, limit)
    return looked_at, done, _of_held(held), due_at


def _of_held(chats: Sequence[str] | None) -> list[Absorbed]:
    """Pushes of sessions that a claim holds: whoever has one that is not sent can give it back."""
    return [Absorbed(chat_id, None, Effect.DUE, None, leaving=False) for chat_id in chats or ()]


async def _only(tx: Tx, statement: str, *values: object) -> Row:
    [row] = await tx.rows(statement, *values)
    return row


class AbsorbedElsewhere(StillHeld):
    """Another node lets pushes take effect, or registers sessions, for longer than a statement waits. Nothing is amiss:
    it takes those that wait here as well, or the next turn does."""


SINGLY = 100
"""Pushes that take effect one by one, with some six statements each, in one transaction. The other nodes wait for the
rows that it has locked: 100 take 0.2 s where a statement takes 0.3 ms."""


# -- all of them -----------------------------------------------------------------------------------


class _Judged(NamedTuple):
    id: int
    usual: bool
    kept: JournalRow


async def absorb(tx: Tx, limit: int, asking: Asking | None = None) -> tuple[list[Absorbed], bool]:
    """Let the oldest pushes of the journal take effect, of the unusual ones at most `SINGLY`: the effects worth
    telling, and whether the journal is empty now. `asking`: who may be asked to acknowledge them. Raises
    `AbsorbedElsewhere`."""
    try:
        await tx.run("SELECT pg_advisory_xact_lock($1)", ABSORBING)
    except StillHeld as error:
        raise AbsorbedElsewhere(str(error)) from error
    # By their ids from here on: others become visible meanwhile, also of lower ids.
    oldest = [row[0] for row in await tx.rows("SELECT id FROM journal ORDER BY id LIMIT $1", limit)]
    if not oldest:
        return [], True
    await lock(tx, _CONCERNED, oldest)
    judged = [
        _Judged(number, usual, _kept(tx, row)) for number, usual, *row in await tx.rows(_JUDGED, oldest)
    ]
    story = _Story(tx)
    singly = [push for push in judged if not push.usual]
    unusual = singly[:SINGLY]
    await stand(tx, (push.kept.alias for push in unusual))
    if asking is not None and unusual:
        await hold_open(tx)
    # The usual ones first: those that repeat a key confirm it against what others tell of earlier events.
    usual = [push for push in judged if push.usual]
    done, effects = await _absorb_all_usual(story, usual, asking) if usual else (0, [])
    for push in unusual:
        effects.extend(await _absorb(story, push.kept, asking))
    if unusual:
        await tx.run("DELETE FROM journal WHERE id=ANY($1::bigint[])", [push.id for push in unusual])
        await credit(tx, story.credits, max(push.kept.at for push in unusual))
    await story.tell()
    return effects, len(oldest) < limit and done == len(usual) and len(unusual) == len(singly)


def _active_of_device(device_id: str, user_id: str) -> str:
    """A condition for the chats of a device that may be active: those of a user that the push names first, and then the
    most recently active."""
    return f"""WHERE session.id IN
        (SELECT id FROM session WHERE device_id={device_id} ORDER BY id DESC LIMIT {DEVICE_LOOKED_AT})
        ORDER BY session.state={ENDED}, coalesce(session.user_id={user_id}, false) DESC, session.active_at DESC
        LIMIT {DEVICE_CHATS + 1}"""


_CONCERNED = f"""SELECT journal.session FROM journal WHERE id=ANY($1::bigint[])
    UNION ALL SELECT session.id FROM journal JOIN session ON session.chat_id=journal.chat_id
        WHERE journal.id=ANY($1::bigint[])
    UNION ALL SELECT session.id FROM journal JOIN session ON session.device_id=journal.device_id
        WHERE journal.id=ANY($1::bigint[]) AND journal.chat_id IS NOT NULL AND session.chat_id IS NULL
    UNION ALL SELECT one.id FROM journal CROSS JOIN LATERAL (SELECT session.id FROM session
        {_active_of_device("journal.device_id", "journal.user_id")}) AS one
        WHERE journal.id=ANY($1::bigint[]) AND journal.chat_id IS NULL"""
"""The sessions that pushes may concern: also those that were registered since a push was kept, or once more."""


async def _absorb_all_usual(
    story: _Story, usual: Sequence[_Judged], asking: Asking | None
) -> tuple[int, list[Absorbed]]:
    """How many took effect, not those whose session is not as they were judged by any more; and what is to be told."""
    tx = story.tx
    chosen = await may_be_asked_for(tx, list(dict.fromkeys(push.kept.session or 0 for push in usual)), asking)
    _, count, sessions, last, held, _, _ = await _only(tx, _ABSORB_THESE, [push.id for push in usual])
    for session in sessions or ():
        story.happened(EventKind.NOTIFIED, session, last)
    asked = {row: who for row, who in chosen.items() if row in set(sessions or ())}
    if asked and asking is not None:
        await story.tell()
        await ask(tx, asked, asking.now)
    return int(count), _of_held(held)


_JUDGED = f"""SELECT journal.id, {_USUAL}, {_JOURNAL} FROM journal LEFT JOIN session ON session.id=journal.session
    WHERE journal.id=ANY($1::bigint[]) ORDER BY journal.id"""


def _kept(tx: Tx, row: Sequence[Any]) -> JournalRow:
    """From the columns of `_JOURNAL`."""
    kept = JournalRow(*row)
    return replace(kept, secure_key=opened(tx.sealing, kept.secure_key, kept.chat_id, kept.device_id))


class _Story:
    """What unusual pushes did to their sessions and to restorations, written as late as possible: whoever writes events
    keeps all others from it until its transaction ends."""

    def __init__(self, tx: Tx) -> None:
        self.tx = tx
        self._untold: list[tuple[EventKind, int, Ms]] = []
        self.credits: Credits = Counter()

    def happened(self, kind: EventKind, session: int, at: Ms) -> None:
        if kind in self.tx.kinds:
            self._untold.append((kind, session, at))

    async def tell(self) -> None:
        """Write all of it, in the order in which it happened."""
        untold, self._untold = self._untold, []
        while untold:
            kind, _, at = untold[0]
            count = next(
                (n for n, each in enumerate(untold) if (each[0], each[2]) != (kind, at)), len(untold)
            )
            await happened(self.tx, kind, [session for _, session, _ in untold[:count]], at)
            untold = untold[count:]


async def _absorb(story: _Story, push: JournalRow, asking: Asking | None) -> list[Absorbed]:
    tx = story.tx
    if push.news.chat_id is not None:
        found = await find(tx, "WHERE chat_id=$1", push.news.chat_id)
        if not found and push.device_id is not None:
            found = await find(
                tx, "WHERE chat_id IS NULL AND device_id=$1 ORDER BY session.id", push.device_id
            )
    else:
        found = await find(tx, _active_of_device("$1", "$2"), push.device_id, push.news.user_id)
    if not found:
        return [await _absorb_unknown(story, push)]
    teaches = push.news.chat_id is not None or is_told_of(found, push.news.user_id)
    open_ones = [session for session in found if session.state != ENDED] or found[:1]
    effects = [
        await _absorb_known(story, session, push, teaches, asking) for session in open_ones[:DEVICE_CHATS]
    ]
    if len(open_ones) > DEVICE_CHATS:
        effects.append(Absorbed(None, push.device_id, Effect.CROWDED, None, push.leaving))
    return effects


async def _absorb_unknown(story: _Story, push: JournalRow) -> Absorbed:
    news = push.news
    state = LIVE if news.complete() else INCOMPLETE
    record, _ = tokens.from_push(TokenRecord(), news, utc_time=push.utc_time, position=push.position)
    row = await create(
        story.tx,
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
        await join_announced(story.tx, row, news.alias, push.at, story.credits)
    story.happened(EventKind.NOTIFIED, row, push.at)
    effect = Effect.ADOPTED if state == LIVE else Effect.INCOMPLETE
    return Absorbed(news.chat_id, push.device_id, effect, news.alias, push.leaving)


async def _absorb_known(
    story: _Story, session: SessionRow, push: JournalRow, teaches: bool, asking: Asking | None
) -> Absorbed:
    tx = story.tx
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
        await write_record(tx, session, chat_id, record)
    completed = session.state == INCOMPLETE and chat_id is not None and record.complete()
    state = LIVE if completed else session.state
    chosen = {} if push.leaving else await may_be_asked_for(tx, [session.id], asking)
    await _touch(tx, session, push, chat_id, state)
    story.happened(EventKind.NOTIFIED, session.id, push.at)
    if session.state == INCOMPLETE and not completed:
        return effect(Effect.INCOMPLETE if session.chat_id != chat_id else Effect.STILL_INCOMPLETE)
    if push.leaving:
        await join_announced(tx, session.id, record.alias, push.at, story.credits)
    if record.alias != session.record.alias and await due_if_lost(
        tx, session.id, record.alias, None, push.at, story.credits
    ):
        chosen = {}
    if chosen and asking is not None:
        await story.tell()
        await ask(tx, chosen, asking.now)
    if completed or learned:
        story.happened(EventKind.TOKENS, session.id, push.at)
    if completed:
        return effect(Effect.COMPLETED, record.alias)
    if learned:
        return effect(Effect.LEARNED, record.alias)
    return effect(Effect.STALE if ignored else Effect.DUE)


async def _touch(tx: Tx, session: SessionRow, push: JournalRow, chat_id: str | None, state: int) -> None:
    active = 0 if push.resent or push.leaving else push.at
    await tx.run(
        "UPDATE session SET chat_id=$2, device_id=coalesce(device_id, $3), state=$4, version=version+1,"
        " next_position=coalesce(next_position, $5), active_at=greatest(active_at, $6), push_digest=$7 WHERE id=$1",
        *(session.id, chat_id, push.device_id, state, begins_at(push), active, push.digest),
    )
    await tx.run(
        f"UPDATE work SET {_touched(first='$2::bigint')}, reason=least(reason, $3), live=$4 WHERE session=$1",
        *(
            session.id,
            push.at,
            Reason.RESTORE if push.leaving else Reason.ACKNOWLEDGE,
            state == LIVE,
        ),
    )
