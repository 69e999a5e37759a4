"""A stop that is asked for while the daemon starts: it ends at once and in good order, wherever the start waits."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from conftest import Events, MakeSettings, soon

from asyncchatd.config.settings import Settings
from asyncchatd.daemon import run as daemon
from asyncchatd.daemon.run import run
from asyncchatd.log.events import Event
from asyncchatd.model import Ms
from asyncchatd.rehearsing.together.database import server
from asyncchatd.stores.answers import Counts
from asyncchatd.stores.postgres.shared import migrating
from asyncchatd.stores.postgres.wire import Address, connect
from asyncchatd.stores.sqlite import SqliteStore
from asyncchatd.stores.sqlite.file import opening, rescue, salvage
from asyncchatd.stores.sqlite.transactions import schema

from .test_run import Systemd, service_manager

__all__ = ["service_manager"]

PART = (
    "daemon_starting",
    "store_opened",
    "daemon_ready",
    "daemon_failed",
    "daemon_stopping",
    "daemon_stopped",
)
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT count(*) FROM n"


async def ends_at_once(
    settings: Settings, events: Events, service_manager: Systemd, is_there: Callable[[], object]
) -> None:
    """Ask the daemon to stop once `is_there`: it does, without an error and without having been ready."""
    before = set(threading.enumerate())
    stop = asyncio.Event()
    task = asyncio.create_task(run(settings, stop=stop))
    while not is_there():
        assert not task.done(), task.exception()
        await asyncio.sleep(0.01)
    stop.set()
    await service_manager.hears("STOPPING=1")
    await soon(task)
    assert [name for name in events.names() if name in PART] == [
        *("daemon_starting", "daemon_stopping", "daemon_stopped")
    ]
    assert events.one(Event.DAEMON_STOPPING)["cause"] == "asked to"
    assert "READY=1" not in service_manager.told
    for each in set(threading.enumerate()) - before:
        if not each.name.startswith("asyncio_"):  # the event loop keeps its own until it is closed
            each.join(10)
            assert not each.is_alive(), each


@pytest.mark.slow
async def test_a_start_that_waits_for_another_one_to_migrate_ends_at_once(
    make_settings: MakeSettings, events: Events, service_manager: Systemd
) -> None:
    with server() as one:
        holder = await connect(Address(one.url("chats").partition("&schema")[0]))
        await holder.value("SELECT pg_advisory_lock($1)", migrating.LOCK)
        looker = await connect(Address(one.url("chats").partition("&schema")[0]))
        settings = make_settings(store={"url": one.url("chats")})
        try:
            asked: list[asyncio.Task[bool]] = []

            async def waits() -> bool:
                return bool(
                    await looker.value(
                        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_try_advisory%'"
                    )
                    > 1
                )

            def is_there() -> bool:
                if not asked or asked[-1].done():
                    if asked and asked[-1].result():
                        return True
                    asked.append(asyncio.ensure_future(waits()))
                return False

            await ends_at_once(settings, events, service_manager, is_there)
            left = (
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type='client backend'"
                " AND pid NOT IN (pg_backend_pid(), $1)"
            )
            async with asyncio.timeout(10):
                while await looker.value(left, await holder.value("SELECT pg_backend_pid()")):
                    pass
        finally:
            await holder.close()
            await looker.close()


async def test_a_start_that_waits_for_a_database_that_does_not_answer_ends_at_once(
    make_settings: MakeSettings, events: Events, service_manager: Systemd
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        came: list[socket.socket] = []

        def is_there() -> bool:
            try:
                if not came:
                    came.append(silent.accept()[0])
                    came[0].setblocking(False)
                return bool(came[0].recv(8))  # the driver's question whether there is TLS
            except BlockingIOError:
                return False

        url = f"postgresql://chats@127.0.0.1:{silent.getsockname()[1]}/chats"
        await ends_at_once(make_settings(store={"url": url}), events, service_manager, is_there)
        for each in came:
            each.close()


@contextmanager
def endless(patch: pytest.MonkeyPatch, owner: object, name: str) -> Iterator[threading.Event]:
    """Meanwhile what is called so runs a statement without an end on the database it is given."""
    begun = threading.Event()

    def run_it(db: sqlite3.Connection, *_: object, **__: object) -> None:
        begun.set()
        db.execute(ENDLESS).fetchall()

    with patch.context() as meanwhile:
        meanwhile.setattr(owner, name, run_it)
        yield begun


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (schema, "migrate"),
        (opening, "check"),
        (opening, "unseal"),
        (opening, "clean"),
        (opening, "begin_work"),
    ],
    ids=["migrated", "read through", "encrypted", "rewritten", "begun"],
)
async def test_a_start_that_works_on_a_large_file_ends_at_once(
    make_settings: MakeSettings,
    events: Events,
    service_manager: Systemd,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
) -> None:
    settings = make_settings(store={"url": "sqlite:///sessions.db"})
    with endless(monkeypatch, owner, name) as begun:
        await ends_at_once(settings, events, service_manager, begun.is_set)
    store = SqliteStore(settings.store_url, directory=settings.directory)
    await store.open()  # nothing holds it, and nothing is broken
    await store.close()


async def test_a_copy_before_an_upgrade_is_broken_off_and_nothing_is_left_of_it(
    make_settings: MakeSettings, events: Events, service_manager: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(store={"url": "sqlite:///sessions.db"})
    store = SqliteStore(settings.store_url, directory=settings.directory)
    await store.open()
    await store.close()
    path = settings.directory / "sessions.db"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE more (words TEXT)"))
    with endless(monkeypatch, rescue, "_checked") as begun:
        await ends_at_once(settings, events, service_manager, begun.is_set)
    assert [each.name for each in path.parent.glob("sessions.db*schema*")] == []
    await store.open()
    await store.close()
    assert len(list(path.parent.glob("sessions.db.schema*"))) == 1


async def test_a_start_that_salvages_a_damaged_file_ends_at_once_and_leaves_it(
    make_settings: MakeSettings, events: Events, service_manager: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(store={"url": "sqlite:///sessions.db"})
    store = SqliteStore(settings.store_url, directory=settings.directory)
    await store.open()
    await store.close()
    path = settings.directory / "sessions.db"
    damaged = path.read_bytes()[:100].ljust(path.stat().st_size, b"\xff")
    path.write_bytes(damaged)
    begun = threading.Event()

    def rows() -> Iterator[tuple[int, tuple[str]]]:
        begun.set()
        while True:
            yield 1, ("east",)

    monkeypatch.setattr(salvage._Salvage, "run", lambda self: self._insert("server", rows()))
    await ends_at_once(settings, events, service_manager, begun.is_set)
    assert path.read_bytes() == damaged
    assert not list(path.parent.glob("sessions.db.*partial*"))


async def test_a_part_that_fails_while_the_daemon_starts_is_no_stop_that_was_asked_for(
    make_settings: MakeSettings, events: Events, service_manager: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, stop = SqliteStore.counts, asyncio.Event()
    opened = False

    async def fails() -> None:
        raise RuntimeError("a part failed")

    async def counts_once_it_failed(store: SqliteStore, *, now: Ms) -> Counts:
        nonlocal opened
        if opened:
            await stop.wait()
        opened = True
        return await counts(store, now=now)

    monkeypatch.setattr(daemon, "watch_lag", fails)
    monkeypatch.setattr(SqliteStore, "counts", counts_once_it_failed)
    with pytest.raises(RuntimeError, match="a part failed"):
        await soon(run(make_settings(store={"url": "sqlite:///sessions.db"}), stop=stop))
    assert events.one(Event.DAEMON_FAILED)["part"] == "lag"
