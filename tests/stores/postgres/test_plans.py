"""A statement about some rows reads these alone, also while PostgreSQL has counted nothing of the tables."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from asyncchatd.stores.postgres import PostgresStore, opening
from asyncchatd.stores.postgres.transactions import work
from asyncchatd.stores.postgres.wire import Tx

from ..desk import SPREAD, Desk, answered, registration
from .server import Server, server
from .test_together import together

MANY = 2_000
FEW = 16
READS = 8
"""A settlement reads each row of a session four times: it is looked up, locked, and changed in both tables."""


@pytest.fixture(scope="module")
def uncounted() -> Iterator[Server]:
    """A server that counts nothing by itself."""
    with server(autovacuum="off") as one:
        yield one


@pytest.fixture
async def desk(uncounted: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    async with together(uncounted, 1, tmp_path, monkeypatch) as [store]:
        yield Desk(store)


async def test_a_settlement_reads_its_own_sessions_alone(desk: Desk) -> None:
    await register(desk, MANY)
    assert await read_by_a_settlement(desk) <= FEW * READS


async def test_what_was_planned_for_empty_tables_is_planned_anew(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(desk, 1)
    await read_by_a_settlement(desk)
    await register(desk, MANY)
    monkeypatch.setattr(opening, "PLANS_SECONDS", 0.0)
    assert await read_by_a_settlement(desk) <= FEW * READS


async def register(desk: Desk, count: int) -> None:
    """Sessions of one Chat Server."""
    await desk.register(*(registration(f"chat-{count}-{number}") for number in range(count)))


async def read_by_a_settlement(desk: Desk) -> int:
    """How many rows of sessions one settlement reads."""
    desk.later(SPREAD)
    settlements = [
        answered(claim, sent_at=desk.now, settled_at=desk.now) for claim in await desk.claim(limit=FEW)
    ]

    async def settle(tx: Tx) -> int:
        assert await work.settle_alike(tx, settlements, durable=False) is not None
        return int(await tx.value(_READ))

    store = desk.store
    assert isinstance(store, PostgresStore)
    return await store._writing(settle)


_READ = """SELECT sum(coalesce(idx_tup_fetch, 0) + seq_tup_read) FROM pg_stat_xact_user_tables
    WHERE schemaname=current_schema() AND relname IN ('session', 'work')"""
