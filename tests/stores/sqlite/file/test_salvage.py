"""A store that is damaged before it is opened: what can be read of it is in the new one, and no session is pinged with
a key that may be an old one."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from conftest import Events

from asyncchatd.log.events import Event
from asyncchatd.model.data import Cause, Session, SessionState
from asyncchatd.model.delivery import Consumer
from asyncchatd.model.values import replace
from asyncchatd.stores import StoreError, copy_rows
from asyncchatd.stores.answers import NotTaken, Take
from asyncchatd.stores.sqlite import SqliteStore
from asyncchatd.stores.sqlite.file import opening, witness
from asyncchatd.stores.sqlite.file.backup import back_up
from asyncchatd.stores.sqlite.file.pages import Pages, Tree
from asyncchatd.stores.sqlite.log_file import move

from ...desk import NOON, SECOND, Desk, push, registration
from ...test_transcript import APP, EVERYTHING, HOOK, batches, message, refresh, said, told

KEY = bytes(range(32))
SESSIONS = 3_000
"""So many that they stand on hundreds of pages."""


@asynccontextmanager
async def opened(directory: Path, *, keys: Iterable[bytes] = (KEY,)) -> AsyncIterator[SqliteStore]:
    store = SqliteStore("sqlite:///chats.db", directory=directory, keys=tuple(keys))
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def filled(directory: Path, *, keys: Iterable[bytes] = (KEY,)) -> dict[str, Session]:
    async with opened(directory, keys=keys) as store:
        desk = Desk(store)
        await desk.live("talking")
        await desk.register(*(registration(f"chat-{number}") for number in range(SESSIONS)))
        await store.begin_restoration(alias="117", server="chat-a", cause=Cause.OPERATOR, now=desk.now)
        await store.take_push(push("waits"), now=desk.now)
        return {str(each.chat_id): each for each in await store.sessions(limit=10_000)}


def spoil(file: Path, pages: Iterable[int]) -> None:
    """Pages are counted from 1."""
    with file.open("r+b") as there:
        for page in pages:
            there.seek((page - 1) * 4096)
            there.write(os.urandom(4096))


def leaves(file: Path, table: str) -> list[int]:
    """The pages of a sound database that hold a table's rows."""
    with closing(sqlite3.connect(file)) as db:
        [[root]] = db.execute("SELECT rootpage FROM sqlite_schema WHERE name=?", (table,)).fetchall()
    with file.open("rb") as there:
        tree = Tree(Pages(there.fileno(), Path("no log")), root)
        assert list(tree.rows())
        return [page for page in tree.seen if os.pread(there.fileno(), 1, (page - 1) * 4096) == b"\x0d"]


async def found(store: SqliteStore) -> dict[str, Session]:
    return {str(each.chat_id): each for each in await store.sessions(limit=10_000)}


@pytest.mark.slow
async def test_a_damaged_beginning_costs_no_session_its_key(tmp_path: Path, events: Events) -> None:
    """The root of the sessions is page 2, whatever the schema said."""
    before = await filled(tmp_path)
    spoil(tmp_path / "chats.db", [1])
    async with opened(tmp_path) as store:
        assert await found(store) == before
        assert [each.alias for each in await store.restorations()] == ["117"]
        assert [each.chat_id for each in await store.absorb(10)] == ["waits"]
    told = events.one(Event.STORE_SALVAGED)
    assert (told["sessions"], told["distrusted"], told["pushes"]) == (SESSIONS + 1, 0, 1)
    assert str(told["source"]).startswith(f"{tmp_path}/chats.db.damaged-")


@pytest.mark.slow
async def test_what_was_copied_elsewhere_stays_refused_once_it_is_salvaged(
    tmp_path: Path, events: Events
) -> None:
    await filled(tmp_path)
    source, target = (
        SqliteStore(f"sqlite:///{name}.db", directory=tmp_path, keys=(KEY,)) for name in ("chats", "there")
    )
    await copy_rows(source.carrier(), target.carrier())
    spoil(tmp_path / "chats.db", [1])
    for _ in range(2):
        with pytest.raises(StoreError, match=r"was copied to .*/there\.db"):
            await source.open()
    assert events.one(Event.STORE_SALVAGED)["sessions"] == SESSIONS + 1


