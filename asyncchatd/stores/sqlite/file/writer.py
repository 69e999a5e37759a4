"""One connection that writes, fed by a queue, with group commit.

Whatever queued while the last commit ran goes into the next transaction; nobody waits for a
window. A group is one visit of the connection's thread (each visit costs about 75 µs) and one
fsync. When a transaction of a group fails, the group is rolled back and its members run again one
by one, so that only the faulty one is told; unless it is the disk that fails, which fails for all.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import aiosqlite

from asyncchatd.log import metrics
from asyncchatd.stores.errors import StoreDamaged, StoreError, StoreFull, StoreMoved, StoreUnwritable
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.log_file import empty, move
from asyncchatd.stores.sqlite.place import Fate
from asyncchatd.stores.trouble import StoreTrouble

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741
Work = Callable[[Db], T]
Together = Callable[[Db, Sequence[I]], list[T]]

GROUP = 512
"""Transactions in one group at the most, so that one commit stays short."""


ROOM_SECONDS = 0.25
"""How often emptying the log is tried on a disk that was full."""


class Connection(aiosqlite.Connection):
    """An aiosqlite connection that can run a whole function in one visit of its thread.

    aiosqlite offers single statements only, each a visit of its own. `_execute` is the one private
    name used; the dependency is pinned to the minor version for it.
    """

    async def visit(self, work: Work[T]) -> T:
        """Run `work` on the connection's thread. Cancelling the wait does not stop it."""
        return cast(T, await self._execute(work, self._conn))  # type: ignore[no-untyped-call]


@dataclass(slots=True, eq=False)
class _Waiting:
    work: Work[Any]
    done: asyncio.Future[Any]
    durable: bool
    large: bool
    precious: bool = False


@dataclass(slots=True, eq=False)
class _Portion:
    """Like pieces of work that one function does together, in the place of the first of them."""

    together: Together[Any, Any]
    items: list[Any]
    done: list[asyncio.Future[Any]]
    durable = large = True
    precious = False


