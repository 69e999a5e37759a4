"""A database that is not the one of before: noticed at the start, and told until an operator accepts it."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from conftest import NOON, Events

from asyncchatd.log.events import Event
from asyncchatd.stores import Store, make_store
from asyncchatd.stores.sqlite import back_up

from ..desk import Desk

URL = "sqlite:///chats.db"


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Store]:
    store = make_store(URL, directory=directory)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def lived(directory: Path, *chats: str) -> None:
    """A daemon's life in which these chats were registered."""
    async with opened(directory) as store:
        assert store.replaced is None
        for chat in chats:
            await Desk(store).live(chat)


async def test_the_first_start_and_every_one_after_it_find_the_right_database(
    tmp_path: Path, events: Events
) -> None:
    for chat in ("chat-1", "chat-2", "chat-3"):
        await lived(tmp_path, chat)
    await lived(tmp_path)
    assert not events.of(Event.STORE_REPLACED)


async def test_an_empty_one_is_told_over_restarts_until_it_is_accepted(
    tmp_path: Path, events: Events
) -> None:
    await lived(tmp_path, "chat-1")
    for name in {"chats.db", "chats.db-wal", "chats.db-shm"} & {*os.listdir(tmp_path)}:
        os.unlink(tmp_path / name)
    for _ in range(3):
        async with opened(tmp_path) as store:
            assert store.replaced is not None
            assert "made anew, empty: a database was used there before" in store.replaced
            await Desk(store).live("chat-2")
    assert len(events.of(Event.STORE_REPLACED)) == 3
    async with opened(tmp_path) as store:
        assert await store.accept()
        assert store.replaced is None
        assert not await store.accept()
    assert len(events.of(Event.STORE_ACCEPTED)) == 1
    await lived(tmp_path)


async def test_an_older_copy_is_told(tmp_path: Path) -> None:
    await lived(tmp_path, "chat-1")
    shutil.copy(tmp_path / "chats.db", tmp_path / "older")
    await lived(tmp_path, "chat-2")
    shutil.copy(tmp_path / "older", tmp_path / "chats.db")
    for _ in range(2):
        async with opened(tmp_path) as store:
            assert str(store.replaced).endswith("is an older copy of the database of the last start")
            assert store.trouble is None, "it is ready all the same"
    async with opened(tmp_path) as store:
        await store.accept()
    await lived(tmp_path)


async def test_another_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    await lived(tmp_path, "chat-1")
    await lived(tmp_path / "elsewhere", "chat-2")
    shutil.copy(tmp_path / "elsewhere" / "chats.db", tmp_path / "chats.db")
    async with opened(tmp_path) as store:
        assert str(store.replaced).endswith("is another database than at the last start")


async def test_a_backup_is_told_with_its_time(tmp_path: Path) -> None:
    await lived(tmp_path, "chat-1")
    back_up(URL, tmp_path, tmp_path / "backup", NOON)
    shutil.copy(tmp_path / "backup", tmp_path / "chats.db")
    for _ in range(2):
        async with opened(tmp_path) as store:
            assert "is a backup of 2023-11-14T" in str(store.replaced)


@pytest.mark.parametrize("behind", [b"", b"{", b'{"epoch": 1}', b"[]", b"\xff"])
async def test_without_a_note_that_can_be_read_nothing_is_judged(tmp_path: Path, behind: bytes) -> None:
    """As beside a database that an older asyncchatd used last."""
    await lived(tmp_path, "chat-1")
    (tmp_path / "chats.db.lock").write_bytes(b"asyncchatd\n" + behind)
    await lived(tmp_path)


async def test_a_memory_has_none_of_before(tmp_path: Path) -> None:
    store = make_store("memory:", directory=tmp_path)
    await store.open()
    assert (store.replaced, await store.accept()) == (None, False)
    await store.close()
