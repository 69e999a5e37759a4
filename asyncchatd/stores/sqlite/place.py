"""Whether what is open is still what lies at its path.

SQLite goes on with the file that it opened, whatever happens to its name: a database that was deleted, renamed
over or replaced by a copy takes every commit, and all of it is gone with the process. So each commit is answered
only after a look at the path, which costs a few microseconds, and so is each second without any.

What is seen: another file, or none, at the path of the database, its log or the log's index. A database
overwritten or cut off in place has the same device and inode; only our own checkpoints write to it, so a size or
time of change that is not theirs makes us read the mark, a number that grows with each checkpoint: an older copy has a
smaller one, another file none. A log that was cut off is shorter than its index says. What is not seen: an
overwriting in the milliseconds in which a checkpoint or a commit runs, one that leaves size and time as they were, and
single pages changed by somebody who spares the mark.
"""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from threading import Lock

from asyncchatd.stores.errors import StoreError, StoreMoved

MARK = b"asyncchatd-mark-"
"""Stands before the number in the file, so that it is found without SQLite."""

_MARKS = re.compile(re.escape(MARK) + b"(.{8})", re.DOTALL)

LOG_MAGIC = b"\x37\x7f\x06"
"""What every write-ahead log begins with."""

LOCKED_BYTE = 1 << 62
"""Far from the bytes that SQLite locks."""


class Fate(Enum):
    """What became of the file that is open."""

    GONE = "was deleted or moved away"
    AWAY = "cannot be reached any more"
    REPLACED = "was replaced by another file"
    OVERWRITTEN = "was overwritten or cut off"
    LOG_GONE = "lost its write-ahead log: a file that ends in -wal or -shm was deleted or replaced"


class Moved(StoreMoved):
    """The database that is open is not what lies at its path."""

    def __init__(self, path: Path, fate: Fate, more: str = "") -> None:
        super().__init__(f"the database {path} {fate.value} while it is in use{more}")
        self.fate = fate


