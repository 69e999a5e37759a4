"""The connections to the file of an SQLite store, and what goes over them.

One connection writes (`writer.py`), another reads, a third moves the write-ahead log into the file on a timer, away
from the hot path.
"""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import TypeVar

from asyncchatd.stores.errors import StoreDamaged, StoreError, StoreUnwritable
from asyncchatd.stores.sealing import Sealing
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.file.writer import Connection, Work, Writer, in_our_words
from asyncchatd.stores.sqlite.log_file import BUSY_TIMEOUT_MS, LogAccount, empty, measure, move
from asyncchatd.stores.sqlite.place import Fate, Moved, Place
from asyncchatd.stores.trouble import StoreTrouble

T = TypeVar("T")

CHECKPOINT_SECONDS = 1.0
"""How often the write-ahead log is moved into the file. SQLite would do it inside a commit."""


class FileConnections:
    """The connections to one file, and the trouble that shows on them. What opens and closes them is `OpenFile`."""

    def __init__(self, path: Path, sealing: Sealing, *, queue: int) -> None:
        """`sealing` seals the secure keys that are written. `queue` pieces of work may wait for the disk."""
        self.path = path
        self._file = path
        """What it leads to; beside that lie log, lock and copies."""
        self._place: Place | None = None
        self._sealing = sealing
        self._trouble = StoreTrouble(str(path))
        self._queue = queue
        self._connections: list[Connection] = []
        """The one that writes was opened first."""
        self._writer: Writer | None = None
        self._reader: Connection | None = None
        self._checkpointing: asyncio.Task[None] | None = None
        self._reopening = False
        """What was open is closed, and nothing is open yet in its place."""

    @property
    def trouble(self) -> str | None:
        return str(self._trouble.damage) if self._trouble.damage is not None else self._trouble.cause

    @property
    def depth(self) -> int:
        """Pieces of work waiting for the disk."""
        return self._writer.depth if self._writer is not None else 0

    def stuck_for(self) -> float:
        return self._writer.stuck_for() if self._writer is not None else 0.0

    async def _connect(self, *pragmas: str) -> Connection:
        def connect() -> Db:
            db = sqlite3.connect(
                self._database(), isolation_level=None, uri=True, cached_statements=256, factory=Db
            )
            db.sealing, db.place = self._sealing, self._place
            return db

        connection = Connection(connect, iter_chunk_size=64)
        await connection
        self._connections.append(connection)
        await connection.visit(
            lambda db: [
                db.execute(pragma) for pragma in (f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}", *pragmas)
            ]
        )
        return connection

    async def _release(self) -> None:
        # An unclosed connection keeps its thread, and that keeps the interpreter from exiting.
        # The writer was opened first and is closed last, which empties the log into the file.
        while self._connections:
            await self._connections.pop().close()
        if self._place is not None:
            self._place.close()
            self._place = None

    def _database(self) -> str:
        return self._file.absolute().as_uri()

    async def _checkpoint(self, connection: Connection, writing: Connection) -> None:
        log_file = Path(f"{self._file}-wal")
        account = LogAccount(str(self.path))
        while True:
            await asyncio.sleep(CHECKPOINT_SECONDS)
            try:
                moved = await self._moved(connection, writing)
                size = measure(log_file)
                # Under steady load moving never catches the end of the log, and the log would grow.
                emptied = moved and size.large and await writing.visit(empty)
                account.see(0 if emptied else size.used, held=size.large and not emptied)
            except Moved as error:
                self._trouble.heard(error)
            except sqlite3.Error as error:
                told = in_our_words(error, "written")
                if isinstance(told, StoreDamaged):
                    self._trouble.heard(told)
                # Else it is busy, or the disk is full: the log only grows meanwhile.
            except OSError:
                pass  # it cannot be measured

    async def _moved(self, connection: Connection, writing: Connection) -> bool:
        """Move the log, unless that were into another file. Whether that was all of it."""
        place = self._place
        assert place is not None
        await writing.visit(lambda _: place.look(at=2))
        stamped = await writing.visit(place.stamp)
        moved = await connection.visit(move)
        if moved:
            place.checkpointed = stamped
        return moved

    def _writing(
        self, work: Work[T], *, durable: bool = True, large: bool = False, precious: bool = False
    ) -> asyncio.Future[T]:
        if self._writer is None:
            raise StoreError("the store is not open")
        return self._writer.submit(work, durable=durable, large=large, precious=precious)

    async def _reading(self, work: Work[T]) -> T:
        if self._writer is None:
            raise StoreError("the store is not open")
        if self._reader is None:
            raise StoreUnwritable("the store is just being opened anew")
        if isinstance(self._trouble.moved, Moved) and self._trouble.moved.fate is Fate.OVERWRITTEN:
            raise self._unreadable()  # what a reader finds there is not what was stored
        try:
            return await self._reader.visit(work)
        except ValueError as error:  # aiosqlite's, of a connection that was closed meanwhile
            if self._reopening:
                raise StoreUnwritable("the store is just being opened anew") from error
            raise
        except sqlite3.Error as error:
            told = await self._moved_away() or in_our_words(error, "read")
            self._trouble.heard(told)
            raise told from error

    async def _moved_away(self) -> StoreUnwritable | None:
        """What looks damaged to a reader may be another file, or lack its log: what the writer has of it in memory
        is sound."""
        place = self._place
        if place is None or self._reopening:
            return None
        if self._trouble.moved is None:
            moved = await self._connections[0].visit(lambda _: place.fate())
            if moved is None:
                return None
            self._trouble.heard(moved)
        return self._unreadable()

    def _unreadable(self) -> StoreUnwritable:
        return StoreUnwritable(self._trouble.cause or str(self._trouble.moved))
