"""Transactions about asks: a consumer is to send the Refresh that acknowledges a push, and else the daemon pings.

The session is due when the consumer's time is over, from the transaction on in which the push takes effect: nobody has
to notice that moment, and a process that dies before it loses nothing. Until the consumer is told, this is all:
whatever makes the session due sooner, a restoration first of all, is pinged at once, and the consumer is then told that
it need not. From when it is told on the session has a lease as with a take (`lent.py`), because its request may be on
its way and bring another key.

A session's asks are written by whoever has its two rows locked, whichever node that is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from asyncchatd.model import Consumer, Handed, Ms, Reason, StoredEvent, Tokens, Unacknowledged
from asyncchatd.model import key_digest as digest_of
from asyncchatd.stores.asking import (
    ACKNOWLEDGED,
    OPEN,
    RAN_OUT,
    WITHDRAWN,
    Ask,
    Asking,
    Handing,
    by_session,
    mine,
    offer,
    until,
    who_is_asked,
)
from asyncchatd.stores.postgres.transactions.lent import (
    WILL_BE_MARKED,
    give_back,
    has_pushes,
    is_taken,
    lease,
)
from asyncchatd.stores.postgres.transactions.session_rows import SessionRow, find
from asyncchatd.stores.postgres.wire import Tx
from asyncchatd.stores.rules import LONGEST_TAKE_MS, keepalive_ms
from asyncchatd.stores.sql.rows import LENT, LIVE

TOO_LONG = f"SELECT ask.session FROM ask WHERE outcome={OPEN} AND ask.until>{{}}"
"""The sessions of open asks that last longer than until then."""

_ASK = f"SELECT {', '.join(Ask._fields)} FROM ask"


async def _asks(tx: Tx, where: str, *values: object) -> list[Ask]:
    return [Ask(*row) for row in await tx.rows(f"{_ASK} WHERE {where} ORDER BY event", *values)]


async def _opened(tx: Tx, session: int) -> list[Ask]:
    return await _asks(tx, f"session=$1 AND outcome={OPEN}", session)


# -- when a push takes effect ----------------------------------------------------------------------


async def may_be_asked_for(tx: Tx, sessions: Sequence[int], asking: Asking | None) -> dict[int, Consumer]:
    """Of these sessions, before a push takes effect, those for which somebody is asked, and who. Their rows are
    locked."""
    if asking is None or not sessions or not (consumers := await _not_paused(tx, asking.consumers)):
        return {}
    found = await tx.rows(_FREE, list(sessions), asking.now, [consumer.name for consumer in consumers])
    chosen: dict[int, Consumer] = {}
    for session, chat_id, service in found:
        who = who_is_asked(consumers, service)
        if who is not None and not asking.is_held(chat_id):
            chosen[session] = who
    return chosen


async def _not_paused(tx: Tx, consumers: Sequence[Consumer]) -> list[Consumer]:
    told = {row[0] for row in await tx.rows("SELECT name FROM consumer WHERE NOT paused AND gone_at IS NULL")}
    return [consumer for consumer in consumers if consumer.name in told]


_FREE = f"""SELECT session.id, session.chat_id, session.service FROM session JOIN work ON work.session=session.id
    WHERE session.id=ANY($1::bigint[])
    AND session.state={LIVE} AND NOT session.of_gateway AND work.restoration IS NULL AND NOT {WILL_BE_MARKED}
    AND CASE WHEN EXISTS (SELECT 1 FROM ask WHERE ask.session=session.id AND outcome={OPEN})
        THEN (SELECT max(ask.marks)=work.marks AND min(ask.until)>$2 FROM ask
              WHERE ask.session=session.id AND outcome={OPEN})
        ELSE work.reason={Reason.KEEPALIVE:d} AND work.held_until<=$2 END
    AND (SELECT 1 FROM delivery WHERE delivery.session=session.id AND NOT parked AND tries>0
         AND delivery.consumer=ANY($3::text[]) LIMIT 1) IS NULL"""
"""Nothing is due or under way but what was asked for, and its consumer takes what it is told of the chat."""


async def ask(tx: Tx, chosen: Mapping[int, Consumer], now: Ms) -> None:
    """Ask for these sessions, to which a push has just happened and was written as an event."""
    if not chosen:
        return
    sessions = list(chosen)
    await tx.run(
        f"DELETE FROM ask WHERE outcome<>{OPEN} AND NOT (outcome={RAN_OUT} AND NOT told)"
        " AND session=ANY($1::bigint[])",
        sessions,
    )
    await tx.run(
        "INSERT INTO ask (session, event, consumer, at, until, marks) SELECT work.session,"
        " (SELECT max(event.id) FROM event WHERE event.session=work.session), row.consumer, $4, row.until, work.marks"
        " FROM unnest($1::bigint[], $2::text[], $3::bigint[]) AS row (session, consumer, until)"
        " JOIN work ON work.session=row.session",
        sessions,
        [who.name for who in chosen.values()],
        [until(who, now) for who in chosen.values()],
        now,
    )
    await tx.run(
        f"UPDATE work SET due_at=(SELECT min(until) FROM ask WHERE ask.session=work.session AND outcome={OPEN})"
        " WHERE session=ANY($1::bigint[])",
        sessions,
    )


# -- when a consumer is told -----------------------------------------------------------------------


async def hand_out(
    tx: Tx,
    consumer: str,
    events: Sequence[StoredEvent],
    now: Ms,
    is_held: Callable[[str], bool],
    *,
    keyed: bool = False,
) -> tuple[list[Handing], bool]:
    """`Store.hand_out`; whether a session is due now instead. `keyed`: the consumer is told the tokens with the event,
    and need not take the session."""
    handed: list[Handing] = []
    due = False
    told = by_session(events)
    new: list[Ask] = []
    for known, opened in await _with_asks(tx, list(told)):
        asked = mine(opened, consumer, told[known.id])
        if not asked:
            continue
        tokens = await _tokens_to_give(tx, known, opened, now, is_held)
        offered = offer(asked, opened, now, free=tokens is not None, keyed=keyed)
        if offered.given and tokens:
            await _give(tx, opened, offered.given, tokens, now)
            new += [each for each in offered.given if each.given_at is None]
            handed += offered.handings(tokens, known.record.next_position, known.device_id)
        if offered.late:
            due = True
            await _withdraw(tx, known.id, offered.late, now)
    await _count(tx, "asked", new)
    return handed, due


async def _with_asks(tx: Tx, sessions: Sequence[int]) -> list[tuple[SessionRow, list[Ask]]]:
    """Those of these sessions for which somebody is asked, both rows of each locked, with their open asks."""
    asked = await tx.rows(
        f"SELECT DISTINCT session FROM ask WHERE outcome={OPEN} AND session=ANY($1::bigint[])", list(sessions)
    )
    if not asked:
        return []  # as nearly always
    found = await find(
        tx, "WHERE session.id=ANY($1::bigint[]) ORDER BY session.id", [row[0] for row in asked]
    )
    opened = await _asks(tx, f"outcome={OPEN} AND session=ANY($1::bigint[])", [known.id for known in found])
    return [(known, [each for each in opened if each.session == known.id]) for known in found]


async def _tokens_to_give(
    tx: Tx, known: SessionRow, opened: Sequence[Ask], now: Ms, is_held: Callable[[str], bool]
) -> Tokens | None:
    """What the request is to be sent with, when none of ours is due or on its way."""
    if known.state != LIVE or known.restoration is not None or known.marks != opened[-1].marks:
        return None
    tokens = known.record.tokens(known.chat_id)
    if tokens is None or is_held(tokens.chat_id) or await has_pushes(tx, known.id):
        return None
    found = await tx.row(
        f"SELECT {WILL_BE_MARKED}, held_until>$2, claim FROM session JOIN work ON work.session=session.id WHERE id=$1",
        *(known.id, now),
    )
    marked, leased, claim = found or (True, True, None)
    is_known = any(each.given_at is not None for each in opened)
    if marked or await is_taken(tx, known.id, now) or (leased and not (claim == LENT and is_known)):
        return None
    return tokens


async def _give(tx: Tx, opened: Sequence[Ask], given: Sequence[Ask], tokens: Tokens, now: Ms) -> None:
    session = given[0].session
    await tx.run(
        "UPDATE ask SET given_at=coalesce(given_at, $3), key_digest=$4, user_id=$5, alias=$6"
        " WHERE session=$1 AND event=ANY($2::bigint[])",
        *(session, [each.event for each in given], now),
        *(digest_of(tokens.secure_key), tokens.user_id, tokens.alias),
    )
    await lease(tx, session, min(each.until for each in opened))


async def withdraw(tx: Tx, consumer: str, events: Sequence[StoredEvent], now: Ms) -> bool:
    """`Store.withdraw`."""
    due = False
    told = by_session(events)
    for known, opened in await _with_asks(tx, list(told)):
        asked = mine(opened, consumer, told[known.id])
        if asked:
            due = True
            await _withdraw(tx, known.id, asked, now)
    return due


async def _withdraw(tx: Tx, session: int, asks: Sequence[Ask], now: Ms) -> None:
    await _close(tx, asks, WITHDRAWN)
    await lease_what_is_left(tx, session, now)
    await tx.run(
        "UPDATE work SET due_at=least(due_at, $2), marks=marks+1 WHERE session=$1", session, float(now)
    )


async def lease_what_is_left(tx: Tx, session: int, now: Ms) -> list[Ask]:
    """The lease of the asks that are still open, which are returned; a take's own stays."""
    left = await _opened(tx, session)
    if await is_taken(tx, session, now):
        return left
    if any(each.given_at is not None for each in left):
        until = min(each.until for each in left)
        await tx.run(f"UPDATE work SET held_until=$2 WHERE session=$1 AND claim={LENT}", session, until)
    else:
        await give_back(tx, session)
    return left