async def test_a_chat_that_was_taken_stays_so_in_what_was_salvaged(tmp_path: Path) -> None:
    """Whoever has it may have another key by now."""
    async with opened(tmp_path) as store:
        desk = Desk(store)
        await desk.live("talking", "taken")
        taken = await store.take("taken", until=desk.now + 60_000, now=desk.now)
        assert isinstance(taken, Take)
    spoil(tmp_path / "chats.db", [1])
    async with opened(tmp_path) as store:
        for chat_id, why in (("taken", NotTaken.TAKEN), ("talking", None)):
            again = await store.take(chat_id, until=desk.now + 60_000, now=desk.now)
            assert (again if isinstance(again, NotTaken) else None) is why


async def test_that_it_is_a_backup_is_told_of_what_was_salvaged(tmp_path: Path, events: Events) -> None:
    async with opened(tmp_path) as store:
        await Desk(store).live("talking")
        back_up("sqlite:///chats.db", tmp_path, tmp_path / "backup.db", copied_at=NOON)
    (tmp_path / "backup.db").replace(tmp_path / "chats.db")
    spoil(tmp_path / "chats.db", [1])
    async with opened(tmp_path) as store:
        assert [*await found(store)] == ["talking"]
    assert events.one(Event.STORE_SALVAGED)["sessions"] == 1
    assert events.one(Event.STORE_FROM_BACKUP)["copied_at"] == witness.utc(NOON)


async def test_no_other_gateway_comes_in_the_place_of_one_whose_store_was_salvaged(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await Desk(store).register(replace(registration("of-a-client"), of_gateway=True))
        assert await store.gateway_keys(["the-first", "before"])
    spoil(tmp_path / "chats.db", [1])
    async with opened(tmp_path) as store:
        assert not await store.gateway_keys(["another"])
        assert await store.gateway_keys(["another", "before"])


@pytest.mark.slow
async def test_sessions_whose_tree_is_gone_wait_for_their_tokens(tmp_path: Path, events: Events) -> None:
    """The first 20 KB: nobody knows any more which pages are in use, and an old one may have an old key."""
    before = await filled(tmp_path)
    spoil(tmp_path / "chats.db", range(1, 6))
    async with opened(tmp_path) as store:
        after = await found(store)
        assert after.keys() == before.keys()
        assert {each.state for each in after.values()} == {SessionState.INCOMPLETE}
        assert {(each.secure_key, each.alias, each.user_id) for each in after.values()} == {
            (None, None, None)
        }
        assert await Desk(store).claim() == []
        assert await Desk(store).register(registration("chat-8")) == ["completed"]
        assert [each.chat_id for each in await store.sessions(state=SessionState.LIVE)] == ["chat-8"]
    told = events.one(Event.STORE_SALVAGED)
    assert (told["sessions"], told["distrusted"]) == (SESSIONS + 1, SESSIONS + 1)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [(), (KEY,)], ids=["in the clear", "sealed"])
async def test_of_the_versions_of_a_session_the_newest_one_counts(
    keys: tuple[bytes, ...], tmp_path: Path
) -> None:
    """A page that is in use no more may have the version before. The custom-chat-app need not know that its key was
    replaced: a registration with that one would throw the customer out."""
    await filled(tmp_path, keys=keys)
    file = tmp_path / "chats.db"
    page = next(number for number in leaves(file, "session") if b"chat-7support" in page_of(file, number))
    older = page_of(file, page)
    async with opened(tmp_path, keys=keys) as store:
        desk = Desk(store)
        desk.later(60 * SECOND)
        assert await desk.register(registration("chat-7", key="newer")) == ["updated"]
    with file.open("ab") as there:
        there.write(older)
    spoil(file, range(1, 6))
    async with opened(tmp_path, keys=keys) as store:
        desk = Desk(store)
        assert await desk.register(registration("chat-7")) == ["kept"]
        assert await desk.claim() == []
        assert await desk.register(registration("chat-7", key="newer")) == ["completed"]


