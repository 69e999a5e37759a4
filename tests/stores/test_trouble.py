"""A disk that takes nothing, and data that turn out to be damaged: the account the store keeps of them."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from conftest import Events, soon

from asyncchatd.log.events import Event
from asyncchatd.stores import StoreDamaged, StoreError, tell_failure, trouble
from asyncchatd.stores.answers import Taken
from asyncchatd.stores.errors import StoreUnwritable
from asyncchatd.stores.sqlite import SqliteStore
from asyncchatd.stores.sqlite.file import file, opening, writer
from asyncchatd.stores.sqlite.place import MARK
from asyncchatd.stores.trouble import CALM_SECONDS, StoreTrouble

from .desk import NOON, Desk, push, registration


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore("sqlite:///chats.db", directory=directory)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def watched(store: SqliteStore) -> AsyncIterator[asyncio.Task[None]]:
    """As the daemon does it."""
    watching = asyncio.create_task(store.watch())
    try:
        yield watching
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the disk takes something again is tried at once and believed at once."""
    monkeypatch.setattr(trouble, "CALM_SECONDS", 0.0)
    monkeypatch.setattr(opening, "PROBE_SECONDS", 0.001)


async def pragma(store: SqliteStore, said: str) -> None:
    """On the connection that writes."""
    await store._connections[0].visit(lambda db: db.execute(f"PRAGMA {said}").fetchall())


async def until_it_is_over(store: SqliteStore) -> None:
    async with asyncio.timeout(20):
        while store.trouble is not None:  # noqa: ASYNC110 - the store tells only those who ask
            await asyncio.sleep(0.001)


# -- a disk that takes nothing -----------------------------------------------------------------------


async def test_on_a_full_disk_what_was_acknowledged_stays_and_the_rest_is_refused(
    tmp_path: Path, events: Events
) -> None:
    acknowledged = []
    async with opened(tmp_path) as store:
        await pragma(store, "max_page_count = 1")  # which SQLite understands as "no page more"
        for number in range(400):
            try:
                await store.take_push(push(f"chat-{number}"), now=NOON)
            except StoreUnwritable as error:
                assert "full" in str(error)  # noqa: PT017 - how many are taken before is SQLite's affair
            else:
                acknowledged.append(f"chat-{number}")
        assert store.trouble is not None
    assert 0 < len(acknowledged) < 400
    async with opened(tmp_path) as store:
        assert [each.chat_id for each in await store.absorb(1000)] == acknowledged
    assert "SQLITE_FULL" in str(events.one(Event.STORE_UNWRITABLE)["cause"])


@pytest.mark.usefixtures("at_once")
async def test_trouble_is_over_by_itself_when_the_disk_takes_something_again(
    tmp_path: Path, events: Events
) -> None:
    async with opened(tmp_path) as store, watched(store):
        await pragma(store, "query_only = ON")
        for number in range(10):
            with pytest.raises(StoreUnwritable, match="SQLITE_READONLY"):
                await store.take_push(push(f"chat-{number}"), now=NOON)
        assert "readonly" in str(store.trouble)
        assert await store.sessions() == []  # what is there can be read
        await pragma(store, "query_only = OFF")
        await until_it_is_over(store)
        assert await store.take_push(push("chat-1"), now=NOON) is Taken.UNKNOWN
    events.one(Event.STORE_UNWRITABLE)
    events.one(Event.STORE_WRITABLE)


