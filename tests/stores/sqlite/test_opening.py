"""What the SQLite store promises beyond the contract: its file, its disk, its threads."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from asyncchatd.model.data import Cause, ChatServer, Loss, Reason, ServerState, SessionState, TokenNews
from asyncchatd.stores import StoreError, StoreFull
from asyncchatd.stores.base import Noted, Taken
from asyncchatd.stores.sqlite import SqliteStore, schema, writer
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.writer import Connection, Writer

from .desk import NOON, SPREAD, Desk, complete_push, push, registration

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


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """Every thread that was started has ended: one that has not would keep the interpreter from exiting."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=5)  # it has been told to stop; it may not have been scheduled since
        assert not thread.is_alive(), thread


# -- durable before it answers ---------------------------------------------------------------------


async def test_a_push_is_on_disk_before_it_is_answered(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.take_push(complete_push(), now=NOON)
        saved = survivors(tmp_path, tmp_path / "saved")
        assert rows(tmp_path / "chats.db", "SELECT chat_id, alias FROM journal") == [("chat-1", "117")]
    async with opened(saved) as store:
        desk = Desk(store)
        await store.absorb(10)
        assert (await desk.claim_one()).tokens.secure_key == "key-of-chat-1"


async def test_what_was_learned_settled_and_begun_is_on_disk_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        desk = Desk(store)
        await desk.register(registration("chat-1"), registration("chat-2"), spread_ms=0)
        claims = await desk.claim(1)
        await desk.answer(*claims, news=TokenNews(secure_key="key-2"))
        lost = await desk.lose()
        saved = survivors(tmp_path, tmp_path / "saved")
    async with opened(saved) as store:
        desk = Desk(store, now=desk.now)
        assert await desk.key(claims[0].chat_id) == "key-2"
        assert await desk.counts(lost.id) == {"sessions": 2, "waiting": 2}
        assert len(await desk.claim(reasons=[Reason.RESTORE])) == 2
        await desk.check()


async def test_what_may_not_be_forgotten_is_synced_before_it_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    transaction = writer._transaction

    def watched(connection: Db, group: object, durable: bool, looks: bool) -> list[object]:
        results = transaction(connection, group, durable, looks)  # type: ignore[arg-type]
        said.append({1: "normal", 2: "full"}[connection.execute("PRAGMA synchronous").fetchone()[0]])
        return results

    async with opened(tmp_path) as store:
        monkeypatch.setattr(writer, "_transaction", watched)
        desk = Desk(store)
        await desk.register(registration("chat-1"), registration("chat-2"), spread_ms=0)
        await store.take_push(push(), now=NOON)
        await store.absorb(10)
        first, second = await desk.claim()
        await store.renew([first], until=NOON)
        await desk.answer(first)
        await desk.answer(second, news=TokenNews(secure_key="key-2"))
        await store.remove("chat-1", now=NOON)
    full = {0: "register", 1: "take_push", 6: "settle", 7: "remove"}
    assert said == ["full" if number in full else "normal" for number in range(8)]


async def test_counting_reads_no_session(tmp_path: Path) -> None:
    """Somebody looks at the status page every second, however many sessions there are."""
    asked: list[str] = []
    async with opened(tmp_path) as store:
        await store._connections[1].visit(lambda db: db.set_trace_callback(asked.append))
        await store.counts(now=NOON)
        await store.counts_by_alias()
    plans = [
        str(row[3]) for each in asked for row in rows(tmp_path / "chats.db", f"EXPLAIN QUERY PLAN {each}")
    ]
    assert len(plans) > 2
    for plan in plans:
        assert " session" not in plan or " INDEX " in plan


async def test_open_restorations_are_found_without_reading_all(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        asked: list[str] = []
        await store._connections[1].visit(lambda db: db.set_trace_callback(asked.append))
        await store.restorations(unfinished=True)
    [query] = asked
    [plan] = rows(tmp_path / "chats.db", f"EXPLAIN QUERY PLAN {query}")
    assert "restoration_open" in str(plan[3])


async def test_after_a_restart_everything_is_as_it_was(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        desk = Desk(store)
        await desk.live("chat-1", "chat-2")
        await desk.push(push("chat-3", alias="117"))
        await store.take_push(push("chat-1", key="key-2"), now=desk.now)
        before = await store.sessions()
    async with opened(tmp_path) as store:
        desk = Desk(store, now=desk.now)
        assert await store.sessions() == before
        await store.absorb(10)
        assert (await desk.claim_one()).tokens.secure_key == "key-2"


async def test_what_a_dead_daemon_had_claimed_is_due_when_its_lease_runs_out(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        desk = Desk(store)
        await desk.register(registration(), spread_ms=0)
        await desk.claim_one()
        saved = survivors(tmp_path, tmp_path / "saved")
    async with opened(saved) as store:
        desk = Desk(store)
        assert await desk.claim() == []
        desk.later(15_000)
        await desk.claim_one()


# -- one writer, group commit ------------------------------------------------------------------------


@asynccontextmanager
async def writing(queue: int = 10_000) -> AsyncIterator[Writer]:
    connection = Connection(lambda: sqlite3.connect(":memory:", isolation_level=None, factory=Db), 64)
    await connection
    await connection.visit(lambda db: db.execute("CREATE TABLE told (what)"))
    write = Writer(connection, queue=queue)
    try:
        yield write
    finally:
        await write.close()
        await connection.close()


def tell(what: str) -> writer.Work[str]:
    def work(db: sqlite3.Connection) -> str:
        db.execute("INSERT INTO told VALUES (?)", (what,))
        if what == "bad":
            raise ValueError(what)
        if what == "worse":
            db.execute("INSERT INTO nowhere VALUES (1)")
        return what

    return work


def tell_together(db: Db, items: object) -> list[str]:
    assert isinstance(items, list)
    return [tell(item)(db) for item in items]


def told(db: sqlite3.Connection) -> list[str]:
    return [row[0] for row in db.execute("SELECT what FROM told ORDER BY rowid")]


async def test_whatever_is_handed_in_together_shares_a_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    commit = writer._commit

    def watched(connection: Db, group: list[object]) -> list[object]:
        groups.append(len(group))
        return commit(connection, group)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "_commit", watched)
    async with writing() as write:
        assert await asyncio.gather(*(write.submit(tell(what)) for what in "abc")) == ["a", "b", "c"]
    assert groups == [3]


async def test_one_faulty_member_of_a_group_fails_alone() -> None:
    async with writing() as write:
        submitted = [write.submit(tell(what)) for what in ("a", "bad", "b", "worse", "c")]
        a, bad, b, worse, c = await asyncio.gather(*submitted, return_exceptions=True)
        assert (a, b, c) == ("a", "b", "c")
        assert isinstance(bad, ValueError)
        assert isinstance(worse, StoreError)
        assert await write.submit(told) == ["a", "b", "c"]


async def test_one_faulty_item_of_a_portion_fails_alone() -> None:
    async with writing() as write:
        before = write.submit(tell("before"))
        gathered = [write.gather(tell_together, what) for what in ("a", "bad", "b")]
        after = write.submit(tell("after"))
        a, bad, b = await asyncio.gather(*gathered, return_exceptions=True)
        assert (await before, a, b, await after) == ("before", "a", "b", "after")
        assert isinstance(bad, ValueError)
        assert await write.submit(told) == ["before", "a", "b", "after"]


async def test_work_takes_effect_in_the_order_in_which_it_was_handed_in() -> None:
    async with writing() as write:
        write.gather(tell_together, "1")
        write.submit(tell("2"))
        write.gather(tell_together, "3")
        write.gather(tell_together, "4")
        write.submit(tell("5"))
        assert await write.submit(told) == ["1", "2", "3", "4", "5"]


async def test_closing_the_writer_finishes_what_is_queued() -> None:
    async with writing() as write:
        first = write.submit(tell("a"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second = write.submit(tell("b"))  # while the first is being written
        await write.close()
        assert (first.done(), second.done()) == (True, True)
        with pytest.raises(StoreError, match="closed"):
            write.submit(tell("c"))
        with pytest.raises(StoreError, match="closed"):
            write.gather(tell_together, "c")


async def test_a_push_that_cannot_be_written_fails_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        taken = await asyncio.gather(
            store.take_push(push("chat-1"), now=NOON),
            store.take_push(push("chat-\ud800"), now=NOON),
            store.take_push(push("chat-3"), now=NOON),
            return_exceptions=True,
        )
        assert (taken[0], taken[2]) == (Taken.UNKNOWN, Taken.UNKNOWN)
        assert isinstance(taken[1], Exception)
        assert [each.chat_id for each in await store.absorb(10)] == ["chat-1", "chat-3"]


async def test_when_the_queue_is_full_a_push_is_refused_and_nothing_of_it_kept(tmp_path: Path) -> None:
    async with opened(tmp_path, queue=3) as store:
        desk = Desk(store)
        outcomes = await asyncio.gather(
            *(store.take_push(push(f"chat-{number}"), now=NOON) for number in range(8)),
            desk.register(registration("registered")),
            return_exceptions=True,
        )
        assert outcomes[:3] == [Taken.UNKNOWN] * 3
        assert all(isinstance(refused, StoreFull) for refused in outcomes[3:8])
        assert outcomes[8] == ["created"]  # the daemon's own work is always taken
        assert [each.chat_id for each in await store.absorb(10)] == ["chat-0", "chat-1", "chat-2"]
        assert store.depth == 0
        assert await store.take_push(push("chat-9"), now=NOON) is Taken.UNKNOWN


async def test_giving_up_the_wait_for_an_answer_does_not_break_the_writer(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        desk = Desk(store)
        waiting = [
            asyncio.ensure_future(store.take_push(push("chat-1"), now=NOON)),
            asyncio.ensure_future(desk.register(registration("chat-2"), registration("chat-3"), spread_ms=0)),
            asyncio.ensure_future(desk.claim(1)),
        ]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        gone = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in gone)
        # What was handed in happened all the same, and whoever comes next is served.
        async with asyncio.timeout(10):
            assert [each.chat_id for each in await store.absorb(10)] == ["chat-1"]
        assert len(await desk.claim()) == 1
        desk.later(15_000)
        assert len(await desk.claim()) == 2


# -- opening and closing ---------------------------------------------------------------------------


@pytest.mark.usefixtures("no_thread_left")
async def test_closing_finishes_what_was_begun_and_leaves_no_thread(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        pending = [
            asyncio.ensure_future(store.take_push(push(f"chat-{number}"), now=NOON)) for number in range(50)
        ]
        await asyncio.sleep(0)
        await store.close()
        assert await asyncio.gather(*pending) == [Taken.UNKNOWN] * 50
        await store.close()
    assert not (tmp_path / "chats.db-wal").exists()
    assert rows(tmp_path / "chats.db", "SELECT count(*) FROM journal") == [(50,)]


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        desk = Desk(store)
    for call in (
        desk.register(registration()),
        desk.claim(),
        desk.session(),
        store.take_push(push(), now=NOON),
        store.absorb(1),
        store.next_due(now=NOON),
    ):
        with pytest.raises(StoreError, match="not open"):
            await call


@pytest.mark.usefixtures("no_thread_left")
async def test_a_store_that_was_never_opened_can_be_closed(tmp_path: Path) -> None:
    await SqliteStore(URL, directory=tmp_path).close()


async def test_a_closed_store_can_be_opened_again(tmp_path: Path) -> None:
    store = SqliteStore(URL, directory=tmp_path)
    for expected in ("created", "updated"):
        await store.open()
        assert await Desk(store).register(registration()) == [expected]
        await store.close()


@pytest.mark.usefixtures("no_thread_left")
async def test_a_second_daemon_on_the_same_file_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(StoreError, match="in use by another asyncchatd"):
            await SqliteStore(URL, directory=tmp_path).open()
        assert await store.get("nobody") is None
    async with opened(tmp_path):
        pass


async def test_only_the_daemons_user_reads_the_file(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        directory = tmp_path / "new" / "directory"
        async with opened(directory) as store:
            await store.take_push(push(), now=NOON)
            files = [directory / f"chats.db{suffix}" for suffix in ("", "-wal", "-shm", ".lock")]
            assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 4
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    finally:
        os.umask(umask)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:chats.db", "sqlite://host"])
def test_a_url_without_a_file_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected sqlite:///"):
        SqliteStore(url, directory=tmp_path)


def test_the_path_of_the_url(tmp_path: Path) -> None:
    assert SqliteStore("sqlite:///some/file.db", directory=tmp_path).path == tmp_path / "some/file.db"
    assert SqliteStore("sqlite:////var/file.db", directory=tmp_path).path == Path("/var/file.db")
    assert SqliteStore("sqlite:///a%20b.db", directory=tmp_path).path == tmp_path / "a b.db"


@pytest.mark.usefixtures("no_thread_left")
async def test_a_directory_that_cannot_be_used_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StoreError, match=r"cannot open .*does the daemon's user own the directory"):
        await SqliteStore("sqlite:///file/chats.db", directory=tmp_path).open()


# -- the schema and its migrations -------------------------------------------------------------------


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


# -- damage ------------------------------------------------------------------------------------------


async def damaged(directory: Path, how: str) -> bytes:
    """A store's file, damaged; its content."""
    file = directory / "chats.db"
    async with opened(directory) as store:
        await Desk(store).register(*(registration(f"chat-{number}") for number in range(500)))
    content = bytearray(file.read_bytes())
    if how == "its header":
        content[:100] = b"\x5a" * 100
    else:
        content[4096 * 3 :] = b"\x5a" * (len(content) - 4096 * 3)
    file.write_bytes(content)
    return bytes(content)


@pytest.mark.usefixtures("no_thread_left")
@pytest.mark.parametrize(("how", "saved"), [("its header", 500), ("its pages", 0)])
async def test_a_damaged_file_is_set_aside_and_a_new_one_begun(tmp_path: Path, how: str, saved: int) -> None:
    content = await damaged(tmp_path, how)
    async with opened(tmp_path) as store:
        assert store.set_aside is not None
        assert store.set_aside.name.startswith("chats.db.damaged-")
        assert store.set_aside.read_bytes() == content
        assert stat.S_IMODE(store.set_aside.stat().st_mode) == 0o600
        assert len(await store.sessions(limit=1000)) == saved
        # Other sessions come back with their registrations and pushes.
        assert await Desk(store).register(registration()) == ["updated" if saved else "created"]
        set_aside = store.set_aside
    async with opened(tmp_path) as store:
        assert store.set_aside is None
        assert await store.get("chat-1") is not None
    assert set_aside.read_bytes() == content


@pytest.mark.parametrize("content", [b"S", b"notes\n", b"notes of somebody", b"\0" * 8192])
async def test_a_file_that_was_never_a_store_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "chats.db").write_bytes(content)
    for _ in range(3):  # systemd starts the daemon again and again
        with pytest.raises(StoreError, match=r"is no SQLite file, and was left alone; name another one"):
            await SqliteStore(URL, directory=tmp_path).open()
        assert (tmp_path / "chats.db").read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == ["chats.db", "chats.db.lock"]


async def test_a_file_damaged_again_takes_no_other_ones_place(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass  # from now on it is known to be a store's
    contents = []
    for number in range(3):
        contents.append(b"damage of another kind" * (number + 10))
        (tmp_path / "chats.db").write_bytes(contents[-1])
        async with opened(tmp_path):
            pass
    aside = [tmp_path / name for name in os.listdir(tmp_path) if name.startswith("chats.db.damaged-")]
    assert {path.read_bytes() for path in aside} == set(contents)


async def test_a_sound_file_is_never_set_aside(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        desk = Desk(store)
        await desk.live(*(f"chat-{number}" for number in range(20)))
        saved = survivors(tmp_path, tmp_path / "saved")
    async with opened(saved) as store:  # with a log that was never moved into the file
        assert store.set_aside is None
        assert await store.pull_in(now=desk.now, spread_ms=SPREAD) == 0
        assert len(await store.sessions()) == 20
