"""Who shares a store, as each of them sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from asyncchatd.model import NodeState, differences, replace
from asyncchatd.stores.postgres import PostgresStore
from asyncchatd.stores.postgres.sharing import STRETCH
from asyncchatd.stores.postgres.wire import Connection

from ..conftest import empty_schema
from ..desk import Desk
from ..kept import KeptConnections
from .server import Server
from .test_checking import admin


@pytest_asyncio.fixture(loop_scope="session")
async def north(postgres: Server, kept: KeptConnections, tmp_path: Path) -> AsyncIterator[PostgresStore]:
    url = await empty_schema(postgres, connect=kept.connect)
    store = PostgresStore(f"{url}&node=north", directory=tmp_path)
    await store.open()
    yield store
    await store.close()


@pytest_asyncio.fixture(loop_scope="session")
async def south(postgres: Server, north: PostgresStore, tmp_path: Path) -> AsyncIterator[PostgresStore]:
    async with AsyncExitStack() as stack:
        store = PostgresStore(postgres.url("chats", node="south"), directory=tmp_path)
        await store.open()
        stack.push_async_callback(store.close)
        yield store


@pytest_asyncio.fixture(loop_scope="session")
async def sql(postgres: Server, north: PostgresStore, kept: KeptConnections) -> AsyncIterator[Connection]:
    async with admin(postgres, kept.connect) as one:
        await one.script("SET search_path=chats")
        yield one


async def states(store: PostgresStore) -> dict[str, NodeState]:
    return {each.name: each.state for each in await store.nodes() or ()}


async def test_all_who_are_there_are_named_and_who_takes_leave_is_not(
    north: PostgresStore, south: PostgresStore
) -> None:
    there = await north.nodes()
    assert there is not None
    assert [(each.name, each.state, each.own) for each in there] == [
        ("north", NodeState.PRESENT, True),
        ("south", NodeState.PRESENT, False),
    ]
    assert there[0].number != there[1].number
    assert abs(there[0].seen_at - there[1].seen_at) < 60_000
    await south.close()
    assert await states(north) == {"north": NodeState.PRESENT}


async def test_one_that_says_nothing_is_silent_and_one_that_is_dead_is_gone(
    north: PostgresStore, south: PostgresStore, sql: Connection
) -> None:
    await sql.run("UPDATE node SET seen_at=seen_at-60 WHERE name='south'")
    assert await states(north) == {"north": NodeState.PRESENT, "south": NodeState.SILENT}
    assert await states(south) == {"north": NodeState.PRESENT, "south": NodeState.PRESENT}, (
        "it says so itself"
    )
    await sql.run("UPDATE node SET gone_at=seen_at+3 WHERE name='south'")
    assert await states(north) == {"north": NodeState.PRESENT, "south": NodeState.GONE}


async def test_one_that_is_gone_is_named_until_one_of_its_name_comes_or_for_an_hour(
    north: PostgresStore, sql: Connection, postgres: Server, tmp_path: Path
) -> None:
    await sql.run(
        "INSERT INTO node (name, version, started_at, seen_at, lease_ms, gone_at)"
        " SELECT name, version, started_at, seen_at-60, lease_ms, seen_at FROM"
        " (VALUES ('south'), ('east')) AS one (name), LATERAL"
        " (SELECT version, started_at, seen_at, lease_ms FROM node) AS other"
    )
    assert await states(north) == {
        "east": NodeState.GONE,
        "north": NodeState.PRESENT,
        "south": NodeState.GONE,
    }
    south = PostgresStore(postgres.url("chats", node="south"), directory=tmp_path)
    await south.open()
    try:
        await sql.run("UPDATE node SET seen_at=seen_at-3600 WHERE name='east'")
        assert await states(north) == {"north": NodeState.PRESENT, "south": NodeState.PRESENT}
    finally:
        await south.close()
    assert await states(north) == {"north": NodeState.PRESENT}, "also the one of before has been followed"


async def test_what_a_node_has_claimed_is_counted(north: PostgresStore, sql: Connection) -> None:
    desk = Desk(north)
    await desk.live("chat-1")
    # The desk's clock is its own: what it has claimed is claimed now.
    await sql.run(
        "UPDATE work SET live=true, due_at=0, claim=7, node=(SELECT id FROM node),"
        " held_until=(extract(epoch FROM clock_timestamp())*1000)::bigint+60000"
    )
    assert [each.claims for each in await north.nodes() or ()] == [1]
    await sql.run("UPDATE work SET held_until=0")
    assert [each.claims for each in await north.nodes() or ()] == [0]


async def test_what_must_be_alike_is_said_to_the_others(north: PostgresStore, south: PostgresStore) -> None:
    north.declare({"restoration.max_rate": "300", "ping.interval": "30m"})
    south.declare({"restoration.max_rate": "200", "ping.interval": "30m"})
    for store in (north, south):
        await store._beat()
    [found] = differences(await north.nodes() or ())
    assert (found.key, found.values) == ("restoration.max_rate", {"north": "300", "south": "200"})
    alike = [replace(each, name="north") for each in await north.nodes() or ()]
    [found] = differences(alike)
    first, second = (f"north ({each.number})" for each in alike)
    assert found.values == {first: "300", second: "200"}, "nodes of one name are compared all the same"
    one, other = alike
    assert not differences([replace(one, seen_at=other.started_at), other]), "the other one is its successor"
    states = {NodeState.PRESENT: 1, NodeState.SILENT: 1, NodeState.GONE: 0}
    there = await north.nodes() or ()
    for state, count in states.items():
        one, other = (each if each.own else replace(each, state=state) for each in there)
        assert len(differences([one, other])) == count, state


async def test_the_smallest_rate_of_all_is_kept(
    north: PostgresStore, south: PostgresStore, sql: Connection
) -> None:
    """Each moment that the faster one takes is as far from the next as the slower one would have it."""
    assert await south.turns(1, rate=100.0)
    for store in (south, north):
        await store._beat()
    await sql.run("UPDATE pacer SET next=0")
    first, second = await north.turns(2, rate=1_000.0) or ()
    assert second - first == pytest.approx(STRETCH / 100, rel=1e-2)
    await sql.run("UPDATE node SET seen_at=seen_at-60 WHERE name='south'")
    await north._beat()
    await sql.run("UPDATE pacer SET next=0")
    first, second = await north.turns(2, rate=1_000.0) or ()
    assert second - first == pytest.approx(STRETCH / 1_000, rel=1e-2), (
        "nobody hears of the slower one any more"
    )
