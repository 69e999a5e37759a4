"""`asyncchatd store`: a backup of a running store, put back as docs/backup.md says, and no old key used afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import configuration

from asyncchatd.cli.commands import main
from asyncchatd.model.data import Registration, SessionState, Tokens
from asyncchatd.stores import Store, make_store
from asyncchatd.stores.sqlite.transactions import schema

NOON = 1_700_000_000_000


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Store]:
    store = make_store("sqlite:///chats.db", directory=directory)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def at(tmp_path: Path) -> Path:
    (tmp_path / "asyncchatd.toml").write_text(configuration())
    return tmp_path


async def asked(at: Path, *words: str) -> Result:
    """The command, beside the running store."""
    command = [*words, "--config", str(at / "asyncchatd.toml")]
    return await asyncio.to_thread(CliRunner().invoke, main, ["store", *command])


async def register(store: Store, *numbers: int, now: int = NOON, key: str = "key") -> None:
    registrations = [
        Registration(Tokens(f"chat-{n}", "user", f"{key}-{n}", "117"), "support", None, None) for n in numbers
    ]
    await store.register(registrations, now=now, spread_ms=0)


async def live(store: Store) -> list[str | None]:
    return [each.chat_id for each in await store.sessions(state=SessionState.LIVE, limit=10_000)]


@pytest.mark.slow
async def test_a_backup_of_a_running_store_is_whole_and_can_be_put_back(at: Path) -> None:
    backup = at / "backup.db"
    async with opened(at) as store:
        await register(store, *range(506))
        made = await asked(at, "backup", str(backup), "--json")
        assert made.exit_code == 0, made.output
        assert json.loads(made.output)["sessions"] == 506
        assert os.stat(backup).st_mode & 0o777 == 0o600
        await register(store, 1000)
        again = await asked(at, "backup", str(backup))
        assert (again.exit_code, "exists and was left alone" in again.output) == (1, True)
    assert [name for name in os.listdir(at) if "partial" in name] == []
    with closing(sqlite3.connect(backup)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    # As docs/backup.md says:
    os.rename(at / "chats.db", at / "chats.db.before")
    shutil.copy(backup, at / "chats.db")
    before = json.loads(made.output)["as_of"]
    dry = await asked(at, "distrust", "--before", before, "--dry-run", "--json")
    assert json.loads(dry.stdout)["sessions"] == 506
    assert "store_from_backup" not in dry.stderr, "it advises what is being done"
    with closing(sqlite3.connect(at / "chats.db")) as db:
        [[copied_at]] = db.execute("SELECT copied_at FROM file").fetchall()
    assert copied_at is not None, "only counting them does not make it less of a backup"
    done = await asked(at, "distrust", "--before", "now", "--json")
    assert "store_from_backup" not in done.stderr
    assert json.loads(done.stdout)["sessions"] == 506
    async with opened(at) as store:
        assert await live(store) == []
        assert await store.claim(now=NOON * 2, limit=1000, lease_ms=1000) == []
        await register(store, *range(506), key="new")
        assert len(await live(store)) == 506


async def test_the_writer_does_not_make_a_backup_begin_anew(at: Path) -> None:
    async with opened(at) as store:
        await register(store, *range(3000))
        writing = asyncio.create_task(_write_on(store))
        made = await asked(at, "backup", str(at / "backup.db"), "--json")
        writing.cancel()
        assert made.exit_code == 0, made.output


async def _write_on(store: Store) -> None:
    number = 10_000
    while True:
        await register(store, number)
        number += 1


async def test_nothing_is_left_of_a_backup_that_fails(at: Path) -> None:
    async with opened(at):
        made = await asked(at, "backup", str(at / "nowhere" / "backup.db"))
        assert made.exit_code == 1
        assert "cannot write" in made.output


async def test_only_sessions_without_news_since_then_are_distrusted(at: Path) -> None:
    async with opened(at) as store:
        await register(store, 1, 2, now=NOON)
        await register(store, 3, now=NOON + 10)
        assert await store.distrust(before=NOON + 10, dry_run=True) == 2
        assert len(await live(store)) == 3
        assert await store.distrust(before=NOON + 10) == 2
        assert await live(store) == ["chat-3"]
        known = await store.get("chat-1")
        assert known is not None
        assert (known.state, known.secure_key) == (SessionState.INCOMPLETE, None)
        await register(store, 1, now=NOON + 20)  # with the same key: it may be old
        assert await live(store) == ["chat-3"]
        await register(store, 1, now=NOON + 20, key="new")
        assert await live(store) == ["chat-1", "chat-3"]


async def test_a_running_daemon_is_not_distrusted(at: Path) -> None:
    async with opened(at) as store:
        await register(store, 1)
        refused = await asked(at, "distrust", "--before", "now")
        assert (refused.exit_code, "in use by another asyncchatd" in refused.output) == (1, True)


@pytest.mark.parametrize("time", ["yesterday", "2026-11-27T03:00:00", ""])
async def test_a_time_needs_its_zone(at: Path, time: str) -> None:
    refused = await asked(at, "distrust", "--before", time)
    assert (refused.exit_code, "with its zone" in refused.output) == (2, True)


async def test_a_backup_is_told_by_its_name_as_one_can_read_it(at: Path) -> None:
    async with opened(at):
        done = await asked(at, "backup", str(at / "back\x1b[31m\u202eup.db"))
    assert done.exit_code == 0, done.output
    assert "back\\x1b[31m\\u202eup.db" in done.output
    assert "\x1b" not in done.output


async def test_what_is_known_now_is_written_into_what_it_was_before_an_upgrade(
    at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(at) as store:
        await register(store, 1)
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "ALTER TABLE session ADD COLUMN further"))
    async with opened(at) as store:
        await register(store, 1, 2, now=NOON + 1000, key="newer")
        copy = next(name for name in os.listdir(at) if name.startswith("chats.db.schema-"))
        refused = await asked(at, "downgrade", str(at / copy))
        assert (refused.exit_code, "in use by another asyncchatd" in refused.output) == (1, True)
    done = await asked(at, "downgrade", str(at / copy), "--json")
    assert (done.exit_code, json.loads(done.output)) == (0, {"file": str(at / copy), "sessions": 2})
    with closing(sqlite3.connect(at / copy)) as db:
        keys = db.execute("SELECT chat_id, secure_key FROM session ORDER BY chat_id").fetchall()
    assert keys == [("chat-1", "newer-1"), ("chat-2", "newer-2")]
    again = await asked(at, "downgrade", str(at / "none.db"))
    assert (again.exit_code, "there is no database" in again.output) == (1, True)
