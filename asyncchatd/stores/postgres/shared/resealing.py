"""Statements by which what is sealed under a key of before is sealed under the one in force, some rows at a time.

Each is one statement, and changes what is still as it was read: whoever tells another key meanwhile writes it under the
one in force anyway.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

from asyncchatd.stores.postgres.wire import Tx
from asyncchatd.stores.sealing import SealError, event_mark

PORTION = 200
"""Rows that are looked at at once."""

Portion = Callable[[Tx, int], Awaitable[tuple[int | None, int]]]
"""Looks at the next rows behind an id: the last id, `None` when there was none; and how many were sealed anew."""

Step = Callable[[Tx], Awaitable[tuple[int | None, int]]]
"""The same for a place that is set."""


async def sessions(tx: Tx, after: int) -> tuple[int | None, int]:
    """The secure keys of sessions."""
    return await _secure_keys(tx, "session", after)


async def journal(tx: Tx, after: int) -> tuple[int | None, int]:
    """The secure keys of pushes that have not taken effect yet."""
    return await _secure_keys(tx, "journal", after)


async def _secure_keys(tx: Tx, table: str, after: int) -> tuple[int | None, int]:
    rows = await tx.rows(
        f"SELECT id, chat_id, device_id, secure_key FROM {table} WHERE id>$1 AND secure_key IS NOT NULL"
        " ORDER BY id LIMIT $2",
        *(after, PORTION),
    )
    anew = []
    for number, chat_id, device_id, sealed in rows:
        with suppress(SealError):  # who uses it tells of one that does not open
            now = tx.sealing.seal(tx.sealing.open(sealed, chat_id, device_id), chat_id, device_id)
            if now != sealed:
                anew.append((number, sealed, now))
    if anew:
        await tx.run(
            "WITH held AS MATERIALIZED (SELECT id, row.now FROM unnest($1::bigint[], $2::text[], $3::text[])"
            f" AS row (number, before, now) JOIN {table} ON id=row.number AND secure_key=row.before"
            f" ORDER BY id FOR NO KEY UPDATE OF {table})"
            f" UPDATE {table} SET secure_key=held.now FROM held WHERE {table}.id=held.id",
            *map(list, zip(*anew, strict=True)),
        )
    return (rows[-1][0] if rows else None), len(anew)


async def events(tx: Tx, after: int) -> tuple[int | None, int]:
    """Events and their marks. One that does not open stays as it is: it is told as a gap."""
    rows = await tx.rows(
        "SELECT event.id, coalesce(chat_id, ''), kind, body FROM event LEFT JOIN session ON session.id=event.session"
        " WHERE event.id>$1 AND body IS NOT NULL ORDER BY event.id LIMIT $2",
        *(after, PORTION),
    )
    anew = []
    for number, chat_id, kind, body in rows:
        with suppress(SealError):
            plain = tx.sealing.open_event(body, chat_id)
            now = tx.sealing.seal_event(plain, chat_id)
            if now != body:
                anew.append((number, now, event_mark(tx.sealing, kind, plain)))
    if anew:
        await tx.run(
            "WITH held AS MATERIALIZED (SELECT id, row.now, row.mark FROM"
            " unnest($1::bigint[], $2::bytea[], $3::bytea[]) AS row (number, now, mark)"
            " JOIN event ON id=row.number AND body IS NOT NULL ORDER BY id FOR NO KEY UPDATE OF event)"
            " UPDATE event SET body=held.now, likeness=held.mark FROM held WHERE event.id=held.id",
            *map(list, zip(*anew, strict=True)),
        )
    return (rows[-1][0] if rows else None), len(anew)


ALL: tuple[Portion, ...] = (sessions, journal, events)
