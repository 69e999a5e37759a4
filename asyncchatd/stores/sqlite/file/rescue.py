"""Copies of a database, made through a connection that has it open: by SQLite's own interface, which copies what
the connection sees, its write-ahead log included.

What a copy of the file alone lacks is everything that still stands in the log. That is what `cp` makes of a store
that runs, and nothing in the copy would show it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.log_file import move
from asyncchatd.stores.sqlite.place import Place

PAGES = 1_024
"""How many pages are copied at once."""

STEPS = 100_000
"""Instructions of SQLite between two looks whether a copy is broken off."""


class Saved(NamedTuple):
    """A copy that was made of a store."""

    file: Path
    sessions: int
    damage: str | None
    """What SQLite found wrong with it."""


def save(
    db: sqlite3.Connection,
    file: Path,
    *,
    pause: float = 0.0,
    copied_at: int | None = None,
    broken_off: Callable[[], bool] = lambda: False,
) -> Saved:
    """Copy what `db` sees into a new file, for its owner alone, and check the copy. Nothing is left of a copy
    that fails. `pause`, in seconds, is made after every `PAGES`; `copied_at` marks it as a backup of that time. It
    fails once it is `broken_off`.

    Raises `OSError` or `sqlite3.Error`.
    """
    os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with closing(sqlite3.connect(file, isolation_level=None)) as copy:
            copy.set_progress_handler(broken_off, STEPS)

            def go_on(*_: object) -> None:
                if broken_off():
                    raise InterruptedError("broken off")
                if pause:
                    time.sleep(pause)

            db.backup(copy, pages=PAGES, progress=go_on)
            saved = _checked(copy, file, copied_at)
            go_on()
        sync(file)
    except BaseException:
        remove(file)
        raise
    return saved


def remove(file: Path) -> None:
    """Remove a database that nobody has open, if it is there, with what SQLite leaves beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{file}{suffix}").unlink(missing_ok=True)


def unfinished(file: Path) -> Path:
    """The name of what is to become `file` once it is whole. Whoever was killed in the middle left it there, and it is
    removed: without its journal it would be taken for a database. One at a time makes it, under the store's lock."""
    made = file.with_name(f"{file.name}.partial")
    remove(made)
    return made


def publish(made: Path, file: Path) -> None:
    """Give a copy its name; raises `FileExistsError` when there is something of that name."""
    os.link(made, file)
    made.unlink()
    sync(file.parent)


def put_back(db: Db, place: Place, file: Path) -> Saved:
    """Write a database whose file is gone to its path again, from what is open."""
    with suppress(sqlite3.Error):
        move(db)  # whoever moved it away has all of it
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    saved = save(db, unused(file, "rescued"))
    if saved.damage is None:
        for each in place.ours():
            each.unlink()  # they belong to the file that is gone
        publish(saved.file, file)
        db.left = True
        saved = saved._replace(file=file)
    return saved


def save_aside(db: Db, place: Place, file: Path, *, overwritten: bool) -> Saved:
    """Save what is open beside what somebody put in its place. The log that is there belongs to what is open:
    it must not be taken for the other file's."""
    if not overwritten:
        with suppress(sqlite3.Error):
            move(db)
    aside = unused(file, "rescued")
    log = Path(f"{aside}.log")
    for each in place.ours():
        if each.name.endswith("-wal"):
            each.rename(log)
        else:
            each.unlink()
    saved = save(db, aside)
    if not overwritten and saved.damage is None:
        log.unlink(missing_ok=True)
    db.copy = aside
    return saved


def replace_damaged(db: sqlite3.Connection, file: Path) -> tuple[Saved, Path]:
    """Put a copy of what is open in the place of a damaged file: what the connection has in memory and in the log
    is sound. The copy, and where the damaged file lies now. Raises `OSError` or `sqlite3.Error`, and nothing is
    changed then."""
    saved = save(db, unused(file, "partial"))
    aside = set_aside(file)
    saved.file.replace(file)
    sync(file.parent)
    return saved._replace(file=file), aside


def set_aside(file: Path) -> Path:
    """Give a damaged file a name of its own, with its log. Something else is to be renamed over it: it stays at its
    path until then, so that nobody finds none there."""
    aside = unused(file, "damaged")
    with suppress(FileNotFoundError):
        Path(f"{file}-wal").rename(f"{aside}-wal")
    Path(f"{file}-shm").unlink(missing_ok=True)
    try:
        os.link(file, aside)
    except OSError:  # a file system without links
        file.rename(aside)
    return aside


def detach(log: Path) -> None:
    """Keep a log that was saved aside, and leave the connection that has it open nothing to move: closing it would
    move the log into what somebody put at the path of the database. Raises nothing when there is none."""
    if log.exists():
        kept = Path(f"{log}.kept")
        shutil.copyfile(log, kept)
        kept.chmod(0o600)
        os.truncate(log, 0)
        kept.replace(log)


def unused(file: Path, what: str) -> Path:
    """A name for something beside `file` that nothing has."""
    stamp = time.strftime("%Y%m%dT%H%M%S")
    names = (f"{file.name}.{what}-{stamp}{more}" for more in ("", *(f"-{n}" for n in range(1, 1000))))
    return next(name for name in map(file.with_name, names) if not name.exists())


def _checked(copy: sqlite3.Connection, file: Path, copied_at: int | None) -> Saved:
    # One file, without a log that could be forgotten.
    copy.execute("PRAGMA journal_mode = DELETE").fetchall()
    sessions, damage = 0, None
    try:
        with suppress(sqlite3.OperationalError):  # a file of before it had this table
            copy.execute("UPDATE file SET at_work=0, copied_at=?", (copied_at,))
        [[verdict]] = copy.execute("PRAGMA integrity_check(1)").fetchall()
        damage = None if verdict == "ok" else str(verdict)
        [[sessions]] = copy.execute("SELECT count(*) FROM session").fetchall()
    except sqlite3.DatabaseError as error:
        damage = damage or str(error)
    return Saved(file, sessions, damage)


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
