"""The metrics at an address of their own: counted once a second at most, however often somebody asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from conftest import FakeClock

from asyncchatd.control.exposition import FRESH_SECONDS, Exposition
from asyncchatd.listening import INSTANCE
from asyncchatd.log import metrics
from asyncchatd.model import Ms, Node, NodeState, replace
from asyncchatd.stores import Counts
from asyncchatd.stores.sqlite import MemoryStore


class Counted(MemoryStore):
    """A store that counts how often it is counted."""

    asked = 0

    async def counts(self, *, now: Ms) -> Counts:
        self.asked += 1
        return await super().counts(now=now)


class Shared(MemoryStore):
    """A store of two nodes, one of which is gone."""

    async def nodes(self) -> Sequence[Node] | None:
        gone = Node(1, "south", "1.2.0", NodeState.GONE, 0, 0, 0)
        return [gone, replace(gone, name="north", state=NodeState.PRESENT)]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Counted]:
    store = Counted("memory:", directory=tmp_path)
    await store.open()
    yield store
    await store.close()


async def test_the_store_is_counted_once_a_second_for_those_without_a_token(store: Counted) -> None:
    clock = FakeClock()
    async with TestClient(TestServer(Exposition(store, clock, list).app())) as client:
        for _ in range(5):
            assert (await client.get("/metrics")).status == 200
        assert store.asked == 1
        await clock.advance(FRESH_SECONDS)
        assert (await client.get("/metrics")).status == 200
        assert store.asked == 2


async def test_each_answer_names_the_daemon(store: Counted) -> None:
    """Also where nothing is: `check --connect` asks for `/healthz`, as of the other listeners."""
    async with TestClient(TestServer(Exposition(store, FakeClock(), list).app("0123456789ab"))) as client:
        for path, status in (("/metrics", 200), ("/healthz", 404)):
            answer = await client.get(path)
            assert (answer.status, answer.headers[INSTANCE]) == (status, "0123456789ab")


async def test_the_nodes_that_share_the_store_are_counted_by_state_where_it_is_shared(tmp_path: Path) -> None:
    store = Shared("memory:", directory=tmp_path)
    await store.open()
    try:
        async with TestClient(TestServer(Exposition(store, FakeClock(), list).app("0123456789ab"))) as client:
            text = await (await client.get("/metrics")).text()
    finally:
        await store.close()
        metrics.NODES.clear()
    shown = [line for line in text.splitlines() if line.startswith("asyncchatd_nodes{")]
    assert sorted(shown) == [
        'asyncchatd_nodes{state="gone"} 1.0',
        'asyncchatd_nodes{state="present"} 1.0',
        'asyncchatd_nodes{state="silent"} 0.0',
    ]
