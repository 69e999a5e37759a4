"""An SQLite store in a file."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from asyncchatd.stores.sqlite import SqliteStore

URL = "sqlite:///chats.db"


@asynccontextmanager
async def opened(directory: Path, *, queue: int = 10_000) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(URL, directory=directory, queue=queue)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def survivors(directory: Path, aside: Path) -> Path:
    """The files as a power cut would leave them: copied while the store is open."""
    aside.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(directory / f"chats.db{suffix}", aside / f"chats.db{suffix}")
    return aside


def rows(file: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(file)) as db:
        return db.execute(query).fetchall()


def kept(directory: Path) -> list[Path]:
    """The copies of what a file was before it was brought up to date."""
    return sorted(directory.glob("chats.db.schema-*"))