def page_of(file: Path, number: int) -> bytes:
    with file.open("rb") as there:
        return os.pread(there.fileno(), 4096, (number - 1) * 4096)


@pytest.mark.slow
async def test_a_damaged_leaf_costs_its_own_sessions_alone(tmp_path: Path, events: Events) -> None:
    before = await filled(tmp_path)
    file = tmp_path / "chats.db"
    spoil(file, leaves(file, "session")[5:7])
    async with opened(tmp_path) as store:
        after = await found(store)
        assert len(before) - 100 < len(after) < len(before)
        whole = {chat: each for chat, each in after.items() if each.state is SessionState.LIVE}
        assert whole.items() <= before.items()
        assert len(whole) == len(after) - int(str(events.one(Event.STORE_SALVAGED)["distrusted"]))
        assert len(whole) > len(before) - 100


async def test_what_stands_in_the_log_is_read_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    async with opened(tmp_path) as store:
        await Desk(store).register(*(registration(f"chat-{number}") for number in range(200)))
        before = await found(store)
        for name in ("chats.db", "chats.db-wal"):
            shutil.copy(tmp_path / name, tmp_path / "killed" / name)
        (tmp_path / "killed" / "chats.db.suspect").touch()
    spoil(tmp_path / "killed" / "chats.db", [3])
    with (tmp_path / "killed" / "chats.db-wal").open("rb") as log:
        assert log.read(4)
    async with opened(tmp_path / "killed") as store:
        assert await found(store) == before


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deleted", "damaged"])
async def test_a_file_whose_log_is_lost_with_it_may_have_old_keys(
    tmp_path: Path, how: str, events: Events
) -> None:
    """What the log held of their keys nobody knows, so nobody is pinged."""
    (tmp_path / "killed").mkdir()
    async with opened(tmp_path) as store:
        await Desk(store).register(*(registration(f"chat-{number}") for number in range(200)))
        await store._connections[0].visit(lambda db: move(db))
        for number in range(200):
            await store.take_push(push(f"chat-{number}"), now=NOON)
        for name in ("chats.db", "chats.db-wal"):
            shutil.copy(tmp_path / name, tmp_path / "killed" / name)
    log = tmp_path / "killed" / "chats.db-wal"
    if how == "deleted":
        log.unlink()
    else:
        with log.open("r+b") as there:
            there.seek(5_000)
            there.write(os.urandom(500))
    (tmp_path / "killed" / "chats.db.lock").write_text("asyncchatd\n")
    spoil(tmp_path / "killed" / "chats.db", [1])
    async with opened(tmp_path / "killed") as store:
        assert await Desk(store).claim() == []
        assert all(each.secure_key is None for each in await store.sessions(limit=1000))
    told = events.one(Event.STORE_SALVAGED)
    assert told["sessions"] == told["distrusted"] == 200