class Writer:
    """Runs pieces of work in transactions, in the order in which they were handed in."""

    def __init__(self, connection: Connection, *, queue: int, trouble: StoreTrouble | None = None) -> None:
        self._connection = connection
        self._trouble = trouble or StoreTrouble("store")
        self._bound = queue
        self._room = _Room()
        self._waiting: deque[_Waiting | _Portion] = deque()
        self._portion: _Portion | None = None
        self._gathered = 0
        self._filled = asyncio.Event()
        self._closing = False
        self._owing_since: float | None = None
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run(), name="store writer")

    @property
    def depth(self) -> int:
        """Pieces of work waiting for the disk."""
        return len(self._waiting) + self._gathered

    def stuck_for(self) -> float:
        """Seconds since the last commit while work is waiting or under way; 0 when there is none."""
        return 0.0 if self._owing_since is None else self._loop.time() - self._owing_since

    def submit(
        self, work: Work[T], *, durable: bool = True, large: bool = False, precious: bool = False
    ) -> asyncio.Future[T]:
        """Queue `work`; the future has its result once the transaction is committed.

        `durable=False` spares the fsync when nothing in the group needs it. `large` work is refused before
        the last of the disk is taken. `precious` is what nobody says twice: it is written also while something
        else lies at the path, to what is open and to the copy that was saved of it.
        """
        done = self._future()
        self._portion = None  # items handed in later take effect later
        self._owe(_Waiting(work, done, durable, large, precious))
        return done

    def gather(self, together: Together[I, T], item: I) -> asyncio.Future[T]:
        """Queue one of many like items that `together` writes at once, giving a result for each.

        Raises `StoreFull` when as many items wait as the queue holds.
        """
        done = self._future()
        if self._gathered >= self._bound:
            raise StoreFull(f"{self._bound} pushes are waiting for the disk")
        self._gathered += 1
        portion = self._portion
        if portion is None or portion.together is not together:
            portion = self._portion = _Portion(together, [], [])
            self._owe(portion)
        portion.items.append(item)
        portion.done.append(done)
        return done

    def _owe(self, member: _Waiting | _Portion) -> None:
        self._waiting.append(member)
        if self._owing_since is None:
            self._owing_since = self._loop.time()
        self._filled.set()

    def _future(self) -> asyncio.Future[Any]:
        if self._closing:
            raise StoreError("the store is closed")
        return self._loop.create_future()

    def use(self, connection: Connection) -> None:
        """Go on with another connection; nothing may be under way."""
        self._connection = connection

    async def close(self) -> None:
        """Take nothing more, finish what is queued."""
        self._closing = True
        self._filled.set()
        await self._task

    async def _run(self) -> None:
        while True:
            if not self._waiting:
                if self._closing:
                    return
                self._filled.clear()
                await self._filled.wait()
                continue
            group = [self._waiting.popleft() for _ in range(min(len(self._waiting), GROUP))]
            if not self._waiting:
                self._portion = None
            self._gathered -= sum(len(member.items) for member in group if isinstance(member, _Portion))
            with metrics.COMMIT_SECONDS.time():
                results = await self._written(group)
            self._owing_since = self._loop.time() if self._waiting else None
            for member, result in zip(group, results, strict=True):
                _tell(member, result)

    async def _written(self, group: Sequence[_Waiting | _Portion]) -> list[Any]:
        if self._trouble.damage is not None:  # what were written now would be set aside with the rest
            return [self._trouble.damage] * len(group)
        if self._trouble.moved is not None:
            return await self._meanwhile(group, self._trouble.moved)
        try:
            results = await self._connection.visit(partial(self._room.commit, group=group))
        except Exception as error:  # the connection is closed: everybody must hear of it
            return [_unusable(error)] * len(group)
        for result in results:
            if isinstance(result, StoreError):
                self._trouble.heard(result)
        return results

    async def _meanwhile(self, group: Sequence[_Waiting | _Portion], moved: StoreMoved) -> list[Any]:
        """Something else lies at the path: what is precious is written all the same, the rest is refused."""
        precious = [member for member in group if member.precious]
        if not precious:
            return [moved] * len(group)
        try:
            written = await self._connection.visit(partial(_rescue, group=precious, moved=moved))
        except Exception:  # the connection is closed, while the file is being opened anew
            return [moved] * len(group)
        rescued = iter(written)
        return [next(rescued) if member.precious else moved for member in group]


def _unusable(error: Exception) -> StoreError:
    told = StoreUnwritable(f"the store's connection cannot be used: {error}")
    told.__cause__ = error
    return told


def _tell(member: _Waiting | _Portion, result: Any) -> None:
    if isinstance(member, _Waiting):
        _resolve(member.done, result)
        return
    results = [result] * len(member.done) if isinstance(result, Exception) else result
    for done, one in zip(member.done, results, strict=True):
        _resolve(done, one)


def _resolve(done: asyncio.Future[Any], result: Any) -> None:
    if done.done():
        return  # whoever waited was cancelled
    if isinstance(result, Exception):
        done.set_exception(result)
    else:
        done.set_result(result)


class _Room:
    """Commits, and gives way to the log once the disk was full.

    On a full disk the log cannot be moved into the file, which would have to grow for it, and pushes would take
    whatever room there is again before the log is emptied: the disk would stay full for ever. So what may be
    large is refused until the log was emptied. What pings taught is small, and tried all the same.
    """

    def __init__(self) -> None:
        self._full: StoreUnwritable | None = None
        self._tried = 0.0

    def commit(self, connection: Db, group: Sequence[_Waiting | _Portion]) -> list[Any]:
        full = self._still_full(connection)
        if full is None:
            results = _commit(connection, group)
        else:
            results = [full if member.large else _commit(connection, [member])[0] for member in group]
        for result in results:
            if isinstance(result, StoreUnwritable) and _code(result.__cause__) in _FULL:
                self._full = result if connection.disk is not None else None  # in memory there is no log
        return results

    def _still_full(self, connection: Db) -> StoreUnwritable | None:
        if self._full is not None and time.monotonic() - self._tried >= ROOM_SECONDS:
            self._tried = time.monotonic()
            with suppress(sqlite3.Error):
                empty(connection)  # or a reader holds it: then nobody knows how much room there is
                self._full = None
        return self._full


