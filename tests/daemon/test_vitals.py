"""The watchdog is fed by a daemon that does its work, and by no other; the status line says how it is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from conftest import Events, FakeClock, MakeSettings, PromptStore, settle, soon

from asyncchatd.config.settings import Settings
from asyncchatd.daemon import systemd, vitals
from asyncchatd.daemon.vitals import (
    LAG_SECONDS,
    OVERDUE_SECONDS,
    STUCK_SECONDS,
    Vitals,
    ailments,
    status_line,
)
from asyncchatd.log.events import Event
from asyncchatd.model.data import Cause, ChatServer, Reason, Restoration, ServerState, SessionState
from asyncchatd.stores.answers import Counts
from asyncchatd.stores.sqlite import MemoryStore, SqliteStore
from asyncchatd.stores.sqlite.transactions import sessions
from asyncchatd.watcher.page import HealthPages, Seen, Unreachable
from asyncchatd.watcher.watcher import Watcher
from daemon.test_run import Systemd, one_turn, ready

pytestmark = pytest.mark.usefixtures("events")


# -- the judgement ---------------------------------------------------------------------------------------


def test_a_daemon_that_moves_is_well() -> None:
    assert ailments(Vitals()) == []
    assert ailments(Vitals(LAG_SECONDS, STUCK_SECONDS, OVERDUE_SECONDS)) == []


@pytest.mark.parametrize(
    ("sick", "words"),
    [
        (Vitals(loop_lag=7), "the event loop is 7 s late"),
        (Vitals(store_stuck=12), "the store has written nothing for 12 s"),
        (Vitals(watch_overdue=30), "a Chat Server should have been looked at 30 s ago"),
    ],
)
def test_each_thing_that_stands_still_is_an_ailment(sick: Vitals, words: str) -> None:
    assert ailments(sick) == [words]


def test_all_ailments_are_told() -> None:
    assert len(ailments(Vitals(100, 100, 100))) == 3


# -- the status line -------------------------------------------------------------------------------------


def counted(live: int, due: int) -> Counts:
    states = dict.fromkeys(SessionState, 0) | {SessionState.LIVE: live, SessionState.ENDED: 5}
    return Counts(states, dict.fromkeys(Reason, 0) | {Reason.RESTORE: due}, 0)


def restoration(sessions: int, restored: int, server: str | None = "chat-3") -> Restoration:
    return Restoration(1, "119", server, Cause.UNREACHABLE, 0, False, sessions, restored, 0, 0, 0, None)


def test_the_status_line_of_a_quiet_day() -> None:
    servers = [ChatServer(f"chat-{n}", state=ServerState.UP) for n in range(8)]
    assert status_line(counted(99_999, 0), servers, [], 3) == (
        "99,999 sessions, 0 due, 3 pings in flight; Chat Servers: 8 up"
    )


def test_the_status_line_of_a_restoration() -> None:
    servers = [
        ChatServer("chat-1", state=ServerState.UP),
        ChatServer("chat-2", state=ServerState.SUSPECT),
        ChatServer("chat-3", state=ServerState.DOWN),
    ]
    running = [
        restoration(12_500, 4_200),
        restoration(70, 7, None),
        restoration(5, 5, "announced, lingering"),
    ]
    assert status_line(counted(40_000, 8_300), servers, running, 100) == (
        "40,000 sessions, 8,300 due, 100 pings in flight; "
        "Chat Servers: 1 up, 1 suspect (chat-2), 1 down (chat-3); "
        "restoring chat-3: 4,200 of 12,500, alias 119: 7 of 70"
    )


def test_many_lost_servers_are_counted_and_no_name_ends_the_line() -> None:
    servers = [ChatServer(f"chat\n{n}", state=ServerState.DOWN) for n in range(5)]
    line = status_line(counted(0, 0), servers, [], 0)
    assert line.endswith("Chat Servers: 5 down (chat 0, chat 1, chat 2 and 2 more)")


# -- what is measured ------------------------------------------------------------------------------------


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore("sqlite:///sessions.db", directory=tmp_path)
    await opened.open()
    yield opened
    await opened.close()


async def test_a_store_with_nothing_to_write_is_not_stuck(disk: SqliteStore) -> None:
    assert disk.stuck_for() == 0
    await disk.remove("chat-1", now=0)
    assert disk.stuck_for() == 0


async def test_a_commit_that_does_not_end_is_stuck_longer_and_longer(
    disk: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = threading.Event()
    monkeypatch.setattr(sessions, "remove", lambda *_: hang.wait(20))
    removing = asyncio.ensure_future(disk.remove("chat-1", now=0))
    try:
        async with asyncio.timeout(20):
            while not disk.stuck_for() > 0.05:
                await one_turn()
            # What is handed in meanwhile does not make it look as if something had been written.
            more = asyncio.ensure_future(disk.purge(ended_before=0, limit=1))
            before = disk.stuck_for()
            await asyncio.sleep(0)
            assert disk.stuck_for() >= before
    finally:
        hang.set()
    await soon(removing)
    await soon(more)
    assert disk.stuck_for() == 0


@asynccontextmanager
async def watching(store: PromptStore, settings: Settings, clock: FakeClock) -> AsyncIterator[Watcher]:
    watched = Watcher(store, settings, clock, asyncio.Event())
    await watched.load()
    running = asyncio.create_task(watched.run())
    try:
        yield watched
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_a_watcher_that_looks_in_time_is_never_overdue(
    store: PromptStore, make_settings: MakeSettings, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> Seen:
        await clock.sleep(2)
        return Unreachable("no answer in time")

    monkeypatch.setattr(HealthPages, "look", away)
    settings = make_settings(
        chat_servers=[{"name": f"chat-{n}", "health_url": f"http://chat-{n}/"} for n in range(3)]
    )
    async with watching(store, settings, clock) as watched:
        for _ in range(600):
            await clock.advance(0.1)
            assert watched.overdue() < 0.2


async def test_a_watcher_that_polls_no_more_is_overdue(
    store: PromptStore, make_settings: MakeSettings, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hanging(*_: object) -> Seen:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(HealthPages, "look", hanging)
    settings = make_settings(
        chat_servers=[{"name": "chat-1", "health_url": "http://chat-1/"}], watcher={"timeout": "2s"}
    )
    async with watching(store, settings, clock) as watched:
        await clock.advance(2)
        assert watched.overdue() == 0
        await clock.advance(11)
        assert watched.overdue() == 11
        # A server that is not watched any more is nobody's duty.
        none = settings.model_copy(update={"chat_servers": ()})
        watched.reload(none)
        assert watched.overdue() == 0


# -- feeding ---------------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What systemd hears."""
    heard: list[str] = []
    monkeypatch.setattr(systemd, "notify", heard.append)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    return heard


