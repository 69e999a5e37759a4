"""Databases that released versions left behind: `releases/` has what each wrote, as SQL."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from asyncchatd.model.data import Reason, ServerState, SessionState
from asyncchatd.stores.sqlite import SqliteStore

from ..desk import MINUTE, Desk
from .rig import URL, kept, rows

RELEASES = sorted((Path(__file__).parent / "releases").glob("*.sql"))
KEY = bytes(range(32))
STOPPED = 1_700_000_012_001
"""When each of them was written."""


@pytest.fixture(params=RELEASES, ids=lambda file: file.stem)
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
