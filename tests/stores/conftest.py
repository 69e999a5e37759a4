"""Every store there is, each empty."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from asyncchatd.stores import Store, make_store
from asyncchatd.stores.postgres.shared import schema
from asyncchatd.stores.postgres.wire import Address, Connection, connect

from .desk import Desk
from .kept import KeptConnections
from .postgres.server import Server, server

KEY = bytes(range(32))

EVERY_STORE: dict[str, tuple[str, tuple[bytes, ...]]] = {
    "sqlite": ("sqlite:///chats.db", ()),
    "sealed": ("sqlite:///chats.db", (KEY,)),
    "memory": ("memory:", ()),
    "postgres": ("postgresql:", (KEY,)),
}
"""URLs of the stores that must keep the contract, and the keys they encrypt with. That of PostgreSQL is known once its
server runs."""

SCHEMA = "chats"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server for all tests of this process."""
    with server() as one:
        yield one


QUICK_STORES = {"sealed", "memory", "postgres"}
"""The stores of the quick tests. One more SQLite file, without a seal, says there for a third time what the sealed file
and the memory say; `make test` asks all."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of every store share a loop, to which the connections belong that one leaves to the next."""
    for item in items:
        if "connections" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def connections() -> AsyncIterator[KeptConnections]:
    """Those to the server, of all tests of every store."""
    kept = KeptConnections()
    yield kept
    await kept.close()


@pytest_asyncio.fixture(
    loop_scope="session",
    params=[
        pytest.param(name, marks=() if name in QUICK_STORES else pytest.mark.slow) for name in EVERY_STORE
    ],
)
async def store(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    connections: KeptConnections,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Store]:
    url, keys = EVERY_STORE[request.param]
    if url == "postgresql:":
        server: Server = request.getfixturevalue("postgres")
        url = await empty_schema(server, connect=connections.connect)
        connections.lend_to(monkeypatch)
    opened = make_store(url, directory=tmp_path, keys=keys)
    await opened.open()
    yield opened
    await opened.close()
    _nothing_goes_on()


@pytest_asyncio.fixture(loop_scope="session")
async def kept(
    connections: KeptConnections, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KeptConnections]:
    """The connections that tests before left, which stores use meanwhile."""
    connections.lend_to(monkeypatch)
    yield connections
    _nothing_goes_on()


def _nothing_goes_on() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, "a task goes on, in the loop of the next test"


@pytest_asyncio.fixture(loop_scope="session")
async def desk(store: Store) -> AsyncIterator[Desk]:
    """The store with short ways to use it. Afterwards everything in it must fit together."""
    at = Desk(store)
    yield at
    await at.check()


async def empty_schema(
    server: Server, name: str = SCHEMA, *, connect: Callable[[Address], Awaitable[Connection]] = connect
) -> str:
    """The `store.url` of an empty store in a server. What a claim is left to whom nobody can ask is a lease, as the
    contract has it."""
    await _empty(await connect(_schema_in(server, name)), name)
    return _url(server, name)


def _schema_in(server: Server, name: str) -> Address:
    return Address(server.url(name).partition("&schema")[0], schema=name)


def _url(server: Server, name: str) -> str:
    return server.url(name, hold="0s")


async def _empty(connection: Connection, name: str) -> None:
    try:
        if await connection.value("SELECT to_regclass('schema_version')") is None:
            await connection.transaction(lambda tx: schema.migrate(tx, name, hold=0))
        else:
            await connection.script(_EMPTY)
    finally:
        await connection.close()


_EMPTY = """
    DO $$ DECLARE one text; BEGIN
        FOR one IN SELECT tablename FROM pg_tables WHERE schemaname=current_schema()
            AND tablename NOT IN ('store', 'pacer', 'event_counter', 'schema_version')
        LOOP EXECUTE 'DELETE FROM ' || quote_ident(one); END LOOP;
        FOR one IN SELECT sequencename FROM pg_sequences WHERE schemaname=current_schema()
        LOOP EXECUTE 'ALTER SEQUENCE ' || quote_ident(one) || ' RESTART'; END LOOP;
    END $$;
    DELETE FROM store; INSERT INTO store (epoch) VALUES (substr(md5(random()::text), 1, 8));
    UPDATE pacer SET next=0; UPDATE event_counter SET last=0;
"""