class Body:
    """A daemon of which only the vitals are there."""

    def __init__(self) -> None:
        self.stuck = self.late = 0.0

    def stuck_for(self) -> float:
        return self.stuck

    def overdue(self) -> float:
        return self.late


@asynccontextmanager
async def feeding(body: Body, clock: FakeClock) -> AsyncIterator[None]:
    reporting = vitals.Reporting(body, None, body, None, clock)  # type: ignore[arg-type]
    task = asyncio.create_task(reporting.feed())
    await settle()
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("organ", ["stuck", "late"])
async def test_a_sick_daemon_is_not_fed_and_says_so_once(
    organ: str, told: list[str], clock: FakeClock, events: Events
) -> None:
    body = Body()
    async with feeding(body, clock):
        await clock.advance(60)
        assert len(told) == 61
        setattr(body, organ, 11.0)
        told.clear()
        await clock.advance(14)
        assert not events.of(Event.WATCHDOG_STARVED)
        await clock.advance(100)
        assert told == []
        assert " 11 s" in str(events.one(Event.WATCHDOG_STARVED)["cause"])
        setattr(body, organ, 0.0)
        await clock.advance(1)
        assert told == ["WATCHDOG=1"]
    assert len(events.of(Event.WATCHDOG_FED)) == 1


async def test_a_loop_that_is_late_once_is_fed_on_and_one_that_always_is_is_not(
    told: list[str], clock: FakeClock, events: Events
) -> None:
    async with feeding(Body(), clock):
        clock.stall(20)
        await clock.advance(1)
        assert told[-1] == "WATCHDOG=1"
        assert not events.of(Event.WATCHDOG_STARVED)
        told.clear()
        for _ in range(10):
            clock.stall(7)
            await clock.advance(0)
        assert told == []
    assert "the event loop is 6 s late" in str(events.one(Event.WATCHDOG_STARVED)["cause"])


