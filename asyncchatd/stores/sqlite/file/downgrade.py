"""The way back to an older asyncchatd: what a database has now is written into what it was before an upgrade.

Migrations only add (`schema.py`), so every column of the older file is there in the newer one and means the same. What
the older one has no place for stays behind: the transcript and its consumers, for instance.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.sqlite.file.carrying import refuse_moved
from asyncchatd.stores.sqlite.file.file import lock, path_of
from asyncchatd.stores.sqlite.file.rescue import Saved, remove, save, unfinished
from asyncchatd.stores.sqlite.transactions import schema


def downgrade(url: str, directory: Path, copy: Path) -> Saved:
    """Write what the store of this URL has into `copy`, which an older asyncchatd made and reads: wholly, or `copy`
    stays what it was, also when this is killed. No daemon may run. Raises `StoreError`."""
    source = path_of(url, directory).resolve()
    for each in (source, copy):
        if not each.is_file():
            raise StoreError(f"there is no database {each}")
    held, _ = lock(source)
    made = None
    try:
        made = unfinished(copy)
        with closing(_opened(source)) as db:
            if schema.check_ours(db, str(source)) < len(schema.MIGRATIONS):
                raise StoreError(
                    f"{source} was written by an older asyncchatd: there is nothing to go back from"
                )
            refuse_moved(db, str(source))
        with closing(_opened(copy)) as db:
            if not 0 < schema.check_ours(db, str(copy)) < len(schema.MIGRATIONS):
                raise StoreError(
                    f"{copy} was not written by an older asyncchatd; name the copy of before the upgrade"
                )
            save(db, made)
        with closing(_opened(made)) as db:
            db.execute("ATTACH ? AS newer", (f"{source.as_uri()}?mode=rw",))
            written = Saved(copy, *_write(db))
        shutil.copymode(copy, made)
        with suppress(PermissionError):  # whoever is not root makes it for himself
            os.chown(made, copy.stat().st_uid, copy.stat().st_gid)
        made.replace(copy)
        return written
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"cannot write {source} into {copy}, which stays what it was: {error}") from error
    finally:
        if made is not None:
            remove(made)
        os.close(held)


def _opened(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None)


def _write(db: sqlite3.Connection) -> tuple[int, str | None]:
    """How many sessions there are now, and what SQLite finds wrong."""
    db.execute("PRAGMA synchronous = FULL")
    db.execute("BEGIN IMMEDIATE")
    tables = [name for (name,) in db.execute("SELECT name FROM main.sqlite_schema WHERE type='table'")]
    for table in tables:
        names = [row[1] for row in db.execute(f'PRAGMA main.table_info("{table}")')]
        columns = ", ".join(f'"{name}"' for name in names)
        # With its table: alone it would be a string where there is no such column.
        theirs = ", ".join(f'its."{name}"' for name in names)
        db.execute(f'DELETE FROM main."{table}"')
        db.execute(f'INSERT INTO main."{table}" ({columns}) SELECT {theirs} FROM newer."{table}" AS its')
    if "file" in tables:
        db.execute("UPDATE main.file SET at_work=0, copied_at=NULL")
    [[sessions]] = db.execute("SELECT count(*) FROM main.session").fetchall()
    db.execute("COMMIT")
    [[verdict]] = db.execute("PRAGMA main.integrity_check(1)").fetchall()
    return sessions, None if verdict == "ok" else str(verdict)
