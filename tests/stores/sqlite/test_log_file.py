"""The write-ahead log: moving it waits for nobody, and a full disk gives way to it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Events

from asyncchatd.log.events import Event
from asyncchatd.stores.errors import StoreUnwritable
from asyncchatd.stores.sqlite import SqliteStore, log_file
from asyncchatd.stores.sqlite.file import connections

from ..desk import NOON, push
from ..waiting import until

LARGE = 400_000

WAITS_FOR_A_READER = 2.0
"""A commit that waits for another program's reading takes longer than this: SQLite's time-out is 5 s."""


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore("sqlite:///chats.db", directory=directory)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Another program has a reading transaction open."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM journal").fetchall()
        yield


async def pushed(store: SqliteStore, count: int) -> float:
    """How long the slowest of so many pushes took."""
    slowest = 0.0
    for number in range(count):
        started = time.monotonic()
        await store.take_push(push(f"chat-{number}"), now=NOON)
        slowest = max(slowest, time.monotonic() - started)
    return slowest


async def until_taken(store: SqliteStore) -> None:
    async with asyncio.timeout(20):
        while True:
            with suppress(StoreUnwritable):
                await pushed(store, 1)
                return
            await asyncio.sleep(0.01)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CHECKPOINT_SECONDS", 0.02)
    monkeypatch.setattr(log_file, "LARGE_LOG", LARGE)


@pytest.mark.usefixtures("small")
async def test_pushes_do_not_wait_for_a_program_that_holds_a_large_log(
    tmp_path: Path, events: Events
) -> None:
    log = tmp_path / "chats.db-wal"
    async with opened(tmp_path) as store:
        await store.take_push(push(), now=NOON)
        with reading(tmp_path / "chats.db"):
            while log.stat().st_size <= LARGE:
                await pushed(store, 10)
            await until(lambda: bool(events.of(Event.STORE_LOG_HELD)))
            assert await pushed(store, 200) < WAITS_FOR_A_READER
        await until(lambda: log.stat().st_size < LARGE)
        await until(lambda: bool(events.of(Event.STORE_LOG_RELEASED)))
    held = events.one(Event.STORE_LOG_HELD)["bytes"]
    assert isinstance(held, int)
    assert held > LARGE
    events.one(Event.STORE_LOG_RELEASED)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
async def test_a_large_log_that_nobody_holds_is_emptied_under_load(tmp_path: Path, events: Events) -> None:
    log = tmp_path / "chats.db-wal"
    async with opened(tmp_path) as store:
        for _ in range(30):
            await asyncio.gather(*(store.take_push(push(f"chat-{n}"), now=NOON) for n in range(300)))
            assert log.stat().st_size < 10 * LARGE
    assert not events.of(Event.STORE_LOG_HELD)


@pytest.mark.slow
async def test_the_room_to_empty_the_log_is_never_taken_by_pushes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills with another program's files, and gets them back."""
    monkeypatch.setattr(connections, "CHECKPOINT_SECONDS", 3600.0)  # all of it stands in the log
    file = tmp_path / "chats.db"
    async with opened(tmp_path) as store:
        left = 600_000
        monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_bavail=left, f_frsize=1))
        with pytest.raises(StoreUnwritable, match="what is left is needed"):
            await asyncio.gather(*(store.take_push(push(f"chat-{n}"), now=NOON) for n in range(9_000)))
        await store._connections[0].visit(log_file.empty)
        grown = file.stat().st_size
        assert grown < left
        left = 0
        with pytest.raises(StoreUnwritable):
            await pushed(store, 1)
        left = 1_000_000
        await until_taken(store)
