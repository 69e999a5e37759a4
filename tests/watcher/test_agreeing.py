"""Several nodes that share a store watch the same Chat Servers: one loss is one restoration, and is agreed upon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest
from conftest import Events, FakeClock, MakeSettings, PromptStore, register

from asyncchatd.config.settings import Settings
from asyncchatd.log.events import Event
from asyncchatd.model.data import Cause, ServerState, Views
from asyncchatd.stores import Store, StoreError
from asyncchatd.watcher import watcher as module
from asyncchatd.watcher.watcher import Watcher

from .sharing import HEARD_MS, Said
from .ways import ALIASES, Plant, Ways

pytestmark = pytest.mark.usefixtures("events")


class Shared(PromptStore):
    """A store that several share: each `Seat` is one of them."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.said = Said(clock)
        self.away: set[str] = set()


class Seat:
    """The store as one node has it."""

    def __init__(self, shared: Shared, node: str) -> None:
        self._shared = shared
        self._node = node
        self._start = shared.said.begin(node)

    def __getattr__(self, name: str) -> object:
        return getattr(self._shared, name)

    async def views(self, own: Views) -> Sequence[Views]:
        if self._node in self._shared.away:
            raise StoreError("the database is away")
        return self._shared.said.say(self._start, own)


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    servers = [{"name": name, "health_url": f"http://{name}/"} for name in ALIASES]
    return make_settings(
        watcher={"interval": "5s", "fast_interval": "1s", "idle_connection": False}, chat_servers=servers
    )


@pytest.fixture
async def shared(clock: FakeClock) -> AsyncIterator[Shared]:
    store = Shared(clock)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def plant(
    shared: Shared, clock: FakeClock, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Plant]:
    """Three nodes watch three servers."""
    plant = Plant()
    names = iter(("node-1", "node-2", "node-3"))
    monkeypatch.setattr(module, "HealthPages", lambda: Ways(plant, next(names)))
    await register(shared, "hers", now=clock.now())
    running = []
    for node in ("node-1", "node-2", "node-3"):
        watcher = Watcher(cast(Store, Seat(shared, node)), settings, clock, asyncio.Event())
        await watcher.load()
        running.append(asyncio.create_task(watcher.run()))
    await clock.advance(12)
    yield plant
    assert not any(task.done() for task in running)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_a_server_that_dies_is_restored_once(
    plant: Plant, shared: Shared, clock: FakeClock, events: Events
) -> None:
    plant.pids["chat-a"] = None
    await clock.advance(12)
    [begun] = await shared.restorations()
    assert (begun.server, begun.alias, begun.cause, begun.marking) == (
        "chat-a",
        "117",
        Cause.UNREACHABLE,
        False,
    )
    down = [server for server in await shared.servers() if server.state is ServerState.DOWN]
    assert [server.name for server in down] == ["chat-a"]
    assert len(events.of(Event.SERVER_DOWN)) == 3, "each node says so"
    assert not events.of(Event.SERVER_OUTVOTED)


async def test_it_is_gone_no_later_than_where_one_looks_alone(
    plant: Plant, shared: Shared, clock: FakeClock
) -> None:
    """Whoever misses it first has all of them look."""
    plant.pids["chat-a"] = None
    await clock.advance(5 * 1.1 + 2 * 1.1 + 1.2)
    assert len(await shared.restorations()) == 1


async def test_a_server_that_was_restarted_is_restored_once(
    plant: Plant, shared: Shared, clock: FakeClock
) -> None:
    plant.pids["chat-b"] = "2002"
    await clock.advance(30)
    [begun] = await shared.restorations()
    assert (begun.server, begun.cause) == ("chat-b", Cause.RESTARTED)


async def test_a_node_that_is_cut_off_from_a_server_is_outvoted(
    plant: Plant, shared: Shared, clock: FakeClock, events: Events
) -> None:
    plant.cut.add(("node-2", "chat-a"))
    await clock.advance(60)
    assert not await shared.restorations()
    said = events.one(Event.SERVER_OUTVOTED)
    assert (said["server"], said["cause"]) == ("chat-a", "it is not reached from here, but by node-1, node-3")
    plant.cut.clear()
    await clock.advance(20)
    assert not await shared.restorations()
    plant.pids["chat-a"] = None
    await clock.advance(20)
    assert len(await shared.restorations()) == 1


@pytest.mark.slow
async def test_a_server_that_most_do_not_reach_is_restored_once_though_one_does(
    plant: Plant, shared: Shared, clock: FakeClock, events: Events
) -> None:
    plant.cut.update({("node-2", "chat-a"), ("node-3", "chat-a")})
    await clock.advance(600)
    assert await restored(shared) == [("chat-a", Cause.UNREACHABLE)]
    said = events.one(Event.SERVER_OUTVOTED)
    assert (said["server"], said["cause"]) == ("chat-a", "it is reached from here, but not by node-2, node-3")
    plant.cut.clear()
    await clock.advance(20)
    assert await restored(shared) == [("chat-a", Cause.RETURNED), ("chat-a", Cause.UNREACHABLE)]
    assert await state_of(shared, "chat-a") is ServerState.UP


