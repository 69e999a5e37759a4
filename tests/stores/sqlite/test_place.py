"""The database's file is deleted, replaced or overwritten while the store has it open: nothing is acknowledged that
would be lost, and nothing is lost that was acknowledged."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest
from conftest import Events

from asyncchatd.log.events import Event
from asyncchatd.model.data import Claim, TokenNews
from asyncchatd.stores import StoreError, trouble
from asyncchatd.stores.errors import StoreMoved, StoreUnwritable
from asyncchatd.stores.sqlite import SqliteStore
from asyncchatd.stores.sqlite.file import connections, opening
from asyncchatd.stores.sqlite.file.writer import Connection
from asyncchatd.stores.sqlite.place import Place

from ..desk import NOON, Desk, push, registration
from ..waiting import until

Harm = Callable[[Path], None]


@asynccontextmanager
async def opened(directory: Path, name: str = "chats.db") -> AsyncIterator[SqliteStore]:
    store = SqliteStore(f"sqlite:///{name}", directory=directory)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def watched(store: SqliteStore) -> AsyncIterator[None]:
    watching = asyncio.create_task(store.watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trouble, "CALM_SECONDS", 0.0)
    monkeypatch.setattr(opening, "PROBE_SECONDS", 0.01)
    monkeypatch.setattr(connections, "CHECKPOINT_SECONDS", 0.05)


async def take(store: SqliteStore, prefix: str, count: int) -> list[str]:
    """Those that were acknowledged."""
    taken = []
    for number in range(count):
        with suppress(StoreUnwritable):
            await store.take_push(push(f"{prefix}-{number}"), now=NOON)
            taken.append(f"{prefix}-{number}")
    return taken


async def end_checkpoints(store: SqliteStore) -> None:
    """Nobody can see an overwriting while one runs."""
    assert store._checkpointing is not None
    store._checkpointing.cancel()
    await asyncio.gather(store._checkpointing, return_exceptions=True)
    for connection in store._connections:
        await connection.visit(lambda _: None)


def chats(file: Path) -> set[str]:
    """What a sound database has in its journal."""
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {row[0] for row in db.execute("SELECT chat_id FROM journal")}


async def older_copy(directory: Path) -> Path:
    """What `asyncchatd store backup` or a stop and `cp` gives."""
    async with opened(directory) as store:
        assert len(await take(store, "old", 5)) == 5
    return Path(shutil.copy(directory / "chats.db", directory / "old.db"))


def delete(file: Path) -> None:
    file.unlink()


def delete_all(file: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{file}{suffix}").unlink()


def delete_with_directory(file: Path) -> None:
    shutil.rmtree(file.parent)


def move_away(file: Path) -> None:
    file.rename(file.with_name("elsewhere.db"))


def delete_log(file: Path) -> None:
    Path(f"{file}-wal").unlink()


def delete_index(file: Path) -> None:
    Path(f"{file}-shm").unlink()


def rename_over(file: Path) -> None:
    file.with_name("old.db").rename(file)


def copy_over(file: Path) -> None:
    shutil.copyfile(file.with_name("old.db"), file)


def cut_off(file: Path) -> None:
    os.truncate(file, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm", [delete, delete_all, delete_with_directory, move_away, delete_log, delete_index]
)
async def test_a_file_that_is_gone_is_written_again_from_what_is_open(
    harm: Harm, tmp_path: Path, events: Events
) -> None:
    file = tmp_path / "state" / "chats.db"
    async with opened(tmp_path, "state/chats.db") as store, watched(store):
        acknowledged = await take(store, "before", 50)
        harm(file)
        acknowledged += await take(store, "meanwhile", 50)
        await until(lambda: bool(events.of(Event.STORE_WRITABLE)))
        acknowledged += await take(store, "after", 50)
        assert await store.counts(now=NOON)
    assert len(acknowledged) >= 100
    assert chats(file) >= set(acknowledged)
    async with opened(tmp_path, "state/chats.db"):
        pass
    events.one(Event.STORE_UNWRITABLE)
    assert not events.of(Event.STORE_INCOMPLETE)


@pytest.mark.parametrize("harm", [delete, delete_all, delete_log, delete_index])
async def test_what_nobody_noticed_before_the_stop_is_put_right_by_it(harm: Harm, tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        acknowledged = await take(store, "before", 50)
        harm(tmp_path / "chats.db")
    assert chats(tmp_path / "chats.db") >= set(acknowledged)


@pytest.mark.slow
@pytest.mark.parametrize("harm", [rename_over, copy_over, cut_off])
@pytest.mark.parametrize("noticed", [True, False])
async def test_what_was_open_is_saved_beside_what_somebody_put_in_its_place(
    harm: Harm, noticed: bool, tmp_path: Path, events: Events
) -> None:
    file = tmp_path / "chats.db"
    old = await older_copy(tmp_path)
    content = old.read_bytes()
    async with opened(tmp_path) as store, watched(store):
        number = store._place._number  # type: ignore[union-attr]
        acknowledged = await take(store, "before", 50)
        await until(lambda: store._place.checkpointed > number)  # type: ignore[union-attr]
        await end_checkpoints(store)
        harm(file)
        if noticed:
            assert await take(store, "meanwhile", 20) == []
            await until(lambda: bool(events.of(Event.STORE_RESCUED)))
            assert await take(store, "meanwhile", 20) == []
            assert "rescued" in str(store.trouble)
    rescued = Path(str(events.one(Event.STORE_RESCUED)["rescued"]))
    assert chats(rescued) >= set(acknowledged)
    assert os.stat(rescued).st_mode & 0o777 == 0o600
    assert file.read_bytes() == (b"" if harm is cut_off else content)
    assert "chats.db-wal" not in os.listdir(tmp_path)
    # And as docs/backup.md says:
    shutil.copy(rescued, file)
    async with opened(tmp_path) as store:
        assert len(await store.absorb(1000)) >= 50


@pytest.mark.slow
async def test_a_restart_that_nobody_chose_for_goes_on_with_what_was_saved(
    tmp_path: Path, events: Events
) -> None:
    """An empty file is nothing that somebody put there."""
    file = tmp_path / "chats.db"
    async with opened(tmp_path) as store, watched(store):
        acknowledged = await take(store, "before", 50)
        await asyncio.sleep(0.1)
        cut_off(file)
        await until(lambda: bool(events.of(Event.STORE_RESCUED)))
        with pytest.raises(StoreUnwritable, match="was overwritten or cut off"):
            await store.counts(now=NOON)
    async with opened(tmp_path) as store:
        pass
    assert chats(file) == set(acknowledged)
    salvaged = events.one(Event.STORE_SALVAGED)
    assert salvaged["source"] == events.one(Event.STORE_RESCUED)["rescued"]
    assert salvaged["pushes"] == 50
    cut_off(file)  # a later one is another matter
    async with opened(tmp_path) as store:
        assert await store.sessions() == []


@pytest.mark.slow
@pytest.mark.parametrize("noticed_by", ["a push", "a push under way", "the checkpoint", "the stop"])
async def test_what_stood_in_a_log_that_was_cut_off_is_saved(
    noticed_by: str, tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator empties it, `: > chats.db-wal`, to have room on the disk."""
    monkeypatch.setattr(connections, "CHECKPOINT_SECONDS", 0.5 if noticed_by == "the checkpoint" else 60.0)
    file = tmp_path / "chats.db"
    async with opened(tmp_path) as store, watched(store):
        acknowledged = await take(store, "before", 50)
        if noticed_by == "a push under way":
            with monkeypatch.context() as patch, suppress(StoreUnwritable):
                patch.setattr(Place, "look_at_log", lambda _: os.truncate(f"{file}-wal", 0))
                await store.take_push(push("under-way"), now=NOON)
                pytest.fail("it was answered for")
        else:
            os.truncate(f"{file}-wal", 0)
        if noticed_by.startswith("a push"):
            assert await take(store, "meanwhile", 20) == []
        if noticed_by != "the stop":
            await until(lambda: bool(events.of(Event.STORE_RESCUED)))
            await asyncio.sleep(0.1)  # some looks more: nothing is called well again
            assert await take(store, "meanwhile", 20) == []
    assert not events.of(Event.STORE_WRITABLE)
    assert chats(Path(str(events.one(Event.STORE_RESCUED)["rescued"]))) >= set(acknowledged)