async def _close(tx: Tx, asks: Sequence[Ask], outcome: int) -> None:
    await tx.run(
        "UPDATE ask SET outcome=$3 FROM unnest($1::bigint[], $2::bigint[]) AS row (session, event)"
        " WHERE ask.session=row.session AND ask.event=row.event",
        *([each.session for each in asks], [each.event for each in asks], outcome),
    )


async def _count(tx: Tx, column: str, asks: Iterable[Ask]) -> None:
    """Last of all, with one row for each consumer, in one order: whoever counts waits for nothing else then."""
    for name, count in sorted(Counter(each.consumer for each in asks).items()):
        await tx.run(f"UPDATE consumer SET {column}={column}+$2 WHERE name=$1", name, count)


# -- how it ends -----------------------------------------------------------------------------------


async def acknowledge(tx: Tx, chat_id: str, event: int, now: Ms, spread_ms: float) -> bool:
    """`Store.acknowledge`."""
    acknowledged: list[Ask] = []
    done = await acknowledge_uncounted(tx, chat_id, event, now, spread_ms, acknowledged)
    await count_acknowledged(tx, acknowledged)
    return done


async def acknowledge_uncounted(
    tx: Tx,
    chat_id: str,
    event: int,
    now: Ms,
    spread_ms: float,
    acknowledged: list[Ask],
    *,
    put_back: bool = False,
) -> bool:
    """`acknowledge`, but for the counting of what is `acknowledged` by it (`count_acknowledged`). `put_back`: by a
    registration that ends the session's take, too."""
    found = await find(tx, "WHERE chat_id=$1", chat_id)
    if not found:
        return False
    [known] = found
    named = next(iter(await _asks(tx, "session=$1 AND event=$2", known.id, event)), None)
    if named is None or named.given_at is None or named.outcome not in (OPEN, ACKNOWLEDGED):
        return False
    if named.outcome == ACKNOWLEDGED:
        return True
    opened = await _opened(tx, known.id)
    covered = [each for each in opened if each.event <= event]
    await _close(tx, covered, ACKNOWLEDGED)
    left = await lease_what_is_left(tx, known.id, now)
    if known.marks == opened[-1].marks and known.restoration is None:  # it is due for nothing else
        if left:
            await _be_due(tx, known.id, min(each.until for each in left))
        elif put_back or not await is_taken(tx, known.id, now):
            await tx.run(
                "UPDATE work SET due_at=$2, reason=$3, attempts=0 WHERE session=$1",
                *(known.id, now + keepalive_ms(spread_ms, None, now), Reason.KEEPALIVE),
            )
    acknowledged += [each for each in covered if each.given_at is not None]
    return True


