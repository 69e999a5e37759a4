"""Watchers of three nodes on one PostgreSQL, by the clock that they share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from conftest import Events, MakeSettings
from stores.desk import registration
from stores.postgres.server import server
from stores.waiting import until

from asyncchatd.config.settings import Settings
from asyncchatd.log.events import Event
from asyncchatd.model.clock import SystemClock
from asyncchatd.model.data import Cause, ServerState
from asyncchatd.stores.postgres import PostgresStore
from asyncchatd.watcher import watcher as module
from asyncchatd.watcher.watcher import Watcher

from .ways import ALIASES, Plant, Ways

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("events")]

NODES = ("node-1", "node-2", "node-3")


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    servers = [{"name": name, "health_url": f"http://{name}/"} for name in ALIASES]
    return make_settings(
        watcher={"interval": "1s", "fast_interval": "200ms", "idle_connection": False}, chat_servers=servers
    )


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with server() as one:
        yield one.url("chats")


class Node:
    """One of several nodes, with a store and a watcher of its own."""

    def __init__(self, url: str, name: str, settings: Settings) -> None:
        self._settings = settings
        self.store = PostgresStore(f"{url}&node={name}", directory=Path())

    async def __aenter__(self) -> Node:
        await self.store.open()
        self._lives = [asyncio.create_task(self.store.watch())]
        clock = self.store.clock(SystemClock())
        self.watcher = Watcher(self.store, self._settings, clock, asyncio.Event())
        await self.watcher.load()
        self._lives.append(asyncio.create_task(self.watcher.run()))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert not any(life.done() for life in self._lives)
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)
        await self.store.close()

    def all_up(self) -> bool:
        return all(each.state is ServerState.UP for each in self.watcher.servers())


@pytest.fixture
def plant() -> Plant:
    return Plant()


@pytest.fixture
async def nodes(
    database: str, plant: Plant, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[Node]]:
    names = iter(NODES)
    monkeypatch.setattr(module, "HealthPages", lambda: Ways(plant, next(names)))
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(Node(database, name, settings)) for name in NODES]
        await found[0].store.register([registration()], now=SystemClock().now(), spread_ms=1e9)
        await until(lambda: all(node.all_up() for node in found))
        yield found


async def test_a_node_that_is_misled_restores_nothing_and_a_restart_meanwhile_is_restored_once(
    nodes: list[Node], plant: Plant, events: Events
) -> None:
    plant.misled["node-2", "chat-a"] = "2002"
    await until(lambda: events.of(Event.SERVER_IDENTITY_DISPUTED))
    store = nodes[0].store
    assert not await store.restorations()

    plant.pids["chat-a"], plant.pids["chat-b"] = "3003", "4004"

    def both_follow() -> bool:
        return all(
            {"3003", "4004"} <= {each.process_os_pid for each in node.watcher.servers()} for node in nodes
        )

    await until(both_follow)
    begun = await store.restorations()
    assert sorted((each.server, each.cause) for each in begun) == [
        ("chat-a", Cause.RESTARTED),
        ("chat-b", Cause.RESTARTED),
    ]
    events.one(Event.SERVER_IDENTITY_DISPUTED)
