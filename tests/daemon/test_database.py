"""The daemon, a real process, on a PostgreSQL that does not take its pushes: whoever asks whether it is ready is told
what pushes will get, also where much else works, and for as long as that is so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest
from conftest import configuration
from stores.postgres.server import Server, server

from asyncchatd.stores.postgres import PostgresStore

from .test_disk import Daemon, running

pytestmark = pytest.mark.slow

CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename='runner'"
"""The connections of the daemon end, and it makes new ones."""


class Trouble(NamedTuple):
    """What is done to the database so that pushes are not kept, and what mends it."""

    begin: str
    end: str


TROUBLES = {
    "a right": Trouble("REVOKE INSERT ON journal FROM runner", "GRANT INSERT ON journal TO runner"),
    "a table": Trouble("ALTER TABLE journal RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO journal"),
    "read-only": Trouble(
        f"ALTER ROLE runner SET default_transaction_read_only=on; {CUT}",
        f"ALTER ROLE runner RESET default_transaction_read_only; {CUT}",
    ),
    "no connections": Trouble(
        f"ALTER ROLE runner CONNECTION LIMIT 0; {CUT}", "ALTER ROLE runner CONNECTION LIMIT -1"
    ),
    "a full disk": Trouble(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'could not extend file' USING ERRCODE='53100'; END $$;"
        "CREATE TRIGGER full_disk BEFORE INSERT ON journal FOR EACH ROW EXECUTE FUNCTION full_disk()",
        "DROP TRIGGER full_disk ON journal",
    ),
    "a lock": Trouble("BEGIN; LOCK TABLE journal IN EXCLUSIVE MODE", "ROLLBACK"),
}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with server() as one:
        yield one


@pytest.fixture
async def admin(postgres: Server, tmp_path: Path) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the owner of new tables, which a user called runner may use."""
    url = postgres.url("asyncchatd")
    admin = await asyncpg.connect(url.partition("&schema")[0], server_settings={"search_path": "asyncchatd"})
    await admin.execute("DROP SCHEMA IF EXISTS asyncchatd CASCADE")
    if await admin.fetchval("SELECT true FROM pg_roles WHERE rolname='runner'"):
        await admin.execute("DROP OWNED BY runner; DROP ROLE runner")
    await admin.execute("CREATE ROLE runner LOGIN")
    await PostgresStore(url, directory=tmp_path).migrate(runner="runner")
    yield admin
    await admin.close()


@pytest.fixture
async def daemon(postgres: Server, admin: asyncpg.Connection, tmp_path: Path) -> AsyncIterator[Daemon]:
    url = postgres.url("asyncchatd").replace("postgres@", "runner@")
    text = configuration('keys_file = "store-keys"', "[log]", 'format = "json"', store=url)
    async with running(tmp_path, text) as daemon:
        await daemon.until(lambda status: status == 200, "/readyz")
        yield daemon


@pytest.mark.parametrize("what", TROUBLES)
async def test_a_node_is_ready_when_pushes_are_kept_and_only_then(
    daemon: Daemon, admin: asyncpg.Connection, what: str
) -> None:
    assert await daemon.push_many("before", 5)
    await admin.execute(TROUBLES[what].begin)
    if what == "a full disk":  # which is found by who needs more of it
        assert await daemon.push_many("first", 5) == []
    # Nobody pushes, as the balancer has it once a node is not ready.
    await daemon.until(lambda status: status == 503, "/readyz")
    begun = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() < begun + 3.0:
        assert await daemon.get("/readyz") == (503, {"ready": False})
        await asyncio.sleep(0.05)
    assert "asyncchatd_store_writable 0.0" in await daemon.metrics()
    assert await daemon.push_many("later", 5) == []
    await admin.execute(TROUBLES[what].end)
    await daemon.until(lambda status: status == 200, "/readyz")
    assert "asyncchatd_store_writable 1.0" in await daemon.metrics()
    assert len(await daemon.push_many("after", 5)) == 5
    assert len(daemon.said("store_unwritable")) == len(daemon.said("store_writable")) == 1
