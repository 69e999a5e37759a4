"""The metrics at an address of their own: counted once a second at most, however often somebody asks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from conftest import FakeClock

from asyncchatd.control.exposition import FRESH_SECONDS, Exposition
from asyncchatd.listening import INSTANCE
from asyncchatd.model import Ms
from asyncchatd.stores import Counts
from asyncchatd.stores.sqlite import MemoryStore


class Counted(MemoryStore):
    """A store that counts how often it is counted."""

    asked = 0

    async def counts(self, *, now: Ms) -> Counts:
        self.asked += 1
        return await super().counts(now=now)


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
