"""Every store there is, each empty."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from asyncchatd.stores import Store, make_store
from asyncchatd.stores.postgres.transactions import schema
from asyncchatd.stores.postgres.wire import Address, connect

from .desk import Desk
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


@pytest.fixture(
    params=[
        pytest.param(name, marks=() if name in QUICK_STORES else pytest.mark.slow) for name in EVERY_STORE
    ]
)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    url, keys = EVERY_STORE[request.param]
    if url == "postgresql:":
        url = await empty_schema(request.getfixturevalue("postgres"))
    opened = make_store(url, directory=tmp_path, keys=keys)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def desk(store: Store) -> AsyncIterator[Desk]:
    """The store with short ways to use it. Afterwards everything in it must fit together."""
    at = Desk(store)
    yield at
    await at.check()


async def empty_schema(server: Server, name: str = SCHEMA) -> str:
    """The `store.url` of an empty store in a server. What a claim is left to whom nobody can ask is a lease, as the
    contract has it."""
    connection = await connect(Address(server.url(name).partition("&schema")[0], schema=name))
    try:
        if await connection.value("SELECT to_regclass('schema_version')") is None:
            await connection.transaction(lambda tx: schema.migrate(tx, name, hold=0))
        else:
            await connection.script(_EMPTY)
    finally:
        await connection.close()
    return server.url(name, hold="0s")


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
