"""What a node that stood still finds on its way to the database when it goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from conftest import Events

from asyncchatd.log.events import Event
from asyncchatd.stores.errors import StoreUnwritable
from asyncchatd.stores.postgres import PostgresStore, place_of, wire
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
    assert not told.value.of_our_own
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