async def test_a_server_is_back_no_later_than_where_one_looks_alone(
    plant: Plant, shared: Shared, clock: FakeClock
) -> None:
    """Whoever reads it first has all of them look."""
    plant.pids["chat-a"] = None
    await clock.advance(20)
    plant.pids["chat-a"] = "1001"
    await clock.advance(5 * 1.1 + 2 * 1.1 + 1.2)
    assert await state_of(shared, "chat-a") is ServerState.UP


async def state_of(shared: Shared, name: str) -> ServerState:
    [server] = [server for server in await shared.servers() if server.name == name]
    return server.state


async def test_a_node_that_is_cut_off_from_all_servers_takes_nobody_for_lost(
    plant: Plant, shared: Shared, clock: FakeClock
) -> None:
    plant.cut.update(("node-3", server) for server in ALIASES)
    await clock.advance(60)
    assert not await shared.restorations()
    # And hinders nobody.
    plant.pids["chat-c"] = None
    await clock.advance(20)
    assert [begun.server for begun in await shared.restorations()] == ["chat-c"]


async def test_a_node_without_the_database_takes_nobody_for_lost(
    plant: Plant, shared: Shared, clock: FakeClock
) -> None:
    shared.away.update(("node-1", "node-2", "node-3"))
    plant.pids["chat-a"] = None
    await clock.advance(30)
    assert not await shared.restorations()
    shared.away.clear()
    await clock.advance(10)
    assert len(await shared.restorations()) == 1


async def test_who_is_first_to_reach_the_database_again_does_not_decide_alone(
    plant: Plant, shared: Shared, clock: FakeClock
) -> None:
    plant.cut.add(("node-2", "chat-a"))
    shared.away.update(("node-1", "node-2", "node-3"))
    await clock.advance(30)
    shared.away.remove("node-2")
    await clock.advance(2)
    shared.away.clear()
    await clock.advance(30)
    assert not await shared.restorations()


