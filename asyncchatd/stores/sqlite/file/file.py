"""The file of an SQLite store: its name, its lock, and whether what stands in it may be used."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from asyncchatd.model import (
    Ms,
)
from asyncchatd.stores.errors import StoreError
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.log_file import ROOM, empty, move
from asyncchatd.stores.sqlite.place import Place

MAGIC = b"SQLite format 3\0"
"""How every SQLite file begins."""

OURS = b"asyncchatd\n"
"""In the lock beside a file that was opened as a store, and so is one even when its beginning is damaged."""

QUICK_CHECK_SECONDS = 1.0
"""How long opening may take for looking at the file for damage; a large file is not read through, unless
damage was found in it while it was in use."""

QUICK_CHECK_STEPS = 100_000
"""Instructions of SQLite between two looks at the clock."""


def path_of(url: str, directory: Path) -> Path:
    """The file that a URL names. Raises `StoreError`."""
    try:
        path = unquote(urlsplit(url).path)
    except ValueError:  # [ without ]
        path = ""
    if not path.startswith("/") or len(path) < 2:
        raise StoreError(
            f"store.url {url!r}: expected sqlite:///relative/path.db or sqlite:////absolute/path.db"
        )
    return directory / path[1:]


def looks_like_sqlite(path: Path) -> bool:
    """Whether it may be opened as a database; an empty file may."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) in (b"", MAGIC)


def find_room(probe: Path) -> None:
    """Look whether the disk takes something, by a file that is removed again. Raises `OSError` when it does not."""
    try:
        with open(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(bytes(ROOM))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


def is_absent(path: Path) -> bool:
    """Whether a database is made there by opening it; an empty file is none."""
    try:
        return path.stat().st_size == 0
    except OSError:
        return True


def make_file(path: Path) -> None:
    """Make a file for the daemon's user alone, if there is none: it holds what authenticates customers."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise cannot_open(path, error) from error


def cannot_open(path: Path, error: OSError) -> StoreError:
    """The error in words of a file that cannot be opened or made."""
    return StoreError(f"cannot open {path}: {error.strerror}; does the daemon's user own the directory?")


def lock(path: Path) -> tuple[int, bool]:
    """Lock a store's file: the lock, and whether it stands beside a store: two daemons on one file would ping every
    session twice. Raises `StoreError`, also for a second name of a store's file."""
    _refuse_second_name(path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise cannot_open(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreError(f"{path} is in use by another asyncchatd; stop it or name another file") from None
    return descriptor, os.fstat(descriptor).st_size > 0


def _refuse_second_name(path: Path) -> None:
    """A hard link of a database brings no write-ahead log along: that lies beside the name under which the database
    was in use, and what stands in it alone was acknowledged. That name is known by the lock beside it. A hard
    link that a backup made elsewhere does not keep the store from its own name."""
    with suppress(OSError):
        links = os.stat(path).st_nlink
        if links > 1 and not _was_used_as(path):
            raise StoreError(
                f"{path} is one of {links} names (hard links) of the same file, and not the one it was used under:"
                " its write-ahead log lies beside that one. Name that one, or make a copy with asyncchatd store backup"
            )


def _was_used_as(path: Path) -> bool:
    try:
        return os.stat(f"{path}.lock").st_size > 0
    except OSError:
        return False


def check(db: Db, thorough: bool) -> None:
    """Look whether a file is damaged, all of it when `thorough`. Raises `sqlite3.DatabaseError`."""
    verdict = _whole_check(db) if thorough else _quick_check(db)
    if verdict != "ok":
        raise sqlite3.DatabaseError(f"damaged: {verdict}")


def _whole_check(db: Db) -> str:
    return str(db.execute("PRAGMA integrity_check(1)").fetchone()[0])


def _quick_check(db: Db) -> str:
    deadline = time.monotonic() + QUICK_CHECK_SECONDS
    db.set_progress_handler(lambda: time.monotonic() > deadline, QUICK_CHECK_STEPS)
    try:
        return str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        return "ok"  # as far as it was read
    finally:
        db.set_progress_handler(None, 0)


def begin_work(db: Db, place: Place) -> tuple[bool, Ms | None]:
    """Write into the file itself that it is in use, so that a copy without its log is known for one. Whether that
    stood there already, and of when the file is a backup."""
    [[at_work, copied_at]] = db.execute("SELECT at_work, copied_at FROM file").fetchall()
    with suppress(sqlite3.OperationalError):  # the disk is full: next time
        db.execute("UPDATE file SET at_work=1, copied_at=NULL")
    place.settle(db)
    with suppress(sqlite3.OperationalError):
        stamped = place.stamp(db)
        if empty(db):
            place.checkpointed = stamped
    return bool(at_work), copied_at


def end_work(db: Db) -> bool:
    """Write into the file that it is in use no more. Whether it has all of it; else the log beside it has the rest."""
    db.execute("UPDATE file SET at_work=0")
    return move(db)


def leave(db: Db) -> bool:
    """`end_work` of a connection that another one is to follow."""
    db.left = end_work(db)
    return db.left
