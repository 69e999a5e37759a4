"""Several nodes that write events, share them out and are asked for them: the order over all chats holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import pytest_asyncio

from asyncchatd.model import Consumer, EventKind
from asyncchatd.stores.answers import Bounds
from asyncchatd.stores.postgres.transactions import deliveries, events, trimming
from asyncchatd.stores.postgres.wire import Address, Connection, Tx

from ..conftest import SCHEMA, empty_schema
from ..desk import MINUTE, NOON
from ..kept import KeptConnections
from .server import Server

WRITERS, TRANSACTIONS = 4, 25

Node = Callable[[], Awaitable[Connection]]


@pytest_asyncio.fixture(loop_scope="session")
async def node(postgres: Server, kept: KeptConnections) -> AsyncIterator[Node]:
    """Makes connections to one database, as several nodes have them."""
    url = (await empty_schema(postgres, connect=kept.connect)).partition("&schema")[0]
    async with AsyncExitStack() as stack:

        async def make() -> Connection:
            connection = await kept.connect(Address(url, schema=SCHEMA))
            stack.push_async_callback(connection.close)
            connection.kinds = frozenset(EventKind)
            return connection

        yield make


@asynccontextmanager
async def begun(connection: Connection) -> AsyncIterator[None]:
    """A transaction that is committed at the end."""
    await connection.script("BEGIN")
    yield
    await connection.script("COMMIT")


async def write(tx: Tx, *sessions: int) -> None:
    await events.happened(tx, EventKind.NOTIFIED, sessions, NOON)


async def sessions(tx: Tx, count: int) -> None:
    await tx.run(
        "INSERT INTO session (id, chat_id, state, registered_at, active_at)"
        " SELECT number, 'chat-' || number, 1, 0, 0 FROM generate_series(1, $1::bigint) AS number",
        count,
    )


async def until_it_waits(watching: Connection) -> None:
    """Until another connection waits for a lock."""
    while not await watching.value("SELECT count(*) FROM pg_locks WHERE NOT granted"):
        pass


async def until_all_are_read(reading: Connection, last: int) -> list[int]:
    """The ids that one finds who reads on and on, from behind the highest that it has seen."""
    found: list[int] = []
    looked = 0
    while looked < last:
        told, looked = await events.news(reading, looked, 10)
        found += [event.id for event in told]
    return found


async def test_an_event_is_not_seen_before_a_lower_one(node: Node) -> None:
    first, second, reading = [await node() for _ in range(3)]
    await sessions(first, 2)
    async with begun(first):
        await write(first, 1)
        other = asyncio.create_task(second.transaction(lambda tx: write(tx, 2)))
        await until_it_waits(reading)
        assert await events.news(reading, 0, 10) == ([], 0)
    await other
    told, looked = await events.news(reading, 0, 10)
    assert [(event.id, event.row) for event in told] == [(1, 1), (2, 2)]
    assert looked == 2


async def test_ids_of_what_was_undone_come_again(node: Node) -> None:
    first = await node()
    await sessions(first, 1)
    with pytest.raises(ZeroDivisionError):
        await first.transaction(_fails)
    assert await events.newest(first) == 0
    await write(first, 1)
    assert await events.newest(first) == 1


async def _fails(tx: Tx) -> None:
    await write(tx, 1, 1)
    raise ZeroDivisionError


async def test_who_reads_while_many_write_misses_none(node: Node) -> None:
    reading = await node()
    await sessions(reading, WRITERS)
    last = WRITERS * TRANSACTIONS * 2

    async def writes(session: int) -> None:
        writing = await node()
        for _ in range(TRANSACTIONS):
            await writing.transaction(lambda tx: write(tx, session, session), durable=False)

    *_, found = await asyncio.gather(
        *(writes(session) for session in range(1, WRITERS + 1)), until_all_are_read(reading, last)
    )
    assert found == list(range(1, last + 1))


WEBHOOK = Consumer("hook", kinds=frozenset(EventKind), services=frozenset(), pushes=True)
READER = Consumer("reader", kinds=frozenset(EventKind), services=frozenset(), pushes=False)


async def enrolled(connection: Connection, *consumers: Consumer) -> None:
    kinds = frozenset(EventKind)
    await connection.transaction(lambda tx: deliveries.enrol(tx, consumers, kinds, NOON))


async def test_two_that_share_out_at_once_do_it_once(node: Node) -> None:
    first, second, watching = [await node() for _ in range(3)]
    await sessions(first, 3)
    await enrolled(first, WEBHOOK)
    await write(first, 1, 2, 3, 1)
    async with begun(first):
        await deliveries.share_out(first, WEBHOOK)
        other = asyncio.create_task(second.transaction(lambda tx: deliveries.share_out(tx, WEBHOOK)))
        await until_it_waits(watching)
    assert not await other
    places = await first.rows("SELECT session, first FROM delivery ORDER BY session")
    assert [tuple(each) for each in places] == [(1, 1), (2, 2), (3, 3)]
    assert await first.value("SELECT cursor FROM consumer") == 4


async def test_two_that_fetch_at_once_move_the_consumer_on(node: Node) -> None:
    first, second, watching = [await node() for _ in range(3)]
    await sessions(first, 1)
    await enrolled(first, READER)
    await write(first, *[1] * 6)
    await first.transaction(lambda tx: deliveries.fetch(tx, READER, None, 3, NOON, None))
    async with begun(first):
        await deliveries.fetch(first, READER, 2, 3, NOON, None)
        other = asyncio.create_task(
            second.transaction(lambda tx: deliveries.fetch(tx, READER, 1, 5, NOON, None))
        )
        await until_it_waits(watching)
    portion = await other
    assert [event.id for event in portion.events] == [3, 4, 5, 6]
    assert await first.row("SELECT cursor, given FROM consumer") == (2, 6)


async def test_a_batch_that_was_taken_while_its_events_are_trimmed_is_told_no_gap(node: Node) -> None:
    first, second, watching = [await node() for _ in range(3)]
    await sessions(first, 1)
    await enrolled(first, WEBHOOK)
    await write(first, *[1] * 5)
    await first.transaction(lambda tx: deliveries.share_out(tx, WEBHOOK))
    done = await first.transaction(lambda tx: deliveries.batches(tx, WEBHOOK, NOON, 9, (), 5, 1 << 20))
    bounds = Bounds(max_events=1, max_bytes=1 << 20, max_total=1 << 30, keep_ms=MINUTE)
    async with begun(first):
        await deliveries.delivered(first, WEBHOOK, done, NOON)
        other = asyncio.create_task(second.transaction(lambda tx: trimming.trim(tx, bounds, NOON)))
        await until_it_waits(watching)
    gone, trimmed = await other
    assert gone == 5
    assert trimmed.dropped == {}
    assert await first.value("SELECT count(*) FROM event") == 0