async def count_acknowledged(tx: Tx, acknowledged: Sequence[Ask]) -> None:
    """Count what was acknowledged, once all is said."""
    await _count(tx, "acknowledged", acknowledged)


async def _be_due(tx: Tx, session: int, at: Ms) -> None:
    await tx.run("UPDATE work SET due_at=$2 WHERE session=$1", session, float(at))


async def handed(tx: Tx, session: int, event: int) -> Handed | None:
    """What the consumer had to send the Refresh with that this event asked for; nothing when it asked for none."""
    found = await tx.row(
        "SELECT given_at, key_digest, user_id, alias FROM ask"
        " WHERE session=$1 AND event=$2 AND given_at IS NOT NULL",
        *(session, event),
    )
    return None if found is None else Handed(*found)


async def is_given(tx: Tx, session: int, event: int) -> bool:
    """Whether this event asks for a Refresh of the session, and its consumer knows."""
    found = await tx.value(
        f"SELECT 1 FROM ask WHERE session=$1 AND event=$2 AND outcome={OPEN} AND given_at IS NOT NULL",
        *(session, event),
    )
    return found is not None


async def stay_due_for(tx: Tx, session: int, marks: int) -> None:
    """Let a take go on from an ask: what the take marks is no other reason to be due. `marks`: those before it."""
    await tx.run(
        "UPDATE ask SET marks=(SELECT marks FROM work WHERE work.session=ask.session)"
        f" WHERE session=$1 AND outcome={OPEN} AND marks=$2",
        *(session, marks),
    )


