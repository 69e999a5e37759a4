"""Statements about counts that took long: all who share the store go by one count for a while."""

from __future__ import annotations

from asyncchatd.stores.postgres.shared.nodes import NOW
from asyncchatd.stores.postgres.wire import Tx

SHARE = 20
"""Counting takes at most one in so many seconds of the database's time, however many ask."""

LONGEST_SECONDS = 10.0
"""So old is a count at the most."""

DEAR_SECONDS = 0.05
"""A count that took no longer is made anew each time,"""

MANY = 50_000
"""and so is one of fewer sessions: it took as long because the database was busy."""


async def recent(tx: Tx, what: str) -> str | None:
    """What was counted lately and took long, in JSON."""
    found = await tx.value(
        f"SELECT counts FROM tally WHERE what=$1 AND counted_at<={NOW}"
        f" AND counted_at>{NOW} - least(took*{SHARE}, {LONGEST_SECONDS})",
        what,
    )
    return None if found is None else str(found)


async def remember(tx: Tx, what: str, counts: str, took: float) -> None:
    """Let all go by a count that took so many seconds."""
    await tx.run(
        f"INSERT INTO tally (what, counts, took, counted_at) VALUES ($1, $2, $3, {NOW}) ON CONFLICT (what) DO UPDATE"
        " SET counts=excluded.counts, took=excluded.took, counted_at=excluded.counted_at",
        *(what, counts, took),
    )
