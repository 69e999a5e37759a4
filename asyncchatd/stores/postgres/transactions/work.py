"""Transactions about the work list: sessions are claimed and held.

It happens thousands of times a second, so it goes in portions, one statement for many rows, which is a transaction of
its own.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from asyncchatd.model import (
    Claim,
    Ms,
    Reason,
    Tokens,
)
from asyncchatd.stores.answers import NotTaken
from asyncchatd.stores.keys import opened
from asyncchatd.stores.postgres.transactions import asks, takes
from asyncchatd.stores.postgres.transactions.restorations import (
    credit,
)
from asyncchatd.stores.postgres.transactions.session_rows import (
    LAX,
    find,
    forget_holders,
    lock,
)
from asyncchatd.stores.postgres.wire import Row, Tx
from asyncchatd.stores.sql.rows import INCOMPLETE, LIVE


class Claimed(NamedTuple):
    """What a claim took."""

    claims: list[tuple[Claim, str | None]]
    """Each with the device id of its session,"""
    versions: list[int]
    """and the session's version."""
    keyless: list[int]
    """Sessions whose secure key does not open: `lack_keys`."""


class Holder(NamedTuple):
    """Who claims, and for how long."""

    node: int
    now: Ms
    until: Ms
    claim_id: int
    """A number that no claim has had: `new_claim`."""


STALE_MS = 2_000
"""Who claims by a clock that is as far off the database's was stopped meanwhile, or has not noticed that it was set."""


class Looked(NamedTuple):
    """What a claim looks for."""

    reasons: Sequence[Reason]
    floors: Sequence[float]
    """From which due time on, for each of them."""
    limit: int
    guarded: bool
    """Nothing is claimed by a clock that is off."""


async def claim(tx: Tx, holder: Holder, looked: Looked) -> Claimed:
    """Claim due sessions. One statement."""
    reasons, floors, limit, guarded = looked
    rows = await tx.rows(_CLAIM, *holder, list(reasons), limit, list(floors), guarded)
    return _claimed(tx, rows, holder.claim_id)


async def seize(tx: Tx, holder: Holder, chat_id: str) -> Claimed | NotTaken:
    """Claim one session, due or not."""
    now = holder.now
    await lock(tx, "SELECT id FROM session WHERE chat_id=$1", chat_id)
    why = await takes.obstacle(tx, chat_id, now)
    if why is not None:
        return why
    claimed = _claimed(tx, await tx.rows(_SEIZE, *holder, chat_id), holder.claim_id)
    await lack_keys(tx, claimed.keyless, now)
    return claimed if claimed.claims else NotTaken.INCOMPLETE  # its key does not open


async def made(tx: Tx, claim_ids: Sequence[int]) -> list[tuple[int, int]]:
    """The sessions that are claimed by these numbers, each with its own. All there are are looked through."""
    rows = await tx.rows("SELECT session, claim FROM work WHERE claim=ANY($1::bigint[])", list(claim_ids))
    return [(row[0], row[1]) for row in rows]


async def free(tx: Tx, claims: Sequence[tuple[int, int]]) -> int:
    """Nobody has these claims; the sessions may be claimed again. How many that were."""
    return await tx.run(
        "WITH held AS MATERIALIZED (SELECT work.session FROM work JOIN unnest($1::bigint[], $2::bigint[])"
        " AS mine (session, claim) ON work.session=mine.session AND work.claim=mine.claim"
        " ORDER BY work.session FOR NO KEY UPDATE OF work)"
        " UPDATE work SET held_until=claimed_at FROM held WHERE work.session=held.session",
        *([session for session, _ in claims], [claim_id for _, claim_id in claims]),
    )


def new_claim() -> int:
    """A number for a claim that nobody has had."""
    return secrets.randbits(53) + 1


_OF_WORK = ("reason", "due_at", "attempts", "restoration", "marks", "refusals", "refused_since")
_OF_SESSION = (
    "id",
    "chat_id",
    "service",
    "user_id",
    "secure_key",
    "alias",
    "next_position",
    "device_id",
    "version",
)
# The limit stands in a query that is computed once: in the condition of an update it might be run anew for each row.
_SESSION = ", ".join(f"session.{name}" for name in _OF_SESSION)
_MADE = ", ".join(f"made.{name}" for name in _OF_WORK)

_HELD = "node=$1, claimed_at=$2::bigint, held_until=$3, claim=$4"