def closing(sessions: str) -> str:
    """Parts of a statement that end what was asked for the sessions that a query gives, whose work rows are locked:
    they are pinged."""
    return f"""closed AS (
        UPDATE ask SET outcome=CASE WHEN given_at IS NULL THEN {WITHDRAWN} ELSE {RAN_OUT} END
        WHERE outcome={OPEN} AND ask.session IN ({sessions}) RETURNING consumer, given_at),
    late AS (
        SELECT consumer, count(*) AS count FROM closed WHERE given_at IS NOT NULL GROUP BY consumer),
    told AS MATERIALIZED (
        SELECT name FROM consumer WHERE name IN (SELECT consumer FROM late) ORDER BY name FOR NO KEY UPDATE),
    counted AS (
        UPDATE consumer SET ran_out=ran_out+late.count FROM told JOIN late ON late.consumer=told.name
        WHERE consumer.name=told.name)"""


_UNTOLD = f"outcome={RAN_OUT} AND NOT told"


async def any_unacknowledged(tx: Tx) -> bool:
    """Whether `unacknowledged` would give any."""
    return bool(await tx.value(f"SELECT EXISTS (SELECT 1 FROM ask WHERE {_UNTOLD})"))


async def unacknowledged(tx: Tx) -> list[Unacknowledged]:
    """`Store.unacknowledged`. What somebody has in hand comes the next time."""
    rows = await tx.rows(
        f"""WITH ended AS MATERIALIZED (SELECT session, event FROM ask WHERE {_UNTOLD}
            ORDER BY session, event FOR NO KEY UPDATE SKIP LOCKED),
        told AS (UPDATE ask SET told=true FROM ended WHERE ask.session=ended.session AND ask.event=ended.event
            RETURNING ask.session, ask.event, ask.consumer)
        SELECT chat_id, session.alias, consumer FROM told JOIN session ON session.id=told.session ORDER BY event"""
    )
    return [Unacknowledged(*row) for row in rows]


async def next_end(tx: Tx, now: Ms) -> Ms | None:
    """When the next consumer's time is over: what became due meanwhile can be claimed then."""
    found: Ms | None = await tx.value(f"SELECT min(until) FROM ask WHERE outcome={OPEN} AND until>$1", now)
    return found


async def cut(tx: Tx, now: Ms) -> None:
    """End asks that last longer than any can: they were made before the clock was set back."""
    await tx.run(f"UPDATE ask SET until=$1 WHERE outcome={OPEN} AND until>$2", now, now + LONGEST_TAKE_MS)
