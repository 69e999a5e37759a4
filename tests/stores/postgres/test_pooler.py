"""Behind PgBouncer in transaction mode: what a node needs there, and that it works."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncchatd.model import Reason
from asyncchatd.rehearsing.together.database import Server, server
from asyncchatd.stores import StoreError, make_store
from asyncchatd.stores.postgres import connect, place_of
from asyncchatd.stores.postgres.checking import PARAMETERS

from ..desk import SECOND, Desk, push, registration
from .pooler import PROGRAM, ROLE, pooler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="needs PgBouncer: apt-get install pgbouncer"),
]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with server() as one:
        yield one


async def told(postgres: Server, statement: str) -> None:
    connection = await connect(place_of(postgres.url("asyncchatd")).address)
    await connection.script(statement)
    await connection.close()


async def tables(postgres: Server, schema: str) -> int:
    connection = await connect(place_of(postgres.url("asyncchatd")).address)
    found = await connection.value("SELECT count(*) FROM pg_tables WHERE schemaname=$1", schema)
    await connection.close()
    return int(found)


async def test_it_makes_no_tables_elsewhere_where_the_pooler_drops_the_schema(
    postgres: Server, tmp_path: Path
) -> None:
    with pooler(postgres) as url:
        store = make_store(url, directory=tmp_path)
        with pytest.raises(StoreError, match="a pooler drops search_path; ALTER ROLE"):
            await store.open()
        await store.close()
    assert await tables(postgres, "public") == 0


async def test_two_nodes_behind_it_claim_each_session_once(postgres: Server, tmp_path: Path) -> None:
    await told(postgres, ROLE.format(role="postgres"))
    with pooler(postgres) as url:
        one, two = (make_store(f"{url}&node={name}", directory=tmp_path) for name in ("one", "two"))
        await one.open()
        await two.open()
        assert await tables(postgres, "public") == 0 < await tables(postgres, "asyncchatd")
        nodes = await two.nodes()
        assert nodes is not None
        assert [node.name for node in nodes] == ["one", "two"]
        desk, other = Desk(one), Desk(two)
        chats = {f"chat-{number}" for number in range(40)}
        await desk.register(*map(registration, sorted(chats)), spread_ms=0)
        other.now = desk.later(SECOND)
        claims = await asyncio.gather(*(each.claim(5) for _ in range(4) for each in (desk, other)))
        assert sorted(claim.chat_id for some in claims for claim in some) == sorted(chats)
        await desk.answer(*(claim for some in claims[::2] for claim in some))
        await other.answer(*(claim for some in claims[1::2] for claim in some))
        await desk.push(push("chat-7"))
        assert [claim.chat_id for claim in await other.claim(reasons=[Reason.ACKNOWLEDGE])] == ["chat-7"]
        await one.close()
        await two.close()


def test_the_page_of_nodes_names_what_they_need_there() -> None:
    page = (Path(__file__).parents[3] / "docs" / "nodes.md").read_text()
    assert ROLE.format(role="chats").strip() in page
    assert f"ignore_startup_parameters = {PARAMETERS}" in page
