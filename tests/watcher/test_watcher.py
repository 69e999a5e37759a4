"""The watcher's loops under a fake clock."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from aioresponses import CallbackResult
from conftest import (
    NOON,
    Events,
    FakeClock,
    MakeSettings,
    MockedNodes,
    MockedResponse,
    PromptStore,
    register,
    settle,
)
from yarl import URL

from asyncchatd.config.settings import Settings
from asyncchatd.log.events import Event
from asyncchatd.model.data import Cause, ChatServer, Loss, Ms, Reason, ServerState
from asyncchatd.model.values import replace
from asyncchatd.standin.health_page import HealthFormat, write_health
from asyncchatd.stores import StoreError
from asyncchatd.stores.answers import Noted
from asyncchatd.stores.errors import StoreUnwritable
from asyncchatd.watcher.judgement import (
    DISPUTED,
)
from asyncchatd.watcher.watcher import Watcher

pytestmark = pytest.mark.usefixtures("events")

UNKNOWN, UP, SUSPECT, DOWN = ServerState.UNKNOWN, ServerState.UP, ServerState.SUSPECT, ServerState.DOWN


@dataclass
class Plant:
    """Chat Servers' health pages; by default each answers as its own first process."""

    clock: FakeClock
    pids: dict[str, str | None] = field(default_factory=dict)
    """By server name; `None` refuses connections."""
    aliases: dict[str, str] = field(default_factory=dict)
    bodies: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    """By server name; makes a page instead of the common one."""
    reads: list[tuple[str, float]] = field(default_factory=list)
    holding: asyncio.Event | None = None
    most_at_once: Counter[str] = field(default_factory=Counter)
    _now: Counter[str] = field(default_factory=Counter)

    async def answer(self, url: URL, **_: object) -> CallbackResult:
        name = url.host or ""
        self.reads.append((name, self.clock.monotonic()))
        self._now[name] += 1
        self.most_at_once[name] = max(self.most_at_once[name], self._now[name])
        try:
            if self.holding is not None:
                await self.holding.wait()
            if (pid := self.pids.get(name, "1001")) is None:
                key = ConnectionKey(name, 80, False, True, None, None, None)
                raise aiohttp.ClientConnectorError(key, ConnectionRefusedError(111, "Connection refused"))
        finally:
            self._now[name] -= 1
        made = self.bodies.get(name)
        body = made() if made else write_health(HealthFormat.JSON, self.aliases.get(name, "117"), pid)
        return CallbackResult(body=body, response_class=MockedResponse)

    def three(self) -> tuple[str, ...]:
        """Three servers with an alias each."""
        self.aliases.update({"chat-a": "117", "chat-b": "118", "chat-c": "119"})
        return tuple(self.aliases)

    def times(self, name: str = "chat-a") -> list[float]:
        return [at for server, at in self.reads if server == name]


@pytest.fixture
def plant(nodes: MockedNodes, clock: FakeClock) -> Plant:
    plant = Plant(clock)
    nodes.get(re.compile("http://.*"), callback=plant.answer, repeat=True)
    return plant


def watched(make_settings: MakeSettings, aliases: Mapping[str, str | None]) -> Settings:
    """These servers, with the alias that is configured where one is."""
    servers = [
        {"name": name, "health_url": f"http://{name}/"} | ({"app_dbid": alias} if alias else {})
        for name, alias in aliases.items()
    ]
    return make_settings(watcher={"interval": "5s", "fast_interval": "1s"}, chat_servers=servers)


@asynccontextmanager
async def watching(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    *names: str,
    wakeup: asyncio.Event | None = None,
    gms_answers: Callable[[], bool] = lambda: True,
    settings: Settings | None = None,
) -> AsyncIterator[Watcher]:
    """A watcher at work: reads every 5 s, every second while in doubt."""
    settings = settings or watched(make_settings, dict.fromkeys(names))
    watcher = Watcher(store, settings, clock, wakeup or asyncio.Event(), gms_answers)
    await watcher.load()
    running = asyncio.create_task(watcher.run())
    await settle()
    try:
        yield watcher
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def reason_of(store: PromptStore, chat_id: str) -> Reason:
    session = await store.get(chat_id)
    assert session is not None
    return session.reason