async def test_that_the_database_does_not_answer_makes_no_look_late(
    shared: Shared, settings: Settings, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the daemon would be ended that has answers to write when it is back."""
    plant = Plant()
    monkeypatch.setattr(module, "HealthPages", lambda: Ways(plant, "node-1"))
    seat = Seat(shared, "node-1")
    watcher = Watcher(cast(Store, seat), settings, clock, asyncio.Event())
    await watcher.load()
    running = asyncio.create_task(watcher.run())
    await clock.advance(12)

    async def never(_: Views) -> Sequence[Views]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(seat, "views", never, raising=False)
    plant.pids["chat-a"] = None
    await clock.advance(60)
    assert watcher.overdue() <= 0
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_restoration_is_marked_by_another_one_when_who_began_it_dies(
    plant: Plant, shared: Shared, clock: FakeClock
) -> None:
    begun = await shared.begin_restoration(alias="117", server=None, cause=Cause.OPERATOR, now=clock.now())
    await clock.advance(15)
    [found] = await shared.restorations()
    assert (found.id, found.marking, found.sessions) == (begun.id, False, 1)


async def test_a_loss_that_another_node_has_just_put_on_record_is_not_found_again(
    plant: Plant, shared: Shared, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the record was read while this node was about to write its own."""
    noting = shared.note
    turn = asyncio.Lock()

    async def slowly(*what: Any, **how: Any) -> Any:
        async with turn:
            noted = await noting(*what, **how)
        await clock.sleep(1.5)  # meanwhile each node follows what is on record
        return noted

    monkeypatch.setattr(shared, "note", slowly)
    plant.pids["chat-a"] = None
    await clock.advance(30)
    assert [(each.server, each.cause) for each in await shared.restorations()] == [
        ("chat-a", Cause.UNREACHABLE)
    ]


def misleads(plant: Plant, *nodes: str) -> None:
    """The way of these nodes to chat-a leads to another process from now on."""
    plant.misled.update({(node, "chat-a"): "2002" for node in nodes})


async def restored(shared: Shared) -> list[tuple[str | None, Cause]]:
    return [(each.server, each.cause) for each in await shared.restorations()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "nodes", [("node-1",), ("node-2", "node-3"), ("node-1", "node-2")], ids=lambda nodes: "+".join(nodes)
)
async def test_nodes_that_are_led_to_another_process_restore_nothing_and_it_is_told_once(
    plant: Plant, shared: Shared, clock: FakeClock, events: Events, nodes: tuple[str, ...]
) -> None:
    misleads(plant, *nodes)
    await clock.advance(20 * 60)
    assert not await shared.restorations()
    said = events.one(Event.SERVER_IDENTITY_DISPUTED)
    assert (said["server"], said["cause"]) == (
        "chat-a",
        "process_os_pid 1001 of app_dbid 117 answers other nodes, "
        "and process_os_pid 2002 of app_dbid 117 this one",
    )
    [server] = [each for each in await shared.servers() if each.name == "chat-a"]
    assert server.disputed is not None
    assert server.process_os_pid == "1001"
    plant.misled.clear()
    await clock.advance(15 * 60)
    assert not await shared.restorations()
    assert [each.disputed for each in await shared.servers()] == [None] * 3, "one alone has answered"


async def test_where_a_node_is_misled_a_restart_is_restored_once(
    plant: Plant, shared: Shared, clock: FakeClock
) -> None:
    misleads(plant, "node-1")
    await clock.advance(60)
    for number, pid in enumerate(("3003", "4004"), 1):
        plant.pids["chat-a"] = pid
        await clock.advance(60)
        assert await restored(shared) == [("chat-a", Cause.RESTARTED)] * number


async def test_a_node_that_is_misled_from_its_first_page_on_restores_nothing(
    plant: Plant,
    shared: Shared,
    clock: FakeClock,
    settings: Settings,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    misleads(plant, "node-4")
    monkeypatch.setattr(module, "HealthPages", lambda: Ways(plant, "node-4"))
    watcher = Watcher(cast(Store, Seat(shared, "node-4")), settings, clock, asyncio.Event())
    await watcher.load()
    running = asyncio.create_task(watcher.run())
    await clock.advance(60)
    assert not await shared.restorations()
    events.one(Event.SERVER_IDENTITY_DISPUTED)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("told", [False, True], ids=["in doubt", "told"])
async def test_a_moment_in_which_the_others_miss_the_known_process_makes_no_restart(
    plant: Plant, shared: Shared, clock: FakeClock, told: bool
) -> None:
    """It is shorter than three looks: nobody finds the server lost."""
    misleads(plant, "node-1")
    if told:
        await clock.advance(60)
    for _ in range(10):
        plant.cut.update({("node-2", "chat-a"), ("node-3", "chat-a")})
        await clock.advance(1.5)
        plant.cut.clear()
        await clock.advance(10)
    assert not await shared.restorations()


@pytest.mark.slow
async def test_a_lost_server_is_not_back_where_one_node_is_led_to_another_process(
    plant: Plant, shared: Shared, clock: FakeClock
) -> None:
    misleads(plant, "node-1")
    await clock.advance(60)
    plant.pids["chat-a"] = None
    await clock.advance(10 * 60)
    assert await restored(shared) == [("chat-a", Cause.UNREACHABLE)]


@pytest.mark.parametrize("moment", range(12))
async def test_a_restart_is_restored_as_soon_as_the_others_have_looked(
    plant: Plant, shared: Shared, clock: FakeClock, events: Events, moment: int
) -> None:
    """A look and its confirmation; until the others hear of it, look, and have said so, one look more."""
    await clock.advance(moment * 0.45)
    plant.pids["chat-a"] = "2002"
    await clock.advance(5 * 1.1 + 1.1 + 1.1)
    assert await restored(shared) == [("chat-a", Cause.RESTARTED)]
    await clock.advance(60)
    assert len(await shared.restorations()) == 1
    assert not events.of(Event.SERVER_IDENTITY_DISPUTED)


@pytest.mark.parametrize("how", ["cut off", "silent", "cut off from all"])
async def test_a_node_that_cannot_tell_holds_no_restart_up(
    plant: Plant, shared: Shared, clock: FakeClock, how: str
) -> None:
    servers = list(ALIASES) if how == "cut off from all" else ["chat-a"]
    if how == "silent":
        shared.away.add("node-2")
    else:
        plant.cut.update(("node-2", server) for server in servers)
    await clock.advance(2 * HEARD_MS / 1000)
    plant.pids["chat-a"] = "2002"
    await clock.advance(5 * 1.1 + 1.1 + 1.1)
    assert await restored(shared) == [("chat-a", Cause.RESTARTED)]


async def test_a_node_that_falls_silent_in_a_restart_holds_it_up_until_it_is_heard_no_more(
    plant: Plant, shared: Shared, clock: FakeClock
) -> None:
    plant.pids["chat-a"] = "2002"
    plant.misled["node-2", "chat-a"] = "1001"  # what it has read is all that it says
    shared.away.add("node-2")
    await clock.advance(5 * 1.1 + HEARD_MS / 1000 + 1.1)
    assert await restored(shared) == [("chat-a", Cause.RESTARTED)]


async def test_without_the_database_nobody_is_taken_for_another_process(
    plant: Plant, shared: Shared, clock: FakeClock, events: Events
) -> None:
    misleads(plant, "node-1")
    shared.away.update(("node-1", "node-2", "node-3"))
    await clock.advance(60)
    assert not await shared.restorations()
    shared.away.clear()
    await clock.advance(20)
    assert not await shared.restorations()
    events.one(Event.SERVER_IDENTITY_DISPUTED)
