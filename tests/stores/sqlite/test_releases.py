"""Databases that released versions left behind: `tests/releases/` has what each wrote, as SQL."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from asyncchatd.model.data import Reason, ServerState, SessionState, TokenNews, Verdict
from asyncchatd.stores import StoreError
from asyncchatd.stores.sqlite import Saved, SqliteStore, downgrade
from asyncchatd.stores.sqlite.file import opening
from asyncchatd.stores.sqlite.file.rescue import save

from ..desk import MINUTE, Desk, push, registration
from .rig import URL, kept, rows

RELEASES = sorted((Path(__file__).parents[2] / "releases").glob("*/database.sql"))
KEY = bytes(range(32))
STOPPED = 1_700_000_012_001
"""When each of them was written."""


@pytest.fixture(params=RELEASES, ids=lambda file: file.parent.name)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory with the database of a release."""
    with closing(sqlite3.connect(tmp_path / "chats.db")) as db:
        db.executescript(request.param.read_text())
    return tmp_path


async def test_each_chat_goes_on_where_the_release_left_it(directory: Path) -> None:
    store = SqliteStore(URL, directory=directory, keys=[KEY])
    await store.open()
    try:
        desk = Desk(store, now=STOPPED)
        await desk.check()
        states = {each.chat_id: each.state for each in await store.sessions()}
        live = {"answered", "pushed", "in-journal", "in-flight", "lost-1", "lost-2", "lost-3"}
        assert states == dict.fromkeys(live, SessionState.LIVE) | {
            "half": SessionState.INCOMPLETE,
            "over": SessionState.ENDED,
        }
        await store.absorb(100)
        desk.later(MINUTE)  # the lease of the ping under way is over
        claims = {claim.chat_id: claim for claim in await desk.claim()}
        assert {chat_id: claim.reason for chat_id, claim in claims.items()} == {
            "pushed": Reason.ACKNOWLEDGE,
            "in-journal": Reason.ACKNOWLEDGE,
            "in-flight": Reason.REQUEST,
            "lost-1": Reason.RESTORE,
            "lost-2": Reason.RESTORE,
        }
        assert claims["lost-1"].tokens.secure_key == "key-of-lost-1"
        assert await desk.key("answered") == "key-2-of-answered"
        assert await desk.counts(1) == {"sessions": 3, "restored": 1, "waiting": 2}
        await desk.answer(*claims.values())
        assert await desk.counts(1) == {"sessions": 3, "restored": 3}
        [server] = await store.servers()
        assert (server.name, server.app_dbid, server.process_os_pid) == ("chat-a", "118", "7")
        assert server.state is ServerState.DOWN
        await desk.check()
    finally:
        await store.close()


async def test_what_the_release_wrote_is_kept_for_the_way_back(directory: Path) -> None:
    before = rows(directory / "chats.db", "SELECT * FROM session ORDER BY id")
    [version] = rows(directory / "chats.db", "PRAGMA user_version")
    store = SqliteStore(URL, directory=directory, keys=[KEY])
    await store.open()
    await store.close()
    [copy] = kept(directory)
    assert rows(copy, "SELECT * FROM session ORDER BY id") == before
    assert rows(copy, "PRAGMA user_version") == [version]