async def test_without_a_watchdog_nobody_is_fed(
    told: list[str], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC")
    async with feeding(Body(), clock):
        await clock.advance(100)
    assert told == []


# -- in the whole daemon ---------------------------------------------------------------------------------


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    listening = Systemd(tmp_path / "notify.sock")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify.sock"))
    yield listening
    listening.close()


@pytest.mark.slow
async def test_a_wedged_writer_starves_the_watchdog(
    make_settings: MakeSettings, events: Events, manager: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    monkeypatch.setattr(vitals, "STUCK_SECONDS", 0.1)
    settings = make_settings(store={"url": "sqlite:///sessions.db"})
    hang = threading.Event()
    async with ready(settings, events, manager) as daemon:
        await manager.hears("WATCHDOG=1")
        monkeypatch.setattr(sessions, "remove", lambda *_: hang.wait(20))
        await daemon.register()
        removing = asyncio.create_task(daemon.call("DELETE", "/v1/sessions/chat-1"))
        try:
            async with asyncio.timeout(20):
                while not events.of(Event.WATCHDOG_STARVED):
                    await one_turn()
        finally:
            hang.set()
        await soon(removing)
        async with asyncio.timeout(20):
            while not events.of(Event.WATCHDOG_FED):
                await one_turn()
    assert "the store has written nothing for" in str(events.one(Event.WATCHDOG_STARVED)["cause"])
    assert len(events.of(Event.WATCHDOG_FED)) == 1


async def test_systemd_is_told_why_nothing_can_be_written(
    make_settings: MakeSettings, events: Events, manager: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryStore, "trouble", property(lambda _: "the store could not be written:\nfull"))
    async with ready(make_settings(), events, manager):
        await manager.hears("STATUS=the store could not be written: full; 0 sessions")


async def test_nothing_is_ready_before_the_pairs_are_loaded(
    make_settings: MakeSettings, events: Events, manager: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, go_on = asyncio.Event(), asyncio.Event()
    load = Watcher.load

    async def slow(watched: Watcher) -> None:
        loading.set()
        await go_on.wait()
        await load(watched)

    monkeypatch.setattr(Watcher, "load", slow)

    async def live() -> None:
        async with ready(make_settings(), events, manager):
            pass

    living = asyncio.create_task(live())
    await soon(loading.wait())
    await settle()
    assert "daemon_ready" not in events.names()
    assert manager.told == []
    go_on.set()
    await soon(living)
    assert manager.told[0] == "READY=1"


async def test_systemd_is_asked_for_patience_while_answers_are_waited_for(manager: Systemd) -> None:
    stop_time = vitals.StopTime()
    waiting = [3]
    stop_time.begin(11.0, lambda: waiting[0])
    await manager.hears("STOPPING=1")
    await manager.hears("EXTEND_TIMEOUT_USEC=10000000\n")
    assert manager.told[-1].endswith("STATUS=Stopping: waiting for 3 answers of GMS")
    stop_time.end()
