"""The write-ahead log: what was committed stands there first and is moved into the file later.

Moving never waits for anybody. A program that reads the database holds the log: what came after its snapshot can
be moved, or not, but the log cannot be begun anew before it has finished. Then the log grows, and that is told;
a commit that waited for the reader would answer no push meanwhile.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

from asyncchatd.log import Event, get_logger, metrics

LARGE_LOG = 64 * 1024 * 1024
"""Bytes of write-ahead log above which its file is emptied; below, it is overwritten from its beginning."""

ROOM = 256 * 1024
"""Bytes that must find room on a disk that was full. The log of a database is overwritten where it stands, so
that small writes succeed now and then on a disk that has no room for the next push."""

PLENTY = 1024 * 1024 * 1024
"""Bytes free from which on nobody asks further."""

BUSY_TIMEOUT_MS = 5_000
"""How long a commit waits for another program that writes."""

HELD_TURNS = 3
"""So many checkpoints in a row must have found the large log in another program's hand before it is told:
our own readers are done with it sooner."""

log = get_logger()


class LogSize(NamedTuple):
    """How large the log's file is, and how much room the disk has beside it."""

    used: int
    free: int

    @property
    def large(self) -> bool:
        """Whether its room is worth having back."""
        return self.used > LARGE_LOG or self.used > self.free


class Disk:
    """Keeps so much of the disk that the file can take all that stands in the log: only then can the log be emptied,
    and its room be had back, once the disk is full."""

    def __init__(self, file: Path, reserve: Callable[[int, int], None]) -> None:
        """`reserve` makes the file longer, from an offset by a length, with room on the disk."""
        self._file = file
        self._reserve = reserve

    def check(self, db: sqlite3.Connection) -> None:
        """Raises `sqlite3.OperationalError` like SQLite itself on a full disk. Asked before a transaction that may
        be large is committed."""
        try:
            disk = os.statvfs(self._file.parent)
            size = self._file.stat().st_size
        except OSError:
            return  # it is not there any more, which is told elsewhere
        free = disk.f_bavail * disk.f_frsize
        if free >= PLENTY:
            return
        [[pages]] = db.execute("PRAGMA page_count").fetchall()
        [[page]] = db.execute("PRAGMA page_size").fetchall()
        growth = pages * page - size
        if free < growth + ROOM:
            raise _full()
        if growth > 0:
            try:
                self._reserve(size, growth)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise _full() from None


def _full() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database or disk is full: what is left is needed to empty the log")
    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_FULL, "SQLITE_FULL"
    return error


def measure(log: Path) -> LogSize:
    """The size of the log, and the room beside it. Raises `OSError`."""
    disk = os.statvfs(log.parent)
    return LogSize(log.stat().st_size if log.exists() else 0, disk.f_bavail * disk.f_frsize)


def move(db: sqlite3.Connection) -> bool:
    """Move what stands in the log into the file, as far as readers let it. Whether that was all of it."""
    with _moving(db):
        _, frames, moved = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return bool(frames == moved)


def empty(db: sqlite3.Connection) -> bool:
    """Move what stands in the log and give its room back, if that can be done at once. `db` is the connection
    that writes: by another one this would wait for commits, and commits for it."""
    db.execute("PRAGMA busy_timeout = 0")
    try:
        with _moving(db):
            [busy, *_] = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    return not busy


def _moving(db: sqlite3.Connection) -> AbstractContextManager[None]:
    """Our own writing to the file is told from that of others."""
    place = getattr(db, "place", None)
    return nullcontext() if place is None else place.moving()


class LogAccount:
    """Tells of a large log that another program holds, once when it begins and once when it is over."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._turns = 0

    def see(self, size: int, *, held: bool) -> None:
        """Take in the size of the log in bytes, and whether it is `held`: large, and not to be emptied."""
        metrics.STORE_LOG_BYTES.set(size)
        if held:
            self._turns += 1
            if self._turns == HELD_TURNS:
                log.warning(Event.STORE_LOG_HELD, store=self._store, bytes=size)
        else:
            if self._turns >= HELD_TURNS:
                log.info(Event.STORE_LOG_RELEASED, store=self._store, bytes=size)
            self._turns = 0
