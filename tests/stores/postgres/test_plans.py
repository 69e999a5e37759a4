"""A statement about some rows reads these alone, also while PostgreSQL has counted nothing of the tables; and some rows
are one statement."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from asyncchatd.model import Claim, Settlement, Verdict
from asyncchatd.stores.postgres import PostgresStore, opening
from asyncchatd.stores.postgres.transactions import settling
from asyncchatd.stores.postgres.wire import Row, Tx

from ..desk import SPREAD, Desk, answered, registration
from .server import Server, server
from .test_together import together

pytestmark = pytest.mark.slow  # a server of its own

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
        assert await settling.settle_alike(tx, settlements, durable=False) is not None
        return int(await tx.value(_READ))

    store = desk.store
    assert isinstance(store, PostgresStore)
    return await store._writing(settle)


_READ = """SELECT sum(coalesce(idx_tup_fetch, 0) + seq_tup_read) FROM pg_stat_xact_user_tables
    WHERE schemaname=current_schema() AND relname IN ('session', 'work')"""


async def test_what_is_given_back_costs_as_many_statements_however_much_it_is(desk: Desk) -> None:
    await register(desk, FEW + 1)
    desk.later(SPREAD)
    first, *others = await desk.claim(limit=FEW + 1)
    assert len(others) == FEW
    assert await statements_to_give_back(desk, others) == await statements_to_give_back(desk, [first])


async def statements_to_give_back(desk: Desk, claims: Sequence[Claim]) -> int:
    given_back = [Settlement(each, Verdict.RELEASED, each.due_at, settled_at=desk.now) for each in claims]

    async def settle(tx: Tx) -> int:
        counting = Counting(tx)
        settled, _ = await settling.settle(counting, given_back)
        assert all(each.lease_held for each in settled)
        return counting.count

    store = desk.store
    assert isinstance(store, PostgresStore)
    return await store._writing(settle)


class Counting:
    """A transaction that counts its statements."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self.sealing, self.kinds, self.shown = tx.sealing, tx.kinds, tx.shown
        self.count = 0

    async def rows(self, sql: str, *values: object) -> Sequence[Row]:
        self.count += 1
        return await self._tx.rows(sql, *values)

    async def row(self, sql: str, *values: object) -> Row | None:
        self.count += 1
        return await self._tx.row(sql, *values)

    async def value(self, sql: str, *values: object) -> Any:
        self.count += 1
        return await self._tx.value(sql, *values)

    async def run(self, sql: str, *values: object) -> int:
        self.count += 1
        return await self._tx.run(sql, *values)

    async def script(self, sql: str) -> None:
        self.count += 1
        await self._tx.script(sql)