class Place:
    """Where an open database lies. Used on the threads of the connections that write to it.

    Its descriptor must outlive all connections: closing any descriptor of the file drops SQLite's own locks.
    """

    def __init__(self, path: Path, file: Path) -> None:
        """`path` as it is configured, `file` what it leads to. Locks the file itself, by whatever name others
        come to it. Raises `StoreError` when another daemon has it."""
        self._path = path
        self._name = os.fspath(path)
        self._file = file
        self._descriptor = os.open(file, os.O_RDWR)
        try:
            _lock(self._descriptor, path)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._identity = _identity(os.fstat(self._descriptor))
        self.logged = os.path.exists(f"{file}-wal")
        """Whether there was a log beside it before it was opened."""
        self._beside: list[tuple[str, tuple[int, int]]] = []
        self._index: int | None = None
        """A descriptor of the log's index, kept for the same reason as that of the file."""
        self._log: int | None = None
        self._log_size = 0
        """The log's size when it was last looked at."""
        self._cut_off = False
        """Whether the log was; then nothing that is done to its file puts it right."""
        self._guard = Lock()
        self._movers = 0
        self._written: tuple[int, int] | None = None
        """Size and time of change as our own last checkpoint left them."""
        self._number = self._changes = 0
        self._mark_at = self._page_size = 0
        """Which page of the file has the mark, in bytes; asked while the schema is known to be sound."""
        self.checkpointed = 0
        """The number that is in the file at least."""

    def close(self) -> None:
        os.close(self._descriptor)
        for beside in (self._index, self._log):
            if beside is not None:
                os.close(beside)

    def reserve(self, offset: int, length: int) -> None:
        """Make the file longer, with room on the disk; SQLite cuts off what it does not use. By this descriptor:
        closing another one would drop SQLite's locks. Raises `OSError`."""
        os.posix_fallocate(self._descriptor, offset, length)

    def settle(self, db: sqlite3.Connection) -> None:
        """Note which files are there now; they stay what they are. `db` writes; raises `sqlite3.Error`."""
        [[mark]] = db.execute("SELECT mark FROM file").fetchall()
        self._number = max(_numbers(mark), default=0)
        [[page]] = db.execute("SELECT rootpage FROM sqlite_schema WHERE name='file'").fetchall()
        [[self._page_size]] = db.execute("PRAGMA page_size").fetchall()
        self._mark_at = (page - 1) * self._page_size
        self._beside = [
            (name, _identity(os.stat(name)))
            for name in (f"{self._file}-wal", f"{self._file}-shm")
            if os.path.exists(name)
        ]
        if self._index is None:
            with suppress(OSError):
                self._index = os.open(f"{self._file}-shm", os.O_RDONLY)
                self._log = os.open(f"{self._file}-wal", os.O_RDONLY)

    def ours(self) -> list[Path]:
        """The log and the index, as far as what lies at their paths is what is open."""
        return [Path(name) for name, identity in self._beside if _identity_at(name) == identity]

    def foreign(self) -> list[Path]:
        """The files that somebody else put at the paths of log and index."""
        return [Path(name) for name, identity in self._beside if _identity_at(name) not in (identity, None)]

    def look(self, *, at: int = 1) -> None:
        """Raises `Moved` when what is open is not what lies there. `at` so many files beside the database: each
        commit spares the index, whose loss costs none."""
        try:
            found = os.stat(self._name)
        except OSError as error:
            raise self._missing(error) from None
        if _identity(found) != self._identity:
            raise Moved(self._path, Fate.REPLACED, self._whereabouts())
        written = self._written
        if written is not None and (found.st_size, found.st_mtime_ns) != written:
            self._compare(found)
        self._complain()
        for name, identity in self._beside[:at]:
            try:
                beside = os.stat(name)
            except OSError:
                raise Moved(self._path, Fate.LOG_GONE) from None
            if _identity(beside) != identity:
                raise Moved(self._path, Fate.LOG_GONE)
            if name.endswith("-wal"):
                self._measure(name, beside.st_size)

    def fate(self) -> Moved | None:
        """The error that `look` at all files raises, if any."""
        try:
            self.look(at=2)
        except Moved as moved:
            return moved
        return None

    @contextmanager
    def moving(self) -> Iterator[None]:
        """The time while the log is moved into the file by us."""
        with self._guard:
            self._movers += 1
            self._written = None
        try:
            yield
        finally:
            with self._guard:
                self._movers -= 1
                if not self._movers:
                    found = os.fstat(self._descriptor)
                    self._written = (found.st_size, found.st_mtime_ns)

    def stamp(self, db: sqlite3.Connection) -> int:
        """Count the mark up when something was written since; the number."""
        if db.total_changes != self._changes:
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("UPDATE file SET mark=?", (MARK + struct.pack(">q", self._number + 1),))
            self._number += 1
            self._changes = db.total_changes
        return self._number

    def _missing(self, error: OSError) -> Moved:
        deleted = os.fstat(self._descriptor).st_nlink == 0
        if isinstance(error, FileNotFoundError) and (deleted or self._file.parent.is_dir()):
            return Moved(self._path, Fate.GONE, self._whereabouts())
        return Moved(self._path, Fate.AWAY, f": {error.strerror}{self._whereabouts()}")

    def _whereabouts(self) -> str:
        """Where what is open lies now, as Linux tells it."""
        if os.fstat(self._descriptor).st_nlink == 0:
            return ""
        try:
            at = os.readlink(f"/proc/self/fd/{self._descriptor}")
        except OSError:
            return ""
        return "" if at == str(self._file) else f"; it lies at {at} now"

    def look_at_log(self) -> None:
        """Before a commit, which would make a log that was cut off as long as before, with a hole in it. Raises
        `Moved`."""
        self._complain()
        for name, _ in self._beside[:1]:
            with suppress(OSError):  # it is gone, which is seen after the commit
                self._measure(name, os.stat(name).st_size)

    def _measure(self, log: str, size: int) -> None:
        """The log only grows until somebody empties it: SQLite, whose index says so, or somebody who should not."""
        shrank = size < self._log_size or (self._log_size > 0 and not self._has_beginning())
        self._cut_off |= shrank and self._is_cut_off(log)
        self._log_size = size
        self._complain()

    def _complain(self) -> None:
        if self._cut_off:
            raise Moved(
                self._path, Fate.OVERWRITTEN, ": its write-ahead log is shorter than what stood in it"
            )

    def _is_cut_off(self, log: str) -> bool:
        """Asked only of a log that shrank. Another program may empty it, or write to it, between two looks."""
        before = self._logged()
        try:
            size = os.stat(log).st_size
        except OSError:
            return False
        whole = size >= before and self._has_beginning()
        return before == self._logged() and before > 0 and not whole

    def _has_beginning(self) -> bool:
        """A commit makes a log that was emptied as long as before, with nothing where it begins."""
        return self._log is None or os.pread(self._log, 3, 0) == LOG_MAGIC

    def _logged(self) -> int:
        """How long the log has to be for all that its index says stands in it."""
        if self._index is None:
            return 0
        header = os.pread(self._index, 20, 0)
        if len(header) < 20:
            return 0
        page, frames = struct.unpack("=HI", header[14:20])
        return 32 + frames * (24 + (65_536 if page == 1 else page)) if frames else 0

    def _compare(self, found: os.stat_result) -> None:
        """Somebody else wrote to the file: a checkpoint of another program, or something that is not what was
        there."""
        try:
            content = os.pread(self._descriptor, self._page_size, self._mark_at)
        except OSError:
            content = b""
        if max(_numbers(content), default=-1) < self.checkpointed:
            raise Moved(self._path, Fate.OVERWRITTEN)
        with self._guard:
            if not self._movers:
                self._written = (found.st_size, found.st_mtime_ns)


