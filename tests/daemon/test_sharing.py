"""What those who share a store have to agree upon, as the daemon watches it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from conftest import Events, FakeClock, configuration

from asyncchatd import config
from asyncchatd.daemon.sharing import LOOK_SECONDS, watch_nodes
from asyncchatd.log import metrics
from asyncchatd.log.events import Event
from asyncchatd.model import Ms, Node, NodeState
from asyncchatd.stores import Store, StoreError


class Shared:
    """A store whose nodes say what they are told to say."""

    def __init__(self) -> None:
        self.said: list[Mapping[str, str]] = []
        self.others: dict[str, dict[str, str]] = {}
        self.away = False
        self.silent: dict[str, Ms] = {}

    def declare(self, alike: Mapping[str, str]) -> None:
        self.said.append(alike)

    async def nodes(self) -> Sequence[Node]:
        if self.away:
            raise StoreError("away")
        return [
            Node(
                *(number, name, "1", NodeState.SILENT if name in self.silent else NodeState.PRESENT),
                *(0, 90_000 - self.silent.get(name, 0), 0),
                settings=settings,
            )
            for number, (name, settings) in enumerate(self.others.items())
        ]


async def test_what_differs_is_told_once_for_each_change(tmp_path: Path, events: Events) -> None:
    file = tmp_path / "asyncchatd.toml"
    file.write_text(configuration())
    settings = config.load(file)
    store, clock, shares = Shared(), FakeClock(), list[int]()
    store.others = {"north": {"restoration.max_rate": "300"}, "south": {"restoration.max_rate": "200"}}
    watching = asyncio.create_task(watch_nodes(cast(Store, store), clock, lambda: settings, shares.append))
    try:
        await clock.advance(2 * LOOK_SECONDS)
        [line] = events.of(Event.SETTINGS_DIFFER)
        assert (line["key"], line["values"]) == ("restoration.max_rate", "300 at north, 200 at south")
        assert metrics.SETTINGS_DIFFERING._value.get() == 1
        assert set(shares) == {2}
        assert store.said[-1]["restoration.max_rate"] == f"{settings.restoration.max_rate:g}"
        store.away = True
        await clock.advance(2 * LOOK_SECONDS)
        store.away = False
        store.others["south"] = {"restoration.max_rate": "250"}
        await clock.advance(LOOK_SECONDS)
        assert [line["values"] for line in events.of(Event.SETTINGS_DIFFER)] == [
            "300 at north, 200 at south",
            "300 at north, 250 at south",
        ]
        store.silent = {"south": 9_000}
        await clock.advance(2 * LOOK_SECONDS)
        assert not events.of(Event.SETTINGS_AGREE), "it stands still, and goes on with what it had"
        assert metrics.SETTINGS_DIFFERING._value.get() == 1
        assert len(events.of(Event.SETTINGS_DIFFER)) == 2
        assert shares[-1] == 1
        del store.others["south"]
        await clock.advance(LOOK_SECONDS)
        assert events.one(Event.SETTINGS_AGREE)["key"] == "restoration.max_rate"
        assert metrics.SETTINGS_DIFFERING._value.get() == 0
        assert shares[-1] == 1
    finally:
        watching.cancel()


async def test_a_node_that_stays_silent_is_told_once_and_again_when_it_is_heard(
    tmp_path: Path, events: Events
) -> None:
    file = tmp_path / "asyncchatd.toml"
    file.write_text(configuration())
    settings = config.load(file)
    store, clock = Shared(), FakeClock()
    store.others = {"north": {}, "south": {}}
    watching = asyncio.create_task(
        watch_nodes(cast(Store, store), clock, lambda: settings, list[int]().append)
    )
    try:
        await clock.advance(LOOK_SECONDS)
        store.silent = {"south": 4_000}
        await clock.advance(LOOK_SECONDS)
        store.silent = {}
        await clock.advance(LOOK_SECONDS)
        assert not events.of(Event.NODE_SILENT), "it was back before the next look"
        store.silent = {"south": 9_000}
        await clock.advance(3 * LOOK_SECONDS)
        line = events.one(Event.NODE_SILENT)
        assert (line["peer"], line["number"], line["silent_ms"]) == ("south", 1, 9_000)
        assert not events.of(Event.NODE_HEARD)
        store.silent = {}
        await clock.advance(2 * LOOK_SECONDS)
        assert events.one(Event.NODE_HEARD)["peer"] == "south"
        store.silent = {"south": 4_000}
        await clock.advance(LOOK_SECONDS)
        del store.others["south"]
        store.silent = {}
        await clock.advance(2 * LOOK_SECONDS)
        assert len(events.of(Event.NODE_SILENT)) == len(events.of(Event.NODE_HEARD)) == 1, "it took leave"
    finally:
        watching.cancel()
