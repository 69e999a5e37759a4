"""One connection that writes, fed by a queue, with group commit.

Whatever queued while the last commit ran goes into the next transaction; nobody waits for a
window. A group is one visit of the connection's thread (each visit costs about 75 µs) and one
fsync. When a transaction of a group fails, the group is rolled back and its members run again one
by one, so that only the faulty one is told.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import aiosqlite

from asyncchatd.stores.base import StoreError, StoreFull

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

GROUP = 512
"""Transactions in one group at the most, so that one commit stays short."""


class Connection(aiosqlite.Connection):
    """An aiosqlite connection that can run a whole function in one visit of its thread.

    aiosqlite offers single statements only, each a visit of its own. `_execute` is the one private
    name used; the dependency is pinned to the minor version for it.
    """

    async def visit(self, work: Work[T]) -> T:
        """Run `work` on the connection's thread. Cancelling the wait does not stop it."""
        return cast(T, await self._execute(work, self._conn))  # type: ignore[no-untyped-call]


@dataclass(slots=True)
class _Waiting:
    work: Work[Any]
    done: asyncio.Future[Any]
    durable: bool


class Writer:
    """Runs pieces of work in transactions, in the order in which they were handed in."""

    def __init__(self, connection: Connection, *, queue: int) -> None:
        self._connection = connection
        self._bound = queue
        self._waiting: deque[_Waiting] = deque()
        self._filled = asyncio.Event()
        self._closing = False
        self._task = asyncio.create_task(self._run(), name="store writer")

    @property
    def depth(self) -> int:
        """Pieces of work waiting for the disk."""
        return len(self._waiting)

    def submit(self, work: Work[T], *, durable: bool = True, bounded: bool = False) -> asyncio.Future[T]:
        """Queue `work`; the future has its result once the transaction is committed.

        `durable=False` spares the fsync when nothing in the group needs it. `bounded` work raises
        `StoreFull` when the queue is full; the daemon's own work is always taken.
        """
        if self._closing:
            raise StoreError("the store is closed")
        if bounded and len(self._waiting) >= self._bound:
            raise StoreFull(f"{self._bound} pushes are waiting for the disk")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(work, done, durable))
        self._filled.set()
        return done

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
            try:
                results = await self._connection.visit(lambda connection, g=group: _commit(connection, g))  # type: ignore[misc]
            except Exception as error:  # the thread itself is gone: everybody must hear of it
                results = [error] * len(group)
            for waiting, result in zip(group, results, strict=True):
                if waiting.done.done():
                    continue
                if isinstance(result, Exception):
                    waiting.done.set_exception(result)
                else:
                    waiting.done.set_result(result)


def _commit(connection: sqlite3.Connection, group: list[_Waiting]) -> list[Any]:
    durable = any(waiting.durable for waiting in group)
    try:
        return _transaction(connection, group, durable)
    except Exception as error:
        if len(group) == 1:
            return [_told(error)]
    return [_commit(connection, [waiting])[0] for waiting in group]


def _transaction(connection: sqlite3.Connection, group: list[_Waiting], durable: bool) -> list[Any]:
    connection.execute("PRAGMA synchronous = FULL" if durable else "PRAGMA synchronous = NORMAL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        results = [waiting.work(connection) for waiting in group]
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return results


def _told(error: Exception) -> Exception:
    """SQLite's own errors become the contract's."""
    if isinstance(error, sqlite3.Error):
        told = StoreError(f"the store could not be written: {error}")
        told.__cause__ = error
        return told
    return error
