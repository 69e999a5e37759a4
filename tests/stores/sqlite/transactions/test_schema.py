"""The schema of an SQLite store, and its migrations from older files."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from conftest import Events

from asyncchatd.log.events import Event
from asyncchatd.model.data import Cause, ChatServer, Loss, ServerState, SessionState
from asyncchatd.stores import StoreError
from asyncchatd.stores.answers import Noted
from asyncchatd.stores.sqlite import SqliteStore
from asyncchatd.stores.sqlite.file import opening
from asyncchatd.stores.sqlite.transactions import schema

from ...desk import NOON, Desk
from ..rig import URL, kept, opened, rows

pytestmark = pytest.mark.usefixtures("migrating")


async def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "chats.db").touch()
    async with opened(tmp_path):
        pass
    [[application, version]] = [
        (rows(tmp_path / "chats.db", "PRAGMA application_id")[0][0], version)
        for (version,) in rows(tmp_path / "chats.db", "PRAGMA user_version")
    ]
    assert (application, version) == (schema.APPLICATION_ID, len(schema.MIGRATIONS))


async def test_a_file_of_an_older_version_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as store:
        await Desk(store).live("chat-1")
    further = "CREATE TABLE further (one); INSERT INTO further SELECT chat_id FROM session"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, further))
    async with opened(tmp_path) as store:
        assert (await Desk(store).session()).state is SessionState.LIVE
    assert rows(tmp_path / "chats.db", "SELECT one FROM further") == [("chat-1",)]
    assert rows(tmp_path / "chats.db", "PRAGMA user_version") == [(len(schema.MIGRATIONS),)]


async def test_a_migration_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as store:
        await Desk(store).live("chat-1")
    known = len(schema.MIGRATIONS)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE half (one); NONSENSE"))
        with pytest.raises(StoreError, match="cannot open"):
            await SqliteStore(URL, directory=tmp_path).open()
    assert rows(tmp_path / "chats.db", "PRAGMA user_version") == [(known,)]
    assert rows(tmp_path / "chats.db", "SELECT name FROM sqlite_schema WHERE name='half'") == []
    async with opened(tmp_path) as store:
        assert (await Desk(store).session()).chat_id == "chat-1"


async def test_a_file_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "chats.db"
    with closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE recipes (name)")
    before = file.read_bytes()
    with pytest.raises(StoreError, match="file of another program"):
        await SqliteStore(URL, directory=tmp_path).open()
    assert file.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["chats.db", "chats.db.lock"]


async def test_what_an_older_file_was_is_kept_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = len(schema.MIGRATIONS)
    async with opened(tmp_path) as store:
        await Desk(store).live("chat-1")
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE further (one)"))
    async with opened(tmp_path):
        pass
    [copy] = kept(tmp_path)
    assert copy.name.startswith(f"chats.db.schema-{known}-")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert rows(copy, "PRAGMA user_version") == [(known,)]
    assert rows(copy, "SELECT chat_id FROM session") == [("chat-1",)]
    [[copied_at]] = rows(copy, "SELECT copied_at FROM file")
    assert copied_at, "who opens it is told that keys may have been replaced since"
    async with opened(tmp_path):
        pass
    assert kept(tmp_path) == [copy], "one for each upgrade"


async def test_an_older_file_is_brought_up_to_date_where_there_is_no_room_to_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    async with opened(tmp_path) as store:
        await Desk(store).live("chat-1")
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE further (one)"))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(opening, "save", full)
    async with opened(tmp_path) as store:
        assert (await Desk(store).session()).chat_id == "chat-1"
    told = events.one(Event.STORE_UPGRADED)
    assert (told.get("copy"), told["cause"]) == (None, "[Errno 28] No space left on device")


@pytest.mark.slow
async def test_chat_servers_that_an_older_version_knew_are_known_but_for_their_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been computed, by another clock than the page's: compared with that it would be a restart."""
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:3])
        with closing(sqlite3.connect(tmp_path / "chats.db")) as db:
            schema.migrate(db, "chats.db")
    with closing(sqlite3.connect(tmp_path / "chats.db")) as db, db:
        db.execute("INSERT INTO server VALUES ('chat-1', '117', '1', 1.5, 'down', 1, 2, 'refused')")
    async with opened(tmp_path) as store:
        [server] = await store.servers()
        assert server == ChatServer("chat-1", "117", "1", None, ServerState.DOWN, 1, 2, "refused")
        assert await store.note(server, epoch=0, losses=(), now=NOON) == Noted(1, ())


async def test_a_note_that_cannot_be_written_whole_is_not_written(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store._writing(
            lambda db: db.execute(
                "CREATE TRIGGER full BEFORE INSERT ON restoration WHEN NEW.alias='118'"
                " BEGIN SELECT RAISE(ABORT, 'disk full'); END"
            )
        )
        losses = (Loss("117", Cause.RESTARTED), Loss("118", Cause.RESTARTED))
        with pytest.raises(StoreError):
            await store.note(ChatServer("chat-1"), epoch=0, losses=losses, now=NOON)
        assert (await store.servers(), await store.restorations()) == ([], [])
        assert await store.note(ChatServer("chat-1"), epoch=0, losses=losses[:1], now=NOON)


async def test_restorations_that_an_older_version_told_of_are_not_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:2])
        with closing(sqlite3.connect(tmp_path / "chats.db")) as db:
            schema.migrate(db, "chats.db")
            db.execute(
                "INSERT INTO session (chat_id, state, reason, due_at, registered_at, active_at, user_id, secure_key,"
                " alias) VALUES ('chat-1', 1, 3, 0, 0, 0, 'user', 'key', '117')"
            )
            for sessions, finished_at in ((0, NOON), (1, None)):
                db.execute(
                    "INSERT INTO restoration (alias, cause, started_at, marking, marked_at, sessions, finished_at)"
                    " VALUES ('117', 'unreachable', ?, 0, ?, ?, ?)",
                    (NOON, NOON, sessions, finished_at),
                )
            db.execute("UPDATE session SET restoration=2")
            db.commit()
    async with opened(tmp_path) as store:
        assert await store.newly_finished() == []
        await store.remove("chat-1", now=NOON)
        assert [each.id for each in await store.newly_finished()] == [2]


async def test_a_file_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "chats.db"
    async with opened(tmp_path):
        pass
    with closing(sqlite3.connect(file)) as db:
        db.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    before = file.read_bytes()
    with pytest.raises(StoreError, match="written by a newer asyncchatd"):
        await SqliteStore(URL, directory=tmp_path).open()
    assert file.read_bytes() == before
