"""Transactions about the work list: sessions are claimed and held.

It happens thousands of times a second, so it goes in portions, one statement for many rows (`rows.py`), and what a
statement selects comes back as one value, an array in JSON.
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
from asyncchatd.stores.sql.rows import (
    INCOMPLETE,
    LIVE,
)
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.transactions import asks, takes
from asyncchatd.stores.sqlite.transactions.restorations import (
    credit,
)
from asyncchatd.stores.sqlite.transactions.rows import run
from asyncchatd.stores.sqlite.transactions.session_rows import (
    forget_holders,
    selected,
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
