"""A node that comes back to a schema that was copied elsewhere while it was away: it does nothing there any more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Events

from asyncchatd.log.events import Event
from asyncchatd.model.clock import SystemClock
from asyncchatd.model.data import Reason
from asyncchatd.stores import make_store
from asyncchatd.stores.errors import StoreError, StoreUnwritable
from asyncchatd.stores.moving import copy_rows
from asyncchatd.stores.postgres import PostgresStore, connect, place_of
from asyncchatd.stores.postgres.shared import nodes
from asyncchatd.stores.postgres.wire import Tx

from ..conftest import empty_schema
from ..desk import push, registration
from ..postgres.server import Server
from ..postgres.test_sharing import sharing_it
from ..waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("events")]

CUT_OFF = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid<>pg_backend_pid() AND datname='postgres'"


@pytest.fixture
async def url(postgres: Server) -> str:
    return await empty_schema(postgres)


async def copied(url: str, directory: Path) -> None:
    """Copy it into a file, as soon as its node counts as gone."""
    source = make_store(url, directory=directory, keys=())
    target = make_store("sqlite:///there.db", directory=directory, keys=())
    await copy_rows(source.carrier(), target.carrier())


async def with_a_chat_due(node: PostgresStore) -> None:
    now = node.clock(SystemClock()).now()
    await node.register([registration()], now=now, spread_ms=1e9)
    await node.make_due("chat-1", Reason.REQUEST, now=now)


async def does_nothing(node: PostgresStore) -> None:
    """Neither claims a session nor takes a push."""
    now = node.clock(SystemClock()).now()
    claims: Sequence[object] = ()
    with suppress(StoreError):
        claims = await node.claim(now=now, limit=1, lease_ms=15_000)
    assert claims == [] or claims == ()
    with pytest.raises(StoreUnwritable, match="was copied to"):
        await node.take_push(push(), now=now)


def tries_of(node: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """As many as it has tried to come back."""
    come_back = node._come_back
    tries: list[None] = []

    async def counted() -> None:
        tries.append(None)
        await come_back()

    monkeypatch.setattr(node, "_come_back", counted)
    return tries


@pytest.mark.parametrize("all_of_them", [True, False], ids=["all connections", "its presence"])
async def test_a_node_that_was_cut_off_during_a_copy_does_nothing_any_more(
    url: str, tmp_path: Path, all_of_them: bool, monkeypatch: pytest.MonkeyPatch, events: Events
) -> None:
    node = PostgresStore(f"{url}&node=away", directory=tmp_path)
    await node.open()
    try:
        await with_a_chat_due(node)
        assert node._present is not None
        if all_of_them:
            connection = await connect(place_of(url).address)
            await connection.rows(CUT_OFF)
            await connection.close()
        else:
            await node._present.close()
        await copied(url, tmp_path)
        tries = tries_of(node, monkeypatch)
        life = asyncio.create_task(node.watch())
        try:
            await until(lambda: len(tries) > 2)  # the first of them is refused, and so are those behind it
            assert "was copied to" in (node.trouble or "")
            await does_nothing(node)
            *_, told = causes = [str(each["cause"]) for each in events.of(Event.STORE_UNWRITABLE)]
            assert "was copied to" in told
            assert sum("was copied to" in cause for cause in causes) == 1
            assert "was copied to" in (node.trouble or "")
            source = make_store(url, directory=tmp_path, keys=())
            assert await source.carrier().unmove() is not None
            await until(lambda: bool(events.of(Event.NODE_RETURNED)))
            assert events.of(Event.STORE_WRITABLE)
            assert node.trouble is None
        finally:
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
    finally:
        await node.close()


async def test_a_node_that_comes_back_in_the_middle_of_a_copy_does_nothing_any_more(
    url: str, tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive = nodes.arrive

    async def after_a_copy(
        tx: Tx, name: str, version: str, lease_ms: int, key_ids: list[str], knows: int, *, present: bool
    ) -> int:
        monkeypatch.setattr(nodes, "arrive", arrive)
        await copied(url, tmp_path)
        return await arrive(tx, name, version, lease_ms, key_ids, knows, present=present)

    async with sharing_it(url, "away") as (node,):
        await with_a_chat_due(node)
        monkeypatch.setattr(nodes, "arrive", after_a_copy)
        tries = tries_of(node, monkeypatch)
        assert node._present is not None
        await node._present.close()
        await until(lambda: len(tries) > 2)
        assert "was copied to" in (node.trouble or "")
        await does_nothing(node)
        assert not events.of(Event.NODE_RETURNED)
        assert await known(url) == []


async def known(url: str) -> list[str]:
    """The nodes that stand in the schema as if they were there."""
    connection = await connect(place_of(url).address)
    try:
        return [name for (name,) in await connection.rows("SELECT name FROM node WHERE gone_at IS NULL")]
    finally:
        await connection.close()
