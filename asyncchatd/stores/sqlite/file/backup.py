"""A backup of a database that a daemon has open: one snapshot, copied in portions, checked.

The snapshot is held by a reading transaction, so that commits meanwhile do not make the copy begin anew. Nobody
waits for it; the write-ahead log grows until it is done.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from asyncchatd.model import Ms
from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.sqlite.file.file import path_of
from asyncchatd.stores.sqlite.file.rescue import Saved, publish, save, unused
from asyncchatd.stores.sqlite.transactions.schema import MIGRATIONS, check_ours

PAUSE_SECONDS = 0.005
"""After every portion, so that the disk has time for commits."""


def back_up(url: str, directory: Path, file: Path, copied_at: Ms) -> Saved:
    """Copy the store of this URL into `file`, which must not exist. `copied_at` is now. Raises `StoreError`."""
    source = path_of(url, directory).resolve()
    if file.exists() or file.is_symlink():
        raise StoreError(f"{file} exists and was left alone; name another file")
    if not source.exists():
        raise StoreError(f"there is no database {source} yet")
    try:
        # Not for reading only: that would leave log and index behind where no daemon runs.
        with closing(sqlite3.connect(f"{source.as_uri()}?mode=rw", uri=True, isolation_level=None)) as db:
            db.execute("PRAGMA busy_timeout = 5000")
            db.execute("PRAGMA query_only = ON")
            if check_ours(db, str(source)) < len(MIGRATIONS):
                raise StoreError(f"{source} was written by an older asyncchatd; start this one once before")
            db.execute("BEGIN")
            counted = _counts(db)
            made = save(db, unused(file, "partial"), pause=PAUSE_SECONDS, copied_at=copied_at)
        return _published(made, file, counted)
    except sqlite3.Error as error:
        raise StoreError(f"cannot copy {source}: {error}") from error
    except FileExistsError as error:
        raise StoreError(f"{file} exists and was left alone; name another file") from error
    except OSError as error:
        raise StoreError(f"cannot write {file}: {error.strerror}") from error


def _published(made: Saved, file: Path, counted: list[int]) -> Saved:
    try:
        with closing(sqlite3.connect(made.file)) as copy:
            copied = _counts(copy)
        if made.damage is not None or copied != counted:
            raise StoreError(
                f"the copy is damaged: {made.damage or 'rows are missing'}; look at the database"
            )
        publish(made.file, file)
    except BaseException:
        made.file.unlink(missing_ok=True)
        raise
    return made._replace(file=file)


def _counts(db: sqlite3.Connection) -> list[int]:
    tables = db.execute("SELECT name FROM sqlite_schema WHERE type='table' ORDER BY name").fetchall()
    return [db.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for (name,) in tables]
