"""Turning a database over to a store key: at opening, whole or not at all.

A database is at any time sealed under exactly one key, or not at all; its table `sealing` says which. So
statements may compare sealed values, nothing has to be guessed from a value's looks, and an old key may be
forgotten after one start with the new one in front of it. What stood there before would still be found in
the file's free space: the file is written anew and its log emptied, so that no byte of it is left. Where
that cannot be done the daemon goes on, says so, and tries again at its next start: chats come first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress

from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.keys import opened
from asyncchatd.stores.sealing import SealError, Sealing, event_mark
from asyncchatd.stores.sqlite.database import Db

CHUNK = 10_000
"""Rows in memory at once."""


def unseal(db: Db, sealings: Sequence[Sealing], name: str) -> int | None:
    """Make `db` read and write under the first of `sealings`; the others may only open what is there. How
    many secure keys had to be sealed anew for it, `None` when the database had been under the first already.

    Raises `StoreError` when the database is under none of them, and leaves it as it is.
    """
    [[key_id]] = db.execute("SELECT key_id FROM sealing").fetchall()
    db.sealing = _present(key_id, sealings, name)
    changed = None
    if key_id != sealings[0].key_id:
        changed = _turn_over(db, sealings[0])
    return changed


def _present(key_id: str | None, sealings: Sequence[Sealing], name: str) -> Sealing:
    """What the database is under now."""
    for sealing in sealings:
        if sealing.key_id == key_id:
            return sealing
    if key_id is None:
        return Db.sealing
    if sealings[0].key_id is None:
        raise StoreError(
            f"the secure keys in {name} are encrypted, and store.keys_file is not set;"
            f" name the file with the key {key_id}, or another database in store.url"
        )
    raise StoreError(
        f"the secure keys in {name} are encrypted with the key {key_id}, which is not in store.keys_file"
        f" (there: {', '.join(str(each.key_id) for each in sealings)});"
        " add its line to the file, or name another database in store.url"
    )


def _turn_over(db: Db, sealing: Sealing) -> int:
    db.execute("PRAGMA synchronous = FULL")
    db.execute("BEGIN IMMEDIATE")
    try:
        count = _turn_over_table(db, "session", sealing) + _turn_over_table(db, "journal", sealing)
        _turn_over_events(db, sealing)
        db.execute("UPDATE sealing SET key_id=?, remains=1", (sealing.key_id,))
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    db.sealing = sealing
    return count


def _turn_over_table(db: Db, table: str, sealing: Sealing) -> int:
    count = last = 0
    while True:
        rows = db.execute(
            f"SELECT id, chat_id, device_id, secure_key FROM {table} WHERE id>? AND secure_key IS NOT NULL"
            " ORDER BY id LIMIT ?",
            (last, CHUNK),
        ).fetchall()
        if not rows:
            return count
        db.executemany(
            f"UPDATE {table} SET secure_key=? WHERE id=?",
            [
                (sealing.seal(opened(db.sealing, key, chat_id, device_id), chat_id, device_id), number)
                for number, chat_id, device_id, key in rows
            ],
        )
        count, last = count + len(rows), rows[-1][0]


def _turn_over_events(db: Db, sealing: Sealing) -> None:
    """Events that do not open stay as they are: they are told as gaps."""
    last = 0
    while True:
        rows = db.execute(
            "SELECT event.id, coalesce(chat_id, ''), kind, body FROM event"
            " LEFT JOIN session ON session.id=event.session"
            " WHERE event.id>? AND body IS NOT NULL ORDER BY event.id LIMIT ?",
            (last, CHUNK),
        ).fetchall()
        if not rows:
            return
        sealed = []
        for number, chat_id, kind, body in rows:
            with suppress(SealError):
                plain = db.sealing.open_event(body, chat_id)
                mark = event_mark(sealing, kind, plain)
                sealed.append((sealing.seal_event(plain, chat_id), mark, number))
        db.executemany("UPDATE event SET body=?, likeness=? WHERE id=?", sealed)
        last = rows[-1][0]


def clean(db: Db) -> None:
    """Leave nothing of what was deleted or overwritten; done again when it was cut off.

    Raises `sqlite3.Error` when there is no room for a second copy of the database, or somebody reads it."""
    [[remains]] = db.execute("SELECT remains FROM sealing").fetchall()
    if not remains:
        return
    db.execute("VACUUM")
    [busy, *_] = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise sqlite3.OperationalError("the log cannot be emptied: another program reads the database")
    db.execute("UPDATE sealing SET remains=0")
