"""Writes an SQLite store with 1,000,000 live sessions, to measure what copying it takes: docs/nodes.md.

python tests/stores/moving/million.py FILE
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from asyncchatd.stores import make_store

SESSIONS = """INSERT INTO session (chat_id, service, user_id, secure_key, alias, device_id, next_position, state,
    reason, due_at, registered_at, active_at, sent_at, answered_at, seen_utc, renewed_at, pinged_until, old_keys)
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<1000000)
    SELECT lower(hex(randomblob(10))), 'customer-support', lower(hex(randomblob(8))), lower(hex(randomblob(16))),
        'alias-'||(i%8), lower(hex(randomblob(16))), 7, 1, 5, 1790000000000.0+i, 1790000000000, 1790000000000+i,
        1790000000000, 1790000000000, 1790000000000, 1790000000000, 1790000000000, lower(hex(randomblob(16))) FROM n"""


async def made(file: Path) -> None:
    store = make_store(f"sqlite:///{file}", directory=Path("/"))
    await store.open()
    await store.close()


if __name__ == "__main__":
    path = Path(sys.argv[1]).resolve()
    asyncio.run(made(path))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(SESSIONS)