async def test_a_log_damaged_in_its_middle_is_told_and_kept(tmp_path: Path, events: Events) -> None:
    """SQLite itself leaves what follows out without a word."""
    for name in ("sound", "damaged"):
        (tmp_path / name).mkdir()
    async with opened(tmp_path) as store:
        for number in range(20):
            await store.take_push(push(f"chat-{number}"), now=NOON)
        for directory in ("sound", "damaged"):
            for name in ("chats.db", "chats.db-wal"):
                shutil.copy(tmp_path / name, tmp_path / directory / name)
    async with opened(tmp_path / "sound"):
        assert not events.of(Event.STORE_INCOMPLETE)
    log = tmp_path / "damaged" / "chats.db-wal"
    content = bytearray(log.read_bytes())
    middle = (len(content) // 2) // 4120 * 4120 + 32
    content[middle + 500 : middle + 600] = os.urandom(100)
    log.write_bytes(content)
    async with opened(tmp_path / "damaged"):
        pass
    kept = Path(str(events.one(Event.STORE_INCOMPLETE)["set_aside"]))
    assert await asyncio.to_thread(kept.read_bytes) == content
    assert os.stat(kept).st_mode & 0o777 == 0o600


async def test_a_log_cut_off_by_a_crash_is_no_damage(tmp_path: Path, events: Events) -> None:
    (tmp_path / "killed").mkdir()
    async with opened(tmp_path) as store:
        for number in range(20):
            await store.take_push(push(f"chat-{number}"), now=NOON)
        for name in ("chats.db", "chats.db-wal"):
            shutil.copy(tmp_path / name, tmp_path / "killed" / name)
    os.truncate(
        tmp_path / "killed" / "chats.db-wal", os.stat(tmp_path / "killed" / "chats.db-wal").st_size - 9
    )
    async with opened(tmp_path / "killed"):
        assert not events.of(Event.STORE_INCOMPLETE)


@pytest.mark.slow
async def test_a_new_file_that_cannot_be_written_leaves_the_damaged_one_to_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await filled(tmp_path)
    file = tmp_path / "chats.db"
    spoil(file, [1])
    content = file.read_bytes()

    def full(*_: object) -> object:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(opening, "salvage", full)
        with pytest.raises(StoreError, match="disk is full"):
            await SqliteStore("sqlite:///chats.db", directory=tmp_path, keys=[KEY]).open()
    assert file.read_bytes() == content
    async with opened(tmp_path) as store:
        assert await found(store) == before


# -- transcripts ---------------------------------------------------------------------------------------


async def told_before(directory: Path) -> str:
    """Two consumers, each in the middle of what it is told. The epoch."""
    async with opened(directory) as store:
        desk = Desk(store)
        await store.enrol([APP, HOOK], now=desk.now)
        names = [f"chat-{number}" for number in range(60)]
        await desk.live(*names)
        for name in names:
            await refresh(desk, message(3, f"{name} {'x' * 500}"), message(4, "two"), chat_id=name)
        given = await store.fetch("app", after=None, limit=20, now=desk.now)
        await store.fetch("app", after=given.cursor, limit=1, now=desk.now)
        await store.delivered((await batches(desk, most=1))[:30], now=desk.now)
        return store.epoch


async def test_consumers_go_on_where_they_were_in_what_was_salvaged(tmp_path: Path) -> None:
    epoch = await told_before(tmp_path)
    spoil(tmp_path / "chats.db", [2])  # the sessions alone
    async with opened(tmp_path) as store:
        assert store.epoch != epoch
        desk = Desk(store)
        await store.enrol([APP, HOOK], now=desk.now)
        known = {each.chat_id for each in await store.sessions(limit=100)}
        events = await told(desk)
        assert {event.chat_id for event in events} <= known | {None}
        assert len(known) > 40
        assert said(events)[:1] != ["gap"]
        assert len(events) > 60
        first = await batches(desk, most=1)
        assert {len(batch.events) for batch in first} == {1}
        assert "two" in {said(batch.events)[0] for batch in first}, "of some chats the first was taken"


async def test_what_cannot_be_read_of_transcripts_is_told_as_a_gap(tmp_path: Path) -> None:
    await told_before(tmp_path)
    file = tmp_path / "chats.db"
    spoil(file, [*leaves(file, "event")[3:5], 1])
    async with opened(tmp_path) as store:
        desk = Desk(store)
        await store.enrol([APP, HOOK, Consumer("new", EVERYTHING)], now=desk.now)
        events = await told(desk)
        assert said(events)[-1] == "gap"
        assert events[-1].chat_id is None
        assert len(events) > 40
        assert said(await told(desk, "new")) == ["gap"]
        assert ["gap"] in [said(batch.events) for batch in await batches(desk)]
        await refresh(desk, message(5, "three"), chat_id="chat-1")
        assert said(await told(desk))[-1] == "three"


async def test_the_key_that_a_client_came_with_is_read_from_the_damaged_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        said = (replace(registration(f"chat-{number}"), came_with=f"id:{number}") for number in range(200))
        await Desk(store).register(*said)
        before = await found(store)
    spoil(tmp_path / "chats.db", [1])
    async with opened(tmp_path) as store:
        after = await found(store)
    assert after == before
    assert after["chat-7"].came_with == "id:7"