async def test_a_log_that_another_program_empties_rightly_is_no_trouble(
    tmp_path: Path, events: Events
) -> None:
    async with opened(tmp_path) as store, watched(store):
        for number in range(5):
            acknowledged = await take(store, f"before-{number}", 20)
            with closing(sqlite3.connect(tmp_path / "chats.db")) as other:
                other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            assert len(acknowledged) == 20
        assert os.stat(tmp_path / "chats.db-wal").st_size < 100_000
    assert not events.of(Event.STORE_UNWRITABLE)


@pytest.mark.slow
async def test_a_file_that_is_moved_back_is_used_again(tmp_path: Path, events: Events) -> None:
    file, state = tmp_path / "state" / "chats.db", tmp_path / "state"
    async with opened(tmp_path, "state/chats.db") as store, watched(store):
        acknowledged = await take(store, "before", 20)
        state.rename(tmp_path / "elsewhere")
        with pytest.raises(StoreMoved, match=r"elsewhere/chats.db now"):
            await store.take_push(push(), now=NOON)
        (tmp_path / "elsewhere").rename(state)
        await until(lambda: bool(events.of(Event.STORE_WRITABLE)))
        acknowledged += await take(store, "after", 20)
    assert chats(file) >= set(acknowledged)
    assert len(acknowledged) == 40


