"""An SQLite store is opened and closed: whose file it is, and a damaged one that is set aside."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from asyncchatd.stores import StoreError, make_store
from asyncchatd.stores.answers import Taken
from asyncchatd.stores.sqlite import SqliteStore
from asyncchatd.stores.sqlite.database import Db
from asyncchatd.stores.sqlite.file import opening
from asyncchatd.stores.sqlite.file.writer import Connection

from ...desk import NOON, SPREAD, Desk, push, registration
from ..rig import URL, opened, rows, survivors


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """Every thread that was started has ended: one that has not would keep the interpreter from exiting."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=5)  # it has been told to stop; it may not have been scheduled since
        assert not thread.is_alive(), thread


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


@pytest.mark.parametrize("url", [URL, "memory:"])
@pytest.mark.usefixtures("no_thread_left")
async def test_an_opening_that_is_cancelled_leaves_no_thread(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it waited for. Nobody closes what was never open."""
    visit, left = Connection.visit, 0

    async def cancelling(connection: Connection, work: Callable[[Db], object]) -> object:
        nonlocal left
        left -= 1
        if left == 0:
            task.cancel()
        return await visit(connection, work)

    monkeypatch.setattr(Connection, "visit", cancelling)
    for step in itertools.count(1):
        left, store = step, make_store(url, directory=tmp_path)
        task = asyncio.ensure_future(store.open())
        await asyncio.wait([task])
        if not task.cancelled():
            break
    assert left > 0, "it was cancelled, and opened all the same"
    assert step > 2
    await store.close()


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


@pytest.mark.slow
async def test_a_connection_that_closes_while_it_is_asked_whether_it_is_idle_leaves_no_complaint() -> None:
    answer = threading.Event()

    class Closing:
        async def visit(self, _: object) -> None:
            await asyncio.to_thread(answer.wait, 10)
            raise ValueError("no active connection")

    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(str(told["message"])))
    assert await opening._is_busy(cast(Connection, Closing()))
    asked = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
    answer.set()
    await asyncio.wait(asked)
    asked.clear()
    await asyncio.sleep(0)
    gc.collect()
    assert complaints == []
