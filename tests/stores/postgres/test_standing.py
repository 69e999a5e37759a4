"""What a node that stood still finds on its way to the database when it goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from conftest import Events

from asyncchatd.log.events import Event
from asyncchatd.model import Cause
from asyncchatd.stores.errors import StoreError, StoreUnwritable
from asyncchatd.stores.postgres import PostgresStore, place_of, wire
from asyncchatd.stores.postgres.shared import nodes
from asyncchatd.stores.postgres.transactions import restorations
from asyncchatd.stores.postgres.wire import Connection, StoodStill, Tx, connect

from ..conftest import empty_schema
from ..desk import LEASE, NOON, Desk, registration
from ..waiting import SECONDS
from .server import Server

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("events")]

DEADLINE_SECONDS = 0.2
STILL_SECONDS = 0.4
"""Longer than a statement may take, and longer than the server waits for the next one of a transaction."""


@pytest.fixture
async def url(postgres: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    made = await empty_schema(postgres)
    monkeypatch.setattr(wire, "STATEMENT_SECONDS", DEADLINE_SECONDS)
    monkeypatch.setitem(wire.SETTINGS, "idle_in_transaction_session_timeout", "100ms")
    return made


@pytest.fixture
async def connection(url: str) -> AsyncIterator[Connection]:
    made = await connect(place_of(url).address)
    yield made
    await made.close()


@pytest.fixture
async def store(url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PostgresStore]:
    monkeypatch.setattr(wire, "STATEMENT_SECONDS", SECONDS)
    opened = PostgresStore(url, directory=Path())
    await opened.open()
    monkeypatch.setattr(wire, "STATEMENT_SECONDS", DEADLINE_SECONDS)
    yield opened
    await opened.close()


@asynccontextmanager
async def standing_still(
    url: str, *before: str, preparing: str = "SELECT 41 + $1::int"
) -> AsyncIterator[None]:
    """A process stands still in the middle of a transaction: the server has the beginning of a statement."""
    goes_on, loop, stands = threading.Event(), asyncio.get_running_loop(), asyncio.Event()

    async def run() -> None:
        stuck = await connect(place_of(url).address)
        for sql in ("BEGIN", *before):
            await stuck.script(sql)
        asking = asyncio.ensure_future(stuck.value(preparing, 1))
        await asyncio.sleep(0)
        loop.call_soon_threadsafe(stands.set)
        goes_on.wait(SECONDS)
        with suppress(StoreError):
            await asking
        stuck.terminate()

    other = asyncio.ensure_future(asyncio.to_thread(asyncio.run, run()))
    await stands.wait()
    try:
        yield
    finally:
        goes_on.set()
        await other


async def and_stand_still(tx: Tx, sql: str) -> None:
    """The process stands still once the statement was sent, and the answer waits for it in the socket."""
    statement = asyncio.ensure_future(tx.script(sql))
    await asyncio.sleep(0)
    time.sleep(STILL_SECONDS)  # noqa: ASYNC251 - everything stands still
    await statement


async def test_an_answer_that_came_meanwhile_is_read(connection: Connection) -> None:
    await and_stand_still(connection, "CREATE TEMPORARY TABLE made (what text)")
    assert await connection.value("SELECT count(*) FROM made") == 0


async def test_an_answer_that_does_not_come_afterwards_either_is_the_fault_of_both(
    connection: Connection,
) -> None:
    both = r"^asyncchatd stood still for 0\.\d+ s, and then PostgreSQL did not answer within 0\.2 s$"
    with pytest.raises(StoreUnwritable, match=both) as told:
        await and_stand_still(connection, "SELECT pg_sleep(5)")
    assert not told.value.stood_still
    assert connection.is_closed


async def test_a_transaction_that_the_server_has_ended_meanwhile_is_no_fault_of_the_database(
    store: PostgresStore, events: Events
) -> None:
    async def ended(tx: Tx) -> None:
        await and_stand_still(tx, "UPDATE store SET trimmed=trimmed")
        await tx.value("SELECT 1")

    await store._writer.close()  # the next connection has the deadline of these tests
    with pytest.raises(StoodStill, match=r"^asyncchatd stood still for 0\.\d+ s; .*PostgreSQL"):
        await store._writing(ended)
    assert store.trouble is None
    assert not events.of(Event.STORE_UNWRITABLE)
    assert await store._writing(lambda tx: tx.value("SELECT 1")) == 1


async def test_one_that_holds_the_row_of_a_restoration_is_ended_soon(
    store: PostgresStore, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All nodes that settle wait for it."""
    begun = await store.begin_restoration(alias="117", server=None, cause=Cause.OPERATOR, now=NOON)

    async def counted(tx: Tx) -> None:
        await restorations.credit(tx, Counter({(begun.id, "restored"): 1}), NOON)
        time.sleep(wire.BRIEF_SECONDS + 0.2)  # noqa: ASYNC251 - everything stands still
        await tx.value("SELECT 1")

    monkeypatch.setitem(wire.SETTINGS, "idle_in_transaction_session_timeout", "5s")
    monkeypatch.setattr(wire, "STATEMENT_SECONDS", SECONDS)
    await store._writer.close()
    with pytest.raises(StoodStill):
        await store._writing(counted)
    assert store.trouble is None
    assert not events.of(Event.STORE_UNWRITABLE)
    [restoration] = await store.restorations()
    assert restoration.restored == 0