async def test_what_harms_nothing_is_no_trouble(tmp_path: Path) -> None:
    """A changed time, and a checkpoint of another program."""
    file = tmp_path / "chats.db"
    async with opened(tmp_path) as store:
        for _ in range(5):
            assert len(await take(store, "one", 5)) == 5
            os.utime(file)
            with closing(sqlite3.connect(file)) as db:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            assert len(await take(store, "two", 5)) == 5
        assert store.trouble is None


async def test_a_copy_without_its_log_is_told(tmp_path: Path, events: Events) -> None:
    async with opened(tmp_path) as store:
        await take(store, "chat", 20)
        (tmp_path / "copy").mkdir()
        shutil.copy(tmp_path / "chats.db", tmp_path / "copy" / "chats.db")
    async with opened(tmp_path):
        assert not events.of(Event.STORE_INCOMPLETE)
    async with opened(tmp_path / "copy"):
        events.one(Event.STORE_INCOMPLETE)


# -- one daemon for one file -------------------------------------------------------------------------


def symbolic(file: Path, at: Path) -> Path:
    (at / "link.db").symlink_to(file)
    return at / "link.db"


def through_a_directory(file: Path, at: Path) -> Path:
    (at / "state").symlink_to(file.parent)
    return at / "state" / file.name


def roundabout(file: Path, _: Path) -> Path:
    return file.parent / ".." / file.parent.name / file.name