def _rescue(connection: Db, group: Sequence[_Waiting | _Portion], moved: StoreMoved) -> list[Any]:
    """Write to what is open, which may come back to its path, and to the copy that was saved of it, which may be
    put there. A file that was overwritten has foreign pages: then the copy alone counts."""
    assert connection.place is not None
    results: list[Any] = [moved] * len(group)
    if connection.left:
        return results
    fate = connection.place.fate()
    if fate is None or fate.fate is not Fate.OVERWRITTEN:
        results = _commit(connection, group, looks=False)
        if connection.copy is not None:
            with suppress(sqlite3.Error):
                move(connection)  # the log has no name any more
    elif connection.copy is None:
        return results
    if fate is None or connection.copy is None:
        return results
    return _commit_to_copy(connection, connection.copy, group, moved)


def _commit_to_copy(
    connection: Db, file: Path, group: Sequence[_Waiting | _Portion], moved: StoreMoved
) -> list[Any]:
    try:
        with closing(
            sqlite3.connect(f"{file.as_uri()}?mode=rw", isolation_level=None, uri=True, factory=Db)
        ) as copy:
            copy.sealing, copy.kinds, copy.shown = connection.sealing, connection.kinds, connection.shown
            results = _commit(copy, group)
    except sqlite3.Error:
        return [moved] * len(group)
    return [moved if isinstance(result, StoreError) else result for result in results]


def _commit(connection: Db, group: Sequence[_Waiting | _Portion], *, looks: bool = True) -> list[Any]:
    """`looks` whether what is open lies at its path; where that is known not to be so, nobody need look."""
    durable = any(member.durable for member in group)
    try:
        return _transaction(connection, group, durable, looks)
    except Exception as error:
        told = _told(error)
        if isinstance(error, sqlite3.Error) and connection.place is not None:
            told = connection.place.fate() or told  # which explains it
        if isinstance(told, StoreUnwritable | StoreDamaged):
            return [told] * len(group)
        if len(group) == 1:
            return [_one_by_one(connection, group[0]) or told]
    return [_commit(connection, [member], looks=looks)[0] for member in group]


def _one_by_one(connection: Db, member: _Waiting | _Portion) -> list[Any] | None:
    """The items of a portion in transactions of their own; `None` when there are not several."""
    if isinstance(member, _Waiting) or len(member.items) == 1:
        return None
    ones = [_Portion(member.together, [item], []) for item in member.items]
    return [
        result[0] if isinstance(result, list) else result
        for result in (_commit(connection, [one])[0] for one in ones)
    ]


def _transaction(
    connection: Db, group: Sequence[_Waiting | _Portion], durable: bool, looks: bool
) -> list[Any]:
    connection.execute("PRAGMA synchronous = FULL" if durable else "PRAGMA synchronous = NORMAL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        if looks and connection.place is not None:
            connection.place.look_at_log()  # while nobody else can write; what follows makes it longer again
        results = [
            member.work(connection)
            if isinstance(member, _Waiting)
            else member.together(connection, member.items)
            for member in group
        ]
        if connection.disk is not None and any(member.large for member in group):
            connection.disk.check(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    if looks and connection.place is not None:
        connection.place.look()  # what was written elsewhere must not be answered for
    return results


def _told(error: Exception) -> Exception:
    return in_our_words(error, "written") if isinstance(error, sqlite3.Error) else error


def in_our_words(error: sqlite3.Error, what: str) -> StoreError:
    """SQLite's own errors become the contract's. `what` could not be done with the store: `read` or `written`."""
    code = _code(error)
    name = getattr(error, "sqlite_errorname", "no code")
    told: StoreError
    if code in _DAMAGE:
        told = StoreDamaged(
            f"the database is damaged: {error} ({name}); what can be saved of it is: docs/backup.md"
        )
    elif code in _DISK:
        told = StoreUnwritable(f"the store could not be {what}: {error} ({name})")
    else:
        told = StoreError(f"the store could not be {what}: {error}")
    told.__cause__ = error
    return told


def _code(error: BaseException | None) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # the upper bits say more of the same


_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_DISK = {
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_PROTOCOL),
}
"""What is not the fault of a statement, and goes away by itself or when somebody mends it."""