async def test_everybody_in_a_group_hears_of_a_full_disk_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trying each one by itself would keep the disk busy with nothing."""
    tried: list[int] = []
    transaction = writer._transaction

    def counted(connection: object, group: object, durable: bool, looks: bool) -> list[object]:
        tried.append(1)
        return transaction(connection, group, durable, looks)  # type: ignore[arg-type]

    async with opened(tmp_path) as store:
        await pragma(store, "query_only = ON")
        monkeypatch.setattr(writer, "_transaction", counted)
        told = await asyncio.gather(
            *(store.take_push(push(f"chat-{number}"), now=NOON) for number in range(50)),
            Desk(store).register(registration()),
            return_exceptions=True,
        )
    assert [type(each) for each in told] == [StoreUnwritable] * 51
    assert len(tried) == 1


def test_a_store_whose_trouble_is_of_another_kind_has_a_calm_of_its_own() -> None:
    now = 0.0
    account = StoreTrouble("chats.db", calm=2.0, monotonic=lambda: now)
    account.heard(StoreUnwritable("the database is away"))
    now = 1.9
    account.went_well()
    assert account.cause == "the database is away"
    now = 2.0
    account.went_well()
    assert account.cause is None


def test_it_is_told_once_when_it_begins_and_once_when_it_is_over(events: Events) -> None:
    now = 0.0
    account = StoreTrouble("chats.db", monotonic=lambda: now)
    account.went_well()
    for _ in range(5):
        account.heard(StoreUnwritable("the disk is full"))
        now += 1
        account.went_well()
        assert account.cause == "the disk is full"
    now += CALM_SECONDS
    assert account.cause is not None
    account.went_well()
    assert account.cause is None
    assert not account.begun.is_set()
    account.went_well()
    began, over = events.one(Event.STORE_UNWRITABLE), events.one(Event.STORE_WRITABLE)
    assert (began["store"], began["cause"]) == ("chats.db", "the disk is full")
    assert over["outage_ms"] == (5 + CALM_SECONDS) * 1000
    account.heard(StoreUnwritable("the disk is full"))
    assert len(events.of(Event.STORE_UNWRITABLE)) == 2


def test_callers_tell_only_what_the_store_does_not(events: Events) -> None:
    for untold in (StoreUnwritable("the disk is full"), StoreDamaged("damaged")):
        tell_failure(untold)
    assert events.of(Event.STORE_FAILED) == []
    tell_failure(StoreError("the store is closed"))
    assert events.one(Event.STORE_FAILED)["cause"] == "the store is closed"


# -- damage that shows in use ------------------------------------------------------------------------


async def filled(directory: Path) -> None:
    async with opened(directory) as store:
        await Desk(store).register(*(registration(f"chat-{number}") for number in range(500)))


def spoil(file: Path, pages: Iterable[int], *, sparing: bytes = b"") -> None:
    """In place, without those that hold `sparing`. Pages are counted from 0."""
    content = bytearray(file.read_bytes())
    for page in pages:
        part = slice(page * 4096, page * 4096 + 4096)
        if not sparing or sparing not in content[part]:
            content[part] = b"\x5a" * len(content[part])
    with file.open("r+b") as there:
        there.write(content)


def pages(file: Path) -> range:
    return range(os.stat(file).st_size // 4096)


@pytest.mark.parametrize("by", ["reading", "writing"])
async def test_a_file_that_was_overwritten_is_not_called_damaged_by_whoever_comes_upon_it(
    tmp_path: Path, by: str
) -> None:
    """Reader and writer say the same: what lies there is not what is open, and both are saved."""
    file = tmp_path / "chats.db"
    await filled(tmp_path)
    async with opened(tmp_path) as store:
        if by == "writing":
            await pragma(store, "shrink_memory")
        spoil(file, pages(file)[3:])
        work = store.sessions(limit=500) if by == "reading" else store.pull_in(now=NOON, spread_ms=1)
        for refused in (work, store.sessions(), store.take_push(push(), now=NOON)):
            with pytest.raises(StoreUnwritable, match="was overwritten or cut off"):
                await refused
        assert "was overwritten or cut off" in str(store.trouble)


@pytest.mark.parametrize("by", ["reading", "writing"])
async def test_damage_found_in_use_is_mended_from_what_memory_and_log_have(
    tmp_path: Path, by: str, events: Events
) -> None:
    """The first 20 KB, its header and the roots of its tables."""
    file = tmp_path / "chats.db"
    await filled(tmp_path)
    async with opened(tmp_path) as store, watched(store) as watching:
        assert await store.pull_in(now=NOON, spread_ms=1) >= 0  # which brings it all into memory
        await store._connections[0].visit(lambda db: db.execute("SELECT * FROM session").fetchall())
        spoil(file, range(5))
        if by == "reading":
            with pytest.raises(StoreDamaged, match=r"docs/backup\.md"):
                await store.sessions(limit=500)
        else:
            store._trouble.heard(StoreDamaged("the database is damaged"))
            with pytest.raises(StoreDamaged):
                await store.take_push(push(), now=NOON)
        await until_it_is_over(store)
        assert not watching.done()
        assert len(await store.sessions(limit=1000)) == 500
        assert await store.take_push(push("chat-1"), now=NOON) is Taken.KNOWN
    damaged = Path(str(events.one(Event.STORE_CORRUPT)["set_aside"]))
    assert os.stat(damaged).st_size
    assert events.one(Event.STORE_PUT_BACK)["sessions"] == 500
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("SELECT chat_id FROM journal").fetchall() == [("chat-1",)]
    async with opened(tmp_path) as store:
        assert store.set_aside is None
        assert len(await store.sessions(limit=1000)) == 500


async def test_damage_that_memory_does_not_mend_stops_all_writing_and_ends_the_watch(
    tmp_path: Path, events: Events
) -> None:
    """What can be read of it is in the new one that the next start begins."""
    file = tmp_path / "chats.db"
    await filled(tmp_path)
    async with opened(tmp_path) as store, watched(store) as watching:
        await pragma(store, "shrink_memory")
        spoil(file, [page for page in pages(file)[3:] if page % 4], sparing=MARK)
        with pytest.raises(StoreDamaged):
            await store.sessions(limit=500)
        with pytest.raises(StoreDamaged):
            await store.take_push(push(), now=NOON)
        with pytest.raises(StoreDamaged):
            await soon(watching)
        assert "damaged" in str(store.trouble)
    async with opened(tmp_path) as store:
        assert store.set_aside is not None
        saved = await store.sessions(limit=1000)
        assert 50 < len(saved) < 500
    assert events.one(Event.STORE_SALVAGED)["sessions"] == len(saved)
    assert not events.of(Event.STORE_RESCUED)
    assert "chats.db.suspect" not in os.listdir(tmp_path)


async def test_a_suspected_file_that_is_sound_is_kept(tmp_path: Path) -> None:
    """The disk or the memory may have erred only once, and somebody may have put a good copy in its place."""
    await filled(tmp_path)
    (tmp_path / "chats.db.suspect").touch()
    async with opened(tmp_path) as store:
        assert store.set_aside is None
        assert len(await store.sessions(limit=1000)) == 500
    assert "chats.db.suspect" not in os.listdir(tmp_path)


async def test_a_suspected_file_is_looked_at_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(tmp_path)
    content = bytearray((tmp_path / "chats.db").read_bytes())
    content[-4096:] = b"\x5a" * 4096
    (tmp_path / "chats.db").write_bytes(content)
    monkeypatch.setattr(file, "QUICK_CHECK_SECONDS", -1.0)  # a file too large for the time
    monkeypatch.setattr(file, "QUICK_CHECK_STEPS", 1)
    async with opened(tmp_path) as store:
        assert store.set_aside is None
    (tmp_path / "chats.db.suspect").touch()
    async with opened(tmp_path) as store:
        assert store.set_aside is not None