_CLAIM = f"""WITH chosen AS MATERIALIZED (
        SELECT turn.place, due.*
        FROM unnest($5::smallint[], $7::double precision[]) WITH ORDINALITY AS turn(reason, floor, place),
        LATERAL (
            SELECT {_SESSION} FROM work JOIN session ON session.id=work.session
            WHERE work.live AND work.reason=turn.reason AND work.due_at>=turn.floor AND work.due_at<=$2::bigint
            AND work.held_until<=$2::bigint
            -- A push may tell other tokens. By the session's names too, because it may have been registered after its
            -- push was taken.
            AND (SELECT 1 FROM journal WHERE journal.session=work.session LIMIT 1) IS NULL
            AND (SELECT 1 FROM journal WHERE journal.session IS NULL AND journal.chat_id IS NOT NULL
                 AND journal.chat_id=session.chat_id LIMIT 1) IS NULL
            AND (SELECT 1 FROM journal WHERE journal.chat_id IS NULL AND journal.device_id IS NOT NULL
                 AND journal.device_id=session.device_id LIMIT 1) IS NULL
            ORDER BY work.due_at LIMIT $6 FOR NO KEY UPDATE OF work SKIP LOCKED
        ) AS due
        -- Asked once: in a condition on rows it would be asked for each, and no index would serve.
        WHERE (SELECT NOT $8 OR abs(extract(epoch FROM clock_timestamp()) * 1000 - $2::bigint) <= {STALE_MS})
        LIMIT $6),
    made AS (
        UPDATE work SET {_HELD} FROM chosen WHERE work.session=chosen.id
        RETURNING chosen.*, {", ".join(f"work.{name}" for name in _OF_WORK)}),
    -- Who was asked for a Refresh need not send it any more, or is too late.
    {asks.closing("SELECT made.id FROM made")}
    SELECT {", ".join(f"made.{name}" for name in (*_OF_SESSION, *_OF_WORK))}, {LAX} FROM made
    ORDER BY place, due_at, id"""

_SEIZE = f"""WITH made AS (
        UPDATE work SET {_HELD} FROM session WHERE session.chat_id=$5 AND work.session=session.id AND work.live
        RETURNING work.session, {", ".join(f"work.{name}" for name in _OF_WORK)})
    SELECT {_SESSION}, {_MADE}, NULL FROM made JOIN session ON session.id=made.session"""


def _claimed(tx: Tx, rows: Sequence[Row], claim_id: int) -> Claimed:
    claimed = Claimed([], [], [])
    for row in rows:
        number, chat_id, service, user_id, sealed, alias, position, device_id, version, *rest, _ = row
        reason, due_at, attempts, restoration, marks, refusals, refused_since = rest
        secure_key = opened(tx.sealing, sealed, chat_id)
        if secure_key is None:
            claimed.keyless.append(number)
            continue
        one = Claim(
            chat_id=chat_id,
            service=service,
            tokens=Tokens(chat_id, user_id, secure_key, alias),
            next_position=position,
            reason=Reason(reason),
            due_at=due_at,
            attempts=attempts,
            restoration=restoration,
            claim_id=claim_id,
            marks=marks,
            row=number,
            refusals=0 if refused_since is None else refusals,
            refused_since=refused_since,
        )
        claimed.claims.append((one, device_id))
        claimed.versions.append(version)
    return claimed


async def lack_keys(tx: Tx, sessions: Sequence[int], now: Ms) -> None:
    """A session whose secure key does not open is like one whose key was never told."""
    if not sessions:
        return
    found = await find(
        tx, "WHERE session.id=ANY($1::bigint[]) AND state=$2 ORDER BY session.id", sessions, LIVE
    )
    keyless = [known for known in found if known.record.secure_key is None]
    rows = [known.id for known in keyless]
    await tx.run(
        "UPDATE session SET state=$2, secure_key=NULL, version=version+1 WHERE id=ANY($1::bigint[])",
        *(rows, INCOMPLETE),
    )
    await tx.run("UPDATE work SET live=false, restoration=NULL WHERE session=ANY($1::bigint[])", rows)
    await forget_holders(tx, rows)
    await credit(tx, Counter((known.restoration, "refused") for known in keyless), now)


async def renew(tx: Tx, claims: Sequence[Claim], until: Ms, now: Ms) -> None:
    """`Store.renew`. One statement. Their lease counts from now on anew, also when their node dies."""
    held = sorted((claim.row, claim.claim_id) for claim in claims)
    await tx.rows(_RENEW, [row for row, _ in held], [claim_id for _, claim_id in held], until, now)


_RENEW = f"""WITH held AS MATERIALIZED (
        SELECT work.session FROM work JOIN unnest($1::bigint[], $2::bigint[]) AS said(session, claim)
        ON work.session=said.session AND work.claim=said.claim ORDER BY work.session FOR NO KEY UPDATE OF work),
    made AS (UPDATE work SET held_until=$3, claimed_at=$4 FROM held WHERE work.session=held.session)
    SELECT {LAX}"""


async def next_due(tx: Tx, now: Ms, reasons: Sequence[Reason]) -> float | None:
    """`Store.next_due`."""
    due = await tx.value(
        "SELECT min(first.due_at) FROM unnest($1::smallint[]) AS turn(reason), LATERAL (SELECT due_at FROM work"
        " WHERE live AND work.reason=turn.reason AND due_at>$2 ORDER BY due_at LIMIT 1) AS first",
        *(list(reasons), float(now)),
    )
    ends = (due, await takes.next_end(tx, now), await asks.next_end(tx, now))
    return min((float(each) for each in ends if each is not None), default=None)