@pytest.mark.parametrize("name", [symbolic, through_a_directory, roundabout])
async def test_a_file_has_one_daemon_by_whatever_name_it_is_known(
    name: Callable[[Path, Path], Path], tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with opened(tmp_path / "a") as store:
        other = name(tmp_path / "a" / "chats.db", tmp_path / "b")
        with pytest.raises(StoreError, match="in use by another asyncchatd"):
            async with opened(other.parent, other.name):
                pass
        assert len(await take(store, "chat", 5)) == 5
    async with opened(other.parent, other.name) as store:
        assert len(await store.absorb(10)) == 5


async def test_a_second_name_of_a_file_is_refused_and_leaves_nothing(tmp_path: Path, events: Events) -> None:
    """The log with what was acknowledged lies beside the first name, with which all goes on."""
    (tmp_path / "b").mkdir()
    async with opened(tmp_path) as store:
        (tmp_path / "b" / "hard.db").hardlink_to(tmp_path / "chats.db")
        with pytest.raises(StoreError, match="one of 2 names"):
            async with opened(tmp_path / "b", "hard.db"):
                pass
        await take(store, "chat", 5)
    with pytest.raises(StoreError, match="write-ahead log"):
        async with opened(tmp_path / "b", "hard.db"):
            pass
    assert os.listdir(tmp_path / "b") == ["hard.db"]
    async with opened(tmp_path) as store:
        assert len(await store.absorb(10)) == 5
    assert not events.of(Event.STORE_INCOMPLETE)


# -- what pings taught meanwhile ---------------------------------------------------------------------


def move_directory(file: Path) -> None:
    file.parent.rename(file.parent.with_name("elsewhere"))


async def asked(store: SqliteStore) -> tuple[Desk, Claim]:
    """A session whose ping is on its way."""
    desk = Desk(store)
    await desk.register(registration())
    await desk.push(push())
    return desk, await desk.claim_one()


async def notice(store: SqliteStore) -> None:
    with pytest.raises(StoreMoved):
        await store.take_push(push("meanwhile"), now=NOON)


async def key_in(directory: Path, name: str = "chats.db") -> str | None:
    async with opened(directory, name) as store:
        return await Desk(store).key()


@pytest.mark.parametrize("harm", [rename_over, copy_over, cut_off])
async def test_a_key_that_came_after_the_rescue_is_in_the_copy(
    harm: Harm, tmp_path: Path, events: Events
) -> None:
    """And stays there when the daemon is killed then: the copy is not made anew at the stop."""
    file = tmp_path / "chats.db"
    await older_copy(tmp_path)
    async with opened(tmp_path) as store, watched(store):
        desk, claim = await asked(store)
        await until(lambda: store._place.checkpointed > 1)  # type: ignore[union-attr]
        await end_checkpoints(store)
        harm(file)
        await notice(store)
        await until(lambda: bool(events.of(Event.STORE_RESCUED)))
        [settled] = await desk.answer(claim, news=TokenNews(secure_key="new"))
        assert settled.tokens_changed
        await notice(store)
        rescued = Path(str(events.one(Event.STORE_RESCUED)["rescued"]))
        killed = tmp_path / "killed"
        killed.mkdir()
        shutil.copy(rescued, killed / "chats.db")
        assert await key_in(killed) == "new"
    shutil.copy(rescued, file)
    assert await key_in(tmp_path) == "new"


async def test_a_key_that_came_before_the_rescue_is_in_the_copy(tmp_path: Path, events: Events) -> None:
    file = tmp_path / "chats.db"
    await older_copy(tmp_path)
    async with opened(tmp_path) as store:
        desk, claim = await asked(store)
        rename_over(file)
        await notice(store)
        await desk.answer(claim, news=TokenNews(secure_key="new"))
    shutil.copy(Path(str(events.one(Event.STORE_RESCUED)["rescued"])), file)
    assert await key_in(tmp_path) == "new"


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_key_that_came_after_the_rescue_is_in_the_file_that_is_put_back(
    stopped: bool, tmp_path: Path, events: Events
) -> None:
    """Who has put another file in the place thinks better of it."""
    file, aside = tmp_path / "chats.db", tmp_path / "aside.db"
    await older_copy(tmp_path)
    async with opened(tmp_path) as store, watched(store):
        desk, claim = await asked(store)
        file.rename(aside)
        rename_over(file)
        await until(lambda: bool(events.of(Event.STORE_RESCUED)))
        await desk.answer(claim, news=TokenNews(secure_key="new"))
        if not stopped:
            aside.rename(file)
            await until(lambda: bool(events.of(Event.STORE_WRITABLE)))
            assert store.rescued is None
            assert await desk.key() == "new"
    if stopped:
        aside.rename(file)
    assert await key_in(tmp_path) == "new"


async def test_another_replacement_is_rescued_anew(tmp_path: Path, events: Events) -> None:
    file, aside = tmp_path / "chats.db", tmp_path / "aside.db"
    old = await older_copy(tmp_path)
    async with opened(tmp_path) as store, watched(store):
        for number in (1, 2):
            acknowledged = await take(store, f"before-{number}", 20)
            shutil.copy(old, tmp_path / "another.db")
            file.rename(aside)
            (tmp_path / "another.db").rename(file)
            await until(lambda number=number: len(events.of(Event.STORE_RESCUED)) == number)  # type: ignore[misc]
            if number == 1:
                aside.rename(file)
                await until(lambda: bool(events.of(Event.STORE_WRITABLE)))
    assert len(acknowledged) == 20
    assert chats(Path(str(events.of(Event.STORE_RESCUED)[1]["rescued"]))) >= set(acknowledged)


@pytest.mark.parametrize("harm", [delete, delete_all, move_away, delete_log, move_directory])
async def test_a_key_that_came_while_the_file_was_away_stays(harm: Harm, tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with opened(tmp_path, "state/chats.db") as store:
        desk, claim = await asked(store)
        harm(state / "chats.db")
        await notice(store)
        await desk.answer(claim, news=TokenNews(secure_key="new"))
    if harm is move_directory:
        (tmp_path / "elsewhere").rename(state)
    assert await key_in(state) == "new"


async def test_nothing_is_written_to_a_file_whose_successor_is_written_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    reopen = SqliteStore._reopen
    async with opened(tmp_path) as store:
        desk, claim = await asked(store)

        async def reopen_late(store: SqliteStore) -> None:
            with pytest.raises(StoreMoved):
                await desk.answer(claim, news=TokenNews(secure_key="new"))
            await reopen(store)

        monkeypatch.setattr(SqliteStore, "_reopen", reopen_late)
        delete(tmp_path / "chats.db")
        async with watched(store):
            await notice(store)
            await until(lambda: bool(events.of(Event.STORE_WRITABLE)))
            await desk.answer(claim, news=TokenNews(secure_key="new"))
    assert await key_in(tmp_path) == "new"


@pytest.mark.slow
@pytest.mark.parametrize("harm", [delete, delete_log])
async def test_while_the_file_is_opened_anew_the_store_says_it_moved(
    harm: Harm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    """Whoever has an answer of GMS keeps it for that, and for nothing else."""
    open_writing = SqliteStore._open_writing
    async with opened(tmp_path) as store:
        desk, claim = await asked(store)

        async def open_late(store: SqliteStore) -> Connection:
            with pytest.raises(StoreMoved):
                await desk.answer(claim, news=TokenNews(secure_key="new"))
            with pytest.raises(StoreUnwritable, match="opened anew"):
                await store.counts(now=NOON)
            return await open_writing(store)

        monkeypatch.setattr(SqliteStore, "_open_writing", open_late)
        harm(tmp_path / "chats.db")
        async with watched(store):
            await notice(store)
            await until(lambda: bool(events.of(Event.STORE_WRITABLE)))
            await desk.answer(claim, news=TokenNews(secure_key="new"))
    monkeypatch.undo()
    assert await key_in(tmp_path) == "new"


@pytest.mark.parametrize("ends", [False, True], ids=["goes on", "ends"])
async def test_a_file_that_cannot_be_opened_anew_at_once_is_tried_again(
    ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    open_writing = SqliteStore._open_writing
    tries = 0
    async with opened(tmp_path) as store:
        desk, claim = await asked(store)

        async def open_the_third_time(store: SqliteStore) -> Connection:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise OSError("too many open files")
            return await open_writing(store)

        monkeypatch.setattr(SqliteStore, "_open_writing", open_the_third_time)
        delete(tmp_path / "chats.db")
        async with watched(store):
            await notice(store)
            await until(lambda: tries == 1 if ends else bool(events.of(Event.STORE_WRITABLE)))
            if not ends:
                await desk.answer(claim, news=TokenNews(secure_key="new"))
    monkeypatch.undo()
    assert await key_in(tmp_path) == ("key-of-chat-1" if ends else "new")


async def test_a_file_that_goes_before_it_is_opened_anew_is_not_begun_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    file, aside = tmp_path / "chats.db", tmp_path / "aside.db"
    open_writing = SqliteStore._open_writing
    async with opened(tmp_path) as store:
        await asked(store)

        async def gone(store: SqliteStore) -> Connection:
            file.rename(aside)
            raise OSError("too many open files")

        monkeypatch.setattr(SqliteStore, "_open_writing", gone)
        delete(file)
        async with watched(store):
            await notice(store)
            await until(lambda: "deleted again" in str(store.trouble))
            assert not file.exists()
            monkeypatch.setattr(SqliteStore, "_open_writing", open_writing)
            aside.rename(file)
            await until(lambda: bool(events.of(Event.STORE_WRITABLE)))
    monkeypatch.undo()
    assert await key_in(tmp_path) == "key-of-chat-1"


async def test_a_key_for_which_there_is_no_sound_place_is_refused(tmp_path: Path) -> None:
    """What was overwritten has foreign pages, and is not saved yet."""
    await older_copy(tmp_path)
    async with opened(tmp_path) as store, watched(store):
        desk, claim = await asked(store)
        await until(lambda: store._place.checkpointed > 1)  # type: ignore[union-attr]
        store._save_at = float("inf")
        await end_checkpoints(store)
        copy_over(tmp_path / "chats.db")
        await notice(store)
        with pytest.raises(StoreMoved):
            await desk.answer(claim, news=TokenNews(secure_key="new"))