def _numbers(content: bytes) -> list[int]:
    """Of a page also older ones may still be found in its free space; the largest counts."""
    return [struct.unpack(">q", number)[0] for number in _MARKS.findall(content)]


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _identity_at(name: str) -> tuple[int, int] | None:
    try:
        return _identity(os.stat(name))
    except OSError:
        return None


def mark_number(mark: bytes) -> int:
    """The number in the mark of a database; 0 where none was made yet."""
    return max(_numbers(mark), default=0)


def is_held(file: Path) -> bool:
    """Whether a daemon has the file open as its store, by whatever name. Looks only: nobody who starts meanwhile
    is hindered. Not for a process that has the file open itself, whose locks closing it would drop."""
    return _holding(file) not in {None, fcntl.F_UNLCK}


def is_nobodys(file: Path) -> bool:
    """Whether surely no daemon of this host has the file open as its store. As `is_held`, and false where that cannot
    be told: on a file system without locks, or of a file that this user may not read."""
    return not file.exists() or _holding(file) == fcntl.F_UNLCK


def _holding(file: Path) -> int | None:
    """The kind of lock that somebody has on the file; `None` where it cannot be told."""
    command = getattr(fcntl, "F_OFD_GETLK", None)
    if command is None:
        return None
    asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, LOCKED_BYTE, 1, 0)
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return None
    try:
        kind: int = struct.unpack_from("h", fcntl.fcntl(descriptor, command, asked))[0]
        return kind
    except OSError:
        return None  # a file system without locks
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    """A lock of the open file, not of the process: SQLite's own come and go beside it, also on a network's file
    system, where `flock` would lock all bytes and SQLite out."""
    command = getattr(fcntl, "F_OFD_SETLK", None)
    if command is None:
        return  # the lock beside the file is all there is
    try:
        fcntl.fcntl(
            descriptor, command, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, LOCKED_BYTE, 1, 0)
        )
    except (BlockingIOError, PermissionError):
        raise StoreError(
            f"{path} is in use by another asyncchatd, which may know it by another name;"
            " stop it or name another file"
        ) from None
    except OSError:
        return  # a file system without locks