async def test_the_sessions_of_nobody_are_those_of_the_one_server_that_was_never_seen(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, events: Events
) -> None:
    names = plant.three()
    plant.pids["chat-c"] = None
    await register(store, "chat-1", alias="119", now=clock.now())
    async with watching(store, clock, make_settings, *names) as watcher:
        await clock.advance(20)
        assert await reason_of(store, "chat-1") is Reason.RESTORE
        [begun] = await store.restorations()
        assert (begun.server, begun.alias, begun.cause) == ("chat-c", "119", Cause.UNREACHABLE)
        said = events.one(Event.SERVER_ALIAS_ASSUMED)
        assert (said["server"], said["alias"], said["sessions"]) == ("chat-c", "119", 1)
        await clock.advance(60)
        assert len(await store.restorations()) == 1
        # Also those that come later.
        await register(store, "chat-2", alias="119", now=clock.now())
        assert await reason_of(store, "chat-2") is Reason.RESTORE
        plant.pids["chat-c"] = "1001"
        await clock.advance(20)
        assert [(each.alias, each.cause) for each in await store.restorations()] == [
            ("119", Cause.RETURNED),
            ("119", Cause.UNREACHABLE),
        ]
        assert not any(server.assumed for server in watcher.servers())
        assert not events.of(Event.SERVER_IDENTITY_CHANGED)


@pytest.mark.parametrize("restarted", [False, True], ids=["", "the daemon starts again meanwhile"])
async def test_a_server_that_was_taken_for_another_finds_its_own_sessions_when_it_returns(
    restarted: bool,
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    events: Events,
) -> None:
    """And the other's, which were pinged in vain, are not pinged a second time."""
    names = plant.three()
    plant.pids["chat-c"] = None
    await register(store, "others", alias="119", now=clock.now())
    async with AsyncExitStack() as stack:
        watcher = await stack.enter_async_context(watching(store, clock, make_settings, *names))
        await clock.advance(20)
        assert events.one(Event.SERVER_ALIAS_ASSUMED)["alias"] == "119"
        if restarted:
            await stack.aclose()
            watcher = await stack.enter_async_context(watching(store, clock, make_settings, *names))
        await register(store, "its-own", alias="120", now=clock.now())
        plant.aliases["chat-c"], plant.pids["chat-c"] = "120", "1001"
        await clock.advance(20)
        assert {server.app_dbid for server in watcher.servers()} == {"117", "118", "120"}
    assert [(each.server, each.alias, each.cause) for each in await store.restorations()] == [
        ("chat-c", "120", Cause.RETURNED),
        ("chat-c", "119", Cause.UNREACHABLE),
    ]
    assert await reason_of(store, "its-own") is Reason.RESTORE
    said = events.one(Event.SERVER_IDENTITY_CHANGED)
    assert (said["previous_alias"], said["alias"]) == ("119", "120")
    assert said["cause"] == "assumed was 119, the page says 120"


@pytest.mark.parametrize("back", [False, True], ids=["still down", "back already"])
@pytest.mark.parametrize("restarted", [False, True], ids=["by a reload", "by a restart"])
async def test_a_server_that_was_taken_for_another_finds_its_own_sessions_when_its_alias_is_configured(
    back: bool,
    restarted: bool,
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    events: Events,
) -> None:
    names = plant.three()
    plant.pids["chat-c"] = None
    plant.aliases["chat-c"] = "120"
    await register(store, "others", alias="119", now=clock.now())
    told = watched(make_settings, plant.aliases)
    async with AsyncExitStack() as stack:
        watcher = await stack.enter_async_context(watching(store, clock, make_settings, *names))
        await clock.advance(20)
        assert events.one(Event.SERVER_ALIAS_ASSUMED)["alias"] == "119"
        await register(store, "its-own", alias="120", now=clock.now())
        if back:
            plant.pids["chat-c"] = "1001"
        if restarted:
            await stack.aclose()
            await stack.enter_async_context(watching(store, clock, make_settings, settings=told))
        else:
            watcher.reload(told)
        await clock.advance(20)
    cause = Cause.RETURNED if back else Cause.UNREACHABLE
    assert [(each.server, each.alias, each.cause) for each in await store.restorations()] == [
        ("chat-c", "120", cause),
        ("chat-c", "119", Cause.UNREACHABLE),
    ]
    assert await reason_of(store, "its-own") is Reason.RESTORE