async def test_a_copy_has_its_name_once_it_is_whole_and_nothing_of_a_start_that_was_killed_stays(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [directory / f"chats.db.schema-3.partial{suffix}" for suffix in ("", "-journal")]
    for each in left:
        each.write_bytes(b"half of it")
    named: list[list[Path]] = []

    def saved(db: sqlite3.Connection, file: Path, **more: Any) -> Saved:
        done = save(db, file, **more)
        named.append([each for each in kept(directory) if each != file])
        return done

    monkeypatch.setattr(opening, "save", saved)
    store = SqliteStore(URL, directory=directory, keys=[KEY])
    await store.open()
    await store.close()
    assert named == [[]], "what is being made has no name yet"
    [copy] = kept(directory)
    assert "partial" not in copy.name
    assert rows(copy, "PRAGMA integrity_check") == [("ok",)]


async def test_nothing_of_a_downgrade_that_was_killed_stays(directory: Path) -> None:
    store = SqliteStore(URL, directory=directory, keys=[KEY])
    await store.open()
    await store.close()
    [copy] = kept(directory)
    beside = sorted(os.listdir(directory))
    for suffix in ("", "-journal"):
        (directory / f"{copy.name}.partial{suffix}").write_bytes(b"half of it")
    assert downgrade(URL, directory, copy).damage is None
    assert sorted(os.listdir(directory)) == beside


async def test_there_is_a_way_back_with_all_that_was_learned_since(directory: Path) -> None:
    store = SqliteStore(URL, directory=directory, keys=[KEY])
    await store.open()
    desk = Desk(store, now=STOPPED + MINUTE)
    await store.absorb(100)
    claims = await desk.claim()
    await desk.answer(*(claim for claim in claims if claim.chat_id != "pushed"))
    [over] = (claim for claim in claims if claim.chat_id == "pushed")
    await desk.settle(over, Verdict.ENDED)
    await store.make_due("answered", Reason.REQUEST, now=desk.now)
    await desk.answer(await desk.claim_one(), news=TokenNews(secure_key="key-3-of-answered", alias="119"))
    await desk.register(registration("since"))
    await store.take_push(push("since", key="key-2-of-since"), now=desk.now)
    await store.close()
    [copy] = kept(directory)
    version = rows(copy, "PRAGMA user_version")

    assert downgrade(URL, directory, copy) == Saved(copy, 10, None)

    assert rows(copy, "PRAGMA user_version") == version
    assert rows(copy, "SELECT * FROM sealing") == rows(directory / "chats.db", "SELECT * FROM sealing")
    query = "SELECT chat_id, secure_key, alias, state, reason, due_at, old_keys FROM session ORDER BY chat_id"
    assert rows(copy, query) == rows(directory / "chats.db", query)
    copy.rename(directory / "chats.db")
    store = SqliteStore(URL, directory=directory, keys=[KEY])
    await store.open()
    try:
        await store.absorb(100)
        desk = Desk(store, now=desk.now)
        await desk.check()
        assert await desk.key("answered") == "key-3-of-answered"
        assert await desk.key("since") == "key-2-of-since"
        assert (await desk.session("pushed")).state is SessionState.ENDED
        assert await desk.counts(1) == {"sessions": 3, "restored": 3}
    finally:
        await store.close()


async def test_a_way_back_that_cannot_be_gone_changes_nothing(directory: Path) -> None:
    before = (directory / "chats.db").read_bytes()
    (directory / "copy.db").write_bytes(before)
    with pytest.raises(StoreError, match="older asyncchatd: there is nothing to go back from"):
        downgrade(URL, directory, directory / "copy.db")
    store = SqliteStore(URL, directory=directory, keys=[KEY])
    await store.open()
    with pytest.raises(StoreError, match="in use by another asyncchatd"):
        downgrade(URL, directory, directory / "copy.db")
    await store.close()
    with pytest.raises(StoreError, match="not written by an older asyncchatd"):
        downgrade(URL, directory, directory / "chats.db")
    with pytest.raises(StoreError, match="there is no database"):
        downgrade(URL, directory, directory / "none.db")
    assert (directory / "copy.db").read_bytes() == before


async def test_a_copy_that_cannot_be_written_whole_stays_what_it_was(directory: Path) -> None:
    store = SqliteStore(URL, directory=directory, keys=[KEY])
    await store.open()
    await store.close()
    [copy] = kept(directory)
    with closing(sqlite3.connect(copy)) as db, db:
        db.execute("ALTER TABLE server ADD COLUMN of_nobody")
    before, beside = copy.read_bytes(), sorted(os.listdir(directory))
    with closing(sqlite3.connect(directory / "chats.db")) as db, db:
        db.execute("UPDATE session SET alias='120'")
    with pytest.raises(StoreError, match="stays what it was: no such column"):
        downgrade(URL, directory, copy)
    assert copy.read_bytes() == before
    assert sorted(os.listdir(directory)) == beside