async def test_nor_is_one_where_it_stood_still_between_two_statements(
    store: PostgresStore, events: Events
) -> None:
    async def ended(tx: Tx) -> None:
        await tx.script(WRITES)
        time.sleep(STILL_SECONDS)  # noqa: ASYNC251 - everything stands still
        await tx.value("SELECT 1")

    await store._writer.close()  # the next connection has the deadline of these tests
    with pytest.raises(StoodStill, match=r"^asyncchatd stood still for 0\.\d+ s; .*PostgreSQL"):
        await store._writing(ended)
    assert store.trouble is None
    assert not events.of(Event.STORE_UNWRITABLE)
    assert await store._writing(lambda tx: tx.value("SELECT 1")) == 1


async def test_what_ends_without_a_standstill_is_trouble(store: PostgresStore) -> None:
    async def ended(tx: Tx) -> None:
        await tx.value("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(StoreUnwritable) as told:
        await store._writing(ended)
    assert store.trouble == str(told.value)
    assert "stood still" not in str(told.value)


async def test_leases_are_renewed_while_something_else_is_being_written(store: PostgresStore) -> None:
    """After a standstill they may be about to run out, and a settlement may take its time."""
    desk = Desk(store)
    await desk.register(registration(), spread_ms=0)
    claims = await desk.claim()
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(tx: Tx) -> None:
        begun.set()
        await goes_on.wait()

    settling = asyncio.ensure_future(store._turn(slow))
    async with asyncio.timeout(SECONDS):
        await begun.wait()
        await store.renew(claims, until=NOON + 10 * LEASE)
        assert (await desk.session()).leased_until == NOON + 10 * LEASE
        goes_on.set()
        await settling


WRITES = "UPDATE store SET trimmed=trimmed"


async def ended(connection: Connection) -> int:
    """How many transactions are ended in the time in which one would be."""
    async with asyncio.timeout(SECONDS):
        while not await connection.value(  # noqa: ASYNC110 - the database tells only those who ask
            "SELECT count(*) FROM pg_stat_activity WHERE state='active' AND wait_event='ClientRead'"
        ):
            await asyncio.sleep(0.01)
    return await nodes.end_stuck(connection)


async def test_the_locks_are_free_soon_of_who_stands_still_while_a_statement_is_prepared(
    store: PostgresStore, connection: Connection, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "STUCK_SECONDS", 0.0)
    async with standing_still(url, WRITES):
        assert await ended(connection) == 1
        await store._writing(lambda tx: tx.script(WRITES))  # it would wait for its end


async def test_nobody_is_ended_who_has_begun_a_statement_just_now(
    store: PostgresStore, connection: Connection, url: str
) -> None:
    async with standing_still(url, WRITES):
        assert await ended(connection) == 0


async def test_nobody_is_ended_who_keeps_nobody_waiting(
    store: PostgresStore, connection: Connection, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "STUCK_SECONDS", 0.0)
    async with standing_still(url, "SELECT 1"):
        assert await ended(connection) == 0


async def test_a_copy_takes_as_long_as_its_client_does(
    store: PostgresStore, connection: Connection, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "STUCK_SECONDS", 0.0)
    found = asyncio.get_running_loop().create_future()

    async def rows() -> AsyncIterator[tuple[int]]:
        found.set_result(await ended(connection))
        yield (1,)

    copying = await connect(place_of(url).address, for_copies=True)
    try:
        async with copying.in_transaction():
            await copying.script("CREATE TEMPORARY TABLE copied (n int); INSERT INTO copied VALUES (0)")
            await copying._raw.copy_records_to_table("copied", records=rows())
    finally:
        await copying.close()
    assert await found == 0


async def test_a_node_looks_for_what_stands_still_while_another_one_is_silent(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "STATEMENT_SECONDS", SECONDS)
    monkeypatch.setattr(nodes, "STUCK_SECONDS", 0.0)
    monkeypatch.setattr(nodes, "SILENT_SECONDS", 0.5)
    silent = PostgresStore(f"{url}&node=silent", directory=Path())
    lives = PostgresStore(f"{url}&node=lives", directory=Path())
    await silent.open()
    await lives.open()
    life = asyncio.create_task(lives.watch())
    try:
        async with standing_still(url, WRITES), asyncio.timeout(SECONDS):
            await lives._writing(lambda tx: tx.script(WRITES))
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        await lives.close()
        await silent.close()