async def test_a_server_whose_alias_is_configured_owes_its_sessions_until_it_is_judged(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    """One good look is not enough to be up. What it is noted under must not hide from the next start that its own
    were never made due."""
    await register(store, "its-own", now=clock.now())
    await store.note(ChatServer("chat-a", "119", state=DOWN), epoch=0, losses=(), now=clock.now())
    told = watched(make_settings, {"chat-a": "117"})
    for pid in ("1001", None):
        assert not await store.restorations()
        plant.pids["chat-a"] = pid
        async with watching(store, clock, make_settings, settings=told):
            pass  # it looks once
    assert len(plant.reads) == 2
    assert [(each.alias, each.cause) for each in await store.restorations()] == [("117", Cause.UNREACHABLE)]


@pytest.mark.parametrize(
    ("gone", "aliases"),
    [(["chat-c"], ["119", "120"]), (["chat-b", "chat-c"], ["119"]), ([], ["119"]), (["chat-c"], ["117"])],
)
async def test_where_it_may_be_anothers_no_alias_is_assumed(
    gone: list[str],
    aliases: list[str],
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    events: Events,
) -> None:
    names = plant.three()
    plant.aliases["chat-c"] = "121"
    plant.pids.update(dict.fromkeys(gone))
    for alias in aliases:
        await register(store, f"chat-{alias}", alias=alias, now=clock.now())
    async with watching(store, clock, make_settings, *names):
        await clock.advance(60)
    assert not await store.restorations()
    assert not events.of(Event.SERVER_ALIAS_ASSUMED)


async def test_a_lost_server_makes_its_sessions_due(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, events: Events
) -> None:
    await register(store, "hers", "hers-too", now=clock.now())
    await register(store, "others", now=clock.now(), alias="118")
    wakeup = asyncio.Event()
    async with watching(store, clock, make_settings, "chat-a", wakeup=wakeup) as watcher:
        await clock.advance(6)
        plant.pids["chat-a"] = None
        await clock.advance(10)
        [server] = watcher.servers()
    assert (server.state, server.app_dbid, server.detail) == (DOWN, "117", "connection refused")
    assert [await reason_of(store, chat) for chat in ("hers", "hers-too", "others")] == [
        Reason.RESTORE,
        Reason.RESTORE,
        Reason.KEEPALIVE,
    ]
    [begun] = await store.restorations()
    assert (begun.alias, begun.server, begun.cause) == ("117", "chat-a", Cause.UNREACHABLE)
    assert (begun.sessions, begun.waiting) == (2, 2)
    assert wakeup.is_set()
    assert events.one(Event.SERVER_DOWN)["attempts"] == 3
    assert events.one(Event.RESTORATION_STARTED)["sessions"] == 2


@pytest.mark.parametrize("pid", [None, "2002"], ids=["unreachable", "restarted"])
@pytest.mark.parametrize("failures", [1, 3])
async def test_a_loss_that_is_on_record_though_the_store_said_that_it_failed_is_restored(
    failures: int,
    pid: str | None,
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when the file is found to be gone after a commit: what lies at its path again has it."""
    await register(store, "hers", now=clock.now())
    note, failed = store.note, 0

    async def noted_and_failed(*arguments: Any, losses: Sequence[Loss], **more: Any) -> Noted | None:
        nonlocal failed
        noted = await note(*arguments, losses=losses, **more)
        if losses and failed < failures:
            failed += 1
            raise StoreUnwritable("the database was deleted")
        return noted

    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        monkeypatch.setattr(store, "note", noted_and_failed)
        plant.pids["chat-a"] = pid
        await clock.advance(60)
    assert failed >= 1
    assert await reason_of(store, "hers") is Reason.RESTORE
    assert not any(each.marking for each in await store.restorations(unfinished=True))


async def test_a_restarted_server_makes_its_sessions_due(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, events: Events
) -> None:
    await register(store, "hers", now=clock.now())
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        plant.pids["chat-a"] = "2002"
        await clock.advance(8)
    assert await reason_of(store, "hers") is Reason.RESTORE
    restarted = events.one(Event.SERVER_RESTARTED)
    assert (restarted["previous_pid"], restarted["process_os_pid"]) == ("1001", "2002")
    assert restarted["cause"] == "process_os_pid 1001 became 2002"
    [kept] = await store.servers()
    assert (kept.app_dbid, kept.process_os_pid, kept.state) == ("117", "2002", UP)


async def test_a_restart_while_the_daemon_was_away_is_found_at_start(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    await register(store, "hers", now=clock.now())
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
    plant.pids["chat-a"] = "2002"
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(2)
        [begun] = await store.restorations()
    assert begun.cause is Cause.RESTARTED
    assert await reason_of(store, "hers") is Reason.RESTORE


async def test_a_server_that_stayed_the_same_while_the_daemon_was_away_is_left_alone(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    for _ in range(2):
        async with watching(store, clock, make_settings, "chat-a"):
            await clock.advance(20)
    assert not await store.restorations()


@pytest.mark.parametrize("pid", ["1001", "2002"])
async def test_a_server_that_is_back_when_all_its_sessions_were_restored_elsewhere_begins_no_restoration(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, pid: str
) -> None:
    await register(store, "hers", now=clock.now())
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        plant.pids["chat-a"] = None
        await clock.advance(10)
        await register(store, "hers", alias="118", now=clock.now())
        plant.pids["chat-a"] = pid
        await clock.advance(10)
    [restoration] = await store.restorations()
    assert (restoration.cause, restoration.sessions) == (Cause.UNREACHABLE, 1)
    [server] = await store.servers()
    assert (server.state, server.process_os_pid) == (UP, pid)


async def test_a_server_that_comes_back_has_its_sessions_pinged_once_more(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    await register(store, "hers", now=clock.now())
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        plant.pids["chat-a"] = None
        await clock.advance(10)
        plant.pids["chat-a"] = "1001"
        await clock.advance(10)
    assert [each.cause for each in await store.restorations()] == [Cause.RETURNED, Cause.UNREACHABLE]


async def test_a_loss_and_the_new_pair_are_put_on_record_together(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A crash in between would find the loss twice, or never."""
    written: list[tuple[str | None, int]] = []
    note = store.note

    async def noting(server: ChatServer, *, epoch: int, losses: Sequence[Loss], now: Ms) -> Noted | None:
        written.append((server.process_os_pid, len(losses)))
        return await note(server, epoch=epoch, losses=losses, now=now)

    monkeypatch.setattr(store, "note", noting)
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        plant.pids["chat-a"] = "2002"
        await clock.advance(8)
    assert written == [("1001", 0), ("1001", 0), ("2002", 1)]


async def test_what_somebody_else_noted_of_a_server_counts(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        [kept] = await store.servers()
        theirs = replace(kept, process_os_pid="2002")
        noted = await store.note(
            theirs, epoch=kept.epoch, losses=[Loss("117", Cause.RESTARTED)], now=clock.now()
        )
        assert noted is not None
        plant.pids["chat-a"] = "2002"
        await clock.advance(20)
        [after] = await store.servers()
    assert len(await store.restorations()) == 1
    assert (after.process_os_pid, after.state, after.epoch > noted.epoch) == ("2002", UP, True)


async def test_a_loss_that_could_not_be_written_is_noticed_again(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
    events: Events,
) -> None:
    await register(store, "hers", now=clock.now())
    note = store.note
    failures = iter([True, True])

    async def fail_twice(server: ChatServer, *, epoch: int, losses: Sequence[Loss], now: Ms) -> Noted | None:
        if len(losses) and next(failures, False):
            raise StoreError("the disk is full")
        return await note(server, epoch=epoch, losses=losses, now=now)

    monkeypatch.setattr(store, "note", fail_twice)
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        plant.pids["chat-a"] = "2002"
        await clock.advance(30)
        [begun] = await store.restorations()
        [kept] = await store.servers()
    assert begun.cause is Cause.RESTARTED
    assert kept.process_os_pid == "2002"
    assert await reason_of(store, "hers") is Reason.RESTORE
    assert len(events.of(Event.STORE_FAILED)) == 2


async def test_a_loss_on_record_is_not_begun_again_when_its_sessions_cannot_be_marked(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
    events: Events,
) -> None:
    await register(store, "hers", now=clock.now())
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        succeed = store.mark
        failures = iter([True, True, False])

        async def fail_twice(restoration: int, *, limit: int, now: Ms) -> bool:
            if next(failures, False):
                raise StoreError("the disk is full")
            return await succeed(restoration, limit=limit, now=now)

        monkeypatch.setattr(store, "mark", fail_twice)
        plant.pids["chat-a"] = "2002"
        await clock.advance(30)
        [begun] = await store.restorations()
        [kept] = await store.servers()
    assert (begun.cause, begun.sessions) == (Cause.RESTARTED, 1)
    assert kept.process_os_pid == "2002"
    assert await reason_of(store, "hers") is Reason.RESTORE
    assert len(events.of(Event.STORE_FAILED)) == 2


@pytest.mark.parametrize("call", ["mark", "note"])
async def test_of_a_disk_that_is_full_the_store_tells_and_nobody_else(
    call: str,
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
    events: Events,
) -> None:
    async def fail(*_: object, **__: object) -> object:
        raise StoreUnwritable("the store could not be written: database or disk is full")

    await register(store, "hers", now=clock.now())
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        monkeypatch.setattr(store, call, fail)
        plant.pids["chat-a"] = "2002"
        await clock.advance(30)
    assert events.of(Event.SERVER_SUSPECT)
    assert not events.of(Event.STORE_FAILED)


async def test_a_server_that_was_down_and_is_configured_no_more_loses_nobody(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    """It has another name now, or is gone for good: sessions that come to its alias are not lost by that."""
    down = ChatServer("chat-a", "117", "1001", state=ServerState.DOWN)
    await store.note(down, epoch=0, losses=(), now=clock.now())
    async with watching(store, clock, make_settings, "chat-b"):
        await clock.advance(6)
        await register(store, "new", now=clock.now())
    assert await reason_of(store, "new") is Reason.KEEPALIVE


async def test_a_server_that_is_down_when_a_reload_takes_it_away_loses_nobody_later(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    plant.pids["chat-a"] = None
    async with watching(store, clock, make_settings, "chat-a") as watcher:
        await clock.advance(30)
        [kept] = await store.servers()
        assert kept.state is ServerState.DOWN
        settings = make_settings()
        watcher.reload(settings)
        await clock.advance(1)
        [kept] = await store.servers()
        assert kept.state is ServerState.UNKNOWN
        # Back again, it still was down before: its sessions are pinged once more when it returns.
        settings = make_settings(chat_servers=[{"name": "chat-a", "health_url": "http://chat-a/"}])
        watcher.reload(settings)
        await clock.advance(1)
        assert watcher.servers()[0].state is ServerState.DOWN


async def test_marking_that_a_stop_cut_off_is_finished_at_start(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    await register(store, "hers", now=clock.now())
    begun = await store.begin_restoration(
        alias="117", server="chat-a", cause=Cause.UNREACHABLE, now=clock.now()
    )
    async with watching(store, clock, make_settings):
        await clock.advance(0.1)
        [after] = await store.restorations()
    assert (after.id, after.marking, after.sessions) == (begun.id, False, 1)
    assert await reason_of(store, "hers") is Reason.RESTORE


async def test_marking_goes_on_when_the_store_can_be_written_again(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    await register(store, "hers", now=clock.now())
    await store.begin_restoration(alias="117", server="chat-a", cause=Cause.UNREACHABLE, now=clock.now())
    settings = make_settings()
    watcher = Watcher(store, settings, clock, asyncio.Event())
    await watcher.load()
    store.fill_disk()
    running = asyncio.create_task(watcher.run())
    await clock.advance(3)
    assert not running.done()
    store.free_disk()
    await clock.advance(2)
    assert await reason_of(store, "hers") is Reason.RESTORE
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_store_that_fails_does_not_end_the_watching(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    await register(store, "hers", now=clock.now())
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        plant.pids["chat-a"] = None
        store.fill_disk()
        await clock.advance(30)
        store.free_disk()
        await clock.advance(12)
        assert await reason_of(store, "hers") is Reason.RESTORE


async def test_one_server_is_never_read_twice_at_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    plant.holding = asyncio.Event()
    async with watching(store, clock, make_settings, "chat-a", "chat-b") as watcher:
        for _ in range(5):
            watcher.look_at("117")
            await clock.advance(5)
        assert len(plant.reads) == 2
        plant.holding.set()
        await clock.advance(20)
    assert plant.most_at_once == {"chat-a": 1, "chat-b": 1}
    assert len(plant.times("chat-a")) >= 4


async def test_servers_are_read_side_by_side(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    async with watching(store, clock, make_settings, "chat-a", "chat-b"):
        await clock.advance(1)
        # One that hangs must not keep the others from being read.
        held, plant.holding = len(plant.times("chat-b")), asyncio.Event()
        await clock.advance(6)
        assert len(plant.times("chat-b")) == held + 1
        plant.holding.set()


async def test_a_hint_makes_the_watcher_look_at_once(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    plant.aliases["chat-b"] = "118"
    async with watching(store, clock, make_settings, "chat-a", "chat-b") as watcher:
        await clock.advance(1)
        watcher.look_at("118")
        watcher.look_at("no such alias")
        await settle()
        assert (plant.times("chat-a"), plant.times("chat-b")) == ([0], [0, 1])


async def test_reads_are_spread_by_a_tenth_and_come_faster_while_in_doubt(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(200)
        calm = plant.times()
        plant.pids["chat-a"] = None
        await clock.advance(7.6)
        times = plant.times()[len(calm) :]
    gaps = [later - earlier for earlier, later in pairwise(calm)]
    assert min(gaps) >= 4.5
    assert max(gaps) <= 5.5
    assert max(gaps) - min(gaps) > 0.1
    assert times[1] - times[0] <= 1.1
    assert times[2] - times[1] <= 1.1


async def test_a_replaced_server_that_lives_elsewhere_loses_nothing(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, events: Events
) -> None:
    """Two addresses were exchanged: both servers are well."""
    plant.aliases.update({"chat-a": "117", "chat-b": "118"})
    plant.pids.update({"chat-a": "1", "chat-b": "2"})
    async with watching(store, clock, make_settings, "chat-a", "chat-b", "chat-c"):
        await clock.advance(6)
        plant.aliases.update({"chat-c": "117"})
        await clock.advance(8)
        plant.aliases.update({"chat-a": "119"})
        await clock.advance(8)
    assert not [each for each in await store.restorations() if each.server == "chat-a"]
    assert "119" in [line["alias"] for line in events.of(Event.SERVER_IDENTITY_CHANGED)]


async def test_a_replaced_server_that_lives_nowhere_is_lost(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, events: Events
) -> None:
    await register(store, "hers", now=clock.now())
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(6)
        plant.aliases["chat-a"] = "118"
        await clock.advance(8)
    [begun] = await store.restorations()
    assert (begun.alias, begun.cause) == ("117", Cause.REPLACED)
    assert await reason_of(store, "hers") is Reason.RESTORE
    changed = events.one(Event.SERVER_IDENTITY_CHANGED)
    assert (changed["previous_alias"], changed["alias"]) == ("117", "118")


@pytest.mark.slow
async def test_only_what_changed_is_written(
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten servers read every second would otherwise be ten commits a second for nothing."""
    saved: list[ChatServer] = []
    note = store.note

    async def noting(server: ChatServer, *, epoch: int, losses: Sequence[Loss], now: Ms) -> Noted | None:
        saved.append(server)
        return await note(server, epoch=epoch, losses=losses, now=now)

    monkeypatch.setattr(store, "note", noting)
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(120)
        assert len(saved) == 1
        # But what is stored must not become so old that a restart of the daemon knows too little.
        await clock.advance(1200)
    assert len(saved) == 3


async def test_without_servers_there_is_nothing_to_watch_and_it_goes_on(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    async with watching(store, clock, make_settings) as watcher:
        await clock.advance(60)
        assert watcher.servers() == []


async def test_a_server_of_a_configured_alias_is_shown_and_kept_under_it(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    settings = make_settings(
        chat_servers=[{"name": "chat-a", "health_url": "http://chat-a/", "app_dbid": 500}],
        watcher={"timeout": "1s"},
    )
    assert settings.watcher.timeout == timedelta(seconds=1)
    watcher = Watcher(store, settings, clock, asyncio.Event())
    await watcher.load()
    [before] = watcher.servers()
    assert (before.app_dbid, before.state) == ("500", UNKNOWN)
    running = asyncio.create_task(watcher.run())
    await clock.advance(1)
    [kept] = await store.servers()
    assert replace(kept, checked_at=0, epoch=0) == ChatServer(
        "chat-a", "500", "1001", None, UP, since=NOON, first_seen=NOON, last_seen=NOON
    )
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# -- several processes, zeroed counters, set clocks --------------------------------------------------------


def by_turns(*pages: tuple[str, str], times: int) -> Callable[[], bytes]:
    """A balancer's address: `app_dbid` and process id of who answers, each so many times in a row."""
    answers = itertools.cycle([each for each in pages for _ in range(times)])
    return lambda: write_health(HealthFormat.JSON, *next(answers))


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("second", [("117", "1002"), ("118", "1002")])
async def test_a_balancers_address_is_told_once_and_restored_once_at_most(
    times: int,
    second: tuple[str, str],
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
    events: Events,
) -> None:
    plant.bodies["chat-a"] = by_turns(("117", "1001"), second, times=times)
    async with watching(store, clock, make_settings, "chat-a") as watcher:
        await clock.advance(900)
        [server] = watcher.servers()
    assert (server.state, server.detail) == (UP, DISPUTED)
    assert len(await store.restorations()) <= 1
    told = events.one(Event.SERVER_IDENTITY_DISPUTED)
    assert "1001" in str(told["cause"])
    assert "1002" in str(told["cause"])
    # What is known of it survives the daemon.
    async with watching(store, clock, make_settings, "chat-a") as watcher:
        [server] = watcher.servers()
        assert server.disputed is not None
        await clock.advance(900)
    assert len(await store.restorations()) <= 1
    assert len(events.of(Event.SERVER_IDENTITY_DISPUTED)) == 1


async def test_a_restart_behind_a_balancers_address_is_noticed(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    plant.bodies["chat-a"] = by_turns(("117", "1001"), ("117", "1002"), times=1)
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(60)
        assert not await store.restorations()
        plant.bodies["chat-a"] = by_turns(("117", "1001"), ("117", "1003"), times=1)
        await clock.advance(60)
    [begun] = await store.restorations()
    assert begun.cause is Cause.RESTARTED


async def test_a_reload_says_that_one_process_answers_again(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, events: Events
) -> None:
    plant.bodies["chat-a"] = by_turns(("117", "1001"), ("117", "1002"), times=1)
    servers = [{"name": "chat-a", "health_url": "http://chat-a/"}]
    settings = make_settings(watcher={"interval": "5s", "fast_interval": "1s"}, chat_servers=servers)
    async with watching(store, clock, make_settings, "chat-a") as watcher:
        await clock.advance(60)
        plant.bodies.clear()
        watcher.reload(settings)
        await clock.advance(60)
        [server] = watcher.servers()
        assert (server.state, server.disputed, server.detail) == (UP, None, None)
        plant.pids["chat-a"] = "1002"
        await clock.advance(60)
    assert [each.cause for each in await store.restorations()] == [Cause.RESTARTED]
    assert len(events.of(Event.SERVER_IDENTITY_DISPUTED)) == 1


@pytest.mark.parametrize("pid", ["1", "4711"])
async def test_counters_zeroed_on_every_server_at_once_are_no_restart(
    pid: str, store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, events: Events
) -> None:
    """Deleting `log-output-content` of the health service does that."""
    zeroed_at = [float("inf")]

    def counting(name: str) -> Callable[[], bytes]:
        def made() -> bytes:
            since = clock.monotonic() - zeroed_at[0]
            total = 5000 + clock.monotonic() if since < 0 else since
            return write_health(
                HealthFormat.PROMETHEUS, plant.aliases[name], pid, counters={"m_total": total}
            )

        return made

    names = plant.three()
    plant.bodies = {name: counting(name) for name in names}
    async with watching(store, clock, make_settings, *names) as watcher:
        await clock.advance(60)
        zeroed_at[0] = clock.monotonic()
        await clock.advance(60)
        assert {server.state for server in watcher.servers()} == {UP}
        assert not await store.restorations()
        assert {line["server"] for line in events.of(Event.SERVER_COUNTERS_RESET)} == set(names)


async def test_one_containers_counters_that_begin_anew_are_a_restart(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    totals = {"chat-a": 900.0, "chat-b": 900.0, "chat-c": 900.0}

    def counting(name: str) -> Callable[[], bytes]:
        return lambda: write_health(
            HealthFormat.PROMETHEUS, plant.aliases[name], "1", counters={"m_total": totals[name]}
        )

    names = plant.three()
    plant.bodies = {name: counting(name) for name in names}
    async with watching(store, clock, make_settings, *names):
        await clock.advance(60)
        totals["chat-b"] = 0
        await clock.advance(20)
    [begun] = await store.restorations()
    assert (begun.server, begun.cause) == ("chat-b", Cause.RESTARTED)


@pytest.mark.slow
@pytest.mark.parametrize("step_ms", [3_600_000, 40_000_000_000, -3_600_000])
async def test_our_clock_that_is_set_makes_no_restart(
    step_ms: Ms, store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    def uptime() -> bytes:
        return write_health(HealthFormat.JSON, "117", "1", uptime=round(clock.monotonic() + 300, 1))

    plant.bodies["chat-a"] = uptime
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(60)
        clock.set_wall(step_ms)
        await clock.advance(700)
    # The daemon starts anew, under the clock as it is now.
    async with watching(store, clock, make_settings, "chat-a") as watcher:
        await clock.advance(60)
        assert watcher.servers()[0].state is UP
    assert not await store.restorations()


@pytest.mark.slow
async def test_a_container_that_restarted_while_the_daemon_was_away_is_found_after_the_clock_was_set(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    born = [-300.0]

    def uptime() -> bytes:
        return write_health(HealthFormat.JSON, "117", "1", uptime=round(clock.monotonic() - born[0], 1))

    plant.bodies["chat-a"] = uptime
    async with watching(store, clock, make_settings, "chat-a"):
        clock.set_wall(3_600_000)
        await clock.advance(700)
    born[0] = clock.monotonic()
    await clock.advance(10)
    async with watching(store, clock, make_settings, "chat-a"):
        await clock.advance(60)
    assert [each.cause for each in await store.restorations()] == [Cause.RESTARTED]


# -- the watcher suspects itself -------------------------------------------------------------------------------


async def test_what_was_read_while_the_daemon_stood_still_is_held_against_nobody(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, events: Events
) -> None:
    async with watching(store, clock, make_settings, "chat-a") as watcher:
        await clock.advance(6)
        plant.pids["chat-a"] = None
        held = plant.holding = asyncio.Event()
        for _ in range(5):  # each read falls into a stall
            await clock.advance(6)
            watcher.stalled()
            clock.stall(0.001)
            release, held = held, asyncio.Event()
            plant.holding = held
            release.set()
            await settle()
        assert watcher.servers()[0].state is UP
        plant.holding = None
        held.set()
        await clock.advance(12)
        assert watcher.servers()[0].state is DOWN
    assert events.of(Event.SELF_SUSPECTED)
    assert len(await store.restorations()) == 1


async def test_when_most_servers_and_gms_vanish_together_it_is_our_own_network(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant, events: Events
) -> None:
    names = plant.three()
    gms = [True]
    async with watching(store, clock, make_settings, *names, gms_answers=lambda: gms[0]) as watcher:
        await clock.advance(6)
        plant.pids.update(dict.fromkeys(names))
        gms[0] = False
        await clock.advance(60)
        assert DOWN not in {server.state for server in watcher.servers()}
        assert not await store.restorations()
        assert len(events.of(Event.SELF_SUSPECTED)) == 1
        # The network is back: nothing had happened to anybody.
        plant.pids.clear()
        gms[0] = True
        await clock.advance(12)
        assert {server.state for server in watcher.servers()} == {UP}
        assert not await store.restorations()


async def test_servers_still_gone_when_gms_is_back_are_lost(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    names = plant.three()
    gms = [True]
    async with watching(store, clock, make_settings, *names, gms_answers=lambda: gms[0]):
        await clock.advance(6)
        plant.pids.update(dict.fromkeys(names))
        gms[0] = False
        await clock.advance(30)
        gms[0] = True
        await clock.advance(3)
    assert {each.alias for each in await store.restorations()} == {"117", "118", "119"}


@pytest.mark.parametrize(("gone", "gms"), [(["chat-a"], False), (["chat-a", "chat-b", "chat-c"], True)])
async def test_one_server_without_gms_or_all_servers_with_it_are_really_gone(
    gone: list[str],
    gms: bool,
    store: PromptStore,
    clock: FakeClock,
    make_settings: MakeSettings,
    plant: Plant,
) -> None:
    names = plant.three()
    async with watching(store, clock, make_settings, *names, gms_answers=lambda: gms):
        await clock.advance(6)
        plant.pids.update(dict.fromkeys(gone))
        await clock.advance(12)
    assert {each.server for each in await store.restorations()} == set(gone)


async def test_hints_in_doubt_do_not_turn_fall_reads_into_a_moment(
    store: PromptStore, clock: FakeClock, make_settings: MakeSettings, plant: Plant
) -> None:
    async with watching(store, clock, make_settings, "chat-a") as watcher:
        await clock.advance(6)
        plant.pids["chat-a"] = None
        for _ in range(10):
            watcher.look_at("117")
            await clock.advance(0.05)
        assert watcher.servers()[0].state is SUSPECT
        await clock.advance(3)
        assert watcher.servers()[0].state is DOWN
